# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The flow of a velocity at the nodes of a grid, point by point: nothing but the arrivals goes through memory."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from monai_nodeo.geometry._numba._threads import as_array, compiled, in_threads
from monai_nodeo.geometry._numba.cells import find_cells, steps_of
from monai_nodeo.geometry._numba.vectors import LANES, interpolate, pack

__all__ = ["integrate"]

_TOGETHER = 256  # points that are worked on at a time


def integrate(
    keyframes: Sequence[Tensor], phi: Tensor, times: Sequence[float], longest: float, shortest: float, stretch: float
) -> list[Tensor]:
    """Positions at several times, by a Runge-Kutta method of third order, each point in steps of its own.

    Args:
        keyframes: d phi / dt at equally spaced times from 0 to 1, each (B, D, *nodes), linear in between.
        phi: positions in [-1, 1] at the first time, (B, D, *cloud).
        times: growing or falling.
        longest: most time of a step.
        shortest: about the least, however fast the velocity changes.
        stretch: most that neighbouring nodes move apart in a step, in their distance.

    Returns:
        as many as there are times.
    """
    dims = phi.shape[1]
    kind = as_array(phi[:0]).dtype
    states = np.empty((len(times), len(phi), dims, phi[0, 0].numel()), kind)
    states[0] = as_array(phi.flatten(2))
    for item in range(len(phi)):
        # a slice is a volume whose first axis has one voxel
        images = [as_array(image[min(item, len(image) - 1)]) for image in keyframes]
        shape = (*[1] * (3 - dims), *images[0].shape[1:])
        field = np.zeros((len(images), *shape, LANES), kind)
        for target, image in zip(field, images, strict=True):
            in_threads(pack, shape[0], image.reshape(dims, *shape), target)
        changes = np.full(shape, -1, kind)  # not known; threads that find the same one find the same
        parts = -(-states.shape[-1] // _TOGETHER)
        for number, (start, end) in enumerate(pairwise(times)):
            points, found = states[number, item], states[number + 1, item]
            in_threads(_integrate, parts, field, changes, points, found, start, end, longest, shortest, stretch)
    return list(torch.from_numpy(states).view(len(times), *phi.shape).unbind())


@compiled
def _velocities(flat, size, places, times, way, count, cells, found):  # type: ignore[no-untyped-def]
    """Linear in space and time, clamped to the grid, at ``places + way * found``, which is replaced.

    ``cells`` is room for positions in voxels, the places of cells and the ways on from there.
    """
    voxels, at, on = cells
    kind = places.dtype.type
    for axis in range(3):
        half = kind(size[axis] - 1) / kind(2)
        for n in range(count):
            voxels[axis, n] = (places[axis, n] + way[n] * found[axis, n] + kind(1)) * half
    find_cells(voxels, size, LANES, count, at, on)
    frames = len(flat)
    to_x, to_y, to_z = steps_of(size, LANES)
    for n in range(count):
        f, g, h = on[0, n], on[1, n], on[2, n]
        if frames == 1:
            u, v, w = interpolate(flat[0], at[n], to_x, to_y, to_z, f, g, h)
        else:
            position = times[n] * (frames - 1)
            frame = min(max(int(position), 0), frames - 2)
            share = kind(position - frame)
            u, v, w = interpolate(flat[frame], at[n], to_x, to_y, to_z, f, g, h)
            p, q, r = interpolate(flat[frame + 1], at[n], to_x, to_y, to_z, f, g, h)
            u, v, w = u + (p - u) * share, v + (q - v) * share, w + (r - w) * share
        found[0, n], found[1, n], found[2, n] = u, v, w


@compiled
def _fill_changes(field, i, j, most, room, changes):  # type: ignore[no-untyped-def]
    """What limits the steps around the nodes of a row, in 1 / time, at most ``most``.

    It is how fast the neighbours move away from a node, or its kink. A point that passes a kink of the velocity within
    a step ends beside its way, by the kink times the square of the step; it passes as many kinks as nodes. So the step
    goes with the inverse of the speed and of the root of the kink.

    ``room`` is for three rows. A row of the result is written at once: another thread may do the same.
    """
    frames, n_x, n_y, n_z, _ = field.shape
    kind = changes.dtype.type
    zero, half = kind(0), kind(0.5)
    away, kink, found = room
    for k in range(n_z):
        found[k] = zero
    for frame in range(frames):
        for k in range(n_z):
            away[k] = kink[k] = zero
        there = field[frame, i, j]
        others = field[frame, min(i + 1, n_x - 1), j], field[frame, max(i - 1, 0), j]
        _look_beside(there, *others, field.shape, 0, n_z, away, kink)
        others = field[frame, i, min(j + 1, n_y - 1)], field[frame, i, max(j - 1, 0)]
        _look_beside(there, *others, field.shape, 0, n_z, away, kink)
        _look_beside(there[1:], there[2:], there, field.shape, 0, n_z - 2, away[1:], kink[1:])
        for end, beside in ((0, min(1, n_z - 1)), (n_z - 1, max(n_z - 2, 0))):
            here, other = there[end : end + 1], there[beside : beside + 1]
            _look_beside(here, other, here, field.shape, 0, 1, away[end:], kink[end:])
        for k in range(n_z):
            speed = zero
            for axis in range(3):
                in_nodes = there[k, axis] * kind(field.shape[1 + axis] - 1) * half
                speed += in_nodes * in_nodes
            by_kink = (np.sqrt(speed) + half) * np.sqrt(np.sqrt(kink[k])) * half
            found[k] = max(found[k], np.sqrt(away[k]), by_kink)
    for k in range(n_z):
        changes[i, j, k] = found[k] if found[k] < most else most  # most also for what is no number


@compiled
def _look_beside(there, after, before, shape, start, stop, away, kink):  # type: ignore[no-untyped-def]
    """Squares of the differences of the velocities of neighbours, and of those of these, in nodes."""
    kind = away.dtype.type
    zero = kind(0)
    nodes_x, nodes_y, nodes_z = kind(shape[1] - 1), kind(shape[2] - 1), kind(shape[3] - 1)
    quarter = kind(0.25)
    square_x, square_y, square_z = nodes_x * nodes_x * quarter, nodes_y * nodes_y * quarter, nodes_z * nodes_z * quarter
    for k in range(start, stop):
        u_x, u_y, u_z = after[k, 0] - there[k, 0], after[k, 1] - there[k, 1], after[k, 2] - there[k, 2]
        v_x, v_y, v_z = there[k, 0] - before[k, 0], there[k, 1] - before[k, 1], there[k, 2] - before[k, 2]
        ahead = square_x * u_x * u_x + square_y * u_y * u_y + square_z * u_z * u_z
        behind = square_x * v_x * v_x + square_y * v_y * v_y + square_z * v_z * v_z
        x, y, z = u_x - v_x, u_y - v_y, u_z - v_z
        bend = square_x * x * x + square_y * y * y + square_z * z * z
        away[k] = max(away[k], max(ahead, behind, zero))
        kink[k] = max(kink[k], bend)


@compiled
def _choose_lengths(field, changes, nearest, places, left, count, direction, longest, shortest, stretch, room, length):  # type: ignore[no-untyped-def]
    """Steps that suit the nodes nearest to some positions; as if all steps that are left were equal."""
    size = changes.shape
    kind = places.dtype.type
    for axis in range(3):
        half, last = kind(size[axis] - 1) * kind(0.5), np.int32(size[axis] - 1)
        for n in range(count):
            nearest[axis, n] = min(max(np.int32((places[axis, n] + kind(1)) * half + kind(0.5)), np.int32(0)), last)
    most = kind(stretch / shortest)
    for n in range(count):
        i, j, k = nearest[0, n], nearest[1, n], nearest[2, n]
        if changes[i, j, k] < 0:
            _fill_changes(field, i, j, most, room, changes)
        length[n] = changes[i, j, k]
    fewest, a_change = 1 / longest, 1 / stretch
    for n in range(count):
        length[n] = direction * left[n] / np.ceil(left[n] * max(fewest, length[n] * a_change) - 1e-6)


@compiled
def _integrate(field, changes, points, arrivals, begin, end, longest, shortest, stretch, start, stop):  # type: ignore[no-untyped-def]
    """Some points at a time, step by step, so that the processor has independent ones to work on."""
    dims, kind = len(points), points.dtype
    direction = 1.0 if end > begin else -1.0
    numbers = np.empty(_TOGETHER, np.int64)
    places, slope, total = (
        np.zeros((3, _TOGETHER), kind),
        np.zeros((3, _TOGETHER), kind),
        np.zeros((3, _TOGETHER), kind),
    )
    left, times, between, length = np.empty(_TOGETHER), np.empty(_TOGETHER), np.empty(_TOGETHER), np.empty(_TOGETHER)
    way = np.empty(_TOGETHER, kind)
    cells = np.empty((3, _TOGETHER), kind), np.empty(_TOGETHER, np.uint64), np.empty((3, _TOGETHER), kind)
    nearest, room = np.empty((3, _TOGETHER), np.int32), np.empty((3, field.shape[3]), kind)
    nothing = points.dtype.type(0)
    size = field.shape[1:4]
    flat = field.reshape(len(field), -1)
    for first in range(start * _TOGETHER, min(stop * _TOGETHER, points.shape[1]), _TOGETHER):
        count = 0
        for n in range(first, min(first + _TOGETHER, points.shape[1])):
            there = nothing
            for axis in range(dims):
                there += points[axis, n]
                arrivals[axis, n] = points[axis, n]
            if there == there:  # what is no number stays none, and must not become an index
                numbers[count] = n
                places[0, count] = 0
                for axis in range(dims):
                    places[3 - dims + axis, count] = points[axis, n]
                left[count] = abs(end - begin)
                count += 1
        while count:
            _choose_lengths(
                field, changes, nearest, places, left, count, direction, longest, shortest, stretch, room, length
            )
            for n in range(count):
                times[n] = end - direction * left[n]
                way[n] = 0
            slope[:] = 0
            _velocities(flat, size, places, times, way, count, cells, slope)
            _set_out(times, length, 1 / 2, count, between, way)
            _take(total, slope, 2, count, True)
            _velocities(flat, size, places, between, way, count, cells, slope)
            _set_out(times, length, 3 / 4, count, between, way)
            _take(total, slope, 3, count, False)
            _velocities(flat, size, places, between, way, count, cells, slope)
            _take(total, slope, 4, count, False)
            for axis in range(3):
                for n in range(count):
                    places[axis, n] += points.dtype.type(length[n] / 9) * total[axis, n]
            going = 0
            for n in range(count):
                left[n] -= abs(length[n])
                if left[n] < 1e-7:
                    for axis in range(dims):
                        arrivals[axis, numbers[n]] = places[3 - dims + axis, n]
                else:
                    numbers[going], left[going] = numbers[n], left[n]
                    for axis in range(3):
                        places[axis, going] = places[axis, n]
                    going += 1
            count = going


@compiled
def _set_out(times, length, part, count, between, way):  # type: ignore[no-untyped-def]
    """Where in a step the velocity is looked at next: the time, and how far on."""
    for n in range(count):
        between[n] = times[n] + part * length[n]
    for n in range(count):
        way[n] = part * length[n]


@compiled
def _take(total, slope, weight, count, anew):  # type: ignore[no-untyped-def]
    """Add a share of a slope, to nothing where it is the first one."""
    share = total.dtype.type(weight)
    for axis in range(3):
        for n in range(count):
            total[axis, n] = share * slope[axis, n] if anew else total[axis, n] + share * slope[axis, n]
