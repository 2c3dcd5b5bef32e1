# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from monai_nodeo.flows import Coordinates, Decoder, EulerianVelocity, Lattice, NODEONet, VelocityModel
from monai_nodeo.flows.parametrisations import Parametrisation
from monai_nodeo.flows.solver import ODESolver
from monai_nodeo.geometry.coordinates import identity_grid, phi_to_ddf, voxels_per_unit
from monai_nodeo.geometry.smoothing import AveragingSmoothing, GaussianSmoothing, SeparableSmoothing
from monai_nodeo.losses import SmoothnessLoss

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
@pytest.mark.parametrize("batch", [1, 2])
def test_velocity_has_the_shape_of_the_cloud(shape: tuple[int, ...], batch: int) -> None:
    phi = identity_grid(shape).expand(batch, -1, *shape)

    assert small_net(shape)(phi).shape == (batch, len(shape), *shape)


@pytest.mark.parametrize("shape", [(97, 131, 64), (97, 131)])
def test_published_network_takes_any_shape(shape: tuple[int, ...]) -> None:
    net = NODEONet(len(shape), shape)

    velocity = net(identity_grid(shape), torch.tensor(0.5))

    assert velocity.shape == (1, len(shape), *shape)
    assert velocity.isfinite().all()
    assert net.lattice_size == tuple(math.ceil(n / 4) for n in shape)


@every_shape
@pytest.mark.parametrize("kernel", range(4))
def test_output_is_lattice_then_interpolation_then_smoothing(shape: tuple[int, ...], kernel: int) -> None:
    net = small_net(shape, smoothing=smoothings(len(shape))[kernel], scale=1.0)
    phi = identity_grid(shape) + 0.1 * torch.randn(2, len(shape), *shape)

    torch.testing.assert_close(net(phi), by_hand(net, phi), rtol=1e-4, atol=1e-6)


@every_shape
def test_default_kernel_averages_15_voxels(shape: tuple[int, ...]) -> None:
    net = small_net(shape)

    assert isinstance(net.smoothing, AveragingSmoothing)
    assert (net.smoothing.window, net.smoothing.passes) == (15, 1)


@every_shape
def test_published_model_does_not_depend_on_time(shape: tuple[int, ...]) -> None:
    net, phi = small_net(shape), identity_grid(shape)

    assert torch.equal(net(phi), net(phi, torch.tensor(0.3)))


@every_shape
def test_scale_is_a_factor(shape: tuple[int, ...]) -> None:
    net, phi = small_net(shape), identity_grid(shape)
    other = small_net(shape, scale=0.5)
    other.load_state_dict(net.state_dict())

    torch.testing.assert_close(other(phi), net(phi) * 500)


@every_shape
def test_a_lattice_of_one_value_moves_every_voxel_alike(shape: tuple[int, ...]) -> None:
    net = small_net(shape, scale=1.0)
    last = net.decoder[3]
    torch.nn.init.zeros_(last.weight)
    wanted = torch.tensor([1.5, -2.0, 0.25][: len(shape)])
    last.bias.data = wanted.repeat_interleave(math.prod(net.lattice_size))

    velocity = net(identity_grid(shape))

    torch.testing.assert_close(velocity, wanted.view(1, -1, *[1] * len(shape)).expand_as(velocity))


@every_shape
def test_gradient_reaches_every_parameter(shape: tuple[int, ...]) -> None:
    net = small_net(shape)

    net(identity_grid(shape)).square().sum().backward()

    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@every_shape
def test_gradient_of_the_last_layer_is_that_of_the_composition(shape: tuple[int, ...]) -> None:
    net = small_net(shape, scale=1.0)
    phi = identity_grid(shape)
    weight = torch.randn(1, len(shape), *shape)

    ours, expected = (
        torch.autograd.grad((out * weight).sum(), list(net.parameters())) for out in (net(phi), by_hand(net, phi))
    )

    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


# Options


@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("num_convolutions", [1, 3, 6])
def test_encoder_has_the_convolutions_asked_for(channels: int, num_convolutions: int) -> None:
    shape = (9, 11, 13)
    net = small_net(shape, channels=channels, num_convolutions=num_convolutions)

    convolutions = [m for m in net.encoder if isinstance(m, torch.nn.Conv3d)]

    assert [c.in_channels for c in convolutions] == [3] + [channels] * (num_convolutions - 1)
    assert {c.out_channels for c in convolutions} == {channels}
    between = [torch.nn.ReLU, torch.nn.Conv3d] * (num_convolutions - 1)
    assert [type(m) for m in net.encoder] == [torch.nn.Conv3d, *between]
    assert net(identity_grid(shape)).shape == (1, 3, *shape)


@pytest.mark.parametrize("bottleneck", [1, 16])
def test_bottleneck_is_between_the_linear_layers(bottleneck: int) -> None:
    linear = [m for m in small_net((9, 13), bottleneck=bottleneck).decoder if isinstance(m, torch.nn.Linear)]

    assert [linear[0].out_features, linear[1].in_features] == [bottleneck] * 2


@pytest.mark.parametrize("downsample", [1, 2, 3, 4])
@every_shape
def test_downsample_is_voxels_per_node(downsample: int, shape: tuple[int, ...]) -> None:
    net = small_net(shape, downsample=downsample, scale=1.0)
    phi = identity_grid(shape)

    assert net.lattice_size == tuple(math.ceil(n / downsample) for n in shape)
    assert net.min_size == 2 * downsample
    torch.testing.assert_close(net(phi), by_hand(net, phi), rtol=1e-4, atol=1e-6)


def test_one_number_is_all_sides() -> None:
    assert NODEONet(2, 20, **SMALL).image_size == (20, 20)
    assert NODEONet(**SMALL).image_size == (32, 32, 32)


@pytest.mark.parametrize(("shape", "downsample"), [((7, 32), 4), ((32, 32, 1), 4), ((15, 40, 40), 8)])
def test_too_small_an_image_is_refused_with_what_to_do(shape: tuple[int, ...], downsample: int) -> None:
    message = (
        rf"image_size \({shape[0]}, .*downsample={downsample}.*at least {2 * downsample} voxels; .*lower downsample"
    )
    with pytest.raises(ValueError, match=message):
        small_net(shape, downsample=downsample)


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 8)])
def test_smallest_image_is_enough(shape: tuple[int, ...]) -> None:
    net = NODEONet(len(shape), shape)

    assert set(shape) == {net.min_size}
    assert net(identity_grid(shape)).shape == (1, len(shape), *shape)


@pytest.mark.parametrize(("dims", "shape"), [(3, (32, 32)), (2, (32, 32, 32))])
def test_image_size_of_another_dimension_is_refused(dims: int, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"spatial_dims={dims} entries"):
        NODEONet(dims, shape, **SMALL)


# Copies


@pytest.mark.parametrize(("shape", "other"), [((9, 13), (20, 11)), ((9, 11, 13), (17, 8, 10))])
def test_fresh_has_the_options_and_new_weights_for_another_shape(
    shape: tuple[int, ...], other: tuple[int, ...]
) -> None:
    kernel = GaussianSmoothing(len(shape), 1.5, passes=2)
    prototype = small_net(shape, downsample=3, smoothing=kernel, scale=0.25)
    before = copy.deepcopy(prototype.state_dict())

    net = prototype.fresh(other)

    options = ["spatial_dims", "channels", "num_convolutions", "bottleneck", "downsample", "scale", "min_size"]
    assert [getattr(net, name) for name in options] == [getattr(prototype, name) for name in options]
    assert (net.smoothing.kernel(), net.smoothing.passes) == (kernel.kernel(), 2)
    assert net.image_size == other
    assert net(identity_grid(other)).shape == (1, len(other), *other)
    assert prototype.image_size == shape
    for name, value in prototype.state_dict().items():
        assert torch.equal(value, before[name]), name


@every_shape
def test_fresh_shares_no_weight_even_for_the_same_shape(shape: tuple[int, ...]) -> None:
    prototype = small_net(shape)
    before = copy.deepcopy(prototype.state_dict())
    net = prototype.fresh(shape)

    for name, value in net.named_parameters():
        assert not torch.equal(value, before[name]), name
    with torch.no_grad():
        for value in net.parameters():
            value.zero_()
    for name, value in prototype.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_fresh_weights_follow_the_seed_not_the_prototype() -> None:
    shape = (9, 13)
    nets = []
    for prototype in (small_net(shape), small_net((20, 30))):
        torch.manual_seed(7)
        nets.append(prototype.fresh(shape))

    for a, b in zip(*(net.parameters() for net in nets), strict=True):
        assert torch.equal(a, b)


@every_shape
def test_state_dict_round_trip(shape: tuple[int, ...]) -> None:
    net, phi = small_net(shape), identity_grid(shape)
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)

    other = net.fresh(shape)
    other.load_state_dict(torch.load(file, weights_only=True))

    assert set(net.state_dict()) == {name for name, _ in net.named_parameters()}
    assert torch.equal(other(phi), net(phi))


@every_shape
def test_deepcopy_gives_the_same_and_is_its_own(shape: tuple[int, ...]) -> None:
    net, phi = small_net(shape), identity_grid(shape)
    expected = net(phi).detach()

    other = copy.deepcopy(net)
    assert torch.equal(other(phi), expected)
    with torch.no_grad():
        for value in other.parameters():
            value.add_(1)

    assert torch.equal(net(phi), expected)


def test_network_moves_to_another_type_whole() -> None:
    shape = (9, 11, 13)
    net = small_net(shape, scale=1.0)
    expected = net(identity_grid(shape))

    velocity = net.double()(identity_grid(shape, dtype=torch.float64))

    assert velocity.dtype == torch.float64
    torch.testing.assert_close(velocity.float(), expected, rtol=1e-4, atol=1e-6)


def test_a_velocity_model_says_how_to_make_another() -> None:
    class NoFresh(VelocityModel):
        def forward(self, phi: Tensor, t: Tensor | None = None) -> Tensor:
            return phi

    with pytest.raises(TypeError, match="fresh"):
        NoFresh()  # type: ignore[abstract]


# Eulerian velocity

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
def test_every_parametrisation_starts_at_rest_and_takes_any_shape(make, shape, keyframes) -> None:
    small = make((8,) * len(shape), keyframes=keyframes)
    images: Parametrisation = small.fresh(shape)

    assert images().shape == (keyframes, len(shape), *shape)
    assert not images().any()
    assert (images.image_size, images.keyframes) == (shape, keyframes)
    model = EulerianVelocity(len(shape), shape, small)
    assert not model(identity_grid(shape), torch.tensor(0.3)).any()


@every_parametrisation
@every_eulerian_shape
def test_a_few_steps_move_the_cloud_where_it_should_go(make, shape) -> None:
    model = EulerianVelocity(len(shape), shape, make((8,) * len(shape)))
    identity = identity_grid(shape)
    wanted = identity * 0.9 + 0.05
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        arrived = ODESolver("euler", 2)(model.flow(identity).velocity, identity)[-1]
        losses.append((arrived - wanted).square().mean())
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.3 * losses[0]


@every_eulerian_shape
@pytest.mark.parametrize("method", ["euler", "rk4"])
def test_a_constant_velocity_is_a_translation(shape, method) -> None:
    model = EulerianVelocity(len(shape), shape)
    shift = torch.tensor([1.5, -2.0, 0.25][: len(shape)]).view(1, -1, *[1] * len(shape))
    set_nodes(model, shift.expand(1, -1, *shape))
    identity = identity_grid(shape)

    ddf = phi_to_ddf(ODESolver(method, 3)(model, identity)[-1], identity)

    # nodes are in steps of the points
    torch.testing.assert_close(ddf, shift.expand_as(ddf), atol=1e-5, rtol=0)


@every_eulerian_shape
def test_a_velocity_belongs_to_places(shape) -> None:
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
@every_parametrisation
@pytest.mark.parametrize("keyframes", [1, 3])
def test_a_flow_is_the_velocity(shape, make, keyframes) -> None:
    model = eulerian(shape, make, keyframes)
    identity = identity_grid(shape)
    velocity, images = model.flow(identity)

    assert len(images) == keyframes
    for time in (0.0, 0.3, 1.0):
        for phi in (identity, identity * 0.8):
            t = torch.tensor(time)
            torch.testing.assert_close(velocity(phi, t), model(phi, t), atol=1e-6, rtol=1e-5)
    for image, time in zip(images, torch.linspace(0, 1, max(keyframes, 2)), strict=False):
        torch.testing.assert_close(image, model(identity, time), atol=1e-6, rtol=1e-5)


@every_eulerian_shape
def test_keyframes_are_interpolated_in_time(shape) -> None:
    model = eulerian(shape, keyframes=3)
    phi = identity_grid(shape) * 0.8

    def at(time: float) -> Tensor:
        return model(phi, torch.tensor(time))

    torch.testing.assert_close(at(0.25), (at(0.0) + at(0.5)) / 2)
    torch.testing.assert_close(at(0.9), 0.2 * at(0.5) + 0.8 * at(1.0))
    assert (at(0.0) - at(0.5)).abs().max() > 1e-3
    with pytest.raises(ValueError, match="several keyframes needs the time"):
        model(phi)


def test_equal_keyframes_are_one() -> None:
    shape = EULERIAN_SHAPES[0]
    one, three = eulerian(shape), EulerianVelocity(2, shape, Lattice((8, 8), 3))
    set_nodes(three, one.parametrisation().expand(3, -1, *shape))
    phi = identity_grid(shape) * 0.8
    torch.testing.assert_close(three(phi, torch.tensor(0.3)), one(phi))


@every_parametrisation
@pytest.mark.parametrize(
    ("shape", "finer", "spacing"), [((9, 13), (17, 25), (1.0, 1.0)), ((7, 9, 12), (12, 15, 12), (1.0, 1.0, 2.0))]
)
@pytest.mark.parametrize("keyframes", [1, 2])
def test_a_finer_model_goes_on_with_the_velocity(make, shape, finer, spacing, keyframes) -> None:
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
def test_a_linear_velocity_is_kept_exactly(shape, finer) -> None:
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
def test_a_step_is_as_long_in_mm_along_every_axis(shape) -> None:
    dims = len(shape)
    spacing = (1.0, 2.5, 4.0)[:dims]
    model = EulerianVelocity(dims, shape, smoothing=AveragingSmoothing(dims, passes=0), spacing=spacing)
    set_nodes(model, torch.ones(1, dims, *shape))
    velocity = model(identity_grid(shape)) * voxels_per_unit(shape, torch.float32, torch.device("cpu"))
    in_mm = velocity * torch.tensor(spacing).view(1, -1, *[1] * dims)
    torch.testing.assert_close(in_mm, torch.ones_like(in_mm))


@every_eulerian_shape
def test_the_kernel_is_as_long_in_mm_along_every_axis(shape) -> None:
    dims = len(shape)
    spacing = (1.0, 2.0, 4.0)[:dims]
    kernel = GaussianSmoothing(dims, 1.5)
    model = EulerianVelocity(dims, shape, smoothing=kernel, spacing=spacing)
    for axis, (matrix, side) in enumerate(zip(kernel.matrices(shape, spacing=spacing), spacing, strict=True)):
        assert torch.equal(model.get_buffer(f"kernel_{axis}"), matrix)
        # the row of a node in the middle is a Gaussian of 1.5 mm
        row = matrix[shape[axis] // 2].double()
        reach = (torch.arange(shape[axis]) - shape[axis] // 2) * side
        assert (row * reach.square()).sum() < 1.5**2 * 1.05


def test_smoothing_makes_a_smooth_velocity() -> None:
    shape = (17, 21)
    rough, smooth = (eulerian(shape, smoothing=GaussianSmoothing(2, sigma)) for sigma in (0.3, 3.0))
    set_nodes(smooth, rough.parametrisation())
    identity = identity_grid(shape)
    assert SmoothnessLoss()(smooth(identity)) < 0.1 * SmoothnessLoss()(rough(identity))


@every_eulerian_shape
def test_the_flow_of_a_smooth_velocity_does_not_fold_and_its_negative_undoes_it(shape) -> None:
    model = eulerian(shape, smoothing=GaussianSmoothing(len(shape), 2.0))
    identity = identity_grid(shape)
    solver = ODESolver("rk4", 8)
    there = solver(model, identity)[-1]
    back = solver(lambda phi, t: -model(phi, t), there)[-1]
    inside = (..., *[slice(2, -2)] * len(shape))
    torch.testing.assert_close(back[inside], identity[inside], atol=2e-3, rtol=0)
    assert (there - identity).abs().max() > 0.02


@every_parametrisation
@every_eulerian_shape
def test_the_adjoint_gradient_is_similar(shape, make) -> None:
    model = eulerian(shape, make, smoothing=GaussianSmoothing(len(shape), 2.0))
    identity, weight = identity_grid(shape), torch.randn(1, len(shape), *shape)
    gradients = []
    for adjoint in (False, True):
        arrived = ODESolver("rk4", 8, adjoint=adjoint)(model, identity)[-1]
        grads = torch.autograd.grad((arrived * weight).sum(), list(model.parameters()))
        gradients.append(torch.cat([g.flatten() for g in grads]))
    direct, by_adjoint = gradients
    assert torch.cosine_similarity(direct, by_adjoint, dim=0) > 0.98


@pytest.mark.parametrize("shape", [(1, 9), (7, 1, 9)])
def test_an_axis_of_one_point_does_not_move(shape) -> None:
    velocity = eulerian(shape)(identity_grid(shape))
    assert velocity.isfinite().all()
    assert not velocity[:, shape.index(1)].any()


def test_eulerian_models_of_another_dimension_are_refused() -> None:
    with pytest.raises(ValueError, match="spatial_dims=3 entries"):
        EulerianVelocity(3, (8, 9))
    with pytest.raises(ValueError, match="keyframes must be at least 1, got 0"):
        Lattice((8, 9), keyframes=0)


def test_a_network_of_nodeo_has_no_finer_one_and_flows_as_itself() -> None:
    net = small_net((9, 13))
    with pytest.raises(ValueError, match="NODEONet cannot go on from a coarser level"):
        net.finer((17, 25))
    velocity, images = net.flow(identity_grid((9, 13)))
    assert velocity is net
    assert images == ()
