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

from monai_nodeo.fields import identity_grid
from monai_nodeo.layers import AveragingSmoothing, GaussianSmoothing, SeparableSmoothing
from monai_nodeo.networks import NODEONet, VelocityModel

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
