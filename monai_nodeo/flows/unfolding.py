# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""A flow that does not fold between the voxels of its grid either.

The flow of a smooth velocity folds nowhere, but its places at voxels may be so unevenly spaced that finite differences
between them fold. Where they do, the velocity is smoothed along the way of these voxels: what is left is a flow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_nodeo.flows.flow import Flow
from monai_nodeo.flows.velocity import VelocityField
from monai_nodeo.geometry.folds import Places, average_at, folded_cells, smallest_volumes

__all__ = ["unfolded", "unfolded_both_ways"]

_SMALLEST_VOLUME = 1e-3  # of an unfolded simplex, 1 is that of an undeformed one
_LOOKS = 8  # at the whole displacement
_ROUNDS = 100
_GROW_EVERY = 5  # rounds
_AVERAGES = 2  # a round
_TOGETHER = 6  # rounds of both ways
_TIMES = 8  # on the way, at which voxels and nodes are looked for
_NARROWED = 3  # times, that the reach of a node is found by the velocities within it
_BLOCK = 4  # nodes
_BESIDE = 2  # nodes from a changed one, up to which it counts for the velocity or the length of a step
_AT_A_TIME = 2**20  # voxels that follow the flow together


@torch.no_grad()
def unfolded(flow: Flow) -> tuple[Flow, Tensor]:
    """The flow with a velocity that is smoothed where it folds, and its displacement.

    Args:
        flow: that of a :py:class:`VelocityField`; another is left as it is.

    Returns:
        the flow, and its displacement of its grid, (D, *spatial), voxels. It may still fold where smoothing did not
        help: the certificate of a registration tells.
    """
    ddf = flow.displacement()
    field = flow.velocity
    if not isinstance(field, VelocityField) or min(ddf.shape[1:]) < 2:
        return flow, ddf
    field = VelocityField.of(field.images)
    flow = Flow(field, flow.solver, flow.domain, flow.grid, flow.backward)
    voxels, nodes = Places(tuple(ddf.shape[1:])), Places(field.image_size)
    flat = ddf.flatten(1)
    round_ = 0
    for _ in range(_LOOKS):
        found = folded_cells(ddf[None], _SMALLEST_VOLUME)[0].nonzero()
        if not len(found) or round_ == _ROUNDS:
            break
        cells = voxels.at(found)
        changed = []
        # Folds are few: what works on their places alone takes a fraction of the time of the whole grid.
        while len(cells) and round_ < _ROUNDS:
            reach = round_ // _GROW_EVERY
            region = nodes.spread(_nodes_on_the_way(flow, voxels, nodes, cells), -reach, reach, 1)
            for _ in range(_AVERAGES):
                _smooth(field, flow.domain.spacing, region)
            changed.append(region)
            moved = _voxels_on_the_way(flow, len(field.images) == 1, voxels, nodes, nodes.spread(region, -1, 1, 1))
            flat[:, moved] = flow.displacement_of(voxels.voxels(moved))
            touched = voxels.spread(moved, -1, 0, 2)
            cells = touched[~(smallest_volumes(flat, voxels, touched) > _SMALLEST_VOLUME)]
            round_ += 1
        reached = _voxels_in_reach(flow, voxels, nodes, torch.cat(changed).unique())
        for moved in reached.split(_AT_A_TIME):  # also what was missed at the edges
            flat[:, moved] = flow.displacement_of(voxels.voxels(moved))
    return flow, ddf


@torch.no_grad()
def unfolded_both_ways(flow: Flow) -> tuple[Flow, Tensor]:
    """The flow with a velocity that is smoothed where it or the way back folds, and its displacement.

    Neither way comes first: the inverse flow gives the inverse of the result, as far as a few rounds of smoothing for
    both suffice.

    Args:
        flow: see :py:func:`unfolded`.
    """
    if isinstance(flow.velocity, VelocityField):
        for _ in range(_TOGETHER):
            images = flow.velocity.images.data
            there, back = (unfolded(way)[0].velocity.get_parameter("images") - images for way in (flow, flow.inverse))
            if not bool(there.any() or back.any()):
                break
            changes = torch.where((there != 0) & (back != 0), (there + back) / 2, there + back)
            flow = Flow(VelocityField.of(images + changes), flow.solver, flow.domain, flow.grid, flow.backward)
    return unfolded(flow)


def _smooth(field: VelocityField, sides: Sequence[float], region: Tensor) -> None:
    """One average of neighbours at some nodes; those farther away in mm count less, as in the heat equation."""
    weights = [(min(sides) / side) ** 2 for side in sides]
    for image in field.images.data:
        average_at(image.flatten(1), Places(field.image_size), region, weights)


def _nodes_on_the_way(flow: Flow, voxels: Places, nodes: Places, cells: Tensor) -> Tensor:
    """Nodes of the velocity that the middles of cells come by."""
    start = flow.to_phi(voxels.voxels(cells) + 0.5)
    times = [number / _TIMES for number in range(_TIMES + 1)]
    states = torch.cat([start, *flow.carried(start, times)[1:]], 1)
    return _nearest_node(nodes, states).unique()


def _voxels_on_the_way(flow: Flow, stationary: bool, voxels: Places, nodes: Places, region: Tensor) -> Tensor:
    """Voxels that come by some nodes: taken back from there, from several times, with their surroundings."""
    size = torch.tensor(nodes.shape, device=region.device)
    phi = (nodes.voxels(region) * (2 / (size - 1))).T.to(flow.dtype) - 1
    times = [number / _TIMES for number in range(1, _TIMES + 1)]
    if stationary:  # the same at all times: how long ago counts alone
        states = flow.carried(phi, [*times[::-1], 0.0])
    else:
        states = [phi, *[flow.carried(phi, [time, 0.0])[-1] for time in times]]
    found = torch.cat([_nearest(voxels, flow.to_voxels(state)) for state in states]).unique()
    reach = 1 + round(max(flow.domain.spacing) / min(flow.grid.spacing))
    return voxels.spread(found, -reach, reach, 1)


def _voxels_in_reach(flow: Flow, voxels: Places, nodes: Places, changed: Tensor) -> Tensor:
    """All voxels (N,) whose way may come by changed nodes (N,); none is missed."""
    near = _boxes(nodes, nodes.voxels(changed), _reach(flow, nodes, changed).ceil().long() + _BESIDE)
    found = []
    for places in torch.arange(math.prod(voxels.shape), device=near.device).split(_AT_A_TIME):
        there = _nearest_node(nodes, flow.to_phi(voxels.voxels(places)))
        found.append(places[near.view(-1)[there]])
    return torch.cat(found)


def _reach(flow: Flow, nodes: Places, places: Tensor) -> Tensor:
    """From how far away ways come by some nodes (N,): nodes before and after them along each axis, (N, 2, D).

    Until it comes by a node, a way has the velocities of a box around that node. The largest of them along an axis
    bound where it came from, and that is a smaller box.
    """
    images, dims = flow.velocity.get_parameter("images"), len(nodes.shape)
    steps = images * (images.new_tensor(nodes.shape).sub(1) / (-2 if flow.backward else 2)).view(-1, *[1] * dims)
    pool = F.max_pool2d if dims == 2 else F.max_pool3d
    largest = pool(torch.cat([steps, -steps], 1).amax(0).clamp(min=0)[None], _BLOCK, ceil_mode=True)
    blocks = Places(tuple(largest.shape[2:]))
    block_of = blocks.at(nodes.voxels(places) // _BLOCK)
    reach = largest.flatten(2).amax(2).T.flatten().expand(len(places), -1)
    for _ in range(_NARROWED):
        sides = (reach.amax(1).add(_BESIDE) / _BLOCK).ceil().long()  # of the box, in blocks
        sides = sides.clamp(max=max(blocks.shape))
        reach = reach.new_empty(reach.shape)
        for side in sides.unique().tolist():
            around = pool(largest, 2 * side + 1, stride=1, padding=side)[0].flatten(1).T
            reach[sides == side] = around[block_of[sides == side]]
    return reach.unflatten(1, (2, dims))


def _boxes(grid: Places, places: Tensor, sides: Tensor) -> Tensor:
    """Which places are in any of some boxes, (*shape).

    Args:
        grid: of the places.
        places: in each box, (N, D).
        sides: how far the box goes before and after it along each axis, (N, 2, D).
    """
    shape = places.new_tensor(grid.shape)
    ends = torch.stack([(places - sides[:, 0]).clamp(min=0), torch.minimum(places + sides[:, 1] + 1, shape)], 1)
    longer = Places(tuple(n + 1 for n in grid.shape))
    count = torch.zeros(longer.shape, dtype=torch.int32, device=places.device)
    for corner in product((0, 1), repeat=len(grid.shape)):  # boxes begin and end: sums along the axes fill them
        at = torch.stack([ends[:, end, axis] for axis, end in enumerate(corner)], 1)
        sign = torch.full((len(places),), (-1) ** sum(corner), dtype=count.dtype, device=count.device)
        count.view(-1).index_add_(0, longer.at(at), sign)
    for axis in range(count.ndim):
        count.cumsum_(axis)
    return (count > 0)[tuple(slice(n) for n in grid.shape)].contiguous()


def _nearest_node(nodes: Places, phi: Tensor) -> Tensor:
    """Indices (N,) of positions (D, N) in [-1, 1]."""
    return _nearest(nodes, (phi + 1) / 2 * phi.new_tensor(nodes.shape).sub(1).view(-1, 1))


def _nearest(grid: Places, positions: Tensor) -> Tensor:
    """Indices (N,) of positions (D, N), clamped to the grid."""
    last = torch.tensor(grid.shape, device=positions.device).sub(1)
    return grid.at(positions.T.round().long().clamp(torch.zeros_like(last), last))
