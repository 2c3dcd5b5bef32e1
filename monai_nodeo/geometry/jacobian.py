# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The Jacobian determinant of a displacement, by forward differences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from monai_nodeo.geometry._slabs import slabs

__all__ = ["check_ddf", "determinant", "jacobian_determinant", "lower_corner"]


def lower_corner(spatial_dims: int, ahead: int | None = None) -> tuple[Any, ...]:
    """Index of the lower corner of every cell of a grid (..., *spatial), or of its neighbour along axis ``ahead``."""
    return (..., *[slice(1, None) if axis == ahead else slice(0, -1) for axis in range(spatial_dims)])


def determinant(g: list[list[Tensor]]) -> Tensor:
    """Determinant of a D x D matrix of tensors, D = 2 or 3."""
    if len(g) == 2:
        return g[0][0] * g[1][1] - g[0][1] * g[1][0]
    return (
        g[0][0] * (g[1][1] * g[2][2] - g[1][2] * g[2][1])
        - g[0][1] * (g[1][0] * g[2][2] - g[1][2] * g[2][0])
        + g[0][2] * (g[1][0] * g[2][1] - g[1][1] * g[2][0])
    )


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
    check_ddf(ddf)
    dims = ddf.ndim - 2
    parts = []
    for start, stop in slabs(ddf[:, :, 1:]):
        part = ddf[:, :, start : stop + 1]
        base = part[lower_corner(dims)]
        columns = [(part[lower_corner(dims, axis)] - base).unbind(1) for axis in range(dims)]
        parts.append(determinant([[columns[a][i] + (a == i) for a in range(dims)] for i in range(dims)]))
    return torch.cat(parts, dim=1)
