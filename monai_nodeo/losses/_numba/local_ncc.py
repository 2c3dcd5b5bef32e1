# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The local correlation and its gradient: running sums in double precision, some planes at a time.

Images have three axes here; a slice is a volume whose first axis has one voxel.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_nodeo.geometry._numba._threads import as_array, compiled, in_threads
from monai_nodeo.geometry._numba.windows import copy_rows, room_of_plane, sum_plane, three_axes

if TYPE_CHECKING:
    from monai_nodeo.geometry.windows import Windows

__all__ = ["squared_correlation"]

_AT_A_TIME = 16  # planes, along the first axis


def squared_correlation(
    pred: Tensor,
    target: tuple[Tensor, Tensor, Tensor, Tensor],
    windows: Windows,
    eps: float,
    tiny: float,
    with_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """The sum of ``cov^2 / (var var)`` over the voxels, (B, C), and its gradient by ``pred``.

    Args:
        pred: (B, C, *spatial).
        target: the image, (B, C, *spatial), its mean, (B, C, 1, ...), and the means, less that, and raised variances in
            the windows, each (B, C, *spatial).
        windows: their sides and weights.
        eps: share of an image's variance that is added to those of its windows.
        tiny: added to them in any case.
        with_gradient: None instead of the gradient otherwise.
    """
    shape = three_axes(pred.shape[2:])
    reach = tuple(side // 2 for side in three_axes(windows.sides))
    weighted = windows.weight is not None
    images = [as_array(x).reshape(-1, *shape) for x in (pred, target[0], *target[2:])]
    kind = images[0].dtype.type
    nothing = np.empty((1, 1, 1, 1), kind)
    weights = as_array(windows.weight).reshape(-1, *shape) if windows.weight is not None else nothing
    shares = as_array(windows.share()).reshape(-1, *shape) if weighted else nothing
    means, centres, counts = (
        as_array(x.expand(*pred.shape[:2], *[1] * len(pred.shape[2:]))).reshape(-1)
        for x in (windows.image_mean(pred), target[1], windows.count(pred))
    )
    gradient = np.empty_like(images[0]) if with_gradient else None
    total = np.empty(len(images[0]), kind)
    for number, (p, t, t_mean, t_variance) in enumerate(zip(*images, strict=True)):
        item = number // pred.shape[1] if weighted else 0
        weight, share, mean = weights[item], shares[item], means[number]
        power = np.zeros(shape[0])
        in_threads(_powers, shape[0], p, weight, weighted, mean, power)
        raised = kind(eps * power.sum() / counts[number] + tiny)
        sums = np.zeros((2, shape[1]))
        slopes = nothing[0] if gradient is None else gradient[number]
        image = p, t, weight, weighted, mean, centres[number]
        statistics = t_mean, t_variance, weight, share, weighted, raised
        for parts in _planes(image, reach):
            in_threads(_correlations, shape[1], *parts[:2], *statistics, with_gradient, sums, reach, parts[3])
            if gradient is not None:
                in_threads(_sum_across_part, shape[1], *parts[1:3], reach[0])
                in_threads(_gradients, parts[2].shape[1], parts[2], *image, slopes, reach, parts[3] - reach[0])
        total[number] = sums[0].sum()
        if gradient is not None:
            by_floor = kind(sums[1].sum() * eps / counts[number])
            in_threads(_add_floor, shape[0], p, weight, weighted, mean, by_floor, slopes)
    found = None if gradient is None else torch.from_numpy(gradient.reshape(pred.shape))
    return torch.from_numpy(total).view(pred.shape[:2]), found


def _planes(image: tuple[Any, ...], reach: tuple[int, ...]) -> Iterator[tuple[NDArray, NDArray, NDArray, int]]:
    """Room for the planes that are worked on at a time, so that no sums of the whole image are held.

    Yields:
        sums within the planes from x - reach on, (3, planes, Y, Z), complete; room for the derivatives from
        x - 2 reach on, which hold those of the last time; room for their sums from x - reach on; and x.
    """
    p = image[0]
    ahead, last = 2 * reach[0], p.shape[0] + reach[0]
    count = min(_AT_A_TIME, last)
    products, derivatives, sums = (
        np.zeros((3, planes, *p.shape[1:]), p.dtype) for planes in (count + ahead, count + ahead, count)
    )
    for x in range(0, last, count):
        for of_last_time in (products, derivatives) if x else ():
            of_last_time[:, :ahead] = of_last_time[:, count : count + ahead]
        new = ahead if x else reach[0]  # before are those of the last time, or at first what lies outside
        in_threads(_product_sums, count + ahead - new, *image, products, reach, x - reach[0] + new, new)
        yield products, derivatives, sums, x


@compiled
def _powers(p, weight, weighted, middle, power, start, stop):  # type: ignore[no-untyped-def]
    """Sums of the squares of each plane."""
    for x in range(start, stop):
        for y in range(p.shape[1]):
            of_row = middle * 0
            for z in range(p.shape[2]):
                value = p[x, y, z] - middle
                counted = value * weight[x, y, z] if weighted else value
                of_row += value * counted
            power[x] += of_row


@compiled
def _product_sums(p, t, weight, weighted, middle, centre, rows, reach, first, place, start, stop):  # type: ignore[no-untyped-def]
    """Values, their squares and their products with the target, summed within planes; 0 outside the image."""
    between = room_of_plane(p)
    for number in range(start, stop):
        x, at = first + number, place + number
        if x >= p.shape[0]:
            _clear(rows, at)
            continue
        for y in range(p.shape[1]):
            for z in range(p.shape[2]):
                value = p[x, y, z] - middle
                counted = value * weight[x, y, z] if weighted else value
                rows[0, at, y, z] = counted
                rows[1, at, y, z] = value * counted
                rows[2, at, y, z] = (t[x, y, z] - centre) * counted
        for row in range(3):
            sum_plane(rows[row, at], between, reach[1], reach[2])


@compiled
def _clear(rows, at):  # type: ignore[no-untyped-def]
    for row in range(3):
        for y in range(rows.shape[2]):
            for z in range(rows.shape[3]):
                rows[row, at, y, z] = 0


@compiled
def _sum_windows(lines, target, reach):  # type: ignore[no-untyped-def]
    """Sums of windows of lines (X + 2 reach, Z) along the first axis, (X, Z)."""
    count, columns = target.shape
    sums = np.zeros(columns)
    for x in range(2 * reach):
        for z in range(columns):
            sums[z] += lines[x, z]
    for x in range(count):
        for z in range(columns):
            sums[z] += lines[x + 2 * reach, z]
        for z in range(columns):
            target[x, z] = sums[z]
        for z in range(columns):
            sums[z] -= lines[x, z]


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
    rows,
    derivatives,
    t_mean,
    t_variance,
    weight,
    share,
    weighted,
    raised,
    with_gradient,
    sums,
    reach,
    first,
    start,
    stop,
):
    """Sums across planes, the squared correlations, and what the gradient needs of them."""
    shape = t_mean.shape
    ahead = 2 * reach[0]
    planes, columns = rows.shape[1] - ahead, shape[2]
    lines = np.empty((planes + ahead, columns), rows.dtype)
    found = np.empty((3, planes, columns), rows.dtype)
    shares = np.empty(columns, rows.dtype)
    ones = np.ones(columns, rows.dtype)
    for y in range(start, stop):
        for row in range(3):
            copy_rows(rows[row, :, y], lines)
            _sum_windows(lines, found[row], reach[0])
        for number in range(planes):
            x = first + number
            if x >= shape[0]:
                for row in range(3):
                    for z in range(columns):
                        found[row, number, z] = 0
                continue
            if not weighted:
                _fill_shares(shares, x, y, reach, shape)
            counted, part = (weight[x, y], share[x, y]) if weighted else (ones, shares)
            sums_of = found[0, number], found[1, number], found[2, number]
            total, by_floor = _correlate(*sums_of, t_mean[x, y], t_variance[x, y], part, counted, raised)
            sums[0, y] += total
            sums[1, y] += by_floor
        if with_gradient:
            for row in range(3):
                copy_rows(found[row], derivatives[row, ahead:, y])


@compiled
def _sum_across_part(derivatives, target, reach, start, stop):  # type: ignore[no-untyped-def]
    """Their sums across planes, for a range of rows."""
    lines = np.empty((derivatives.shape[1], derivatives.shape[3]), derivatives.dtype)
    found = np.empty((target.shape[1], target.shape[3]), derivatives.dtype)
    for y in range(start, stop):
        for row in range(3):
            copy_rows(derivatives[row, :, y], lines)
            _sum_windows(lines, found, reach)
            copy_rows(found, target[row, :, y])


@compiled
def _gradients(rows, p, t, weight, weighted, middle, centre, gradient, reach, first, start, stop):  # type: ignore[no-untyped-def]
    """What is left to sum, within planes, and the gradient as if the floor of the variances were fixed."""
    between = room_of_plane(p)
    two = rows.dtype.type(2)
    for number in range(start, stop):
        x = first + number
        if x < 0 or x >= p.shape[0]:
            continue
        for row in range(3):
            sum_plane(rows[row, number], between, reach[1], reach[2])
        for y in range(p.shape[1]):
            for z in range(p.shape[2]):
                value = two * rows[1, number, y, z] * (p[x, y, z] - middle)
                value += rows[2, number, y, z] * (t[x, y, z] - centre) - rows[0, number, y, z]
                gradient[x, y, z] = value * weight[x, y, z] if weighted else value


@compiled
def _add_floor(p, weight, weighted, middle, by_floor, gradient, start, stop):  # type: ignore[no-untyped-def]
    """What the floor of the variances adds to the gradient."""
    factor = by_floor + by_floor
    for x in range(start, stop):
        for y in range(p.shape[1]):
            for z in range(p.shape[2]):
                value = factor * (p[x, y, z] - middle)
                gradient[x, y, z] += value * weight[x, y, z] if weighted else value
