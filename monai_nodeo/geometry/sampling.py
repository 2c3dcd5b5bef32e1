# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Samples of an image at positions: as the inner loop takes them, and as files need them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
from monai.networks.blocks import Warp
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from monai_nodeo.geometry._slabs import slabs
from monai_nodeo.geometry.coordinates import voxels_per_unit

__all__ = ["compose", "make_warp", "sample", "sample_points", "sample_voxels", "warp", "weighted_mean"]

_SMALLEST_WEIGHT = 1e-4  # below, a mean is rounding


def sample(image: Tensor, phi: Tensor) -> Tensor:
    """Linear samples of an image at positions: MONAI's ``Warp`` without the way through voxels.

    Faster and leaner than :py:func:`monai_nodeo.geometry.sampling.warp`, which gives the same values.

    Args:
        image: (B, C, *spatial).
        phi: positions in [-1, 1], (B, D, *cloud), tensor axis order, finite; outside, the image's border continues.

    Returns:
        (B, C, *cloud).
    """
    if phi.device.type == "cpu" and phi.ndim == 5:  # torch's sampler of volumes goes from point to point there
        return _VolumeSamples.apply(image, phi)
    # grid_sample wants the position along the last axis first: the image is turned, a view, instead of the positions.
    turned = image.permute(0, 1, *range(image.ndim - 1, 1, -1))
    return F.grid_sample(turned, phi.movedim(1, -1), padding_mode="border", align_corners=True)


def make_warp(mode: str = "bilinear", padding_mode: str = "border") -> Warp:
    """MONAI's ``Warp``, without its notice that the compiled extension is absent.

    The module caches its grid by shape, not by device: keep one for each device, and for no longer than needed.

    Args:
        mode: ``"bilinear"`` (linear in 3D too) or ``"nearest"``.
        padding_mode: ``"border"``, ``"zeros"`` or ``"reflection"``.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Using PyTorch native grid_sample.*")
        return Warp(mode=mode, padding_mode=padding_mode)


def warp(image: Tensor, ddf: Tensor, mode: str = "bilinear", padding_mode: str = "border") -> Tensor:
    """Sample an image where the displacement points.

    Args:
        image: (B, C, *spatial).
        ddf: displacement in voxels, (B, D, *spatial), tensor axis order: ``out(x) = image(x + ddf(x))``.
        mode: ``"bilinear"`` for images, ``"nearest"`` for labels.
        padding_mode: value outside the image, see :py:func:`make_warp`.

    Returns:
        (B, C, *spatial).
    """
    return make_warp(mode, padding_mode)(image, ddf)


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """One displacement for two: first the inner one, then from there the outer one.

    Args:
        outer: displacement in voxels, (B, D, *spatial), tensor axis order; outside the grid its border continues.
        inner: the same on the same grid.

    Returns:
        (B, D, *spatial), with ``x + composed(x) = y + outer(y)`` for ``y = x + inner(x)``.
    """
    return inner + warp(outer, inner)


def weighted_mean(total: Tensor, weight: Tensor) -> Tensor:
    """``total / weight``, and 0 where no weight is: what sampling an image times its mask, and the mask, is made of.

    Args:
        total: sums of weighted values, (B, C, *spatial).
        weight: their weights, not negative, (B, 1, *spatial).

    Returns:
        (B, C, *spatial).
    """
    return torch.where(weight > _SMALLEST_WEIGHT, total / weight.clamp(min=_SMALLEST_WEIGHT), 0)


def sample_points(image: Tensor, points: Tensor) -> Tensor:
    """Linear samples of an image at any points.

    Args:
        image: (B, C, *spatial).
        points: positions in voxels, (B, D, N), tensor axis order; outside, the image's border continues.

    Returns:
        (B, C, N).
    """
    dims = points.shape[1]
    # an axis of one voxel has one value everywhere
    halves = voxels_per_unit(tuple(image.shape[2:]), image.dtype, image.device).view(1, -1, 1).clamp(min=0.5)
    # grid_sample wants the last axis of the image first, and as many axes of points as the image has
    phi = (points / halves - 1).flip(1).movedim(1, -1).reshape(len(points), -1, *[1] * (dims - 1), dims)
    return F.grid_sample(image, phi, padding_mode="border", align_corners=True).flatten(2)


def sample_voxels(image: Tensor, positions: Tensor, mode: str = "bilinear", background: float = 0.0) -> Tensor:
    """Samples of an image at voxel positions, on any grid, with the field of view that ITK gives it.

    Args:
        image: (B, C, *spatial).
        positions: voxels of the image, (B, D, *any shape of D axes), tensor axis order.
        mode: ``"bilinear"`` for images (linear in 3D too), ``"nearest"`` for labels.
        background: value further than half a voxel outside the outermost voxels; up to there the border continues.

    Returns:
        (B, C, *any shape).
    """
    size = torch.tensor(image.shape[2:], dtype=positions.dtype, device=positions.device)
    size = size.view(1, -1, *[1] * (positions.ndim - 2))
    inside = ((positions >= -0.5) & (positions <= size - 0.5)).all(1, keepdim=True)
    # of voxel edges in [-1, 1], so that an axis of one voxel has an extent
    grid = ((2 * positions + 1) / size - 1).movedim(1, -1).flip(-1)
    values = F.grid_sample(image, grid, mode=mode, padding_mode="border", align_corners=False)
    return torch.where(inside, values, background)


class _VolumeSamples(torch.autograd.Function):
    """:py:func:`sample` by operations on many points at a time; its slopes by the position are made on the way."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, phi: Tensor) -> Tensor:
        channels, size = image.shape[1], image.shape[2:]
        samples = image.new_empty((len(phi), channels, *phi.shape[2:]))
        slopes = image.new_empty((len(phi), channels, *phi.shape[1:])) if ctx.needs_input_grad[1] else None
        nothing = image.new_zeros(())
        for item, part, points in _parts(phi):
            places = _Places.of(points, size)
            for channel in range(channels):
                voxels = image[item, channel].flatten()
                corners = [voxels.index_select(0, index) for index in places.corners(size)]
                value, steps = _interpolated(corners, places.fractions)
                samples[item, channel, part] = value.view(points.shape[1:])
                if slopes is not None:
                    rows = slopes[item, channel, :, part].flatten(1)
                    for row, step, inside in zip(rows, steps, places.inside, strict=True):
                        torch.where(inside, step, nothing, out=row)
        ctx.size = size
        ctx.save_for_backward(phi if ctx.needs_input_grad[0] else None, slopes)
        return samples

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        phi, slopes = ctx.saved_tensors
        by_phi = None
        if slopes is not None:
            by_phi = slopes[:, 0] * grad[:, :1]
            for channel in range(1, grad.shape[1]):
                by_phi.addcmul_(slopes[:, channel], grad[:, channel, None])
            halves = [(n - 1) / 2 for n in ctx.size]
            by_phi *= by_phi.new_tensor(halves).view(1, -1, *[1] * len(halves))
        by_image = None
        if phi is not None:
            by_image = grad.new_zeros((*grad.shape[:2], math.prod(ctx.size)))
            for item, part, points in _parts(phi):
                places = _Places.of(points, ctx.size)
                values = grad[item, :, part].flatten(1)
                for index, share in zip(places.corners(ctx.size), _shares(places.fractions), strict=True):
                    by_image[item].scatter_add_(1, index.long().expand(len(values), -1), values * share)
            by_image = by_image.view(*grad.shape[:2], *ctx.size)
        return by_image, by_phi


class _Places(NamedTuple):
    """Where points (N,) lie in a volume: the first voxel around them, as an index, and the way on along each axis."""

    first: Tensor
    fractions: list[Tensor]
    inside: list[Tensor]

    @classmethod
    def of(cls, points: Tensor, size: Sequence[int]) -> _Places:
        strides = _strides(size)
        first = torch.zeros(points[0].numel(), dtype=torch.int32)
        fractions, inside = [], []
        for position, n, stride in zip(points, size, strides, strict=True):
            voxels = (position.reshape(-1) + 1).mul_((n - 1) / 2)
            inside.append((voxels > 0).logical_and_(voxels < n - 1))
            voxels.clamp_(0, n - 1)
            before = voxels.floor().clamp_(max=max(n - 2, 0))
            fractions.append(voxels.sub_(before))
            first.add_(before.int(), alpha=stride)
        # a position that is no number makes a sample that is none, and must not make an index that is none
        return cls(first.clamp_(0, math.prod(size) - 1 - sum(strides)), fractions, inside)

    def corners(self, size: Sequence[int]) -> Iterator[Tensor]:
        """Indices of the voxels around the points, (N,) each, the last axis goes fastest."""
        for steps in product(*[(0, stride) for stride in _strides(size)]):
            yield self.first + sum(steps)


def _strides(size: Sequence[int]) -> list[int]:
    """Steps of the index from a voxel to the next along each axis; none along an axis of one voxel."""
    return [math.prod(size[axis + 1 :]) if n > 1 else 0 for axis, n in enumerate(size)]


def _parts(phi: Tensor) -> Iterator[tuple[int, slice, Tensor]]:
    """The cloud a part at a time: item of the batch, slab, positions (D, *slab)."""
    for item, positions in enumerate(phi):
        for ends in slabs(phi[item : item + 1]):
            yield item, slice(*ends), positions[:, slice(*ends)]


def _interpolated(corners: Sequence[Tensor], fractions: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Value and slope along each axis, in voxels, from the values at the corners of the cells."""
    if not fractions:
        return corners[0], []
    first, *others = fractions
    half = len(corners) // 2
    (low, low_slopes), (high, high_slopes) = (_interpolated(c, others) for c in (corners[:half], corners[half:]))
    step = high - low
    slopes = [torch.lerp(a, b, first) for a, b in zip(low_slopes, high_slopes, strict=True)]
    return torch.addcmul(low, step, first), [step, *slopes]


def _shares(fractions: Sequence[Tensor]) -> Iterator[Tensor]:
    """How much each corner counts, in the order of :py:meth:`_Places.corners`."""
    pairs = [(1 - fraction, fraction) for fraction in fractions]
    for ends in product(*pairs):
        share = ends[0] * ends[1]
        for end in ends[2:]:
            share *= end
        yield share
