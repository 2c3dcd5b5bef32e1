# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
from itertools import product

import numpy as np
import pytest
import torch
from scipy import ndimage
from synthetic import noise, smooth_ddf
from torch import Tensor

from monai_nodeo.geometry import folds
from monai_nodeo.geometry.folds import (
    Places,
    average_at,
    count_folds,
    folded_cells,
    simplex_volumes,
)

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


@every_shape
def test_volumes_are_the_one_sided_determinants_and_those_of_the_central_tetrahedra(shape):
    ddf = noise(shape, 0.4)
    volumes = [v[0].numpy() for v in simplex_volumes(corners_of(ddf))]
    expected = [
        *one_sided_determinants(ddf[0].numpy()).values(),
        *(tetrahedra(ddf[0].numpy()) if len(shape) == 3 else []),
    ]
    assert len(volumes) == len(expected) == {2: 4, 3: 10}[len(shape)]
    for a, b in zip(volumes, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


@every_shape
@pytest.mark.parametrize("smallest", [0.0, 0.3])
@pytest.mark.parametrize("compiled", [True, False])
def test_a_cell_is_folded_when_one_of_its_volumes_is_not_larger(shape, smallest, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(folds, "kernels_for", lambda *_: None)
    ddf = noise(shape, 0.4, batch=2)
    for field, folded in zip(ddf.numpy(), folded_cells(ddf, smallest).numpy(), strict=True):
        volumes = [*one_sided_determinants(field).values(), *(tetrahedra(field) if len(shape) == 3 else [])]
        expected = np.min(volumes, 0) <= smallest
        assert 0 < expected.mean() < 1
        np.testing.assert_array_equal(folded, expected)
        if not smallest:
            counts = count_folds(torch.from_numpy(field)[None])[1][0]
            assert counts.tolist() == [int((v <= 0).sum()) for v in volumes]


@every_shape
def test_cells_of_smooth_fields_and_of_a_flat_one(shape):
    assert not folded_cells(smooth_ddf(shape)[None]).any()
    flat = -torch.from_numpy(np.indices(shape)).float()[None]  # all voxels in one place
    assert folded_cells(flat).all()
    assert folded_cells(torch.full((1, len(shape), *shape), torch.nan)).all()
    one = torch.zeros(1, len(shape), *shape)
    one[(0, 0, *[3] * len(shape))] = torch.nan
    assert folded_cells(one).sum() == 2 ** len(shape)


@pytest.mark.parametrize("shape", [(1, 3, 9, 11), (1, 2, 9, 1), (2, 9, 11)])
def test_what_is_no_field_with_cells_is_refused(shape):
    with pytest.raises(ValueError, match="ddf"):
        folded_cells(torch.zeros(shape))


@every_shape
@pytest.mark.parametrize(("first", "end", "last"), [(0, 0, 1), (-1, 0, 2), (-2, 3, 1)])
@pytest.mark.parametrize("many", [4, 2**16])
def test_places_spread_over_boxes_around_them(shape, first, end, last, many, monkeypatch):
    monkeypatch.setattr(folds, "_MANY", many)
    chosen = torch.randint(0, 2, shape).mul(torch.rand(shape) < 0.05)
    chosen[(-1,) * len(shape)] = 1
    expected = np.zeros(shape, bool)
    for voxel in chosen.nonzero().tolist():
        ends = [
            (min(max(v + first, 0), n - last), min(max(v + end, 0), n - last))
            for v, n in zip(voxel, shape, strict=True)
        ]
        expected[tuple(slice(a, b + 1) for a, b in ends)] = True
    found = Places(shape).spread(chosen.flatten().nonzero().squeeze(1), first, end, last)
    assert found.tolist() == np.flatnonzero(expected).tolist()


@every_shape
def test_an_average_at_some_voxels_is_weighted_by_axis_and_leaves_the_others(shape):
    field, grid, weights = noise(shape, 0.4)[0], Places(shape), [1.0, 0.25, 0.5][: len(shape)]
    voxels = torch.randperm(int(np.prod(shape)))[:20]
    padded = np.pad(field.numpy(), [(0, 0), *[(1, 1)] * len(shape)], mode="edge")
    kernel = np.zeros((3,) * len(shape))
    kernel[(1,) * len(shape)] = 1
    for axis, weight in enumerate(weights):
        for end in (0, 2):
            kernel[tuple(end if a == axis else 1 for a in range(len(shape)))] = weight
    inside = (slice(1, -1),) * len(shape)
    averaged = np.stack([ndimage.correlate(component, kernel / kernel.sum())[inside] for component in padded])
    expected = field.flatten(1).clone()
    expected[:, voxels] = torch.from_numpy(averaged).flatten(1)[:, voxels]
    found = field.flatten(1).clone()
    average_at(found, grid, voxels, weights)
    torch.testing.assert_close(found, expected)
