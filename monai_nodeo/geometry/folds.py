# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Where a displacement folds, by every finite difference.

A cell of the grid is cut into simplices: the corner ones, whose volumes are the determinants by forward or backward
differences along each axis (4 in 2D, 8 in 3D), and in 3D the two central tetrahedra, 10 in all. When all are positive,
the piecewise linear transform is one-to-one in the cell ("digital diffeomorphism", Liu et al., IJCV 2024), and so is
the determinant by central differences, which is their mean over the cells around a voxel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from monai_nodeo.geometry._kernels import kernels_for
from monai_nodeo.geometry._slabs import slabs
from monai_nodeo.geometry.determinants import determinant
from monai_nodeo.geometry.jacobian import check_ddf

__all__ = ["Places", "average_at", "count_folds", "folded_cells", "smallest_volumes"]

_AT_A_TIME = 2**14  # cells whose simplices are looked at together
_MANY = 2**16  # places among which the repeated ones are looked for before there are more


Corner = tuple[int, ...]  # place in a cell, 0 or 1 along each axis


class _Simplex(NamedTuple):
    """A simplex of a cell by the edges that span it, each from a corner to another one.

    ``factor`` times their determinant is the volume, 1 for the share of an undeformed cell.
    """

    edges: list[tuple[Corner, Corner]]
    factor: float


@lru_cache
def _simplices(dims: int) -> list[_Simplex]:
    """The corner simplices, 4 in 2D and 8 in 3D, and in 3D the two central tetrahedra."""
    corners = list(product((0, 1), repeat=dims))
    simplices = [
        _Simplex([((*c[:axis], 0, *c[axis + 1 :]), (*c[:axis], 1, *c[axis + 1 :])) for axis in range(dims)], 1.0)
        for c in corners
    ]
    if dims == 3:  # the four corners whose coordinates add up to an even number, and to an odd one
        for parity, factor in ((0, 0.5), (1, -0.5)):
            first, *others = [corner for corner in corners if sum(corner) % 2 == parity]
            simplices.append(_Simplex([(first, other) for other in others], factor))
    return simplices


def simplex_volumes(corners: dict[Corner, list[Tensor]]) -> list[Tensor]:
    """Volumes of the simplices of cells, 1 for an undeformed one.

    Args:
        corners: place in the cell -> the D components of the displacement there.

    Returns:
        the corner simplices, 4 in 2D and 8 in 3D, and in 3D the two central tetrahedra.
    """
    edges: dict[tuple[Corner, Corner], list[Tensor]] = {}
    volumes = []
    for simplex in _simplices(len(next(iter(corners)))):
        for start, end in simplex.edges:
            if (start, end) not in edges:
                ways = zip(corners[start], corners[end], start, end, strict=True)
                edges[start, end] = [b - a + (q - p) if q - p else b - a for a, b, p, q in ways]
        volume = determinant([edges[edge] for edge in simplex.edges])
        volumes.append(volume if simplex.factor == 1 else volume * simplex.factor)
    return volumes


def folded_cells(ddf: Tensor, smallest: float = 0.0) -> Tensor:
    """Cells of the grid in which some simplex is turned over or flat.

    Args:
        ddf: displacement in voxels, (B, D, *spatial), D = 2 or 3, tensor axis order.
        smallest: volumes up to this count as folded, 1 is an undeformed simplex.

    Returns:
        boolean, (B, *(spatial - 1)).

    Raises:
        ValueError: when the channels do not match the spatial axes, or an axis has fewer than two voxels.
    """
    check_ddf(ddf)
    kernels = kernels_for(ddf, "folds")
    if kernels is not None:
        folded: Tensor = kernels.folded_cells(ddf, smallest)
        return folded
    return torch.cat([~_above(volumes, smallest) for volumes in _volumes(ddf)], 1)


def count_folds(ddf: Tensor) -> tuple[Tensor, Tensor]:
    """How many cells fold, and how many by each of the differences.

    Args:
        ddf: as for :py:func:`folded_cells`.

    Returns:
        folded cells, (B,), and of them by difference, (B, simplices): forward or backward along each axis, 4 in 2D and
        8 in 3D, and there the two central tetrahedra.
    """
    folded = folded_cells(ddf)
    planes = folded.flatten(2).any(2).any(0).nonzero().flatten().tolist()
    counts = torch.zeros(len(ddf), len(_simplices(ddf.ndim - 2)), dtype=torch.long, device=ddf.device)
    for plane in planes:  # few, or none
        for volumes in _volumes(ddf[:, :, plane : plane + 2]):
            counts += torch.stack([(~(v > 0)).flatten(1).sum(1) for v in volumes], 1)
    return folded.flatten(1).sum(1), counts


def _above(volumes: list[Tensor], smallest: float) -> Tensor:
    """Cells all of whose simplices have more volume; a volume that is no number has not."""
    least = volumes[0]
    for volume in volumes[1:]:
        least = torch.minimum(least, volume)
    return least > smallest


def _volumes(ddf: Tensor) -> Iterator[list[Tensor]]:
    """Volumes of the simplices, (B, *cells) each, slab by slab along the first axis."""
    check_ddf(ddf)
    for start, stop in slabs(ddf[:, :, 1:]):
        part = ddf[:, :, start : stop + 1]
        corners = {}
        for place in product((0, 1), repeat=ddf.ndim - 2):
            cell = tuple(slice(end, n - 1 + end) for end, n in zip(place, part.shape[2:], strict=True))
            corners[place] = list(part[(slice(None), slice(None), *cell)].unbind(1))
        yield simplex_volumes(corners)


class Places(NamedTuple):
    """Voxels of a grid by their index; a cell has that of its first voxel. For what is done at few of them."""

    shape: tuple[int, ...]

    @property
    def strides(self) -> list[int]:
        """Steps of the index along the axes."""
        return [math.prod(self.shape[axis + 1 :]) for axis in range(len(self.shape))]

    def at(self, voxels: Tensor) -> Tensor:
        """Indices (N,) of voxels (N, D)."""
        return (voxels * voxels.new_tensor(self.strides)).sum(1)

    def voxels(self, places: Tensor) -> Tensor:
        """Voxels (N, D) of indices (N,)."""
        return torch.stack([places // stride % n for stride, n in zip(self.strides, self.shape, strict=True)], 1)

    def moved(self, places: Tensor, axis: int, steps: Tensor, last: int = 1) -> Tensor:
        """Indices (N,) after steps (S,) along an axis, (N, S), up to the ``last`` place from its end."""
        size, stride = self.shape[axis], self.strides[axis]
        places = places.unsqueeze(1)
        here = places // stride % size
        return places + ((here + steps).clamp_(0, size - last) - here) * stride

    def spread(self, places: Tensor, first: int, end: int, last: int) -> Tensor:
        """Every place after ``first`` to ``end`` steps along each axis, each place once; see :py:meth:`moved`."""
        steps = torch.arange(first, end + 1, device=places.device)
        for axis in range(len(self.shape)):
            places = self.moved(places, axis, steps, last).flatten()
            if len(places) > _MANY:
                places = places.unique()
        return places.unique()


class _Table(NamedTuple):
    """The simplices as tensors, to work on all of them at a time."""

    corners: Tensor  # (corners, D), places in the cell
    starts: Tensor  # (simplices * D,), numbers of corners
    ends: Tensor
    ways: Tensor  # (D, simplices * D, 1), from start to end in an undeformed cell
    factors: Tensor  # (simplices, 1)


@lru_cache
def _table(dims: int, dtype: torch.dtype, device: torch.device) -> _Table:
    corners = list(product((0, 1), repeat=dims))
    edges = [edge for simplex in _simplices(dims) for edge in simplex.edges]
    starts, ends = (torch.tensor([corners.index(edge[i]) for edge in edges], device=device) for i in (0, 1))
    places = torch.tensor(corners, device=device)
    factors = torch.tensor([[simplex.factor] for simplex in _simplices(dims)], dtype=dtype, device=device)
    return _Table(places, starts, ends, (places[ends] - places[starts]).t().unsqueeze(-1).to(dtype), factors)


def smallest_volumes(field: Tensor, grid: Places, cells: Tensor) -> Tensor:
    """Volume of the smallest simplex of each of the cells (N,) of a displacement (D, voxels), (N,)."""
    dims = len(field)
    table = _table(dims, field.dtype, field.device)
    steps = (table.corners * table.corners.new_tensor(grid.strides)).sum(1, keepdim=True)
    smallest = []
    for part in cells.split(_AT_A_TIME):
        corners = field[:, steps + part]
        edges = (corners[:, table.ends] - corners[:, table.starts] + table.ways).unflatten(1, (-1, dims))
        volumes = determinant([list(edges[:, :, axis]) for axis in range(dims)]) * table.factors
        smallest.append(volumes.amin(0))
    return torch.cat(smallest)


def average_at(field: Tensor, grid: Places, voxels: Tensor, weights: Sequence[float]) -> None:
    """Replace a field (C, voxels) at some voxels (N,) by a mean of itself and its neighbours, in place.

    Neighbours along an axis have the weight of this axis.
    """
    total = field[:, voxels]
    steps = torch.tensor([-1, 1], device=voxels.device)
    for axis, weight in enumerate(weights):
        total += weight * field[:, grid.moved(voxels, axis, steps)].sum(2)
    field[:, voxels] = total / (1 + 2 * sum(weights))
