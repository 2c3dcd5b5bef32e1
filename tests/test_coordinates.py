# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from synthetic import noise, voxels

from monai_nodeo.geometry.coordinates import ddf_to_phi, identity_grid, phi_to_ddf, rescale_points

SHAPES = [(9, 13), (12, 7), (9, 11, 13), (6, 8, 5)]
WITH_SINGLE_VOXEL = [(1, 7), (7, 1), (6, 1, 5), (6, 5, 1)]


@pytest.mark.parametrize("shape", SHAPES)
def test_grid_runs_from_minus_one_to_one_along_its_own_axis(shape):
    grid = identity_grid(shape, dtype=torch.float64)
    spans = torch.tensor(shape, dtype=torch.float64).view(1, -1, *[1] * len(shape)) - 1
    torch.testing.assert_close(grid, 2 * voxels(shape) / spans - 1)
    assert grid.amin() == -1
    assert grid.amax() == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_one_voxel_along_an_axis_is_the_step_of_the_grid(shape):
    identity = identity_grid(shape, dtype=torch.float64)
    for axis in range(len(shape)):
        ddf = torch.zeros_like(identity)
        ddf[:, axis] = 1
        phi = ddf_to_phi(ddf, identity).movedim(2 + axis, 0)
        torch.testing.assert_close(phi[:-1], identity.movedim(2 + axis, 0)[1:])


@pytest.mark.parametrize("shape", WITH_SINGLE_VOXEL)
def test_axis_of_one_voxel_has_no_extent_to_be_displaced_in(shape):
    identity = identity_grid(shape, dtype=torch.float64)
    ddf, single = noise(shape), shape.index(1)
    assert identity.shape == (1, len(shape), *shape)
    assert not identity[:, single].any()
    phi = ddf_to_phi(ddf, identity)
    back = phi_to_ddf(phi, identity)
    assert not phi[:, single].any()
    ddf[:, single] = 0
    torch.testing.assert_close(back, ddf)


def test_conversion_has_the_type_of_its_input_each_time():
    for dtype in (torch.float32, torch.float64, torch.float32):
        identity = identity_grid((5, 9), dtype=dtype)
        assert phi_to_ddf(identity, identity).dtype == dtype
        assert ddf_to_phi(identity, identity).dtype == dtype


@pytest.mark.parametrize(("shape", "new"), [((9, 13), (5, 20)), ((9, 11, 13), (5, 6, 13))])
def test_points_keep_their_place_in_phi(shape, new):
    points = torch.rand(2, 7, len(shape), dtype=torch.float64) * (torch.tensor(shape) - 1)
    there = rescale_points(points, shape, new)
    torch.testing.assert_close(there / (torch.tensor(new) - 1), points / (torch.tensor(shape) - 1))
    torch.testing.assert_close(rescale_points(there, new, shape), points)
