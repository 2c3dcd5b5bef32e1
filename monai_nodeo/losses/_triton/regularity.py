# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Penalties of a field with their gradients, each in one pass; see ``losses/regularity.py``.

A slice is a volume of one voxel along the first axis, without a component along it.
"""

# The kernels are in Triton's language, whose arguments have no types of Python.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["folding_sum", "log_jacobian_sum", "roughness_sum"]

_BLOCK = 512


def folding_sum(ddf: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Sum of ``relu(margin - det)^2`` over the cells of each grid, and its gradient.

    Args:
        ddf: displacement in voxels, (B, D, *spatial), D = 2 or 3.
        margin: determinants below it count.

    Returns:
        (B,) and (B, D, *spatial).
    """
    return _determinant_sum(ddf, margin, logarithm=False)


def log_jacobian_sum(ddf: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Sum of ``log(det)^2`` over the cells of each grid, and its gradient; a straight line below the floor.

    Args:
        ddf: displacement in voxels, (B, D, *spatial), D = 2 or 3.
        floor: determinant where the line begins.

    Returns:
        (B,) and (B, D, *spatial).
    """
    return _determinant_sum(ddf, floor, logarithm=True)


def roughness_sum(ddf: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted sum of the squared forward differences of each item, and its gradient.

    Args:
        ddf: field, (B, D, *spatial), D = 2 or 3.
        weights: of each component's differences along each axis, (D, D).

    Returns:
        (B,) and (B, D, *spatial).
    """
    ddf, weights = ddf.contiguous(), weights.contiguous()
    gradient = torch.empty_like(ddf)
    voxels, shape = _grid_of(ddf)
    dims = ddf.shape[1]
    blocks = triton.cdiv(voxels, _BLOCK)
    sums = ddf.new_empty((len(ddf), dims * blocks))
    with torch.cuda.device_of(ddf):
        grid = (blocks, len(ddf) * dims)
        _roughness[grid](ddf, weights, gradient, sums, voxels, *shape, DIMS=dims, BLOCK=_BLOCK)
    return sums.sum(1), gradient


def _determinant_sum(ddf: Tensor, limit: float, logarithm: bool) -> tuple[Tensor, Tensor]:
    """Sum of a penalty on the determinants of each grid, and its gradient."""
    ddf = ddf.contiguous()
    gradient = torch.zeros_like(ddf)
    voxels, shape = _grid_of(ddf)
    blocks = triton.cdiv(voxels, _BLOCK)
    sums = ddf.new_empty((len(ddf), blocks))
    with torch.cuda.device_of(ddf):
        arguments = ddf, gradient, sums, voxels, *shape, limit
        _determinants[(blocks, len(ddf))](*arguments, DIMS=ddf.shape[1], LOGARITHM=logarithm, BLOCK=_BLOCK)
    return sums.sum(1), gradient


def _grid_of(ddf: Tensor) -> tuple[int, list[int]]:
    """Voxels, and the sizes of three axes."""
    shape = list(ddf.shape[2:])
    return math.prod(shape), [1] * (3 - len(shape)) + shape


@triton.jit
def _determinants(
    ddf,
    gradient,
    sums,
    voxels,
    n_x,
    n_y,
    n_z,
    limit,
    DIMS: tl.constexpr,
    LOGARITHM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Columns of the matrix are the steps along x, y and z, the last axis."""
    item = tl.program_id(1)
    cell = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = (cell < voxels) & (cell % n_z < n_z - 1) & ((cell // n_z) % n_y < n_y - 1)
    x_step = n_y * n_z
    if DIMS == 3:
        inside &= cell // x_step < n_x - 1
    at_z = (item.to(tl.int64) * DIMS + DIMS - 1) * voxels + cell
    at_y = at_z - voxels
    z = tl.load(ddf + at_z, mask=inside, other=0.0)
    y = tl.load(ddf + at_y, mask=inside, other=0.0)
    zz = tl.load(ddf + at_z + 1, mask=inside, other=0.0) - z + 1
    zy = tl.load(ddf + at_y + 1, mask=inside, other=0.0) - y
    yz = tl.load(ddf + at_z + n_z, mask=inside, other=0.0) - z
    yy = tl.load(ddf + at_y + n_z, mask=inside, other=0.0) - y + 1
    by_xx = yy * zz - yz * zy
    if DIMS == 3:
        at_x = at_y - voxels
        x = tl.load(ddf + at_x, mask=inside, other=0.0)
        zx = tl.load(ddf + at_x + 1, mask=inside, other=0.0) - x
        yx = tl.load(ddf + at_x + n_z, mask=inside, other=0.0) - x
        xz = tl.load(ddf + at_z + x_step, mask=inside, other=0.0) - z
        xy = tl.load(ddf + at_y + x_step, mask=inside, other=0.0) - y
        xx = tl.load(ddf + at_x + x_step, mask=inside, other=0.0) - x + 1
        by_xy = yz * zx - yx * zz
        by_xz = yx * zy - yy * zx
        determinant = xx * by_xx + xy * by_xy + xz * by_xz
        by_yx, by_yy, by_yz = zy * xz - zz * xy, zz * xx - zx * xz, zx * xy - zy * xx
        by_zx, by_zy, by_zz = xy * yz - xz * yy, xz * yx - xx * yz, xx * yy - xy * yx
    else:
        determinant = by_xx
        by_yy, by_yz = zz, -zy
        by_zy, by_zz = -yz, yy
    if LOGARITHM:
        above = tl.maximum(determinant, limit, propagate_nan=tl.PropagateNan.ALL)
        value = tl.log(above)
        slope = 2 * value / above
        penalty = value * value + slope * (determinant - above)
    else:
        lack = tl.maximum(limit - determinant, 0.0, propagate_nan=tl.PropagateNan.ALL)
        slope = -2 * lack
        penalty = lack * lack
    tl.store(sums + item * tl.num_programs(0) + tl.program_id(0), tl.sum(tl.where(inside, penalty, 0.0)))
    hit = inside & (slope != 0)
    if DIMS == 3:
        tl.atomic_add(gradient + at_x + x_step, by_xx * slope, mask=hit)
        tl.atomic_add(gradient + at_y + x_step, by_xy * slope, mask=hit)
        tl.atomic_add(gradient + at_z + x_step, by_xz * slope, mask=hit)
        tl.atomic_add(gradient + at_x + n_z, by_yx * slope, mask=hit)
        tl.atomic_add(gradient + at_x + 1, by_zx * slope, mask=hit)
        tl.atomic_add(gradient + at_x, -(by_xx + by_yx + by_zx) * slope, mask=hit)
        tl.atomic_add(gradient + at_y, -(by_xy + by_yy + by_zy) * slope, mask=hit)
        tl.atomic_add(gradient + at_z, -(by_xz + by_yz + by_zz) * slope, mask=hit)
    else:
        tl.atomic_add(gradient + at_y, -(by_yy + by_zy) * slope, mask=hit)
        tl.atomic_add(gradient + at_z, -(by_yz + by_zz) * slope, mask=hit)
    tl.atomic_add(gradient + at_y + n_z, by_yy * slope, mask=hit)
    tl.atomic_add(gradient + at_z + n_z, by_yz * slope, mask=hit)
    tl.atomic_add(gradient + at_y + 1, by_zy * slope, mask=hit)
    tl.atomic_add(gradient + at_z + 1, by_zz * slope, mask=hit)


@triton.jit
def _squared_step(at, here, place, size, step, weight):
    """Weighted square of the step to the next voxel along an axis, and its slope with that of the step before."""
    ahead = tl.load(at + step, mask=place < size - 1, other=0.0) - here
    ahead = tl.where(place < size - 1, ahead, 0.0)
    behind = here - tl.load(at - step, mask=(place > 0) & (place < size), other=0.0)
    behind = tl.where((place > 0) & (place < size), behind, 0.0)
    return weight * ahead * ahead, 2 * weight * (behind - ahead)


@triton.jit
def _roughness(ddf, weights, gradient, sums, voxels, n_x, n_y, n_z, DIMS: tl.constexpr, BLOCK: tl.constexpr):
    number = tl.program_id(1)
    voxel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    image = number.to(tl.int64) * voxels
    at = ddf + image + voxel
    here = tl.load(at, mask=voxel < voxels, other=0.0)
    weights += (number % DIMS) * DIMS + DIMS - 1
    # a place behind the end of its axis stands for a voxel behind the end of the image
    outside = tl.where(voxel < voxels, 0, voxels)
    square, slope = _squared_step(at, here, voxel % n_z + outside, n_z, 1, tl.load(weights))
    squares, slopes = square, slope
    square, slope = _squared_step(at, here, (voxel // n_z) % n_y + outside, n_y, n_z, tl.load(weights - 1))
    squares, slopes = squares + square, slopes + slope
    if DIMS == 3:
        square, slope = _squared_step(at, here, voxel // (n_y * n_z) + outside, n_x, n_y * n_z, tl.load(weights - 2))
        squares, slopes = squares + square, slopes + slope
    tl.store(gradient + image + voxel, slopes, mask=voxel < voxels)
    tl.store(sums + number * tl.num_programs(0) + tl.program_id(0), tl.sum(squares))
