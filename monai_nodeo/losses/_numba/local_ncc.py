# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The local correlation and its gradient: sums across planes run in double precision, some planes at a time.

Images have three axes here; a slice is a volume whose first axis has one voxel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_nodeo.geometry._numba._threads import as_array, compiled, in_threads
from monai_nodeo.geometry._numba.rows import add_row, copy_row, subtract_row
from monai_nodeo.geometry._numba.windows import room_of_plane, sum_plane, three_axes

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
        room = _Room.of(shape, reach[0], kind)
        for first in range(0, shape[0] + reach[0] if with_gradient else shape[0], _AT_A_TIME):
            new = (first + reach[0] if first else 0), min(first + reach[0] + _AT_A_TIME, shape[0])
            in_threads(_product_sums, new[1] - new[0], *image, room.products, reach, new[0])
            in_threads(_correlations, shape[1], *room, *statistics, with_gradient, sums, reach, first)
            if gradient is not None:
                done = max(first - reach[0], 0), min(first - reach[0] + _AT_A_TIME, shape[0])
                in_threads(_gradients, done[1] - done[0], room.summed, *image, slopes, reach, done[0])
        total[number] = sums[0].sum()
        if gradient is not None:
            by_floor = kind(sums[1].sum() * eps / counts[number])
            in_threads(_add_floor, shape[0], p, weight, weighted, mean, by_floor, slopes)
    found = None if gradient is None else torch.from_numpy(gradient.reshape(pred.shape))
    return torch.from_numpy(total).view(pred.shape[:2]), found


class _Room(NamedTuple):
    """Room for the planes that are worked on, so that no sums of a whole image are held.

    Plane x lies at the remainder of x by the number of planes that there is room for.

    Attributes:
        products: sums within planes of the values, their squares and their products with the target, (3, planes, Y, Z).
        product_sums: of these across planes, (3, Y, Z).
        derivatives: of the correlations by these sums, (3, planes, Y, Z).
        derivative_sums: of these across planes, (3, Y, Z).
        summed: the same of the planes that are complete, (3, planes, Y, Z).
    """

    products: NDArray
    product_sums: NDArray
    derivatives: NDArray
    derivative_sums: NDArray
    summed: NDArray

    @classmethod
    def of(cls, shape: Sequence[int], reach: int, kind: Any) -> _Room:
        """Of an image of a shape, for windows that reach so far across planes."""
        count = min(_AT_A_TIME, shape[0] + reach)
        planes = count + 2 * reach, 2 * reach + 1, count
        products, derivatives, summed = (np.empty((3, n, *shape[1:]), kind) for n in planes)
        return cls(products, np.zeros((3, *shape[1:])), derivatives, np.zeros((3, *shape[1:])), summed)


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
def _product_sums(p, t, weight, weighted, middle, centre, products, reach, first, start, stop):  # type: ignore[no-untyped-def]
    """Values, their squares and their products with the target, summed within planes from ``first`` on."""
    room = room_of_plane(p, reach[2])
    for x in range(first + start, first + stop):
        at = x % products.shape[1]
        for y in range(p.shape[1]):
            for z in range(p.shape[2]):
                value = p[x, y, z] - middle
                counted = value * weight[x, y, z] if weighted else value
                products[0, at, y, z] = counted
                products[1, at, y, z] = value * counted
                products[2, at, y, z] = (t[x, y, z] - centre) * counted
        for row in range(3):
            sum_plane(products[row, at], room, reach[1], reach[2])


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
    products,
    product_sums,
    derivatives,
    derivative_sums,
    summed,
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
    """Sums across planes, the squared correlations, and the sums across planes that the gradient needs of them."""
    shape = t_mean.shape
    far, planes, columns = reach[0], summed.shape[1], shape[2]
    found = np.empty((3, columns), summed.dtype)
    shares, ones = np.empty(columns, summed.dtype), np.ones(columns, summed.dtype)
    for x in range(first, first + planes):
        ahead, behind = (x + far) % products.shape[1], (x - far) % products.shape[1]
        here, gone = x % derivatives.shape[1], (x - 2 * far) % derivatives.shape[1]
        for y in range(start, stop):
            if x < shape[0]:
                for row in range(3):
                    if x == 0:
                        for before in range(min(far, shape[0])):
                            add_row(products[row, before, y], product_sums[row, y])
                    if x + far < shape[0]:
                        add_row(products[row, ahead, y], product_sums[row, y])
                    copy_row(product_sums[row, y], found[row])
                    if x >= far:
                        subtract_row(products[row, behind, y], product_sums[row, y])
                if not weighted:
                    _fill_shares(shares, x, y, reach, shape)
                counted, part = (weight[x, y], share[x, y]) if weighted else (ones, shares)
                total, by_floor = _correlate(
                    found[0], found[1], found[2], t_mean[x, y], t_variance[x, y], part, counted, raised
                )
                sums[0, y] += total
                sums[1, y] += by_floor
            if with_gradient:
                for row in range(3):
                    if x < shape[0]:
                        add_row(found[row], derivative_sums[row, y])
                        copy_row(found[row], derivatives[row, here, y])
                    if x >= far:
                        copy_row(derivative_sums[row, y], summed[row, (x - far) % planes, y])
                    if x >= 2 * far:
                        subtract_row(derivatives[row, gone, y], derivative_sums[row, y])


@compiled
def _gradients(rows, p, t, weight, weighted, middle, centre, gradient, reach, first, start, stop):  # type: ignore[no-untyped-def]
    """What is left to sum, within planes, and the gradient as if the floor of the variances were fixed."""
    room = room_of_plane(p, reach[2])
    two = rows.dtype.type(2)
    for x in range(first + start, first + stop):
        at = x % rows.shape[1]
        for row in range(3):
            sum_plane(rows[row, at], room, reach[1], reach[2])
        for y in range(p.shape[1]):
            for z in range(p.shape[2]):
                value = two * rows[1, at, y, z] * (p[x, y, z] - middle)
                value += rows[2, at, y, z] * (t[x, y, z] - centre) - rows[0, at, y, z]
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
