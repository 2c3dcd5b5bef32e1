# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Linear samples of volumes, point by point.

A point is clamped to the volume; outside, the border goes on and the slope is 0. A position that is no number makes a
sample that is none.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_nodeo.geometry._numba._threads import as_array, compiled, in_threads
from monai_nodeo.geometry._numba.cells import add_slopes, fill_values, fill_voxels, find_cells, halves_of, steps_of
from monai_nodeo.geometry._numba.parts import Parts, clear_planes
from monai_nodeo.geometry._numba.vectors import LANES, add_to_corners, interpolate, packed, slopes_times

__all__ = ["sample", "sample_gradients"]

_PART = 2**14  # points of a cloud that a thread works on at a time
_TOGETHER = 256  # points whose cells are looked up together
_FEWEST = 1 / 4  # points a voxel, from which on it is worth it to pack the vectors of a field


def sample(image: Tensor, phi: Tensor) -> Tensor:
    """Linear samples of volumes.

    Args:
        image: (B, C, X, Y, Z).
        phi: positions in [-1, 1], (B, 3, *cloud).

    Returns:
        (B, C, *cloud).
    """
    values = np.empty((*image.shape[:2], phi[0, 0].numel()), as_array(image[:0]).dtype)
    kernel = _sample_vectors if _are_vectors(image, phi) else _sample
    for volume, points, found in zip(as_array(image), as_array(phi.flatten(2)), values, strict=True):
        source = packed(volume) if kernel is _sample_vectors else volume
        in_threads(kernel, _parts(points), source, points, halves_of(image), found)
    return torch.from_numpy(values).view(*image.shape[:2], *phi.shape[2:])


def sample_gradients(
    image: Tensor, phi: Tensor, grad: Tensor, of_image: bool, of_phi: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of :py:func:`sample` by the image and by the positions.

    Args:
        image: as there.
        phi: as there.
        grad: of the samples.
        of_image: None instead of the first one otherwise.
        of_phi: None instead of the second one otherwise.
    """
    by_image = np.zeros(image.shape, as_array(image[:0]).dtype) if of_image else None
    by_phi = np.empty((len(phi), 3, phi[0, 0].numel()), as_array(image[:0]).dtype) if of_phi else None
    kernel = _slopes_of_vectors if _are_vectors(image, phi) else _slopes
    halves = halves_of(image)
    for item in range(len(image)):
        volume, points, values = (as_array(x[item].flatten(1)) for x in (image, phi, grad))
        volume = volume.reshape(image.shape[1:])
        if by_phi is not None:
            source = packed(volume) if kernel is _slopes_of_vectors else volume
            in_threads(kernel, _parts(points), source, points, halves, values, by_phi[item])
        if by_image is not None:
            _spread(by_image[item], points, values, halves, planes=phi.shape[2])
    return (
        None if by_image is None else torch.from_numpy(by_image),
        None if by_phi is None else torch.from_numpy(by_phi).view(phi.shape),
    )


def _are_vectors(image: Tensor, phi: Tensor) -> bool:
    return image.shape[1] == 3 and phi[0, 0].numel() >= _FEWEST * image[0, 0].numel()


def _spread(by_image: NDArray, points: NDArray, values: NDArray, halves: NDArray, planes: int) -> None:
    """Add values to the voxels around points, three channels at a time."""
    parts = Parts.of(points.shape[1], planes)
    in_threads(_spans, len(parts.spans), points[0], halves[0], by_image.shape[1], parts.ends, parts.spans)
    for first in range(0, len(by_image), 3):
        target, added = by_image[first : first + 3], values[first : first + 3]
        if len(added) < 3:
            added = np.concatenate([added, np.zeros((3 - len(added), added.shape[1]), added.dtype)])
        own = parts.room(target.shape[2:], target.dtype)
        in_threads(_add, len(parts.spans), by_image.shape[1:], points, halves, added, parts.ends, parts.spans, *own)
        parts.add(own, target)


def _parts(points: NDArray) -> int:
    return -(-points.shape[1] // _PART)


@compiled
def _room(points):  # type: ignore[no-untyped-def]
    """For positions in voxels, the ways on from the cells, the scales of slopes, and the places of the cells."""
    voxels, on = np.empty((3, _TOGETHER)), np.empty((3, _TOGETHER), points.dtype)
    return voxels, on, np.empty((3, _TOGETHER), points.dtype), np.empty(_TOGETHER, np.uint64)


@compiled
def _find(points, first, count, size, halves, lanes, room):  # type: ignore[no-untyped-def]
    """The cells of some points, the ways on and the scales of slopes."""
    voxels, on, scales, at = room
    for axis in range(3):
        fill_voxels(points[axis, first : first + count], halves[axis], size[axis], voxels[axis], scales[axis])
    find_cells(voxels, size, lanes, count, at, on)


@compiled
def _sample(image, points, halves, values, start, stop):  # type: ignore[no-untyped-def]
    size, flat, room = image.shape[1:], image.reshape(len(image), -1), _room(points)
    steps = steps_of(size, 1)
    end = min(stop * _PART, points.shape[1])
    for first in range(start * _PART, end, _TOGETHER):
        count = min(_TOGETHER, end - first)
        _find(points, first, count, size, halves, 1, room)
        for channel in range(len(flat)):
            fill_values(flat[channel], room[3], room[1], steps, values[channel, first : first + count])


@compiled
def _sample_vectors(vectors, points, halves, values, start, stop):  # type: ignore[no-untyped-def]
    size, flat, room = vectors.shape[:3], vectors.reshape(-1), _room(points)
    to_x, to_y, to_z = steps_of(size, LANES)
    on, at = room[1], room[3]
    end = min(stop * _PART, points.shape[1])
    for first in range(start * _PART, end, _TOGETHER):
        count = min(_TOGETHER, end - first)
        _find(points, first, count, size, halves, LANES, room)
        for n in range(count):
            p, q, r = interpolate(flat, at[n], to_x, to_y, to_z, on[0, n], on[1, n], on[2, n])
            values[0, first + n], values[1, first + n], values[2, first + n] = p, q, r


@compiled
def _slopes(image, points, halves, grad, by_points, start, stop):  # type: ignore[no-untyped-def]
    size, flat, room = image.shape[1:], image.reshape(len(image), -1), _room(points)
    steps, scales, found = steps_of(size, 1), room[2], np.empty((3, _TOGETHER), points.dtype)
    end = min(stop * _PART, points.shape[1])
    for first in range(start * _PART, end, _TOGETHER):
        count = min(_TOGETHER, end - first)
        _find(points, first, count, size, halves, 1, room)
        found[:] = 0
        for channel in range(len(flat)):
            add_slopes(flat[channel], room[3], room[1], steps, grad[channel, first : first + count], found)
        for axis in range(3):
            for n in range(count):
                by_points[axis, first + n] = found[axis, n] * scales[axis, n]


@compiled
def _slopes_of_vectors(vectors, points, halves, grad, by_points, start, stop):  # type: ignore[no-untyped-def]
    size, flat, room = vectors.shape[:3], vectors.reshape(-1), _room(points)
    to_x, to_y, to_z = steps_of(size, LANES)
    _, on, scales, at = room
    end = min(stop * _PART, points.shape[1])
    for first in range(start * _PART, end, _TOGETHER):
        count = min(_TOGETHER, end - first)
        _find(points, first, count, size, halves, LANES, room)
        for n in range(count):
            p, q, r = grad[0, first + n], grad[1, first + n], grad[2, first + n]
            p, q, r = slopes_times(flat, at[n], to_x, to_y, to_z, on[0, n], on[1, n], on[2, n], p, q, r)
            by_points[0, first + n] = p * scales[0, n]
            by_points[1, first + n] = q * scales[1, n]
            by_points[2, first + n] = r * scales[2, n]


@compiled
def _spans(positions, half, planes, ends, spans, start, stop):  # type: ignore[no-untyped-def]
    """Planes that the points of each part reach, and one more on both sides: another kernel may round otherwise."""
    zero = half * 0
    end = half + half
    for part in range(start, stop):
        low, high = end, zero
        for n in range(ends[part], ends[part + 1]):
            place = (positions[n] + 1) * half
            place = min(place, end) if place > zero else zero  # what is no number counts as the first plane
            low, high = min(low, place), max(high, place)
        spans[part, 0], spans[part, 1] = max(int(low) - 2, 0), min(int(high) + 3, planes)


@compiled
def _add(size, points, halves, grad, ends, spans, own, firsts, start, stop):  # type: ignore[no-untyped-def]
    """Values to the planes of each part's own."""
    added, room = own.reshape(-1), _room(points)
    to_x, to_y, to_z = steps_of(size, LANES)
    _, on, _, at = room
    for part in range(start, stop):
        clear_planes(own, firsts, part)
        moved = np.uint64((firsts[part] - spans[part, 0]) * (LANES * size[1] * size[2]))
        for first in range(ends[part], ends[part + 1], _TOGETHER):
            count = min(_TOGETHER, ends[part + 1] - first)
            _find(points, first, count, size, halves, LANES, room)
            for n in range(count):
                f, g, h = on[0, n], on[1, n], on[2, n]
                p, q, r = grad[0, first + n], grad[1, first + n], grad[2, first + n]
                add_to_corners(added, at[n] + moved, to_x, to_y, to_z, f, g, h, p, q, r)
