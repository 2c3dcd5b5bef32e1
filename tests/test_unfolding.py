# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from grids import CORONAL, IN_PLANE, OBLIQUE
from synthetic import smooth_ddf
from torch import Tensor

from monai_nodeo.files import ImageGrid
from monai_nodeo.flows import Flow, NODEONet, ODESolver, RungeKutta, VelocityField
from monai_nodeo.flows.unfolding import unfolded, unfolded_both_ways
from monai_nodeo.geometry.folds import folded_cells

GRIDS = {
    "volume": (ImageGrid(OBLIQUE, (17, 20, 23)), (9, 11, 12)),
    "thick volume": (ImageGrid(np.diag([1.0, 1.0, 4.0, 1.0]), (17, 20, 8)), (9, 11, 8)),
    "slice": (ImageGrid(CORONAL, (29, 37, 1)), (9, 13)),
    "plane": (ImageGrid(IN_PLANE, (29, 37)), (15, 13)),
}
every_grid = pytest.mark.parametrize(("grid", "nodes"), GRIDS.values(), ids=GRIDS)


def flow_of(grid: ImageGrid, images: Tensor) -> Flow:
    """Of velocities (keyframes, D, *nodes) in nodes, over the extent of the grid."""
    nodes = images.shape[2:]
    affine = grid.affine.copy()
    for axis, (n, m) in enumerate(zip(grid.spatial_shape, nodes, strict=True)):
        affine[:3, axis] *= (n - 1) / (m - 1)
    halves = torch.tensor(nodes).sub(1).div(2).view(-1, *[1] * len(nodes))
    domain = ImageGrid(affine, (*nodes, *[1] * (len(grid.shape) - len(nodes))))
    return Flow(VelocityField.of(images / halves), RungeKutta(), domain, grid)


def rough(nodes: tuple[int, ...], keyframes: int, largest: float) -> Tensor:
    """Velocities whose flow folds between voxels, seen by finite differences; without kinks in time between them."""
    fields = [smooth_ddf(nodes, 3, largest * (1 + 0.1 * frame), sigma=1.5) for frame in range(keyframes)]
    return torch.stack(fields)


def folds(ddf: Tensor) -> int:
    return int(folded_cells(ddf[None]).sum())


@every_grid
@pytest.mark.parametrize("keyframes", [1, 2])
@pytest.mark.parametrize("backward", [False, True])
def test_a_flow_that_folds_between_voxels_is_mended(grid, nodes, keyframes, backward):
    images = rough(nodes, keyframes, 7.0)
    flow = flow_of(grid, images).inverse if backward else flow_of(grid, images)
    before = flow.velocity.get_parameter("images").clone()
    assert folds(flow.displacement()) > 0
    mended, ddf = unfolded(flow)
    assert folds(ddf) == 0
    assert torch.equal(ddf, mended.displacement())
    assert torch.equal(flow.velocity.get_parameter("images"), before)
    assert (mended.backward, mended.solver, mended.grid) == (backward, flow.solver, grid)
    # still a flow: the way back is that of the same velocity
    points = torch.from_numpy(np.random.default_rng(0).uniform(0.4, 0.6, (40, grid.spatial_dims)))
    points = points * (torch.tensor(grid.spatial_shape) - 1) @ torch.tensor(grid.affine[:, : grid.spatial_dims]).T
    points = (points[:, :3] + torch.tensor(grid.affine[:3, 3]))[:, : len(grid.shape)]
    assert (mended.inverse(mended(points)) - points).abs().max() < 0.1
    # and mended for good
    again, same = unfolded(mended)
    assert torch.equal(same, ddf)
    assert torch.equal(again.velocity.get_parameter("images"), mended.velocity.get_parameter("images"))


@every_grid
def test_a_flow_that_still_folds_after_all_rounds_is_given_as_it_is(grid, nodes, monkeypatch):
    monkeypatch.setattr("monai_nodeo.flows.unfolding._ROUNDS", 1)
    flow, ddf = unfolded(flow_of(grid, rough(nodes, 1, 20.0)))
    assert folds(ddf) > 0
    assert torch.equal(ddf, flow.displacement())


@every_grid
@pytest.mark.parametrize("keyframes", [1, 2])
def test_a_flow_without_folds_comes_back_unchanged(grid, nodes, keyframes):
    flow = flow_of(grid, rough(nodes, keyframes, 1.0))
    same, ddf = unfolded(flow)
    assert torch.equal(ddf, flow.displacement())
    assert torch.equal(same.velocity.get_parameter("images"), flow.velocity.get_parameter("images"))


@pytest.mark.parametrize("dims", [2, 3])
def test_only_the_surroundings_of_a_fold_are_touched(dims):
    shape = (41, 37, 39)[:dims]
    images = smooth_ddf(shape, largest=1.0)[None]
    middle = tuple(n // 2 for n in shape)
    images[(0, 0, *[slice(n, n + 2) for n in middle])] += 20.0
    flow = flow_of(ImageGrid(np.eye(4), shape), images)
    before = flow.displacement()
    assert folds(before) > 0
    _, ddf = unfolded(flow)
    assert folds(ddf) == 0
    changed = (ddf != before).any(0)
    assert changed[middle]
    changed[tuple(slice(n - 6, n + 7) for n in middle)] = False
    assert not changed.any()


def test_places_that_repeat_change_nothing(monkeypatch):
    grid, nodes = GRIDS["plane"]
    once = unfolded(flow_of(grid, rough(nodes, 1, 7.0)))[1]
    monkeypatch.setattr("monai_nodeo.geometry.folds._MANY", 4)  # as where folds are many
    assert torch.equal(unfolded(flow_of(grid, rough(nodes, 1, 7.0)))[1], once)


def test_other_velocities_and_grids_without_extent_stay():
    grid, nodes = GRIDS["slice"]
    plain = flow_of(grid, rough(nodes, 1, 7.0))
    cloud = Flow(NODEONet(2, nodes, channels=2, num_convolutions=1), ODESolver(), plain.domain, grid)
    narrow = ImageGrid(np.eye(4), (9, 1, 13))
    line = Flow(VelocityField.of(0.1 * torch.randn(1, 3, 9, 1, 13)), RungeKutta(), narrow, narrow)
    for flow in (cloud, line):
        same, ddf = unfolded(flow)
        assert same is flow
        assert not ddf.requires_grad
        with torch.no_grad():
            assert torch.equal(ddf, flow.displacement())


def test_neither_way_comes_first_where_both_fold():
    grid, nodes = GRIDS["slice"]
    flow = flow_of(grid, rough(nodes, 1, 7.0))
    back = Flow(VelocityField.of(-flow.velocity.images), flow.solver, flow.domain, grid)
    assert folds(flow.displacement()) > 0
    assert folds(flow.inverse.displacement()) > 0
    (mended, ddf), (exchanged, _) = unfolded_both_ways(flow), unfolded_both_ways(back)
    assert folds(ddf) == folds(mended.inverse.displacement()) == 0
    torch.testing.assert_close(exchanged.velocity.images, -mended.velocity.images)
    assert not torch.allclose(unfolded(back)[0].velocity.images, -unfolded(flow)[0].velocity.images)
