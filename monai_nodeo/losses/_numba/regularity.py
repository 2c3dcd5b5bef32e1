# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Penalties of a field in one pass through memory, gradient included."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from monai_nodeo.geometry._numba._threads import as_array, compiled, in_threads

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
    one = limit * 0 + 1
    columns = ddf.shape[3] - 1
    slopes = np.empty(columns, ddf.dtype)
    for number in range(start, stop):
        x = 2 * number + first
        total = 0.0
        for y in range(ddf.shape[2] - 1):
            for z in range(columns):
                u, v, w = ddf[0, x, y, z], ddf[1, x, y, z], ddf[2, x, y, z]
                a, b, c = ddf[0, x + 1, y, z] - u + one, ddf[1, x + 1, y, z] - v, ddf[2, x + 1, y, z] - w
                d, e, f = ddf[0, x, y + 1, z] - u, ddf[1, x, y + 1, z] - v + one, ddf[2, x, y + 1, z] - w
                g, h, i = ddf[0, x, y, z + 1] - u, ddf[1, x, y, z + 1] - v, ddf[2, x, y, z + 1] - w + one
                slopes[z] = a * (e * i - f * h) + b * (f * g - d * i) + c * (d * h - e * g)
            for z in range(columns):
                value, slopes[z] = _penalty(slopes[z], limit, logarithm)
                total += value
            for z in range(columns):
                slope = slopes[z]
                if slope == 0:
                    continue
                u, v, w = ddf[0, x, y, z], ddf[1, x, y, z], ddf[2, x, y, z]
                a, b, c = ddf[0, x + 1, y, z] - u + one, ddf[1, x + 1, y, z] - v, ddf[2, x + 1, y, z] - w
                d, e, f = ddf[0, x, y + 1, z] - u, ddf[1, x, y + 1, z] - v + one, ddf[2, x, y + 1, z] - w
                g, h, i = ddf[0, x, y, z + 1] - u, ddf[1, x, y, z + 1] - v, ddf[2, x, y, z + 1] - w + one
                by_a, by_b, by_c = slope * (e * i - f * h), slope * (f * g - d * i), slope * (d * h - e * g)
                by_d, by_e, by_f = slope * (c * h - b * i), slope * (a * i - c * g), slope * (b * g - a * h)
                by_g, by_h, by_i = slope * (b * f - c * e), slope * (c * d - a * f), slope * (a * e - b * d)
                gradient[0, x + 1, y, z] += by_a
                gradient[1, x + 1, y, z] += by_b
                gradient[2, x + 1, y, z] += by_c
                gradient[0, x, y + 1, z] += by_d
                gradient[1, x, y + 1, z] += by_e
                gradient[2, x, y + 1, z] += by_f
                gradient[0, x, y, z + 1] += by_g
                gradient[1, x, y, z + 1] += by_h
                gradient[2, x, y, z + 1] += by_i
                gradient[0, x, y, z] -= by_a + by_d + by_g
                gradient[1, x, y, z] -= by_b + by_e + by_h
                gradient[2, x, y, z] -= by_c + by_f + by_i
        sums[x] = total


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
