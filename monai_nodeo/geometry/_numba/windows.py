# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Sums in windows: of pairs of pairs along rows, running sums in double precision across them.

Images have three axes here; a slice is a volume whose first axis has one voxel.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from monai_nodeo.geometry._numba._threads import as_array, compiled, in_threads
from monai_nodeo.geometry._numba.rows import add_row, clear_row, copy_row, copy_rows

__all__ = ["room_of_plane", "sum_plane", "three_axes", "window_sum"]

_ROWS = 16  # that are summed together


def window_sum(x: Tensor, sides: Sequence[int]) -> Tensor:
    """See :py:func:`monai_nodeo.geometry.windows.window_sum`."""
    source = as_array(x)
    shape = three_axes(source.shape[x.ndim - len(sides) :])
    reach = [side // 2 for side in three_axes(sides)]
    volumes = source.reshape(-1, *shape)
    total = np.empty_like(volumes)
    for volume, target in zip(volumes, total, strict=True):
        in_threads(_sum_planes, shape[0], volume, target, reach[1], reach[2])
        if reach[0]:
            in_threads(_sum_across, shape[1], target, reach[0])
    return torch.from_numpy(total.reshape(source.shape))


def three_axes(sizes: Sequence[int]) -> tuple[int, ...]:
    """The sizes with 1 for each axis that is lacking in front."""
    return (*[1] * (3 - len(sizes)), *sizes)


@compiled
def room_of_plane(volume, reach):  # type: ignore[no-untyped-def]
    """For the sums of a plane along its rows, and twice for some rows with what lies beyond their ends."""
    rows, columns = volume.shape[1:]
    return np.empty((rows, columns), volume.dtype), np.empty((2, _ROWS * (columns + 2 * reach)), volume.dtype)


@compiled
def _sum_rows(rows, longer, target, reach):  # type: ignore[no-untyped-def]
    """Sums in the windows of a few rows, of sums of 1, 2, 4, ... neighbours.

    The rows lie one behind the other with zeros between them, so that each pass goes through all at once. Every window
    is complete at the place of its first voxel.
    """
    count, columns = rows.shape
    size = columns + 2 * reach
    sums, others = longer[0], longer[1]
    for y in range(count):
        clear_row(sums[y * size : (y + 1) * size])
        copy_row(rows[y], sums[y * size + reach : y * size + reach + columns])
        clear_row(target[y])
    length, width, done, left = count * size, 1, 0, 2 * reach + 1
    while left:
        if left % 2:
            for y in range(count):
                add_row(sums[y * size + done : y * size + done + columns], target[y])
            done += width
        left //= 2
        if left:
            length -= width
            _fill_sums(sums[:length], sums[width : width + length], others)
            sums, others = others, sums
            width *= 2


@compiled
def _fill_sums(one, other, found):  # type: ignore[no-untyped-def]
    for z in range(len(one)):
        found[z] = one[z] + other[z]


@compiled
def sum_plane(plane, room, reach_y, reach_z):  # type: ignore[no-untyped-def]
    """Sums in the windows of a plane (Y, Z), in place; ``room`` is that of :py:func:`room_of_plane`."""
    rows, columns = plane.shape
    between, longer = room
    for y in range(0, rows, _ROWS):
        _sum_rows(plane[y : y + _ROWS], longer, between[y : y + _ROWS], reach_z)
    sums = np.zeros(columns)
    for y in range(min(reach_y, rows)):
        for z in range(columns):
            sums[z] += between[y, z]
    for y in range(rows):
        if y + reach_y < rows:
            for z in range(columns):
                sums[z] += between[y + reach_y, z]
        if y > reach_y:
            for z in range(columns):
                sums[z] -= between[y - reach_y - 1, z]
        for z in range(columns):
            plane[y, z] = sums[z]


@compiled
def _sum_planes(volume, target, reach_y, reach_z, start, stop):  # type: ignore[no-untyped-def]
    room = room_of_plane(volume, reach_z)
    for x in range(start, stop):
        copy_rows(volume[x], target[x])
        sum_plane(target[x], room, reach_y, reach_z)


@compiled
def _sum_lines(lines, target, reach):  # type: ignore[no-untyped-def]
    """Sums along the first axis of lines (X, Z)."""
    count, columns = lines.shape
    sums = np.zeros(columns)
    for x in range(min(reach, count)):
        for z in range(columns):
            sums[z] += lines[x, z]
    for x in range(count):
        if x + reach < count:
            for z in range(columns):
                sums[z] += lines[x + reach, z]
        if x > reach:
            for z in range(columns):
                sums[z] -= lines[x - reach - 1, z]
        for z in range(columns):
            target[x, z] = sums[z]


@compiled
def _sum_across(volume, reach, start, stop):  # type: ignore[no-untyped-def]
    """Sums along the first axis, in place, for a range of the second."""
    lines = np.empty((volume.shape[0], volume.shape[2]), volume.dtype)
    found = np.empty_like(lines)
    for y in range(start, stop):
        copy_rows(volume[:, y], lines)
        _sum_lines(lines, found, reach)
        copy_rows(found, volume[:, y])
