# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Forward differences of a displacement: the same formulas for arrays of numpy and tensors of torch."""

from __future__ import annotations

from typing import Any

__all__ = ["SMALLEST_DETERMINANT", "determinant", "determinants"]

# Learn2Reg's floor for the determinant of a fold, whose logarithm does not exist.
SMALLEST_DETERMINANT = 1e-9


def _lower_corner(spatial_dims: int, ahead: int | None = None) -> tuple[Any, ...]:
    """Index of the lower corner of every cell of a grid (..., *spatial), or of its neighbour along axis ``ahead``."""
    return (..., *[slice(1, None) if axis == ahead else slice(0, -1) for axis in range(spatial_dims)])


def determinant(g: list[list[Any]]) -> Any:
    """Determinant of a D x D matrix of arrays or tensors, D = 2 or 3."""
    if len(g) == 2:
        return g[0][0] * g[1][1] - g[0][1] * g[1][0]
    return (
        g[0][0] * (g[1][1] * g[2][2] - g[1][2] * g[2][1])
        - g[0][1] * (g[1][0] * g[2][2] - g[1][2] * g[2][0])
        + g[0][2] * (g[1][0] * g[2][1] - g[1][1] * g[2][0])
    )


def determinants(ddf: Any) -> Any:
    """Determinant of ``I + grad ddf`` at every voxel but the last ones, all at a time.

    Args:
        ddf: array or tensor, displacement in voxels, (B, D, *spatial), D = 2 or 3, tensor axis order.

    Returns:
        (B, *(spatial - 1)).
    """
    dims = ddf.ndim - 2
    base = ddf[_lower_corner(dims)]
    columns = [ddf[_lower_corner(dims, axis)] - base for axis in range(dims)]
    return determinant([[columns[a][:, i] + (a == i) for a in range(dims)] for i in range(dims)])
