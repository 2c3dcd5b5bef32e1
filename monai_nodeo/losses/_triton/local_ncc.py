# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The local correlation and its gradient: each kernel goes through memory once, along one axis.

A kernel adds up the window of each voxel from the cache, and does on the way what comes before or after the sum.
Programs of the first axis of the grid share the voxels of an image, those of the second are the images.
"""

# The kernels are in Triton's language, whose arguments have no types of Python.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from monai_nodeo.geometry._triton.windows import sum_along

if TYPE_CHECKING:
    from monai_nodeo.geometry.windows import Windows

__all__ = ["squared_correlation"]

_BLOCK = 256


def squared_correlation(
    pred: Tensor,
    target: tuple[Tensor, Tensor, Tensor, Tensor],
    windows: Windows,
    eps: float,
    tiny: float,
    with_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """The sum of ``cov^2 / (var var)`` over the voxels, (B, C), and its gradient by ``pred``.

    In as many passes as there are sums along an axis.

    Args:
        pred: (B, C, *spatial).
        target: the image, (B, C, *spatial), its mean, (B, C, 1, ...), and the means, less that, and raised variances in
            the windows, each (B, C, *spatial).
        windows: their sides and weights.
        eps: share of an image's variance that is added to those of its windows.
        tiny: added to them in any case.
        with_gradient: None instead of the gradient otherwise.
    """
    mean = windows.image_mean(pred)
    floor = eps * windows.image_mean((pred - mean).square()) + tiny
    floor_slope = (eps / windows.count(pred)).expand_as(mean).contiguous()
    sides, weight, share = windows.sides, windows.weight, windows.share()
    with torch.cuda.device_of(pred):
        shape = pred.shape[2:]
        voxels, images, channels = math.prod(shape), pred.shape[0] * pred.shape[1], pred.shape[1]
        row = voxels * images  # from a sum to the next one of the same voxel
        pred, share, values, local_mean, variance = (
            x.contiguous() for x in (pred, share, target[0] - target[1], *target[2:])
        )
        weights = pred if weight is None else weight.contiguous()  # a pointer is needed in any case
        options = {"WEIGHTED": weight is not None, "BLOCK": _BLOCK}
        blocks = triton.cdiv(voxels, _BLOCK)
        grid = (blocks, images)
        first, *middle, last = range(len(shape))
        reach = [side // 2 for side in sides]

        rows = pred.new_empty((3, *pred.shape))
        arguments: tuple = (pred, mean, values, weights, rows, voxels, row, channels, shape[last])
        _product_sums[grid](*arguments, REACH=reach[last], **options)
        for axis in middle:
            rows = sum_along(rows, shape, axis, sides[axis])

        slopes = torch.empty_like(rows)
        sums = pred.new_empty((2, images, blocks))
        to_next_share = 0 if len(share) == 1 else voxels
        arguments = (rows, local_mean, variance, share, floor, weights, slopes, sums, voxels, row, channels)
        strides = (to_next_share, shape[first], voxels // shape[first])
        _correlations[grid](*arguments, *strides, REACH=reach[first], **options)
        total, by_floor = sums.sum(2)
        if not with_gradient:
            return total.view(pred.shape[:2]), None
        by_floor = by_floor.view_as(mean) * floor_slope
        for axis in (first, *middle):
            slopes = sum_along(slopes, shape, axis, sides[axis])

        gradient = torch.empty_like(pred)
        arguments = (slopes, pred, mean, values, by_floor, weights, gradient, voxels, row, channels, shape[last])
        _gradients[grid](*arguments, REACH=reach[last], **options)
    return total.view(pred.shape[:2]), gradient


@triton.jit
def _product_sums(
    pred,
    mean,
    target,
    weight,
    y,
    voxels,
    row,
    channels,
    size,
    REACH: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums along the last axis: the values less their mean, their squares, their products with the target."""
    number = tl.program_id(1)
    image = number.to(tl.int64) * voxels
    weight += (number // channels).to(tl.int64) * voxels
    voxel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    place = voxel % size
    middle = tl.load(mean + number)
    values = tl.zeros((BLOCK,), dtype=y.dtype.element_ty)
    squares = tl.zeros((BLOCK,), dtype=y.dtype.element_ty)
    products = tl.zeros((BLOCK,), dtype=y.dtype.element_ty)
    for step in range(-REACH, REACH + 1):
        inside = (voxel < voxels) & (place + step >= 0) & (place + step < size)
        value = tl.load(pred + image + voxel + step, mask=inside, other=0.0) - middle
        weighted = tl.where(inside, value, 0.0)
        if WEIGHTED:
            weighted *= tl.load(weight + voxel + step, mask=inside, other=0.0)
        values += weighted
        squares += weighted * value
        products += weighted * tl.load(target + image + voxel + step, mask=inside, other=0.0)
    y += image
    tl.store(y + voxel, values, mask=voxel < voxels)
    tl.store(y + row + voxel, squares, mask=voxel < voxels)
    tl.store(y + 2 * row + voxel, products, mask=voxel < voxels)


@triton.jit
def _row_sums(x, row, voxel, stride, place, size, voxels, REACH: tl.constexpr, BLOCK: tl.constexpr):
    """Sums of three rows along an axis."""
    first = tl.zeros((BLOCK,), dtype=x.dtype.element_ty)
    second = tl.zeros((BLOCK,), dtype=x.dtype.element_ty)
    third = tl.zeros((BLOCK,), dtype=x.dtype.element_ty)
    for step in range(-REACH, REACH + 1):
        inside = (voxel < voxels) & (place + step >= 0) & (place + step < size)
        there = x + voxel + step * stride
        first += tl.load(there, mask=inside, other=0.0)
        second += tl.load(there + row, mask=inside, other=0.0)
        third += tl.load(there + 2 * row, mask=inside, other=0.0)
    return first, second, third


@triton.jit
def _correlations(
    x,
    target_mean,
    target_variance,
    share,
    floor,
    weight,
    y,
    sums,
    voxels,
    row,
    channels,
    to_next_share,
    size,
    stride,
    REACH: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums along the first axis, and of them the correlation and the slopes by covariance, variance and mean."""
    number = tl.program_id(1)
    item = (number // channels).to(tl.int64)
    image = number.to(tl.int64) * voxels
    voxel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = voxel < voxels
    values, squares, products = _row_sums(x + image, row, voxel, stride, voxel // stride, size, voxels, REACH, BLOCK)
    part = tl.load(share + item * to_next_share + voxel, mask=here, other=0.0)
    t_mean = tl.load(target_mean + image + voxel, mask=here, other=0.0)
    t_variance = tl.load(target_variance + image + voxel, mask=here, other=1.0)
    mean = values * part
    variance = tl.maximum(squares * part - mean * mean, 0.0) + tl.load(floor + number)
    cov = products * part - mean * t_mean
    by_cov = cov / variance / t_variance
    if WEIGHTED:
        by_cov *= tl.load(weight + item * voxels + voxel, mask=here, other=0.0)
    correlation = cov * by_cov
    by_variance = -correlation / variance
    by_cov *= 2
    by_mean = by_cov * t_mean + 2 * by_variance * mean
    y += image
    tl.store(y + voxel, by_cov * part, mask=here)
    tl.store(y + row + voxel, by_variance * part, mask=here)
    tl.store(y + 2 * row + voxel, by_mean * part, mask=here)
    blocks = tl.num_programs(0)
    sums += number * blocks + tl.program_id(0)
    tl.store(sums, tl.sum(correlation))
    tl.store(sums + tl.num_programs(1) * blocks, tl.sum(by_variance))


@triton.jit
def _gradients(
    x,
    pred,
    mean,
    target,
    by_floor,
    weight,
    gradient,
    voxels,
    row,
    channels,
    size,
    REACH: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums of the slopes along the last axis, and of them the gradient."""
    number = tl.program_id(1)
    image = number.to(tl.int64) * voxels
    voxel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = voxel < voxels
    by_cov, by_variance, by_mean = _row_sums(x + image, row, voxel, 1, voxel % size, size, voxels, REACH, BLOCK)
    value = tl.load(pred + image + voxel, mask=here, other=0.0) - tl.load(mean + number)
    target_value = tl.load(target + image + voxel, mask=here, other=0.0)
    slope = by_cov * target_value + 2 * (by_variance + tl.load(by_floor + number)) * value - by_mean
    if WEIGHTED:
        slope *= tl.load(weight + (number // channels).to(tl.int64) * voxels + voxel, mask=here, other=0.0)
    tl.store(gradient + image + voxel, slope, mask=here)
