# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Determinants of a displacement from its differences: the same formulas for arrays of numpy and tensors of torch."""

from __future__ import annotations

from typing import Any

__all__ = ["SMALLEST_DETERMINANT", "central_determinants", "determinant", "determinants"]

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
    """Determinant of ``I + grad ddf`` by forward differences, at every voxel but the last ones, all at a time.

    Args:
        ddf: array or tensor, displacement in voxels, (B, D, *spatial), D = 2 or 3, tensor axis order.

    Returns:
        (B, *(spatial - 1)).
    """
    dims = ddf.ndim - 2
    base = ddf[_lower_corner(dims)]
    columns = [ddf[_lower_corner(dims, axis)] - base for axis in range(dims)]
    return determinant([[columns[a][:, i] + (a == i) for a in range(dims)] for i in range(dims)])


def central_determinants(ddf: Any) -> Any:
    """The same by central differences, without two voxels along each border, as Learn2Reg has it.

    Args:
        ddf: array or tensor, displacement in voxels, (B, D, *spatial), D = 2 or 3, five voxels or more along each axis.

    Returns:
        (B, *(spatial - 4)).
    """
    dims = ddf.ndim - 2

    def moved(axis: int, by: int) -> Any:
        return ddf[
            (..., *[slice(2 + by, ddf.shape[2 + a] - 2 + by) if a == axis else slice(2, -2) for a in range(dims)])
        ]

    columns = [(moved(axis, 1) - moved(axis, -1)) / 2 for axis in range(dims)]
    return determinant([[columns[a][:, i] + (a == i) for a in range(dims)] for i in range(dims)])
