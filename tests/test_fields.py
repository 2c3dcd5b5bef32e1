# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from monai.networks.blocks import Warp
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn import functional as F

from monai_nodeo.geometry.coordinates import ddf_to_phi, identity_grid, phi_to_ddf, rescale_points
from monai_nodeo.geometry.jacobian import jacobian_determinant, lower_corner
from monai_nodeo.geometry.resizing import resize, resize_ddf
from monai_nodeo.geometry.sampling import make_warp, warp, weighted_mean

SHAPES = [(9, 13), (12, 7), (9, 11, 13), (6, 8, 5)]
WITH_SINGLE_VOXEL = [(1, 7), (7, 1), (6, 1, 5), (6, 5, 1)]


def voxels(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    """Index of every voxel, (1, D, *shape), made without the module under test."""
    return torch.from_numpy(np.indices(shape)).to(dtype).unsqueeze(0)


def noise(shape: tuple[int, ...], size: float = 1.0, batch: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return size * torch.randn(batch, len(shape), *shape, dtype=dtype)


def linear_field(matrix: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.einsum("ij,bj...->bi...", matrix, voxels(shape))


def swap_axes(x: Tensor, order: tuple[int, ...]) -> Tensor:
    """New axis ``a`` is the old axis ``order[a]``."""
    return x.permute(0, 1, *(2 + axis for axis in order))


def swap_ddf(ddf: Tensor, order: tuple[int, ...]) -> Tensor:
    """As :func:`swap_axes`, the channels with the axes."""
    return swap_axes(ddf, order)[:, list(order)]


# Grids and units


@pytest.mark.parametrize("shape", SHAPES)
def test_grid_runs_from_minus_one_to_one_along_its_own_axis(shape: tuple[int, ...]) -> None:
    grid = identity_grid(shape, dtype=torch.float64)

    spans = torch.tensor(shape, dtype=torch.float64).view(1, -1, *[1] * len(shape)) - 1
    torch.testing.assert_close(grid, 2 * voxels(shape) / spans - 1)
    assert grid.amin() == -1
    assert grid.amax() == 1


def test_grid_is_float32_unless_told() -> None:
    assert identity_grid((4, 5)).dtype == torch.float32
    assert identity_grid((4, 5), device="cpu", dtype=torch.float64).dtype == torch.float64


@pytest.mark.parametrize("shape", WITH_SINGLE_VOXEL)
def test_axis_of_one_voxel_lies_at_zero(shape: tuple[int, ...]) -> None:
    grid = identity_grid(shape)

    assert grid.shape == (1, len(shape), *shape)
    assert not grid[:, shape.index(1)].any()


@pytest.mark.parametrize("shape", SHAPES)
def test_ddf_and_phi_are_inverse(shape: tuple[int, ...]) -> None:
    identity = identity_grid(shape, dtype=torch.float64)
    ddf, phi = noise(shape, 3.0, batch=2), identity + noise(shape, 0.2, batch=2)

    torch.testing.assert_close(phi_to_ddf(ddf_to_phi(ddf, identity), identity), ddf)
    torch.testing.assert_close(ddf_to_phi(phi_to_ddf(phi, identity), identity), phi)


@pytest.mark.parametrize("shape", SHAPES)
def test_one_voxel_along_an_axis_is_the_step_of_the_grid(shape: tuple[int, ...]) -> None:
    identity = identity_grid(shape, dtype=torch.float64)
    for axis in range(len(shape)):
        ddf = torch.zeros_like(identity)
        ddf[:, axis] = 1
        phi = ddf_to_phi(ddf, identity).movedim(2 + axis, 0)
        torch.testing.assert_close(phi[:-1], identity.movedim(2 + axis, 0)[1:])


@pytest.mark.parametrize("shape", WITH_SINGLE_VOXEL)
def test_axis_of_one_voxel_has_no_extent_to_be_displaced_in(shape: tuple[int, ...]) -> None:
    identity = identity_grid(shape, dtype=torch.float64)
    ddf, single = noise(shape), shape.index(1)

    phi = ddf_to_phi(ddf, identity)
    back = phi_to_ddf(phi, identity)

    assert not phi[:, single].any()
    ddf[:, single] = 0
    torch.testing.assert_close(back, ddf)


@pytest.mark.parametrize("shape", [(3, 4), (1, 4), (3, 2, 4), (3, 1, 4)])
def test_gradient_of_conversions(shape: tuple[int, ...]) -> None:
    identity = identity_grid(shape, dtype=torch.float64)
    field = noise(shape).requires_grad_()

    assert gradcheck(lambda x: phi_to_ddf(x, identity), field)
    assert gradcheck(lambda x: ddf_to_phi(x, identity), field)


def test_conversion_has_the_type_of_its_input_each_time() -> None:
    for dtype in (torch.float32, torch.float64, torch.float32):
        identity = identity_grid((5, 9), dtype=dtype)
        assert phi_to_ddf(identity, identity).dtype == dtype
        assert ddf_to_phi(identity, identity).dtype == dtype


# Warping


@pytest.mark.parametrize(
    ("shape", "shift"), [((9, 13), (2, -3)), ((9, 13), (0, 5)), ((9, 11, 13), (1, -2, 3)), ((9, 11, 13), (-4, 0, 0))]
)
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_whole_voxel_translation_picks_voxels_and_repeats_the_border(
    shape: tuple[int, ...], shift: tuple[int, ...], mode: str
) -> None:
    image = torch.rand(2, 3, *shape, dtype=torch.float64)
    ddf = torch.tensor(shift, dtype=torch.float64).view(1, -1, *[1] * len(shape)).expand(2, -1, *shape)

    warped = warp(image, ddf, mode)

    index = np.ix_(*[np.clip(np.arange(n) + d, 0, n - 1) for n, d in zip(shape, shift, strict=True)])
    torch.testing.assert_close(warped, image[(..., *index)], rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_linear_image_is_sampled_exactly(shape: tuple[int, ...]) -> None:
    dims = len(shape)
    slope = torch.tensor([0.7, -1.3, 0.4][:dims], dtype=torch.float64)
    limits = torch.tensor(shape, dtype=torch.float64).view(1, -1, *[1] * dims) - 1
    position = torch.rand(1, dims, *shape, dtype=torch.float64) * limits
    image = torch.einsum("i,bi...->b...", slope, voxels(shape)).unsqueeze(1) + 5

    warped = warp(image, position - voxels(shape))

    torch.testing.assert_close(warped, torch.einsum("i,bi...->b...", slope, position).unsqueeze(1) + 5)


@pytest.mark.parametrize("order", [*permutations(range(2)), *permutations(range(3))])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_warping_commutes_with_swapping_axes(order: tuple[int, ...], mode: str) -> None:
    shape = (9, 11, 13)[: len(order)]
    image, ddf = torch.rand(1, 2, *shape, dtype=torch.float64), noise(shape, 2.0)

    swapped = warp(swap_axes(image, order), swap_ddf(ddf, order), mode)

    torch.testing.assert_close(swapped, swap_axes(warp(image, ddf, mode), order))


@pytest.mark.parametrize("shape", SHAPES)
def test_translation_is_undone_by_its_inverse_away_from_the_border(shape: tuple[int, ...]) -> None:
    image = torch.rand(1, 1, *shape, dtype=torch.float64)
    ddf = torch.ones(1, len(shape), *shape, dtype=torch.float64)

    there_and_back = warp(warp(image, ddf), -ddf)

    inside = (..., *[slice(1, -1)] * len(shape))
    torch.testing.assert_close(there_and_back[inside], image[inside], rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_nearest_makes_no_new_labels(shape: tuple[int, ...]) -> None:
    labels = torch.randint(0, 5, (1, 1, *shape)).double() * 7
    ddf = noise(shape, 2.0)

    warped = warp(labels, ddf, "nearest")

    limits = torch.tensor(shape).view(1, -1, *[1] * len(shape)) - 1
    nearest = (voxels(shape) + ddf).round().long().clamp(min=0).minimum(limits)[0]
    torch.testing.assert_close(warped[0, 0], labels[(0, 0, *nearest)])


def test_outside_is_border_or_what_is_asked_for() -> None:
    image = torch.ones(1, 1, 5, 6)
    far = torch.full((1, 2, 5, 6), 20.0)

    assert (warp(image, far) == 1).all()
    assert (warp(image, far, padding_mode="zeros") == 0).all()


def test_warp_is_monais_without_its_notice(recwarn: pytest.WarningsRecorder) -> None:
    assert isinstance(make_warp("nearest", "zeros"), Warp)
    assert not recwarn.list


# Jacobian determinant


@pytest.mark.parametrize("shape", SHAPES)
def test_determinant_of_the_identity_is_one(shape: tuple[int, ...]) -> None:
    determinant = jacobian_determinant(torch.zeros(2, len(shape), *shape))

    assert determinant.shape == (2, *[n - 1 for n in shape])
    assert (determinant == 1).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [0.5, 1.0, 1.7])
def test_determinant_of_a_scaling_is_its_power(shape: tuple[int, ...], scale: float) -> None:
    determinant = jacobian_determinant((scale - 1) * voxels(shape))

    torch.testing.assert_close(determinant, torch.full_like(determinant, scale ** len(shape)))


@pytest.mark.parametrize("shape", SHAPES)
def test_determinant_of_a_linear_map_is_the_matrixs(shape: tuple[int, ...]) -> None:
    matrix = 0.4 * torch.randn(len(shape), len(shape), dtype=torch.float64)

    determinant = jacobian_determinant(linear_field(matrix, shape))

    expected = torch.linalg.det(torch.eye(len(shape), dtype=torch.float64) + matrix)
    torch.testing.assert_close(determinant, expected.expand_as(determinant))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_translation_leaves_the_determinant(shape: tuple[int, ...]) -> None:
    ddf = noise(shape)

    torch.testing.assert_close(jacobian_determinant(ddf + 3.5), jacobian_determinant(ddf))


@pytest.mark.parametrize("shape", SHAPES)
def test_determinant_of_a_mirrored_axis_is_minus_one(shape: tuple[int, ...]) -> None:
    for axis in range(len(shape)):
        ddf = torch.zeros(1, len(shape), *shape, dtype=torch.float64)
        ddf[:, axis] = -2 * voxels(shape)[:, axis]
        assert (jacobian_determinant(ddf) == -1).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_determinant_of_squares_is_exact_in_forward_differences(shape: tuple[int, ...]) -> None:
    x = voxels(shape)
    curvature = torch.tensor([0.03, -0.02, 0.05][: len(shape)], dtype=torch.float64).view(1, -1, *[1] * len(shape))
    # The shear by the next axis leaves the matrix triangular: it does not change the determinant.
    shear = torch.zeros_like(x)
    shear[:, :-1] = 0.1 * x[:, 1:] ** 2

    determinant = jacobian_determinant(curvature * x**2 + shear)

    # (x + 1)^2 - x^2 = 2 x + 1
    expected = (1 + curvature * (2 * x + 1)).prod(1)
    torch.testing.assert_close(determinant, expected[lower_corner(len(shape))])


def test_2d_equals_a_3d_slab_whichever_axis_is_the_flat_one() -> None:
    flat = noise((9, 13))
    expected = jacobian_determinant(flat)
    for axis in range(3):
        channels = [0, 1]
        channels.insert(axis, 2)
        with_zero = torch.cat([flat, torch.zeros(1, 1, 9, 13, dtype=flat.dtype)], 1)[:, channels]
        slab = with_zero.unsqueeze(2 + axis).repeat_interleave(4, 2 + axis)
        determinant = jacobian_determinant(slab)
        assert determinant.shape[1 + axis] == 3
        for plane in determinant.unbind(1 + axis):
            torch.testing.assert_close(plane, expected)


@pytest.mark.parametrize("order", [*permutations(range(2)), *permutations(range(3))])
def test_swapping_axes_swaps_the_determinant(order: tuple[int, ...]) -> None:
    shape = (9, 11, 13)[: len(order)]
    ddf = noise(shape, batch=2)

    swapped = jacobian_determinant(swap_ddf(ddf, order))

    torch.testing.assert_close(swapped, jacobian_determinant(ddf).permute(0, *(1 + axis for axis in order)))


@pytest.mark.parametrize("shape", SHAPES)
def test_determinant_is_that_of_numpy(shape: tuple[int, ...]) -> None:
    dims = len(shape)
    ddf = noise(shape, batch=2)

    reference = []
    for field in ddf.numpy():
        columns = []
        for axis in range(dims):
            cut = tuple(slice(None) if a == axis else slice(0, -1) for a in range(dims))
            columns.append(np.stack([np.diff(component, axis=axis)[cut] for component in field], -1))
        reference.append(np.linalg.det(np.eye(dims) + np.stack(columns, -1)))

    torch.testing.assert_close(jacobian_determinant(ddf), torch.from_numpy(np.stack(reference)))


@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 4)])
def test_gradient_of_the_determinant(shape: tuple[int, ...]) -> None:
    assert gradcheck(jacobian_determinant, noise(shape, batch=2).requires_grad_())


@pytest.mark.parametrize("shape", [(1, 3, 9, 11), (1, 2, 9, 11, 13), (2, 9, 11), (1, 1, 9), (1, 4, 5, 5, 5, 5)])
def test_a_field_whose_channels_are_not_its_axes_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(B, 3, H, W, D\).*got \(" + ", ".join(map(str, shape))):
        jacobian_determinant(torch.zeros(shape))


@pytest.mark.parametrize("shape", SHAPES)
def test_lower_corner_and_its_neighbour_are_one_voxel_apart(shape: tuple[int, ...]) -> None:
    index = voxels(shape)
    corner = index[lower_corner(len(shape))]

    assert corner.shape == (1, len(shape), *[n - 1 for n in shape])
    for axis in range(len(shape)):
        ahead = index[lower_corner(len(shape), axis)]
        step = torch.zeros_like(corner)
        step[:, axis] = 1
        torch.testing.assert_close(ahead - corner, step)


# Other grids over the same extent

RESIZED = [((9, 13), (17, 25)), ((9, 13), (5, 20)), ((9, 11, 13), (5, 6, 13)), ((6, 8, 5), (12, 9, 10))]
every_resize = pytest.mark.parametrize(("shape", "new"), RESIZED)


@every_resize
def test_resizing_to_more_voxels_keeps_linear_functions_and_the_corners(
    shape: tuple[int, ...], new: tuple[int, ...]
) -> None:
    finer = tuple(max(n, m) for n, m in zip(shape, new, strict=True))
    slopes = torch.tensor([0.7, -1.3, 0.4][: len(shape)], dtype=torch.float64)
    line = torch.einsum("i,bi...->b...", slopes, identity_grid(shape, dtype=torch.float64))[None] + 5
    expected = torch.einsum("i,bi...->b...", slopes, identity_grid(finer, dtype=torch.float64))[None] + 5

    torch.testing.assert_close(resize(line, finer), expected, atol=1e-6, rtol=0)
    image = torch.rand(2, 3, *shape)
    for corner in ((0,) * len(shape), (-1,) * len(shape)):
        torch.testing.assert_close(resize(image, finer)[(..., *corner)], image[(..., *corner)])


@every_resize
def test_resizing_keeps_constants_and_the_identity(shape: tuple[int, ...], new: tuple[int, ...]) -> None:
    constant = torch.full((1, 2, *shape), 3.25)
    torch.testing.assert_close(resize(constant, new), torch.full((1, 2, *new), 3.25))
    finer = tuple(max(n, m) for n, m in zip(shape, new, strict=True))
    torch.testing.assert_close(resize(identity_grid(shape), finer), identity_grid(finer), atol=1e-6, rtol=0)
    image = torch.rand(1, 2, *shape)
    assert resize(image, shape) is image


def test_going_to_fewer_voxels_is_without_aliases() -> None:
    checkers = (-1.0) ** voxels((32, 40)).sum(1, keepdim=True).float()
    slow = torch.sin(voxels((32, 40))[:, :1].float() / 8)
    inside = (..., slice(1, -1), slice(1, -1))
    assert resize(checkers, (8, 10))[inside].abs().max() < 0.1  # a plain interpolation would pick 1s and -1s
    expected = F.interpolate(slow, (8, 10), mode="bilinear", align_corners=True)
    torch.testing.assert_close(resize(slow, (8, 10))[inside], expected[inside], atol=0.05, rtol=0)


@every_resize
def test_resizing_up_is_torchs_interpolation(shape: tuple[int, ...], new: tuple[int, ...]) -> None:
    finer = tuple(max(n, m) for n, m in zip(shape, new, strict=True))
    image = torch.rand(2, 3, *shape)
    mode = "bilinear" if len(shape) == 2 else "trilinear"

    torch.testing.assert_close(resize(image, finer), F.interpolate(image, finer, mode=mode, align_corners=True))


@every_resize
def test_a_displacement_keeps_its_length_on_another_grid(shape: tuple[int, ...], new: tuple[int, ...]) -> None:
    finer = tuple(max(n, m) for n, m in zip(shape, new, strict=True))
    ddf = noise(shape, 2.0).float()
    by_phi = phi_to_ddf(
        resize(ddf_to_phi(ddf, identity_grid(shape)), finer),
        identity_grid(finer),
    )
    torch.testing.assert_close(resize_ddf(ddf, finer), by_phi, atol=1e-5, rtol=0)
    assert resize_ddf(ddf, shape).equal(ddf)


@every_resize
def test_points_keep_their_place_in_phi(shape: tuple[int, ...], new: tuple[int, ...]) -> None:
    points = torch.rand(2, 7, len(shape), dtype=torch.float64) * (torch.tensor(shape) - 1)

    there = rescale_points(points, shape, new)

    torch.testing.assert_close(there / (torch.tensor(new) - 1), points / (torch.tensor(shape) - 1))
    torch.testing.assert_close(rescale_points(there, new, shape), points)


def test_a_weighted_mean_is_zero_where_nothing_counts() -> None:
    total, weight = torch.tensor([[[6.0, 0.0, 1e-9]]]), torch.tensor([[[2.0, 0.0, 1e-12]]])
    assert weighted_mean(total, weight).tolist() == [[[3.0, 0.0, 0.0]]]
