# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The Jacobian determinant of a displacement, by forward differences, and its integral over cells."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

from monai_nodeo.geometry._slabs import slabs
from monai_nodeo.geometry.determinants import determinant, determinants

__all__ = ["cell_volumes", "check_ddf", "jacobian_determinant", "jacobian_slabs"]

_GAUSS = 0.5 / 3**0.5  # from the middle of a side to a point of Gauss


def check_ddf(ddf: Tensor) -> None:
    """Refuse a tensor that is no displacement with derivatives.

    Raises:
        ValueError: when the channels do not match the spatial axes, or an axis has fewer than two voxels.
    """
    dims = ddf.ndim - 2
    if dims not in (2, 3) or ddf.shape[1] != dims:
        raise ValueError(f"ddf must be (B, 2, H, W) or (B, 3, H, W, D), got {tuple(ddf.shape)}.")
    if min(ddf.shape[2:]) < 2:
        raise ValueError(f"ddf {tuple(ddf.shape)} has an axis of one voxel, along which nothing can be differentiated.")


def jacobian_determinant(ddf: Tensor) -> Tensor:
    """Determinant of ``I + grad ddf`` by forward differences, one voxel shorter along each axis.

    Args:
        ddf: displacement in voxels, (B, D, *spatial), D = 2 or 3, tensor axis order.

    Returns:
        (B, *(spatial - 1)); 1 where nothing is deformed, not positive where the field folds.

    Raises:
        ValueError: when the channels do not match the spatial axes, or an axis has fewer than two voxels.
    """
    return torch.cat(list(jacobian_slabs(ddf)), dim=1)


def jacobian_slabs(ddf: Tensor) -> Iterator[Tensor]:
    """The same in parts along the first axis, (B, *part): what is summed up need not be in memory as a whole."""
    check_ddf(ddf)
    for start, stop in slabs(ddf[:, :, 1:]):
        yield determinants(ddf[:, :, start : stop + 1])


def cell_volumes(ddf: Tensor) -> Tensor:
    """Volume that each cell between the points of a grid has after a displacement, linear between them; 1 before.

    The integral of the Jacobian determinant over the cell. It is exact (two points of Gauss along each axis), so that
    the sum over a region is the volume within its displaced border.

    Args:
        ddf: displacement of the corners in voxels, (B, D, *spatial), D = 2 or 3, tensor axis order.

    Returns:
        (B, *(spatial - 1)).

    Raises:
        ValueError: when the channels do not match the spatial axes, or an axis has fewer than two points.
    """
    check_ddf(ddf)
    return torch.cat([_cell_volumes(ddf[:, :, start : stop + 1]) for start, stop in slabs(ddf[:, :, 1:])], dim=1)


def _cell_volumes(ddf: Tensor) -> Tensor:
    dims = ddf.shape[1]
    steps = [ddf.diff(dim=2 + axis) for axis in range(dims)]
    points = list(product((0.5 - _GAUSS, 0.5 + _GAUSS), repeat=dims))
    total = torch.zeros((), dtype=ddf.dtype, device=ddf.device)
    for point in points:
        columns = []
        for axis, step in enumerate(steps):
            for other in set(range(dims)) - {axis}:
                n = step.shape[2 + other] - 1
                step = torch.lerp(step.narrow(2 + other, 0, n), step.narrow(2 + other, 1, n), point[other])
            columns.append(step)
        total = total + determinant([[columns[a][:, i] + (a == i) for a in range(dims)] for i in range(dims)])
    return total / len(points)
