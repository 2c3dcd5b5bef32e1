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

__all__ = ["integrate"]

_TOGETHER = 256  # points that are worked on at a time
# Steps of an index: without a sign, so that Numba does not look whether it counts from the end.
_1, _2, _3, _4, _5 = (np.uint64(n) for n in range(1, 6))


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
        # A slice is a volume whose first axis has one voxel. Vectors lie together, as they are used. Other axes of one
        # voxel have it twice, so that every node has a neighbour in memory.
        images = [as_array(image[min(item, len(image) - 1)]) for image in keyframes]
        given = (*[1] * (3 - dims), *images[0].shape[1:])
        shape = (given[0], *[max(n, 2) for n in given[1:]])
        field = np.zeros((len(images), *shape, 3), kind)
        for target, image in zip(field, images, strict=True):
            target[..., 3 - dims :] = np.moveaxis(image, 0, -1).reshape(*given, dims)
        changes = np.zeros(shape, kind)
        in_threads(_largest_changes, shape[0], field, changes)
        np.fmin(changes, stretch / shortest, out=changes)
        parts = -(-states.shape[-1] // _TOGETHER)
        for number, (start, end) in enumerate(pairwise(times)):
            points, found = states[number, item], states[number + 1, item]
            in_threads(_integrate, parts, field, changes, points, found, start, end, longest, stretch)
    return list(torch.from_numpy(states).view(len(times), *phi.shape).unbind())


@compiled
def _in_cell(image, a, to_x, to_y, f, g, h):  # type: ignore[no-untyped-def]
    """Linear interpolation between the corners of a cell, the first one at ``a``: along z, then y, then x."""
    b, c = a + to_y, a + to_x
    d = c + to_y
    u0, v0, w0 = _along(image, a, h)
    u1, v1, w1 = _along(image, b, h)
    u2, v2, w2 = _along(image, c, h)
    u3, v3, w3 = _along(image, d, h)
    u0, v0, w0 = u0 + (u1 - u0) * g, v0 + (v1 - v0) * g, w0 + (w1 - w0) * g
    u2, v2, w2 = u2 + (u3 - u2) * g, v2 + (v3 - v2) * g, w2 + (w3 - w2) * g
    return u0 + (u2 - u0) * f, v0 + (v2 - v0) * f, w0 + (w2 - w0) * f


@compiled
def _along(image, at, h):  # type: ignore[no-untyped-def]
    u, v, w = image[at], image[at + _1], image[at + _2]
    return u + (image[at + _3] - u) * h, v + (image[at + _4] - v) * h, w + (image[at + _5] - w) * h


@compiled
def _velocities(field, size, positions, times, way, count, found):  # type: ignore[no-untyped-def]
    """Linear in space and time, clamped to the grid, at ``positions + way * found``, which is replaced."""
    frames = len(field)
    n_x, n_y, n_z = size
    zero = positions.dtype.type(0)
    half_x, half_y, half_z = zero + (n_x - 1) / 2, zero + (n_y - 1) / 2, zero + (n_z - 1) / 2
    to_y = np.uint64(3 * n_z)
    to_x = np.uint64(3 * n_z * n_y if n_x > 1 else 0)
    for n in range(count):
        x = (positions[0, n] + way[n] * found[0, n] + 1) * half_x
        y = (positions[1, n] + way[n] * found[1, n] + 1) * half_y
        z = (positions[2, n] + way[n] * found[2, n] + 1) * half_z
        # what is no number must not become an index
        x = min(x, half_x + half_x) if x > zero else zero
        y = min(y, half_y + half_y) if y > zero else zero
        z = min(z, half_z + half_z) if z > zero else zero
        i, j, k = min(int(x), max(n_x - 2, 0)), min(int(y), n_y - 2), min(int(z), n_z - 2)
        f, g, h = x - i, y - j, z - k
        at = np.uint64(3 * ((i * n_y + j) * n_z + k))
        frame, share = 0, zero
        if frames > 1:
            position = times[n] * (frames - 1)
            frame = min(max(int(position), 0), frames - 2)
            share = zero + (position - frame)
        u, v, w = _in_cell(field[frame], at, to_x, to_y, f, g, h)
        if frames > 1:
            p, q, r = _in_cell(field[frame + 1], at, to_x, to_y, f, g, h)
            u, v, w = u + (p - u) * share, v + (q - v) * share, w + (r - w) * share
        found[0, n], found[1, n], found[2, n] = u, v, w


@compiled
def _largest_changes(field, changes, start, stop):  # type: ignore[no-untyped-def]
    """What limits the steps around each node, in 1 / time: how fast the neighbours move away from it, or its kink.

    A point that passes a kink of the velocity within a step ends beside its way, by the kink times the square of the
    step; it passes as many kinks as nodes. So the step goes with the inverse of the speed and of the root of the kink.
    """
    frames, n_x, n_y, n_z, _ = field.shape
    for i in range(start, stop):
        for j in range(n_y):
            for k in range(n_z):
                here = changes[i, j, k] * 0
                for frame in range(frames):
                    there = field[frame, i, j, k]
                    away = kink = 0.0
                    for a, b, c in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
                        after = field[frame, min(i + a, n_x - 1), min(j + b, n_y - 1), min(k + c, n_z - 1)]
                        before = field[frame, max(i - a, 0), max(j - b, 0), max(k - c, 0)]
                        ahead, behind, bend = 0.0, 0.0, 0.0
                        for axis, n in enumerate((n_x, n_y, n_z)):
                            u, v = after[axis] - there[axis], there[axis] - before[axis]
                            nodes = (n - 1) * (n - 1) * 0.25
                            ahead += nodes * u * u
                            behind += nodes * v * v
                            bend += nodes * (u - v) * (u - v)
                        away = max(away, ahead, behind)
                        kink = max(kink, bend)
                    speed = 0.0
                    for axis, n in enumerate((n_x, n_y, n_z)):
                        speed += (there[axis] * (n - 1) * 0.5) ** 2
                    here = max(here, np.sqrt(away), (np.sqrt(speed) + 0.5) * kink**0.25 / 2)
                changes[i, j, k] = here


@compiled
def _change_at(changes, x, y, z):  # type: ignore[no-untyped-def]
    """At the node nearest to a position."""
    n_x, n_y, n_z = changes.shape
    i = min(max(int((x + 1) * (n_x - 1) * 0.5 + 0.5), 0), n_x - 1)
    j = min(max(int((y + 1) * (n_y - 1) * 0.5 + 0.5), 0), n_y - 1)
    return changes[i, j, min(max(int((z + 1) * (n_z - 1) * 0.5 + 0.5), 0), n_z - 1)]


@compiled
def _integrate(field, changes, points, arrivals, begin, end, longest, stretch, start, stop):  # type: ignore[no-untyped-def]
    """Some points at a time, step by step, so that the processor has independent ones to work on."""
    dims, kind = len(points), points.dtype
    direction = 1.0 if end > begin else -1.0
    numbers = np.empty(_TOGETHER, np.int64)
    places, slope, total = (
        np.empty((3, _TOGETHER), kind),
        np.empty((3, _TOGETHER), kind),
        np.empty((3, _TOGETHER), kind),
    )
    left, times, between, length = np.empty(_TOGETHER), np.empty(_TOGETHER), np.empty(_TOGETHER), np.empty(_TOGETHER)
    way = np.empty(_TOGETHER, kind)
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
            for n in range(count):
                change = _change_at(changes, places[0, n], places[1, n], places[2, n])
                step = min(longest, stretch / max(change, 1e-6))
                length[n] = direction * left[n] / np.ceil(left[n] / step - 1e-6)  # equal steps, should nothing change
                times[n] = end - direction * left[n]
                way[n] = 0
                slope[0, n] = slope[1, n] = slope[2, n] = 0
            _velocities(flat, size, places, times, way, count, slope)
            for n in range(count):
                between[n] = times[n] + length[n] / 2
                way[n] = length[n] / 2
                for axis in range(3):
                    total[axis, n] = 2 * slope[axis, n]
            _velocities(flat, size, places, between, way, count, slope)
            for n in range(count):
                between[n] = times[n] + 3 * length[n] / 4
                way[n] = 3 * length[n] / 4
                for axis in range(3):
                    total[axis, n] += 3 * slope[axis, n]
            _velocities(flat, size, places, between, way, count, slope)
            going = 0
            for n in range(count):
                left[n] -= abs(length[n])
                way[n] = length[n] / 9
                for axis in range(3):
                    places[axis, n] += way[n] * (total[axis, n] + 4 * slope[axis, n])
                if left[n] < 1e-7:
                    for axis in range(dims):
                        arrivals[axis, numbers[n]] = places[3 - dims + axis, n]
                else:
                    numbers[going], left[going] = numbers[n], left[n]
                    for axis in range(3):
                        places[axis, going] = places[axis, n]
                    going += 1
            count = going
