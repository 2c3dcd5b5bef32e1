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
from monai_nodeo.geometry._numba.cells import find_cells, steps_of
from monai_nodeo.geometry._numba.rows import add_row

__all__ = ["sample", "sample_gradients", "sample_resized", "sample_resized_gradient"]

_PART = 2**14  # points of a cloud that are worked on at a time


def sample(image: Tensor, phi: Tensor) -> Tensor:
    """Linear samples of volumes.

    Args:
        image: (B, C, X, Y, Z).
        phi: positions in [-1, 1], (B, 3, *cloud).

    Returns:
        (B, C, *cloud).
    """
    values = np.empty((*image.shape[:2], phi[0, 0].numel()), as_array(image[:0]).dtype)
    for volume, points, found in zip(as_array(image), as_array(phi.flatten(2)), values, strict=True):
        in_threads(_sample, _parts(points), volume, points, found, _halves(image))
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
    halves = _halves(image)
    for item in range(len(image)):
        volume, points, values = (as_array(x[item].flatten(1)) for x in (image, phi, grad))
        volume = volume.reshape(image.shape[1:])
        if by_phi is not None:
            in_threads(_slopes, _parts(points), volume, points, values, by_phi[item], halves)
        if by_image is not None:
            _spread(by_image[item], points, values, halves, planes=phi.shape[2])
    return (
        None if by_image is None else torch.from_numpy(by_image),
        None if by_phi is None else torch.from_numpy(by_phi).view(phi.shape),
    )


def _spread(by_image: NDArray, points: NDArray, values: NDArray, halves: NDArray, planes: int) -> None:
    """Add values to the voxels around points. A part of the cloud has planes of its own, which are added in order."""
    parts = min(planes, 2 * torch.get_num_threads(), 8)
    ends = np.linspace(0, points.shape[1], parts + 1).astype(int)
    spans = np.empty((parts, 2), np.int64)
    in_threads(_spans, parts, points[0], ends, halves[0], by_image.shape[1], spans)
    own = [np.zeros((len(by_image), high - low, *by_image.shape[2:]), by_image.dtype) for low, high in spans]
    in_threads(
        lambda start, stop: [
            _add(own[i], points, values, halves, spans[i, 0], by_image.shape[1], ends[i], ends[i + 1])
            for i in range(start, stop)
        ],
        parts,
    )
    for (low, high), added in zip(spans, own, strict=True):
        by_image[:, low:high] += added


def sample_resized(image: Tensor, phi: Tensor, size: tuple[int, int, int], offset: Tensor | None) -> Tensor:
    """Samples of volumes at the positions of a coarser cloud, linear between its points.

    Args:
        image: (B, C, X, Y, Z).
        phi: positions in [-1, 1], (B, 3, *cloud), first points of the axes at their first voxels, last ones at last.
        size: of the grid that the cloud is interpolated to.
        offset: is added to the positions, (B, 3, *size).

    Returns:
        (B, C, *size).
    """
    values = np.empty((*image.shape[:2], *size), as_array(image[:0]).dtype)
    for *given, found in zip(*_volumes(image, phi, size, offset), values, strict=True):
        in_threads(_sample_resized, size[0], *given, _halves(image), found)
    return torch.from_numpy(values)


def sample_resized_gradient(
    image: Tensor, phi: Tensor, size: tuple[int, int, int], offset: Tensor | None, grad: Tensor
) -> Tensor:
    """Gradient of :py:func:`sample_resized` by the cloud, (B, 3, *cloud).

    The positions are worked out once more: that takes less time than to write and read the slopes, three fields.

    Args:
        image: as there.
        phi: as there.
        size: as there.
        offset: as there.
        grad: of the samples, (B, C, *size).
    """
    by_phi = np.empty(phi.shape, as_array(grad[:0]).dtype)
    for *given, values, found in zip(*_volumes(image, phi, size, offset), as_array(grad), by_phi, strict=True):
        between = np.zeros((size[0], 3, *phi.shape[3:]), found.dtype)
        in_threads(_collect_planes, size[0], *given, _halves(image), values, between)
        in_threads(_collect, phi.shape[2], between, found)
    return torch.from_numpy(by_phi)


def _volumes(image: Tensor, phi: Tensor, size: tuple[int, ...], offset: Tensor | None) -> tuple[NDArray, ...]:
    """Images, clouds and offsets, each (B, ...); no offset has no components."""
    offsets = np.empty((len(image), 0, *size), as_array(image[:0]).dtype) if offset is None else as_array(offset)
    return as_array(image), as_array(phi), offsets


def _halves(image: Tensor) -> NDArray:
    """Half the length of the axes of volumes in voxels."""
    halves: NDArray = np.array([(n - 1) / 2 for n in image.shape[2:]], as_array(image[:0]).dtype)
    return halves


def _parts(points: NDArray) -> int:
    return -(-points.shape[1] // _PART)


@compiled
def _place(position, half, size):  # type: ignore[no-untyped-def]
    """Voxel before a position, the way on to the next one, and whether the position lies inside."""
    voxels = (position + 1) * half
    inside = 0 < voxels < size - 1
    clamped = min(voxels, half + half) if voxels > 0 else half * 0  # what is no number must not become an index
    first = min(int(clamped), max(size - 2, 0))
    return first, clamped - first if voxels == voxels else voxels, inside


@compiled
def _steps(size):  # type: ignore[no-untyped-def]
    """Of an index along each axis, none along an axis of one voxel; without a sign, as Numba likes indices."""
    x = size[1] * size[2] if size[0] > 1 else 0
    return np.uint64(x), np.uint64(size[2] if size[1] > 1 else 0), np.uint64(1 if size[2] > 1 else 0)


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
def _sample(image, points, values, halves, start, stop):  # type: ignore[no-untyped-def]
    size = image.shape[1:]
    steps = _steps(size)
    flat = image.reshape(len(image), -1)
    for n in range(start * _PART, min(stop * _PART, points.shape[1])):
        i, f, _ = _place(points[0, n], halves[0], size[0])
        j, g, _ = _place(points[1, n], halves[1], size[1])
        k, h, _ = _place(points[2, n], halves[2], size[2])
        at = np.uint64((i * size[1] + j) * size[2] + k)
        for channel in range(len(flat)):
            values[channel, n], _, _, _ = _value_and_slopes(flat[channel], at, steps, f, g, h)


@compiled
def _slopes(image, points, grad, by_points, halves, start, stop):  # type: ignore[no-untyped-def]
    size = image.shape[1:]
    steps = _steps(size)
    flat = image.reshape(len(image), -1)
    for n in range(start * _PART, min(stop * _PART, points.shape[1])):
        i, f, in_x = _place(points[0, n], halves[0], size[0])
        j, g, in_y = _place(points[1, n], halves[1], size[1])
        k, h, in_z = _place(points[2, n], halves[2], size[2])
        at = np.uint64((i * size[1] + j) * size[2] + k)
        by_x = by_y = by_z = halves[0] * 0
        for channel in range(len(flat)):
            _, x, y, z = _value_and_slopes(flat[channel], at, steps, f, g, h)
            by_x += x * grad[channel, n]
            by_y += y * grad[channel, n]
            by_z += z * grad[channel, n]
        by_points[0, n] = by_x * halves[0] if in_x else halves[0] * 0
        by_points[1, n] = by_y * halves[1] if in_y else halves[0] * 0
        by_points[2, n] = by_z * halves[2] if in_z else halves[0] * 0


@compiled
def _spans(positions, ends, half, size, spans, start, stop):  # type: ignore[no-untyped-def]
    """Planes that the points of each part reach."""
    for part in range(start, stop):
        low, high = size - 1, 0
        for n in range(ends[part], ends[part + 1]):
            i, _, _ = _place(positions[n], half, size)
            low, high = min(low, i), max(high, i)
        spans[part, 0], spans[part, 1] = low, min(high + 2, size)


@compiled
def _add(by_image, points, grad, halves, below, planes, start, stop):  # type: ignore[no-untyped-def]
    channels, _, rows, columns = by_image.shape
    for n in range(start, stop):
        i, f, _ = _place(points[0, n], halves[0], planes)
        j, g, _ = _place(points[1, n], halves[1], rows)
        k, h, _ = _place(points[2, n], halves[2], columns)
        i1, j1, k1 = min(i + 1, planes - 1) - below, min(j + 1, rows - 1), min(k + 1, columns - 1)
        i -= below
        for channel in range(channels):
            value = grad[channel, n]
            high, image = value * f, by_image[channel]
            low = value - high
            a, b, c, d = low * g, high * g, low - low * g, high - high * g
            image[i, j, k] += c - c * h
            image[i, j, k1] += c * h
            image[i, j1, k] += a - a * h
            image[i, j1, k1] += a * h
            image[i1, j, k] += d - d * h
            image[i1, j, k1] += d * h
            image[i1, j1, k] += b - b * h
            image[i1, j1, k1] += b * h


@compiled
def _between(place, size, coarse):  # type: ignore[no-untyped-def]
    """Point of a coarser axis before a place of a finer one, and the way on to the next point."""
    position = place * ((coarse - 1) / (size - 1)) if size > 1 else 0.0
    first = min(int(position), max(coarse - 2, 0))
    return first, position - first


@compiled
def _fill_between(size, coarse, first, way):  # type: ignore[no-untyped-def]
    """:py:func:`_between` of a whole axis."""
    for place in range(size):
        first[place], way[place] = _between(place, size, coarse)


@compiled
def _room_of_row(cloud, columns):  # type: ignore[no-untyped-def]
    """Room for a plane of the cloud, and for what is known of a row of voxels."""
    kind = cloud.dtype
    plane, row = np.empty((3, *cloud.shape[2:]), kind), np.empty((3, cloud.shape[3] + 1), kind)
    voxels, on, scales = np.empty((3, columns), kind), np.empty((3, columns), kind), np.empty((3, columns), kind)
    points, ways, at = np.empty(columns, np.int32), np.empty(columns, kind), np.empty(columns, np.uint64)
    _fill_between(columns, cloud.shape[3], points, ways)
    return plane, row, voxels, on, scales, points, ways, at


@compiled
def _set_plane(cloud, x, planes, room):  # type: ignore[no-untyped-def]
    """The cloud in a plane of voxels."""
    first, way = _between(x, planes, cloud.shape[1])
    _mix(cloud[:, first], cloud[:, min(first + 1, cloud.shape[1] - 1)], cloud.dtype.type(way), room[0])


@compiled
def _set_row(offset, x, y, size, halves, within, room):  # type: ignore[no-untyped-def]
    """Where a row of voxels in that plane lies in the image: its cells, the ways on, and the scales of slopes."""
    plane, row, voxels, on, scales, points, ways, at = room
    rows, columns = plane.shape[1:]
    first, way = _between(y, size[1], rows)
    following = min(first + 1, rows - 1)
    for axis in range(3):
        _mix_rows(plane[axis, first], plane[axis, following], plane.dtype.type(way), row[axis])
        row[axis, columns] = row[axis, columns - 1]
        _spread_row(row[axis], points, ways, voxels[axis])
        if len(offset):
            add_row(offset[axis, x, y], voxels[axis])
        _fill_voxels(voxels[axis], halves[axis], within[axis], scales[axis])
    find_cells(voxels, within, 1, len(at), at, on)


@compiled
def _sample_resized(image, cloud, offset, halves, values, start, stop):  # type: ignore[no-untyped-def]
    size, within = values.shape[1:], image.shape[1:]
    steps, flat = steps_of(within, 1), image.reshape(len(image), -1)
    room = _room_of_row(cloud, size[2])
    on, at = room[3], room[7]
    for x in range(start, stop):
        _set_plane(cloud, x, size[0], room)
        for y in range(size[1]):
            _set_row(offset, x, y, size, halves, within, room)
            for channel in range(len(flat)):
                _fill_values(flat[channel], at, on, steps, values[channel, x, y])


@compiled
def _fill_values(flat, at, on, steps, values):  # type: ignore[no-untyped-def]
    for z in range(len(values)):
        values[z], _, _, _ = _value_and_slopes(flat, at[z], steps, on[0, z], on[1, z], on[2, z])


@compiled
def _add_slopes(flat, at, on, steps, grad, found):  # type: ignore[no-untyped-def]
    """Slopes times the gradient of the values, (3, Z)."""
    for z in range(len(grad)):
        _, x, y, w = _value_and_slopes(flat, at[z], steps, on[0, z], on[1, z], on[2, z])
        found[0, z] += x * grad[z]
        found[1, z] += y * grad[z]
        found[2, z] += w * grad[z]


@compiled
def _mix_rows(one, other, way, target):  # type: ignore[no-untyped-def]
    for z in range(len(one)):
        target[z] = one[z] + (other[z] - one[z]) * way


@compiled
def _spread_row(row, points, ways, fine):  # type: ignore[no-untyped-def]
    for z in range(len(fine)):
        here = row[points[z]]
        fine[z] = here + (row[points[z] + 1] - here) * ways[z]


@compiled
def _fill_voxels(row, half, count, scales):  # type: ignore[no-untyped-def]
    """Positions in voxels in place of those in [-1, 1], and by what a slope in voxels is multiplied: 0 outside."""
    kind = row.dtype.type
    zero, end = kind(0), kind(count - 1)
    for z in range(len(row)):
        voxel = (row[z] + kind(1)) * half
        row[z] = voxel
        scales[z] = half if zero < voxel < end else zero


@compiled
def _mix(one, other, way, target):  # type: ignore[no-untyped-def]
    for axis in range(3):
        for y in range(target.shape[1]):
            for z in range(target.shape[2]):
                target[axis, y, z] = one[axis, y, z] + (other[axis, y, z] - one[axis, y, z]) * way


@compiled
def _collect_planes(image, cloud, offset, halves, grad, between, start, stop):  # type: ignore[no-untyped-def]
    """Gradients of the voxels of a plane, gathered at the points of the cloud's plane."""
    size, within, coarse, kind = grad.shape[1:], image.shape[1:], cloud.shape[2:], between.dtype.type
    steps, flat = steps_of(within, 1), image.reshape(len(image), -1)
    room = _room_of_row(cloud, size[2])
    on, scales, points, ways, at = room[3:]
    fine, row = np.empty((3, size[2]), between.dtype), np.empty((3, coarse[1] + 1), between.dtype)
    for x in range(start, stop):
        _set_plane(cloud, x, size[0], room)
        for y in range(size[1]):
            _set_row(offset, x, y, size, halves, within, room)
            fine[:] = 0
            for channel in range(len(flat)):
                _add_slopes(flat[channel], at, on, steps, grad[channel, x, y], fine)
            for axis in range(3):
                for z in range(size[2]):
                    fine[axis, z] *= scales[axis, z]
            _collect_row(fine, points, ways, row)
            first, way = _between(y, size[1], coarse[0])
            following = min(first + 1, coarse[0] - 1)
            for axis in range(3):
                _add_share(row[axis], kind(way), between[x, axis, following])
                _add_share(row[axis], kind(1 - way), between[x, axis, first])


@compiled
def _collect_row(fine, points, ways, row):  # type: ignore[no-untyped-def]
    """What the voxels of a row give to the points, (3, points and one more)."""
    zero = fine.dtype.type(0)
    row[:] = zero
    here = points[0]
    before_x = before_y = before_z = behind_x = behind_y = behind_z = zero
    for z in range(len(points)):
        if points[z] != here:
            row[0, here] += before_x
            row[1, here] += before_y
            row[2, here] += before_z
            row[0, here + 1] += behind_x
            row[1, here + 1] += behind_y
            row[2, here + 1] += behind_z
            before_x = before_y = before_z = behind_x = behind_y = behind_z = zero
            here = points[z]
        way = ways[z]
        x, y, w = fine[0, z] * way, fine[1, z] * way, fine[2, z] * way
        behind_x, behind_y, behind_z = behind_x + x, behind_y + y, behind_z + w
        before_x, before_y, before_z = (
            before_x + (fine[0, z] - x),
            before_y + (fine[1, z] - y),
            before_z + (fine[2, z] - w),
        )
    last = row.shape[1] - 2
    for axis, before, behind in ((0, before_x, behind_x), (1, before_y, behind_y), (2, before_z, behind_z)):
        row[axis, here] += before
        row[axis, min(here + 1, last)] += behind


@compiled
def _add_share(row, share, target):  # type: ignore[no-untyped-def]
    for z in range(len(target)):
        target[z] += row[z] * share


@compiled
def _collect(between, by_cloud, start, stop):  # type: ignore[no-untyped-def]
    """The planes, gathered at those of the cloud."""
    size, coarse = between.shape[0], by_cloud.shape[1]
    for target in range(start, stop):
        for axis in range(3):
            for y in range(by_cloud.shape[2]):
                for z in range(by_cloud.shape[3]):
                    by_cloud[axis, target, y, z] = 0
        for x in range(size):
            first, way = _between(x, size, coarse)
            following = min(first + 1, coarse - 1)
            if target not in (first, following):
                continue
            share = (1 - way if target == first else 0.0) + (way if target == following else 0.0)
            share = by_cloud.dtype.type(share)
            for axis in range(3):
                for y in range(by_cloud.shape[2]):
                    for z in range(by_cloud.shape[3]):
                        by_cloud[axis, target, y, z] += share * between[x, axis, y, z]
