# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Sums in windows: running sums in double precision.

Images have three axes here; a slice is a volume whose first axis has one voxel.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from monai_nodeo.geometry._numba._threads import as_array, compiled, in_threads

__all__ = ["copy_rows", "room_of_plane", "sum_plane", "three_axes", "window_sum"]


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
def copy_rows(source, target):  # type: ignore[no-untyped-def]
    """Written out: an assignment of slices takes Numba seconds to build."""
    for y in range(source.shape[0]):
        for z in range(source.shape[1]):
            target[y, z] = source[y, z]


@compiled
def room_of_plane(volume):  # type: ignore[no-untyped-def]
    """For the sums of a plane along its rows."""
    return np.empty((volume.shape[1] + 3, volume.shape[2]), volume.dtype)


@compiled
def _sum_rows(one, two, three, four, target, reach):  # type: ignore[no-untyped-def]
    """Sums along four rows at a time: each waits for its own last sum only."""
    size = len(one)
    a = b = c = d = 0.0
    for ahead in range(size + reach):  # the window of z is complete when the voxel at z + reach is in it
        if ahead < size:
            a += one[ahead]
            b += two[ahead]
            c += three[ahead]
            d += four[ahead]
        z = ahead - reach
        if z > reach:
            a -= one[z - reach - 1]
            b -= two[z - reach - 1]
            c -= three[z - reach - 1]
            d -= four[z - reach - 1]
        if z >= 0:
            target[0, z] = a
            target[1, z] = b
            target[2, z] = c
            target[3, z] = d


@compiled
def sum_plane(plane, between, reach_y, reach_z):  # type: ignore[no-untyped-def]
    """Sums in the windows of a plane (Y, Z), in place; ``between`` has three rows more, which are not looked at."""
    rows, columns = plane.shape
    last = rows - 1
    for y in range(0, rows, 4):
        others = plane[min(y + 1, last)], plane[min(y + 2, last)], plane[min(y + 3, last)]
        _sum_rows(plane[y], *others, between[y : y + 4], reach_z)
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
    between = room_of_plane(volume)
    for x in range(start, stop):
        copy_rows(volume[x], target[x])
        sum_plane(target[x], between, reach_y, reach_z)


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
