# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The local correlation and its gradient, and sums in windows: running sums in double precision, in three passes.

Images have three axes here; a slice is a volume whose first axis has one voxel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from monai_nodeo.geometry._numba._threads import as_array, compiled, in_threads

if TYPE_CHECKING:
    from monai_nodeo.geometry.windows import Windows

__all__ = ["squared_correlation", "window_sum"]


def window_sum(x: Tensor, sides: Sequence[int]) -> Tensor:
    """See :py:func:`monai_nodeo.geometry.windows.window_sum`."""
    source = as_array(x)
    shape = _three(source.shape[x.ndim - len(sides) :])
    reach = [side // 2 for side in _three(sides)]
    volumes = source.reshape(-1, *shape)
    total = np.empty_like(volumes)
    for volume, target in zip(volumes, total, strict=True):
        in_threads(_sum_planes, shape[0], volume, target, reach[1], reach[2])
        if reach[0]:
            in_threads(_sum_across, shape[1], target, reach[0])
    return torch.from_numpy(total.reshape(source.shape))


def squared_correlation(
    pred: Tensor,
    target: tuple[Tensor, Tensor, Tensor],
    windows: Windows,
    eps: float,
    tiny: float,
    with_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """The sum of ``cov^2 / (var var)`` over the voxels, (B, C), and its gradient by ``pred``.

    Args:
        pred: (B, C, *spatial).
        target: values less their mean, means and raised variances in the windows, each (B, C, *spatial).
        windows: their sides and weights.
        eps: share of an image's variance that is added to those of its windows.
        tiny: added to them in any case.
        with_gradient: None instead of the gradient otherwise.
    """
    shape = _three(pred.shape[2:])
    reach = tuple(side // 2 for side in _three(windows.sides))
    weighted = windows.weight is not None
    images = [as_array(x).reshape(-1, *shape) for x in (pred, *target)]
    kind = images[0].dtype.type
    nothing = np.empty((1, 1, 1, 1), kind)
    weights = as_array(windows.weight).reshape(-1, *shape) if windows.weight is not None else nothing
    shares = as_array(windows.share()).reshape(-1, *shape) if weighted else nothing
    means, counts = (
        as_array(x.expand(*pred.shape[:2], *[1] * len(pred.shape[2:]))).reshape(-1)
        for x in (windows.image_mean(pred), windows.count(pred))
    )
    gradient = np.empty_like(images[0]) if with_gradient else None
    total = np.empty(len(images[0]), kind)
    rows = np.empty((3, *shape), kind)
    for number, (p, t, t_mean, t_variance) in enumerate(zip(*images, strict=True)):
        item = number // pred.shape[1] if weighted else 0
        weight, share, mean = weights[item], shares[item], means[number]
        power = np.zeros(shape[0])
        in_threads(_product_sums, shape[0], p, t, weight, weighted, mean, rows, power, reach)
        raised = kind(eps * power.sum() / counts[number] + tiny)
        sums = np.zeros((2, shape[1]))
        arguments = (rows, t_mean, t_variance, weight, share, weighted, raised, with_gradient, sums, reach)
        in_threads(_correlations, shape[1], *arguments)
        total[number] = sums[0].sum()
        if gradient is not None:
            by_floor = kind(sums[1].sum() * eps / counts[number])
            in_threads(_gradients, shape[0], rows, p, t, weight, weighted, mean, by_floor, gradient[number], reach)
    found = None if gradient is None else torch.from_numpy(gradient.reshape(pred.shape))
    return torch.from_numpy(total).view(pred.shape[:2]), found


def _three(sizes: Sequence[int]) -> tuple[int, ...]:
    return (*[1] * (3 - len(sizes)), *sizes)


@compiled
def _copy_rows(source, target):  # type: ignore[no-untyped-def]
    """Written out: an assignment of slices takes Numba seconds to build."""
    for y in range(source.shape[0]):
        for z in range(source.shape[1]):
            target[y, z] = source[y, z]


@compiled
def _room(volume):  # type: ignore[no-untyped-def]
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
def _sum_plane(plane, between, reach_y, reach_z):  # type: ignore[no-untyped-def]
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
    between = _room(volume)
    for x in range(start, stop):
        _copy_rows(volume[x], target[x])
        _sum_plane(target[x], between, reach_y, reach_z)


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
        _copy_rows(volume[:, y], lines)
        _sum_lines(lines, found, reach)
        _copy_rows(found, volume[:, y])


@compiled
def _product_sums(p, t, weight, weighted, middle, rows, power, reach, start, stop):  # type: ignore[no-untyped-def]
    """Values, their squares and their products with the target, summed within planes; and the sums of the squares."""
    between = _room(p)
    for x in range(start, stop):
        for y in range(p.shape[1]):
            of_row = middle * 0
            for z in range(p.shape[2]):
                value = p[x, y, z] - middle
                counted = value * weight[x, y, z] if weighted else value
                square = value * counted
                of_row += square
                rows[0, x, y, z] = counted
                rows[1, x, y, z] = square
                rows[2, x, y, z] = t[x, y, z] * counted
            power[x] += of_row
        for row in range(3):
            _sum_plane(rows[row, x], between, reach[1], reach[2])


@compiled
def _fill_shares(shares, x, y, reach, shape):  # type: ignore[no-untyped-def]
    """One over the number of voxels in the window of each voxel of a row, as far as it lies inside."""
    for z in range(shape[2]):
        count = 1
        for place, way, size in ((x, reach[0], shape[0]), (y, reach[1], shape[1]), (z, reach[2], shape[2])):
            count *= min(place + way, size - 1) - max(place - way, 0) + 1
        shares[z] = 1 / count


@compiled
def _correlate(means, squares, products, t_mean, t_variance, share, weight, raised):  # type: ignore[no-untyped-def]
    """Squared correlations along a row: their sum and its derivatives, by the window sums in place of these.

    Returns:
        the sum, and its derivative by the floor of the variances.
    """
    total = by_floor = 0.0
    zero, two = raised * 0, raised * 0 + 2
    for z in range(len(means)):
        mean = means[z] * share[z]
        variance = squares[z] * share[z] - mean * mean
        variance = (variance if not variance < zero else zero) + raised
        cov = products[z] * share[z] - mean * t_mean[z]
        by_cov = weight[z] * cov / (variance * t_variance[z])
        squared = cov * by_cov
        by_variance = -squared / variance
        total += squared
        by_floor += by_variance
        products[z] = two * by_cov * share[z]
        squares[z] = by_variance * share[z]
        means[z] = two * (by_cov * t_mean[z] + by_variance * mean) * share[z]
    return total, by_floor


@compiled
def _correlations(  # type: ignore[no-untyped-def]
    rows, t_mean, t_variance, weight, share, weighted, raised, with_gradient, sums, reach, start, stop
):
    """Sums across planes, the squared correlations, and what the gradient needs of them, summed across planes again."""
    planes, _, columns = shape = rows.shape[1:]
    lines = np.empty((planes, columns), rows.dtype)
    found = np.empty((3, planes, columns), rows.dtype)
    shares = np.empty(columns, rows.dtype)
    ones = np.ones(columns, rows.dtype)
    for y in range(start, stop):
        for row in range(3):
            _copy_rows(rows[row, :, y], lines)
            _sum_lines(lines, found[row], reach[0])
        for x in range(planes):
            if not weighted:
                _fill_shares(shares, x, y, reach, shape)
            counted, part = (weight[x, y], share[x, y]) if weighted else (ones, shares)
            sums_of = found[0, x], found[1, x], found[2, x]
            total, by_floor = _correlate(*sums_of, t_mean[x, y], t_variance[x, y], part, counted, raised)
            sums[0, y] += total
            sums[1, y] += by_floor
        if with_gradient:
            for row in range(3):
                _sum_lines(found[row], lines, reach[0])
                _copy_rows(lines, rows[row, :, y])


@compiled
def _gradients(rows, p, t, weight, weighted, middle, by_floor, gradient, reach, start, stop):  # type: ignore[no-untyped-def]
    """What is left to sum, within planes, and the gradient."""
    between = _room(p)
    two = rows.dtype.type(2)
    for x in range(start, stop):
        for row in range(3):
            _sum_plane(rows[row, x], between, reach[1], reach[2])
        for y in range(p.shape[1]):
            for z in range(p.shape[2]):
                value = two * (rows[1, x, y, z] + by_floor) * (p[x, y, z] - middle)
                value += rows[2, x, y, z] * t[x, y, z] - rows[0, x, y, z]
                gradient[x, y, z] = value * weight[x, y, z] if weighted else value
