# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""A field of vectors, sampled where it points to from its own nodes: a step of scaling and squaring."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from monai_nodeo.geometry._numba._threads import as_array, compiled, in_threads
from monai_nodeo.geometry._numba.cells import find_cells, steps_of
from monai_nodeo.geometry._numba.parts import Parts, clear_planes
from monai_nodeo.geometry._numba.vectors import LANES, add_to_corners, interpolate, packed, slopes_times

__all__ = ["sample_at_itself", "sample_at_itself_gradient"]


def sample_at_itself(field: Tensor, way: float) -> Tensor:
    """``field(x + way * field(x))`` at the nodes x.

    Args:
        field: vectors in [-1, 1] over the nodes, (B, 3, X, Y, Z).
        way: factor.
    """
    source = as_array(field)
    found = np.empty_like(source)
    for image, target in zip(source, found, strict=True):
        in_threads(_forward, image.shape[1], image, packed(image), target, _ways(field, way))
    return torch.from_numpy(found)


def sample_at_itself_gradient(field: Tensor, way: float, grad: Tensor) -> Tensor:
    """Gradient of :py:func:`sample_at_itself` by the field.

    Args:
        field: as there.
        way: as there.
        grad: of the samples.
    """
    fields, grads = as_array(field), as_array(grad)
    found = np.empty_like(fields)
    for image, g, target in zip(fields, grads, found, strict=True):
        parts, ways = Parts.of(image.shape[1], image.shape[1]), _ways(field, way)
        in_threads(_spans, len(parts.spans), image, ways, *parts)
        own = parts.room(image.shape[2:], image.dtype)
        in_threads(_backward, len(parts.spans), image, packed(image), g, target, *own, parts.spans, ways, parts.ends)
        parts.add(own, target)
    return torch.from_numpy(found)


def _ways(field: Tensor, way: float) -> np.ndarray:
    """Voxels that a unit of the field is taken along each axis."""
    ways: np.ndarray = np.array([way * (n - 1) / 2 for n in field.shape[2:]], as_array(field[:0]).dtype)
    return ways


@compiled
def _fill_places(field, ways, x, y, voxels):  # type: ignore[no-untyped-def]
    """Where the nodes of a row are taken, (3, Z)."""
    kind = ways.dtype.type
    here_x, here_y = kind(x), kind(y)
    way_x, way_y, way_z = ways[0], ways[1], ways[2]
    for z in range(field.shape[3]):
        voxels[0, z] = here_x + way_x * field[0, x, y, z]
        voxels[1, z] = here_y + way_y * field[1, x, y, z]
        voxels[2, z] = kind(z) + way_z * field[2, x, y, z]


@compiled
def _forward(field, vectors, found, ways, start, stop):  # type: ignore[no-untyped-def]
    size = field.shape[1:]
    to_x, to_y, to_z = steps_of(size, LANES)
    flat = vectors.reshape(-1)
    voxels, on = np.empty((3, size[2]), field.dtype), np.empty((3, size[2]), field.dtype)
    at = np.empty(size[2], np.uint64)
    for x in range(start, stop):
        for y in range(size[1]):
            _fill_places(field, ways, x, y, voxels)
            find_cells(voxels, size, LANES, size[2], at, on)
            for z in range(size[2]):
                p, q, r = interpolate(flat, at[z], to_x, to_y, to_z, on[0, z], on[1, z], on[2, z])
                found[0, x, y, z], found[1, x, y, z], found[2, x, y, z] = p, q, r


@compiled
def _spans(field, ways, ends, spans, start, stop):  # type: ignore[no-untyped-def]
    """Planes that the nodes of each part reach, and one more on both sides: another kernel may round otherwise."""
    planes, zero = field.shape[1], ways[0] * 0
    end = zero + (planes - 1)
    for part in range(start, stop):
        low, high = end, zero
        for x in range(ends[part], ends[part + 1]):
            here = zero + x
            for y in range(field.shape[2]):
                for z in range(field.shape[3]):
                    place = here + ways[0] * field[0, x, y, z]
                    place = min(place, end) if place > zero else zero  # what is no number counts as the first plane
                    low, high = min(low, place), max(high, place)
        spans[part, 0], spans[part, 1] = max(int(low) - 2, 0), min(int(high) + 3, planes)


@compiled
def _backward(field, vectors, grad, by_field, own, firsts, spans, ways, ends, start, stop):  # type: ignore[no-untyped-def]
    """The gradient by where the nodes are taken; that by the values there is added to planes of each part's own."""
    size = field.shape[1:]
    to_x, to_y, to_z = steps_of(size, LANES)
    flat, added = vectors.reshape(-1), own.reshape(-1)
    zero = ways[0] * 0
    voxels, on = np.empty((3, size[2]), field.dtype), np.empty((3, size[2]), field.dtype)
    at = np.empty(size[2], np.uint64)
    for part in range(start, stop):
        clear_planes(own, firsts, part)
        moved = np.uint64((firsts[part] - spans[part, 0]) * (LANES * size[1] * size[2]))
        for x in range(ends[part], ends[part + 1]):
            for y in range(size[1]):
                _fill_places(field, ways, x, y, voxels)
                find_cells(voxels, size, LANES, size[2], at, on)
                for z in range(size[2]):
                    f, g, h = on[0, z], on[1, z], on[2, z]
                    p, q, r = grad[0, x, y, z], grad[1, x, y, z], grad[2, x, y, z]
                    add_to_corners(added, at[z] + moved, to_x, to_y, to_z, f, g, h, p, q, r)
                    p, q, r = slopes_times(flat, at[z], to_x, to_y, to_z, f, g, h, p, q, r)
                    by_field[0, x, y, z] = p * ways[0] if zero < voxels[0, z] < size[0] - 1 else zero
                    by_field[1, x, y, z] = q * ways[1] if zero < voxels[1, z] < size[1] - 1 else zero
                    by_field[2, x, y, z] = r * ways[2] if zero < voxels[2, z] < size[2] - 1 else zero
