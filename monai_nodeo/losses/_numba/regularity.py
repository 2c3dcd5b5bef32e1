# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Penalties of a field in one pass through memory, gradient included."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from monai_nodeo.geometry._numba._threads import as_array, compiled, in_threads
from monai_nodeo.geometry._numba.rows import add_row

__all__ = ["folding_sum", "log_jacobian_sum", "roughness_sum"]


def folding_sum(ddf: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Sum of ``relu(margin - det)^2`` over the cells of each grid, and its gradient.

    Args:
        ddf: displacement in voxels, (B, D, *spatial), D = 2 or 3.
        margin: determinants below it count.

    Returns:
        (B,) and (B, D, *spatial).
    """
    return _determinant_sum(ddf, margin, False)


def log_jacobian_sum(ddf: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Sum of ``log(det)^2`` over the cells of each grid, and its gradient; a straight line below the floor.

    Args:
        ddf: displacement in voxels, (B, D, *spatial), D = 2 or 3.
        floor: determinant where the line begins.

    Returns:
        (B,) and (B, D, *spatial).
    """
    return _determinant_sum(ddf, floor, True)


def roughness_sum(ddf: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted sum of the squared forward differences of each item, and its gradient.

    Args:
        ddf: field, (B, D, *spatial), D = 2 or 3.
        weights: of each component's differences along each axis, (D, D).

    Returns:
        (B,) and (B, D, *spatial).
    """
    fields = as_array(ddf)
    dims = fields.shape[1]
    shape = (*[1] * (3 - dims), *fields.shape[2:])
    # a slice is a volume with one plane, along whose axis there are no differences
    factors = np.zeros((dims, 3), fields.dtype)
    factors[:, 3 - dims :] = as_array(weights)
    gradient = np.empty_like(fields)
    total = np.empty(len(fields), fields.dtype)
    for number in range(len(fields)):
        sums = np.zeros((dims, shape[0]))
        for axis in range(dims):
            field, slopes = (x[number, axis].reshape(shape) for x in (fields, gradient))
            in_threads(_roughness, shape[0], field, slopes, factors[axis], sums[axis])
        total[number] = sums.sum()
    return torch.from_numpy(total), torch.from_numpy(gradient)


def _determinant_sum(ddf: Tensor, limit: float, logarithm: bool) -> tuple[Tensor, Tensor]:
    """Sum of a penalty on the determinants of each grid, and its gradient."""
    fields = as_array(ddf)
    gradient = np.zeros_like(fields)
    total = np.empty(len(fields), fields.dtype)
    kernel = _determinants_2d if ddf.shape[1] == 2 else _determinants_3d
    for number, (field, slopes) in enumerate(zip(fields, gradient, strict=True)):
        planes = field.shape[1] - 1
        sums = np.zeros(planes)
        # The gradient of a plane reaches into the next: threads share the even planes first, then the odd ones.
        for first in (0, 1):
            arguments = field, slopes, field.dtype.type(limit), logarithm, sums, first
            in_threads(kernel, (planes + 1 - first) // 2, *arguments)
        total[number] = sums.sum()
    return torch.from_numpy(total), torch.from_numpy(gradient)


@compiled
def _penalty(determinant, limit, logarithm):  # type: ignore[no-untyped-def]
    """Value and slope of ``relu(limit - det)^2``, or of ``log(det)^2`` with a straight line below the limit."""
    if not logarithm:
        lack = limit - determinant
        if lack <= 0:
            return lack * 0, lack * 0
        return lack * lack, -(lack + lack)  # also what is no number
    inside = determinant if determinant > limit else limit
    value = np.log(inside)
    slope = (value + value) / inside
    return value * value + slope * (determinant - inside), slope


@compiled
def _determinants_2d(ddf, gradient, limit, logarithm, sums, first, start, stop):  # type: ignore[no-untyped-def]
    one = limit * 0 + 1
    for number in range(start, stop):
        x = 2 * number + first
        total = 0.0
        for y in range(ddf.shape[2] - 1):
            a = ddf[0, x + 1, y] - ddf[0, x, y] + one
            b = ddf[1, x + 1, y] - ddf[1, x, y]
            c = ddf[0, x, y + 1] - ddf[0, x, y]
            d = ddf[1, x, y + 1] - ddf[1, x, y] + one
            value, slope = _penalty(a * d - b * c, limit, logarithm)
            total += value
            if slope != 0:
                by_a, by_b, by_c, by_d = slope * d, -slope * c, -slope * b, slope * a
                gradient[0, x + 1, y] += by_a
                gradient[1, x + 1, y] += by_b
                gradient[0, x, y + 1] += by_c
                gradient[1, x, y + 1] += by_d
                gradient[0, x, y] -= by_a + by_c
                gradient[1, x, y] -= by_b + by_d
        sums[x] = total


@compiled
def _determinants_3d(ddf, gradient, limit, logarithm, sums, first, start, stop):  # type: ignore[no-untyped-def]
    columns = ddf.shape[3] - 1
    slopes, parts = np.empty(columns, ddf.dtype), np.empty((9, columns), ddf.dtype)
    for number in range(start, stop):
        x = 2 * number + first
        total = 0.0
        for y in range(ddf.shape[2] - 1):
            here, in_x, in_y = ddf[:, x, y], ddf[:, x + 1, y], ddf[:, x, y + 1]
            _fill_determinants(here, in_x, in_y, slopes)
            for z in range(columns):
                value, slopes[z] = _penalty(slopes[z], limit, logarithm)
                total += value
            _fill_derivatives(here, in_x, in_y, slopes, parts)
            for axis in range(3):
                by_x, by_y, by_z = parts[axis], parts[3 + axis], parts[6 + axis]
                add_row(by_x, gradient[axis, x + 1, y])
                add_row(by_y, gradient[axis, x, y + 1])
                add_row(by_z, gradient[axis, x, y, 1:])
                _take_sum(by_x, by_y, by_z, gradient[axis, x, y])
        sums[x] = total


@compiled
def _differences(here, in_x, in_y, z):  # type: ignore[no-untyped-def]
    """The Jacobian at a place of a row: derivatives of the three components by x, by y and by z."""
    one = here.dtype.type(1)
    u, v, w = here[0, z], here[1, z], here[2, z]
    by_x = in_x[0, z] - u + one, in_x[1, z] - v, in_x[2, z] - w
    by_y = in_y[0, z] - u, in_y[1, z] - v + one, in_y[2, z] - w
    return (*by_x, *by_y, here[0, z + 1] - u, here[1, z + 1] - v, here[2, z + 1] - w + one)


@compiled
def _fill_determinants(here, in_x, in_y, found):  # type: ignore[no-untyped-def]
    for z in range(len(found)):
        a, b, c, d, e, f, g, h, i = _differences(here, in_x, in_y, z)
        found[z] = a * (e * i - f * h) + b * (f * g - d * i) + c * (d * h - e * g)


@compiled
def _fill_derivatives(here, in_x, in_y, slopes, parts):  # type: ignore[no-untyped-def]
    """Of the penalty by the nine differences, (9, Z)."""
    for z in range(len(slopes)):
        slope = slopes[z]
        a, b, c, d, e, f, g, h, i = _differences(here, in_x, in_y, z)
        parts[0, z], parts[1, z], parts[2, z] = (
            slope * (e * i - f * h),
            slope * (f * g - d * i),
            slope * (d * h - e * g),
        )
        parts[3, z], parts[4, z], parts[5, z] = (
            slope * (c * h - b * i),
            slope * (a * i - c * g),
            slope * (b * g - a * h),
        )
        parts[6, z], parts[7, z], parts[8, z] = (
            slope * (b * f - c * e),
            slope * (c * d - a * f),
            slope * (a * e - b * d),
        )


@compiled
def _take_sum(one, two, three, target):  # type: ignore[no-untyped-def]
    for z in range(len(one)):
        target[z] -= one[z] + two[z] + three[z]


@compiled
def _roughness(field, gradient, weights, sums, start, stop):  # type: ignore[no-untyped-def]
    """Each voxel gathers from its neighbours; the differences to the next ones are counted."""
    planes, rows, columns = field.shape
    by_x, by_y, by_z = weights
    for x in range(start, stop):
        for y in range(rows):
            here, slope = field[x, y], gradient[x, y]
            for z in range(columns):
                slope[z] = 0
            if x + 1 < planes:
                sums[x] += by_x * _to_next(here, field[x + 1, y], by_x, slope)
            if x:
                _from_last(here, field[x - 1, y], by_x, slope)
            if y + 1 < rows:
                sums[x] += by_y * _to_next(here, field[x, y + 1], by_y, slope)
            if y:
                _from_last(here, field[x, y - 1], by_y, slope)
            sums[x] += by_z * _to_next(here[:-1], here[1:], by_z, slope)
            _from_last(here[1:], here[:-1], by_z, slope[1:])


@compiled
def _to_next(here, ahead, weight, slope):  # type: ignore[no-untyped-def]
    total = weight * 0
    for z in range(len(here)):
        difference = ahead[z] - here[z]
        total += difference * difference
        slope[z] -= (weight + weight) * difference
    return total


@compiled
def _from_last(here, behind, weight, slope):  # type: ignore[no-untyped-def]
    for z in range(len(here)):
        slope[z] += (weight + weight) * (here[z] - behind[z])
