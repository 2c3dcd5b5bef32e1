# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The cells of a grid: in which one a position lies, and linear interpolation within it, of single numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from monai_nodeo.geometry._numba._threads import as_array, compiled

__all__ = ["add_slopes", "fill_values", "fill_voxels", "find_cells", "halves_of", "steps_of"]


def halves_of(image: Tensor) -> NDArray:
    """Half the length of the axes of volumes (B, C, *spatial) in voxels."""
    halves: NDArray = np.array([(n - 1) / 2 for n in image.shape[2:]], as_array(image[:0]).dtype)
    return halves


@compiled
def steps_of(size, lanes):  # type: ignore[no-untyped-def]
    """From a voxel of so many numbers to the next one along each axis; none along an axis of one voxel."""
    x = lanes * size[1] * size[2] if size[0] > 1 else 0
    y = lanes * size[2] if size[1] > 1 else 0
    return np.uint64(x), np.uint64(y), np.uint64(lanes if size[2] > 1 else 0)


@compiled
def find_cells(voxels, size, lanes, count, at, ways):  # type: ignore[no-untyped-def]
    """Where the cells of some positions begin, and the ways on from there.

    Positions are clamped to the grid. One that is no number gets a way that is none.

    Args:
        voxels: positions, (3, N).
        size: of the grid.
        lanes: numbers of a voxel.
        count: of the positions that are looked at.
        at: is filled with the places of the first numbers of the cells, (N,).
        ways: is filled, (3, N), voxels.
    """
    kind = voxels.dtype.type  # double where a voxel's own place matters, see :py:func:`fill_voxels`
    zero = kind(0)
    end_x, end_y, end_z = kind(size[0] - 1), kind(size[1] - 1), kind(size[2] - 1)
    last_x, last_y, last_z = np.int32(max(size[0] - 2, 0)), np.int32(max(size[1] - 2, 0)), np.int32(max(size[2] - 2, 0))
    for n in range(count):
        x, y, z = voxels[0, n], voxels[1, n], voxels[2, n]
        a = min(x, end_x) if x > zero else zero  # what is no number must not become an index
        b = min(y, end_y) if y > zero else zero
        c = min(z, end_z) if z > zero else zero
        i, j, k = min(np.int32(a), last_x), min(np.int32(b), last_y), min(np.int32(c), last_z)
        at[n] = lanes * ((np.int64(i) * size[1] + j) * size[2] + k)
        ways[0, n] = a - kind(i) if x == x else x
        ways[1, n] = b - kind(j) if y == y else y
        ways[2, n] = c - kind(k) if z == z else z


@compiled
def fill_voxels(positions, half, count, voxels, scales):  # type: ignore[no-untyped-def]
    """Positions in [-1, 1] in voxels of an axis, and by what a slope in voxels is multiplied: 0 outside.

    In double precision: a grid of positions is rounded a little to one side of the voxels as often as to the other one.
    In single precision most would fall on the voxels themselves, where the slope is that to the next voxel, and a
    registration that starts there is pulled to one side (docs/decisions/vectors-at-corners.md).
    """
    middle, end = np.float64(half), np.float64(count - 1)
    for z in range(len(positions)):
        voxel = (np.float64(positions[z]) + 1) * middle
        voxels[z] = voxel
        scales[z] = half if 0 < voxel < end else half * 0


@compiled
def _value_and_slopes(voxels, a, steps, f, g, h):  # type: ignore[no-untyped-def]
    """Linear interpolation in the cell that begins at index a, and its derivatives along the axes in voxels."""
    x, y, z = steps
    b, c = a + y, a + x
    d = c + y
    low_0, low_1, low_2, low_3 = voxels[a], voxels[b], voxels[c], voxels[d]
    by_0, by_1 = voxels[a + z] - low_0, voxels[b + z] - low_1
    by_2, by_3 = voxels[c + z] - low_2, voxels[d + z] - low_3
    low_0, low_1, low_2, low_3 = low_0 + by_0 * h, low_1 + by_1 * h, low_2 + by_2 * h, low_3 + by_3 * h
    by_y_0, by_y_1 = low_1 - low_0, low_3 - low_2
    below, above = low_0 + by_y_0 * g, low_2 + by_y_1 * g
    by_0, by_2 = by_0 + (by_1 - by_0) * g, by_2 + (by_3 - by_2) * g
    return below + (above - below) * f, above - below, by_y_0 + (by_y_1 - by_y_0) * f, by_0 + (by_2 - by_0) * f


@compiled
def fill_values(flat, at, on, steps, values):  # type: ignore[no-untyped-def]
    for z in range(len(values)):
        values[z], _, _, _ = _value_and_slopes(flat, at[z], steps, on[0, z], on[1, z], on[2, z])


@compiled
def add_slopes(flat, at, on, steps, grad, found):  # type: ignore[no-untyped-def]
    """Slopes times the gradient of the values, (3, Z)."""
    for z in range(len(grad)):
        _, x, y, w = _value_and_slopes(flat, at[z], steps, on[0, z], on[1, z], on[2, z])
        found[0, z] += x * grad[z]
        found[1, z] += y * grad[z]
        found[2, z] += w * grad[z]
