# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Cells of a displacement that fold, in one pass: see :py:mod:`monai_nodeo.geometry.folds`."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from monai_nodeo.geometry._numba._threads import as_array, compiled, in_threads

__all__ = ["folded_cells"]


def folded_cells(ddf: Tensor, smallest: float) -> Tensor:
    """Cells in which the volume of some simplex is not above a value.

    Args:
        ddf: displacement in voxels, (B, D, *spatial), D = 2 or 3.
        smallest: the value.

    Returns:
        boolean, (B, *(spatial - 1)).
    """
    fields = as_array(ddf)
    found = np.empty((len(fields), *[n - 1 for n in fields.shape[2:]]), np.bool_)
    kernel = _in_planes_2d if ddf.shape[1] == 2 else _in_planes_3d
    for field, folded in zip(fields, found, strict=True):
        in_threads(kernel, len(folded), field, field.dtype.type(smallest), folded)
    return torch.from_numpy(found)


@compiled
def _in_planes_2d(field, smallest, folded, start, stop):  # type: ignore[no-untyped-def]
    one = field.dtype.type(1)
    for i in range(start, stop):
        for j in range(folded.shape[1]):
            # edges along the first axis, at the two places of the second one, and the other way round
            a0, a1 = one + (field[0, i + 1, j] - field[0, i, j]), field[1, i + 1, j] - field[1, i, j]
            b0, b1 = one + (field[0, i + 1, j + 1] - field[0, i, j + 1]), field[1, i + 1, j + 1] - field[1, i, j + 1]
            c0, c1 = field[0, i, j + 1] - field[0, i, j], one + (field[1, i, j + 1] - field[1, i, j])
            d0, d1 = field[0, i + 1, j + 1] - field[0, i + 1, j], one + (field[1, i + 1, j + 1] - field[1, i + 1, j])
            folded[i, j] = not (
                a0 * c1 - a1 * c0 > smallest
                and b0 * c1 - b1 * c0 > smallest
                and a0 * d1 - a1 * d0 > smallest
                and b0 * d1 - b1 * d0 > smallest
            )


@compiled
def _determinant(a, b, c):  # type: ignore[no-untyped-def]
    return a[0] * (b[1] * c[2] - b[2] * c[1]) - a[1] * (b[0] * c[2] - b[2] * c[0]) + a[2] * (b[0] * c[1] - b[1] * c[0])


@compiled
def _edge(field, x, y, z, dx, dy, dz):  # type: ignore[no-untyped-def]
    """From a voxel to another one of its cell, after the displacement."""
    one = field.dtype.type(1)
    return (
        one * dx + (field[0, x + dx, y + dy, z + dz] - field[0, x, y, z]),
        one * dy + (field[1, x + dx, y + dy, z + dz] - field[1, x, y, z]),
        one * dz + (field[2, x + dx, y + dy, z + dz] - field[2, x, y, z]),
    )


@compiled
def _even(field, i, j, k):  # type: ignore[no-untyped-def]
    """Twice the volume of the central tetrahedron whose corners have an even sum."""
    here, there = _edge(field, i, j, k, 0, 1, 1), _edge(field, i, j, k, 1, 0, 1)
    return _determinant(here, there, _edge(field, i, j, k, 1, 1, 0))


@compiled
def _odd(field, i, j, k):  # type: ignore[no-untyped-def]
    """The same of the other one, whose edges turn the other way."""
    here, there = _edge(field, i, j, k + 1, 0, 1, -1), _edge(field, i, j, k + 1, 1, 0, -1)
    return -_determinant(here, there, _edge(field, i, j, k + 1, 1, 1, 0))


@compiled
def _in_planes_3d(field, smallest, folded, start, stop):  # type: ignore[no-untyped-def]
    half = field.dtype.type(0.5)
    for i in range(start, stop):
        for j in range(folded.shape[1]):
            for k in range(folded.shape[2]):
                x00, x01 = _edge(field, i, j, k, 1, 0, 0), _edge(field, i, j, k + 1, 1, 0, 0)
                x10, x11 = _edge(field, i, j + 1, k, 1, 0, 0), _edge(field, i, j + 1, k + 1, 1, 0, 0)
                y00, y01 = _edge(field, i, j, k, 0, 1, 0), _edge(field, i, j, k + 1, 0, 1, 0)
                y10, y11 = _edge(field, i + 1, j, k, 0, 1, 0), _edge(field, i + 1, j, k + 1, 0, 1, 0)
                z00, z01 = _edge(field, i, j, k, 0, 0, 1), _edge(field, i, j + 1, k, 0, 0, 1)
                z10, z11 = _edge(field, i + 1, j, k, 0, 0, 1), _edge(field, i + 1, j + 1, k, 0, 0, 1)
                volumes = (
                    _determinant(x00, y00, z00),
                    _determinant(x01, y01, z00),
                    _determinant(x10, y00, z01),
                    _determinant(x11, y01, z01),
                    _determinant(x00, y10, z10),
                    _determinant(x01, y11, z10),
                    _determinant(x10, y10, z11),
                    _determinant(x11, y11, z11),
                    half * _even(field, i, j, k),
                    half * _odd(field, i, j, k),
                )
                least, total = volumes[0], volumes[0]
                for volume in volumes[1:]:
                    least = min(least, volume)
                    total += volume
                # a minimum passes over what is no number, a sum does not
                folded[i, j, k] = not (least > smallest and total == total)
