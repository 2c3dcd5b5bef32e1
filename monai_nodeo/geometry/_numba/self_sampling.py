# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""A field of vectors, sampled where it points to from its own nodes: a step of scaling and squaring."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from monai_nodeo.geometry._numba._threads import as_array, compiled, in_threads
from monai_nodeo.geometry._numba.sampling import _steps, _value_and_slopes

__all__ = ["sample_at_itself", "sample_at_itself_gradient"]

_PARTS = 8  # of the planes, each of which adds to voxels of its own


def sample_at_itself(field: Tensor, way: float) -> Tensor:
    """``field(x + way * field(x))`` at the nodes x.

    Args:
        field: vectors in [-1, 1] over the nodes, (B, 3, X, Y, Z).
        way: factor.
    """
    source = as_array(field)
    found = np.empty_like(source)
    for image, target in zip(source, found, strict=True):
        in_threads(_forward, image.shape[1], image, target, _ways(field, way))
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
        planes = image.shape[1]
        parts = min(planes, _PARTS)
        ends = np.linspace(0, planes, parts + 1).astype(int)
        spans = np.empty((parts, 2), np.int64)
        ways = _ways(field, way)
        in_threads(_spans, parts, image, ways, ends, spans)
        own = [np.zeros((3, high - low, *image.shape[2:]), image.dtype) for low, high in spans]

        def add(start: int, stop: int, spans: Any = spans, own: Any = own, arguments: Any = (image, g, target)) -> None:
            for i in range(start, stop):
                _backward(*arguments, own[i], spans[i, 0], ways, ends[i], ends[i + 1])  # noqa: B023

        in_threads(add, parts)
        for (low, high), added in zip(spans, own, strict=True):
            target[:, low:high] += added
    return torch.from_numpy(found)


def _ways(field: Tensor, way: float) -> np.ndarray:
    """Voxels that a unit of the field is taken along each axis."""
    ways: np.ndarray = np.array([way * (n - 1) / 2 for n in field.shape[2:]], as_array(field[:0]).dtype)
    return ways


@compiled
def _arrival(node, step, size):  # type: ignore[no-untyped-def]
    """Voxel before the place that a node is taken to, the way on to the next, and whether it lies inside."""
    place = node + step
    inside = 0 < place < size - 1
    clamped = min(place, size - 1.0) if place > 0 else 0.0  # what is no number must not become an index
    first = min(int(clamped), max(size - 2, 0))
    return first, clamped - first if place == place else place, inside


@compiled
def _forward(field, found, ways, start, stop):  # type: ignore[no-untyped-def]
    size = field.shape[1:]
    steps = _steps(size)
    flat = field.reshape(3, -1)
    for x in range(start, stop):
        for y in range(size[1]):
            for z in range(size[2]):
                i, f, _ = _arrival(x, ways[0] * field[0, x, y, z], size[0])
                j, g, _ = _arrival(y, ways[1] * field[1, x, y, z], size[1])
                k, h, _ = _arrival(z, ways[2] * field[2, x, y, z], size[2])
                at = np.uint64((i * size[1] + j) * size[2] + k)
                found[0, x, y, z], _, _, _ = _value_and_slopes(flat[0], at, steps, f, g, h)
                found[1, x, y, z], _, _, _ = _value_and_slopes(flat[1], at, steps, f, g, h)
                found[2, x, y, z], _, _, _ = _value_and_slopes(flat[2], at, steps, f, g, h)


@compiled
def _spans(field, ways, ends, spans, start, stop):  # type: ignore[no-untyped-def]
    """Planes that the nodes of each part reach."""
    size = field.shape[1]
    for part in range(start, stop):
        low, high = size - 1, 0
        for x in range(ends[part], ends[part + 1]):
            for y in range(field.shape[2]):
                for z in range(field.shape[3]):
                    i, _, _ = _arrival(x, ways[0] * field[0, x, y, z], size)
                    low, high = min(low, i), max(high, i)
        spans[part, 0], spans[part, 1] = low, min(high + 2, size)


@compiled
def _backward(field, grad, by_field, own, below, ways, start, stop):  # type: ignore[no-untyped-def]
    size = field.shape[1:]
    steps = _steps(size)
    to_x, to_y, to_z = steps
    flat = field.reshape(3, -1)
    added = own.reshape(3, -1)
    first_own = below * size[1] * size[2]
    zero = ways[0] * 0
    for x in range(start, stop):
        for y in range(size[1]):
            for z in range(size[2]):
                i, f, in_x = _arrival(x, ways[0] * field[0, x, y, z], size[0])
                j, g, in_y = _arrival(y, ways[1] * field[1, x, y, z], size[1])
                k, h, in_z = _arrival(z, ways[2] * field[2, x, y, z], size[2])
                voxel = (i * size[1] + j) * size[2] + k
                at, a = np.uint64(voxel), np.uint64(voxel - first_own)
                b, c = a + to_y, a + to_x
                d = c + to_y
                by_x = by_y = by_z = zero
                for axis in range(3):
                    value = grad[axis, x, y, z]
                    _, s, t, u = _value_and_slopes(flat[axis], at, steps, f, g, h)
                    by_x += s * value
                    by_y += t * value
                    by_z += u * value
                    target = added[axis]
                    high = value * f
                    low = value - high
                    p, q, r, v = low * g, high * g, low - low * g, high - high * g
                    target[a] += r - r * h
                    target[a + to_z] += r * h
                    target[b] += p - p * h
                    target[b + to_z] += p * h
                    target[c] += v - v * h
                    target[c + to_z] += v * h
                    target[d] += q - q * h
                    target[d + to_z] += q * h
                by_field[0, x, y, z] = by_x * ways[0] if in_x else zero
                by_field[1, x, y, z] = by_y * ways[1] if in_y else zero
                by_field[2, x, y, z] = by_z * ways[2] if in_z else zero
