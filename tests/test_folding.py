# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from synthetic import smooth_ddf
from torch import Tensor

from monai_nodeo.geometry import folding
from monai_nodeo.geometry.folding import folded_cells, simplex_volumes, unfold
from monai_nodeo.geometry.jacobian import jacobian_determinant

SHAPES = [(9, 13), (7, 9, 11)]
every_shape = pytest.mark.parametrize("shape", SHAPES)


def one_sided_determinants(ddf: np.ndarray) -> dict[tuple[int, ...], np.ndarray]:
    """By numpy: forward or backward along each axis -> det of one field (D, *shape) at every cell.

    The determinant of a corner is that of the voxel there, with differences that point into the cell.
    """
    dims = len(ddf)
    found = {}
    for corner in product((0, 1), repeat=dims):
        columns = []
        for axis in range(dims):
            difference = np.diff(ddf, axis=1 + axis)
            place = [slice(c, n - 1 + c) for c, n in zip(corner, ddf.shape[1:], strict=True)]
            place[axis] = slice(None)
            columns.append(np.moveaxis(difference[(slice(None), *place)], 0, -1))
        found[corner] = np.linalg.det(np.stack(columns, -1) + np.eye(dims))
    return found


def central_determinant(ddf: np.ndarray) -> np.ndarray:
    """By numpy, of the inner voxels."""
    dims = len(ddf)
    inner = (slice(1, -1),) * dims
    columns = [np.gradient(ddf, axis=1 + axis)[(slice(None), *inner)] for axis in range(dims)]
    return np.linalg.det(np.moveaxis(np.stack(columns), (0, 1), (-1, -2)) + np.eye(dims))


def tetrahedra(ddf: np.ndarray) -> list[np.ndarray]:
    """The two central tetrahedra of every cell of a field (3, *shape): volumes, 1 undeformed."""
    positions = ddf + np.indices(ddf.shape[1:])
    volumes = []
    for parity in (0, 1):
        a, *others = [corner for corner in product((0, 1), repeat=3) if sum(corner) % 2 == parity]
        points = [
            positions[(slice(None), *[slice(c, n - 1 + c) for c, n in zip(corner, ddf.shape[1:], strict=True)])]
            for corner in (a, *others)
        ]
        undeformed = np.linalg.det(np.array([np.subtract(b, a) for b in others], dtype=float).T)
        edges = np.stack([np.moveaxis(p - points[0], 0, -1) for p in points[1:]], -1)
        volumes.append(np.linalg.det(edges) / undeformed)
    return volumes


def corners_of(ddf: Tensor) -> dict[tuple[int, ...], list[Tensor]]:
    """As the functions of the module take them."""
    dims = ddf.ndim - 2
    return {
        corner: list(ddf[(..., *[slice(c, n - 1 + c) for c, n in zip(corner, ddf.shape[2:], strict=True)])].unbind(1))
        for corner in product((0, 1), repeat=dims)
    }


def noise(shape: tuple[int, ...], size: float = 0.4, batch: int = 1) -> Tensor:
    return size * torch.randn(batch, len(shape), *shape, dtype=torch.float64)


def all_positive(ddf: Tensor) -> bool:
    """By numpy: no fold under any finite difference, one-sided or central, nor in the central tetrahedra."""
    for field in ddf.double().numpy():
        volumes = [*one_sided_determinants(field).values(), central_determinant(field)]
        if len(field) == 3:
            volumes += tetrahedra(field)
        if min(v.min() for v in volumes) <= 0:
            return False
    return True


# Volumes


@every_shape
def test_volumes_are_the_one_sided_determinants_and_those_of_the_central_tetrahedra(shape):
    ddf = noise(shape)
    volumes = [v[0].numpy() for v in simplex_volumes(corners_of(ddf))]
    expected = [
        *one_sided_determinants(ddf[0].numpy()).values(),
        *(tetrahedra(ddf[0].numpy()) if len(shape) == 3 else []),
    ]
    assert len(volumes) == len(expected) == {2: 4, 3: 10}[len(shape)]
    for a, b in zip(volumes, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


@every_shape
@pytest.mark.parametrize("factor", [1.0, 0.5, 1.7, -1.0])
def test_volumes_of_a_scaling_are_its_power(shape, factor):
    voxels = torch.from_numpy(np.indices(shape)).double()[None]
    for volume in simplex_volumes(corners_of((factor - 1) * voxels)):
        torch.testing.assert_close(volume, torch.full_like(volume, factor ** len(shape)))


@every_shape
def test_volumes_of_a_linear_map_are_its_determinant_wherever_it_goes(shape):
    matrix = 0.4 * torch.randn(len(shape), len(shape), dtype=torch.float64)
    ddf = torch.einsum("ij,j...->i...", matrix, torch.from_numpy(np.indices(shape)).double())[None] + 3.5
    expected = torch.linalg.det(torch.eye(len(shape), dtype=torch.float64) + matrix)
    for volume in simplex_volumes(corners_of(ddf)):
        torch.testing.assert_close(volume, expected.expand_as(volume))


@every_shape
def test_the_first_volume_is_the_determinant_of_the_package(shape):
    ddf = noise(shape, batch=2)
    first, *_ = simplex_volumes(corners_of(ddf))
    torch.testing.assert_close(first, jacobian_determinant(ddf))


def test_a_central_determinant_is_the_mean_of_the_simplices_around_the_voxel():
    field = noise(SHAPES[0])[0].numpy()
    around = []
    for corner, volumes in one_sided_determinants(field).items():  # the voxel is at this corner of its cell
        around.append(volumes[tuple(slice(1 - c, n - 1 - c) for c, n in zip(corner, field.shape[1:], strict=True))])
    np.testing.assert_allclose(np.mean(around, 0), central_determinant(field), atol=1e-12)


@pytest.mark.parametrize("shape", [(6, 7, 8)])
def test_a_central_determinant_is_positive_where_no_simplex_folds_in_3d(shape):
    field = noise(shape)[0].numpy()
    around = []
    for corner, volumes in one_sided_determinants(field).items():
        around.append(volumes[tuple(slice(1 - c, n - 1 - c) for c, n in zip(corner, field.shape[1:], strict=True))])
    np.testing.assert_allclose(np.mean(around, 0), central_determinant(field), atol=1e-12)


# folded_cells


@every_shape
@pytest.mark.parametrize("smallest", [0.0, 0.3])
def test_a_cell_is_folded_when_one_of_its_volumes_is_not_larger(shape, smallest):
    ddf = noise(shape, batch=2)
    for field, folded in zip(ddf.numpy(), folded_cells(ddf, smallest).numpy(), strict=True):
        volumes = [*one_sided_determinants(field).values(), *(tetrahedra(field) if len(shape) == 3 else [])]
        expected = np.min(volumes, 0) <= smallest
        assert 0 < expected.mean() < 1
        np.testing.assert_array_equal(folded, expected)


@every_shape
def test_cells_of_smooth_fields_and_of_a_flat_one(shape):
    assert not folded_cells(smooth_ddf(shape)[None]).any()
    flat = -torch.from_numpy(np.indices(shape)).float()[None]  # all voxels in one place
    assert folded_cells(flat).all()
    assert folded_cells(torch.full((1, len(shape), *shape), torch.nan)).all()


@pytest.mark.parametrize("shape", [(1, 3, 9, 11), (1, 2, 9, 1), (2, 9, 11)])
def test_what_is_no_field_with_cells_is_refused(shape):
    with pytest.raises(ValueError, match="ddf"):
        folded_cells(torch.zeros(shape))


# unfold


@every_shape
@pytest.mark.parametrize("size", [0.3, 1.0, 5.0, 50.0])
def test_nothing_is_folded_afterwards(shape, size):
    ddf = noise(shape, size, batch=2).float()
    assert not all_positive(ddf)
    clean = unfold(ddf)
    assert clean.shape == ddf.shape
    assert clean.dtype == ddf.dtype
    assert all_positive(clean)


@every_shape
@pytest.mark.parametrize("ddf_at", [torch.zeros, lambda *shape: 1e4 * torch.ones(shape)])
def test_an_unfolded_field_comes_back_as_it_is(shape, ddf_at):
    for ddf in (ddf_at(2, len(shape), *shape), smooth_ddf(shape)[None]):
        assert unfold(ddf) is ddf


@pytest.mark.parametrize("shape", [(31, 37), (21, 23, 25)])
def test_only_the_neighbourhood_of_a_fold_is_touched(shape):
    ddf = smooth_ddf(shape)[None].repeat(2, *[1] * (1 + len(shape)))
    middle = tuple(n // 2 for n in shape)
    ddf[(1, 0, *middle)] += 1.5  # passes its neighbour
    before = ddf.clone()
    clean = unfold(ddf)
    assert torch.equal(ddf, before)  # the input is left alone
    assert all_positive(clean)
    assert torch.equal(clean[0], ddf[0])
    changed = (clean[1] != ddf[1]).any(0)
    assert changed[middle]
    near = torch.zeros_like(changed)
    near[tuple(slice(n - 4, n + 5) for n in middle)] = True
    assert not (changed & ~near).any()
    # and the field around it is what it was without the spike
    assert (clean[1] - clean[0]).abs().max() < 0.6


def test_a_repair_in_thick_slices_does_not_spread_from_slice_to_slice():
    ddf = smooth_ddf((24, 26, 12), largest=1.0)[None]
    ddf[:, 0] += torch.tensor([8.0, -8.0]).repeat(6)  # slices lie far apart, which is no fold by itself
    assert not folded_cells(ddf, 1e-3).any()
    ddf[0, 0, 10:13, 12, 5] += torch.tensor([0.9, 0.0, -0.9])

    changes = {}
    for spacing in (None, (1.0, 1.0, 5.0)):
        clean = unfold(ddf, spacing)
        assert all_positive(clean)
        changes[spacing] = (clean - ddf).abs()

    assert changes[1.0, 1.0, 5.0].amax() < 2
    assert changes[1.0, 1.0, 5.0].sum() < changes[None].sum() / 10


@every_shape
def test_folds_at_the_corners_of_the_grid_are_repaired(shape):
    for corner in product((0, -1), repeat=len(shape)):
        ddf = torch.zeros(1, len(shape), *shape)
        ddf[(0, slice(None), *corner)] = torch.tensor([1.5 if c == 0 else -1.5 for c in corner])
        assert folded_cells(ddf).any()
        assert all_positive(unfold(ddf))


@every_shape
def test_a_mirror_is_shortened_until_it_no_longer_folds(shape):
    mirror = -2.0 * torch.from_numpy(np.indices(shape)).float()[None]
    clean = unfold(mirror)
    assert all_positive(clean)


@every_shape
def test_unfolding_twice_is_unfolding_once(shape):
    clean = unfold(noise(shape, 1.0).float())
    assert unfold(clean) is clean


@pytest.mark.parametrize("shape", [(13, 11), (9, 8, 7)])
def test_places_that_repeat_change_nothing(shape, monkeypatch):
    ddf = smooth_ddf(shape, sigma=1.0)[None] * 6
    once = unfold(ddf)
    monkeypatch.setattr(folding, "_MANY", 4)  # as where folds are many
    assert folded_cells(ddf).any()
    assert torch.equal(unfold(ddf), once)


def test_fields_without_extent_stay():
    ddf = torch.randn(1, 3, 5, 1, 7)
    assert unfold(ddf) is ddf


def test_unfolding_needs_no_gradient():
    ddf = noise(SHAPES[0]).requires_grad_()
    assert not unfold(ddf).requires_grad
