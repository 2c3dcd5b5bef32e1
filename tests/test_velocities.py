# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from monai_nodeo.flows import (
    Coordinates,
    Decoder,
    EulerianVelocity,
    Lattice,
    NODEONet,
    NodeVelocity,
    VelocityBatch,
    VelocityField,
)
from monai_nodeo.flows.parametrisations import Parametrisation
from monai_nodeo.geometry.coordinates import identity_grid, phi_to_ddf, voxels_per_unit
from monai_nodeo.geometry.smoothing import AveragingSmoothing, GaussianSmoothing, SeparableSmoothing

SHAPES = [(9, 13), (16, 8), (9, 11, 13), (8, 10, 17)]
SMALL: dict[str, Any] = {"channels": 6, "num_convolutions": 2, "bottleneck": 8}
every_shape = pytest.mark.parametrize("shape", SHAPES)


def small_net(shape: tuple[int, ...], **options: Any) -> NODEONet:
    return NODEONet(len(shape), shape, **{**SMALL, **options})


def smoothings(dims: int) -> list[SeparableSmoothing | None]:
    return [None, AveragingSmoothing(dims, 5, 2), AveragingSmoothing(dims, passes=0), GaussianSmoothing(dims, 1.5)]


def by_hand(net: NODEONet, phi: Tensor) -> Tensor:
    """The published order: lattice, interpolated to the grid, then smoothed."""
    dims = phi.ndim - 2
    pool, mode = (F.avg_pool2d, "bilinear") if dims == 2 else (F.avg_pool3d, "trilinear")
    lattice = net.decoder(net.encoder(pool(phi, 2)))
    size = phi.shape[2:]
    while all(2 * nodes <= n for nodes, n in zip(lattice.shape[2:], size, strict=True)):
        lattice = F.interpolate(lattice, scale_factor=2, mode=mode, align_corners=False)
    return net.scale * net.smoothing(F.interpolate(lattice, size, mode=mode, align_corners=False))


@every_shape
@pytest.mark.parametrize(("kernel", "downsample"), [(0, 4), (1, 1), (2, 2), (3, 3)])
def test_output_is_lattice_then_interpolation_then_smoothing(shape, kernel, downsample):
    net = small_net(shape, smoothing=smoothings(len(shape))[kernel], downsample=downsample, scale=1.0)
    phi = identity_grid(shape) + 0.1 * torch.randn(2, len(shape), *shape)
    assert net.lattice_size == tuple(math.ceil(n / downsample) for n in shape)
    assert net.min_size == 2 * downsample
    torch.testing.assert_close(net(phi), by_hand(net, phi), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("shape", "downsample"), [((7, 32), 4), ((32, 32, 1), 4), ((15, 40, 40), 8)])
def test_too_small_an_image_is_refused_with_what_to_do(shape, downsample):
    message = (
        rf"image_size \({shape[0]}, .*downsample={downsample}.*at least {2 * downsample} voxels; .*lower downsample"
    )
    with pytest.raises(ValueError, match=message):
        small_net(shape, downsample=downsample)


PARAMETRISATIONS: dict[str, Any] = {
    "lattice": Lattice,
    "decoder": lambda size, keyframes=1: Decoder(size, keyframes, bottleneck=4),
    "coordinates": lambda size, keyframes=1: Coordinates(size, keyframes, channels=8, frequencies=6, highest=1.0),
}
every_parametrisation = pytest.mark.parametrize("make", PARAMETRISATIONS.values(), ids=PARAMETRISATIONS)
EULERIAN_SHAPES = [(9, 13), (7, 9, 12)]
every_eulerian_shape = pytest.mark.parametrize("shape", EULERIAN_SHAPES)


def eulerian(shape: tuple[int, ...], make: Any = Lattice, keyframes: int = 1, **options: Any) -> EulerianVelocity:
    """With random weights."""
    model = EulerianVelocity(len(shape), shape, make((8,) * len(shape), keyframes=keyframes), **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def set_nodes(model: EulerianVelocity, nodes: Tensor) -> None:
    """Nodes (keyframes, D, *shape) of a lattice."""
    assert isinstance(model.parametrisation, Lattice)
    model.parametrisation.nodes.data.copy_(nodes)


@every_parametrisation
@every_eulerian_shape
@pytest.mark.parametrize("keyframes", [1, 3])
def test_every_parametrisation_starts_at_rest_and_takes_any_shape(make, shape, keyframes):
    small = make((8,) * len(shape), keyframes=keyframes)
    images: Parametrisation = small.fresh(shape)
    assert images().shape == (keyframes, len(shape), *shape)
    assert not images().any()
    assert (images.image_size, images.keyframes) == (shape, keyframes)
    model = EulerianVelocity(len(shape), shape, small)
    assert not model(identity_grid(shape), torch.tensor(0.3)).any()


@every_eulerian_shape
def test_a_velocity_belongs_to_places(shape):
    model = eulerian(shape)
    cloud = (identity_grid(shape) * 0.7).repeat(2, *[1] * (1 + len(shape)))
    order = torch.randperm(shape[-1])
    velocity = model(cloud)
    assert velocity.shape == cloud.shape
    torch.testing.assert_close(model(cloud[..., order]), velocity[..., order])
    image = model(identity_grid(shape))
    expected = F.grid_sample(image, cloud[:1].movedim(1, -1).flip(-1), padding_mode="border", align_corners=True)
    torch.testing.assert_close(velocity[:1], expected, atol=1e-6, rtol=1e-5)


@every_eulerian_shape
def test_keyframes_are_interpolated_in_time(shape):
    model = eulerian(shape, keyframes=3)
    phi = identity_grid(shape) * 0.8

    def at(time: float) -> Tensor:
        return model(phi, torch.tensor(time))

    torch.testing.assert_close(at(0.25), (at(0.0) + at(0.5)) / 2)
    torch.testing.assert_close(at(0.9), 0.2 * at(0.5) + 0.8 * at(1.0))
    assert (at(0.0) - at(0.5)).abs().max() > 1e-3
    with pytest.raises(ValueError, match="several keyframes needs the time"):
        model(phi)


@every_parametrisation
@pytest.mark.parametrize(
    ("shape", "finer", "spacing"), [((9, 13), (17, 25), (1.0, 1.0)), ((7, 9, 12), (12, 15, 12), (1.0, 1.0, 2.0))]
)
@pytest.mark.parametrize("keyframes", [1, 2])
def test_a_finer_model_goes_on_with_the_velocity(make, shape, finer, spacing, keyframes):
    model = eulerian(shape, make, keyframes)
    fine = model.finer(finer, spacing)
    assert fine.image_size == finer
    # at random places: a linear interpolation between the nodes, here as there
    for time in (0.0, 0.6):
        phi = identity_grid(shape)
        t = torch.tensor(time)
        rough, smooth = fine(phi, t), model(phi, t)
        assert (rough - smooth).norm() < 0.2 * smooth.norm()
    # not a weight is shared
    with torch.no_grad():
        for parameter in fine.parameters():
            parameter.zero_()
    torch.testing.assert_close(fine(phi, t), rough)
    assert not any(parameter.requires_grad for parameter in fine.buffers())


@pytest.mark.parametrize(("shape", "finer"), [((9, 13), (20, 31)), ((7, 9, 12), (12, 15, 25))])
def test_a_linear_velocity_is_kept_exactly(shape, finer):
    dims = len(shape)
    model = EulerianVelocity(dims, shape, smoothing=AveragingSmoothing(dims, passes=0))
    matrix = 0.3 * torch.randn(dims, dims)
    wanted = torch.einsum("ij,bj...->bi...", matrix, identity_grid(shape))
    set_nodes(model, phi_to_ddf(wanted, torch.zeros_like(wanted)))
    torch.testing.assert_close(model(identity_grid(shape)), wanted)
    fine = model.finer(finer)
    places = 2 * torch.rand(1, dims, *shape) - 1
    expected = torch.einsum("ij,bj...->bi...", matrix, places)
    for velocity in (model, fine, fine.finer(tuple(2 * n for n in finer))):
        torch.testing.assert_close(velocity(places), expected, atol=1e-5, rtol=1e-4)


@every_eulerian_shape
def test_a_step_is_as_long_in_mm_along_every_axis(shape):
    dims = len(shape)
    spacing = (1.0, 2.5, 4.0)[:dims]
    model = EulerianVelocity(dims, shape, smoothing=AveragingSmoothing(dims, passes=0), spacing=spacing)
    set_nodes(model, torch.ones(1, dims, *shape))
    velocity = model(identity_grid(shape)) * voxels_per_unit(shape, torch.float32, torch.device("cpu"))
    in_mm = velocity * torch.tensor(spacing).view(1, -1, *[1] * dims)
    torch.testing.assert_close(in_mm, torch.ones_like(in_mm))


@pytest.mark.parametrize("shape", [(1, 9), (7, 1, 9)])
def test_an_axis_of_one_point_does_not_move(shape):
    velocity = eulerian(shape)(identity_grid(shape))
    assert velocity.isfinite().all()
    assert not velocity[:, shape.index(1)].any()


def test_image_sizes_of_another_dimension_are_refused():
    for model in (EulerianVelocity, NODEONet):
        for dims, size in ((3, (32, 32)), (2, (32, 32, 32))):
            with pytest.raises(ValueError, match=f"spatial_dims={dims} entries"):
                model(dims, size)
    with pytest.raises(ValueError, match="keyframes must be at least 1, got 0"):
        Lattice((8, 9), keyframes=0)


@every_eulerian_shape
@pytest.mark.parametrize("keyframes", [1, 3])
def test_what_is_kept_of_a_model_is_its_velocity(shape, keyframes):
    model = eulerian(shape, keyframes=keyframes).finer(tuple(n + 2 for n in shape))
    model.parametrisation.nodes.data.normal_()
    kept, phi = model.kept(), 1.2 * torch.rand(2, len(shape), *shape)
    assert isinstance(kept, VelocityField)
    assert kept.image_size == model.image_size
    assert not any(parameter.requires_grad for parameter in kept.parameters())
    for time in torch.tensor([0.0, 0.3, 1.0]):
        torch.testing.assert_close(kept(phi, time), model(phi, time))
    finer = kept.finer(tuple(2 * n for n in kept.image_size))
    assert finer.images.shape == (keyframes, len(shape), *[2 * n for n in kept.image_size])
    assert not kept.fresh(shape).images.any()
    assert len(kept.fresh(shape).images) == keyframes


@every_eulerian_shape
def test_a_velocity_at_nodes_is_theirs_and_linear_in_space_and_time(shape):
    images = torch.randn(3, len(shape), *shape)
    field = VelocityField.of(images)
    for time, expected in ((0.0, images[0]), (0.5, images[1]), (0.85, 0.3 * images[1] + 0.7 * images[2])):
        torch.testing.assert_close(field(identity_grid(shape), torch.tensor(time))[0], expected, atol=1e-5, rtol=1e-4)
    both = field.together([field, VelocityField.of(-images)])
    assert not both.stationary
    for a, b in zip(both.keyframes, images, strict=True):
        assert torch.equal(a, torch.stack([b, -b]))
    assert NodeVelocity([images]).stationary


MODELS: dict[str, Any] = {
    **{
        f"{name}, {keyframes} keyframes": lambda shape, make=make, keyframes=keyframes: eulerian(shape, make, keyframes)
        for name, make in PARAMETRISATIONS.items()
        for keyframes in (1, 2)
    },
    "finer": lambda shape: eulerian(shape, keyframes=2).finer(shape),
    "nodeo": small_net,
    "field": lambda shape: VelocityField.of(torch.randn(2, len(shape), *shape)),
}
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
CLOUDS = [(9, 13), (8, 9, 12)]
every_cloud = pytest.mark.parametrize("shape", CLOUDS)


@every_model
@every_cloud
def test_a_state_dict_holds_all_of_a_model_and_it_moves_to_another_type_whole(make, shape):
    """Once the velocity of the coarser levels was not in it, and a loaded model stood still."""
    model, phi, time = make(shape), identity_grid(shape), torch.tensor(0.4)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = model.fresh(shape)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert model(phi, time).any()
    assert torch.equal(other(phi, time), model(phi, time))
    velocity = other.double()(phi.double(), time)
    assert velocity.dtype == torch.float64
    torch.testing.assert_close(velocity.float(), model(phi, time), rtol=1e-4, atol=1e-5)


@every_model
@every_cloud
def test_a_batch_of_models_is_each_of_them_alone(make, shape):
    models = [make(shape) for _ in range(3)]
    phi, time = identity_grid(shape) + 0.2 * torch.randn(3, len(shape), *shape), torch.tensor(0.4)
    batch = VelocityBatch(models)
    alone = torch.cat([model(item, time) for model, item in zip(models, phi.split(1), strict=True)])
    torch.testing.assert_close(batch(phi, time), alone, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(batch.velocity()(phi, time), alone, rtol=1e-4, atol=1e-6)
