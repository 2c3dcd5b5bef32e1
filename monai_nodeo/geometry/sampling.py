# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Samples of an image at positions: as the inner loop takes them, and as files need them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from monai_nodeo.geometry._kernels import kernels_for
from monai_nodeo.geometry._slabs import slabs
from monai_nodeo.geometry.coordinates import identity_grid, voxels_per_unit
from monai_nodeo.geometry.resizing import resize

if TYPE_CHECKING:  # MONAI takes seconds to import, and a command over files does not need it
    from monai.networks.blocks import Warp

__all__ = [
    "compose",
    "make_warp",
    "sample",
    "sample_at_itself",
    "sample_points",
    "sample_resized",
    "sample_voxels",
    "warp",
    "warp_in_slabs",
    "weighted_mean",
]

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
    kernels = kernels_for(phi, "sampling") if phi.ndim == 5 else None  # torch is fast in 2D
    if kernels:
        return _Samples.apply(image, phi, kernels)
    # grid_sample wants the position along the last axis first: the image is turned, a view, instead of the positions.
    turned = image.permute(0, 1, *range(image.ndim - 1, 1, -1))
    return F.grid_sample(turned, phi.movedim(1, -1), padding_mode="border", align_corners=True)


def sample_resized(image: Tensor, phi: Tensor, size: Sequence[int], offset: Tensor | None = None) -> Tensor:
    """Samples at the positions of a coarser cloud, linear between its points: ``sample(image, resize(phi, size))``.

    Args:
        image: (B, C, *spatial).
        phi: positions in [-1, 1], (B, D, *cloud), tensor axis order.
        size: of the grid that the cloud is interpolated to, D numbers, none smaller than those of the cloud.
        offset: is added to the positions, without a gradient of its own, (B, D, *size).

    Returns:
        (B, C, *size).
    """
    kernels = kernels_for(phi, "resized_sampling") if phi.ndim == 5 and not image.requires_grad else None
    if kernels and tuple(size) != phi.shape[2:]:
        return _ResizedSamples.apply(image, phi, tuple(size), offset, kernels)
    positions = resize(phi, size)
    return sample(image, positions if offset is None else positions + offset)


def sample_at_itself(field: Tensor, way: float) -> Tensor:
    """A field of vectors where it points to from its own nodes: ``field(x + way * field(x))``.

    Args:
        field: vectors in [-1, 1] over its nodes, (B, D, *spatial), tensor axis order.
        way: how far of the vectors to go.

    Returns:
        the same shape.
    """
    kernels = kernels_for(field, "self_sampling") if field.ndim == 5 else None
    if kernels:
        return _SamplesAtItself.apply(field, way, kernels)
    nodes = identity_grid(field.shape[2:], field.device, field.dtype)
    return sample(field, torch.add(nodes, field, alpha=way))


def make_warp(mode: str = "bilinear", padding_mode: str = "border") -> Warp:
    """MONAI's ``Warp``, without its notice that the compiled extension is absent.

    The module caches its grid by shape, not by device: keep one for each device, and for no longer than needed.

    Args:
        mode: ``"bilinear"`` (linear in 3D too) or ``"nearest"``.
        padding_mode: ``"border"``, ``"zeros"`` or ``"reflection"``.
    """
    from monai.networks.blocks import Warp

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


@torch.no_grad()
def warp_in_slabs(image: Tensor, ddf: Tensor) -> Tensor:
    """What :py:func:`warp` gives, without its gradient and its fields of the image's size: for a finished ddf."""
    size = tuple(ddf.shape[2:])
    scale = voxels_per_unit(size, ddf.dtype, ddf.device)
    warped = image.new_empty((*image.shape[:2], *size))
    for start, stop in slabs(ddf):
        planes = slice(start, stop)
        phi = torch.where(scale > 0, ddf[:, :, planes] / scale.clamp(min=0.5), 0)
        warped[:, :, planes] = sample(image, phi + identity_grid(size, ddf.device, ddf.dtype, planes))
    return warped


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


class _Samples(torch.autograd.Function):
    """:py:func:`sample` by kernels."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, phi: Tensor, kernels: Any) -> Tensor:
        ctx.save_for_backward(image, phi)
        ctx.kernels = kernels
        return kernels.sample(image, phi)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        return *ctx.kernels.sample_gradients(*ctx.saved_tensors, grad, *ctx.needs_input_grad[:2]), None


class _ResizedSamples(torch.autograd.Function):
    """:py:func:`sample_resized` by kernels, for an image without gradient."""

    @staticmethod
    def forward(
        ctx: Any, image: Tensor, phi: Tensor, size: tuple[int, ...], offset: Tensor | None, kernels: Any
    ) -> Tensor:
        ctx.save_for_backward(image, phi, offset)
        ctx.kernels, ctx.size = kernels, size
        return kernels.sample_resized(image, phi, size, offset)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None, None, None]:
        image, phi, offset = ctx.saved_tensors
        return None, ctx.kernels.sample_resized_gradient(image, phi, ctx.size, offset, grad), None, None, None


class _SamplesAtItself(torch.autograd.Function):
    """:py:func:`sample_at_itself` by kernels."""

    @staticmethod
    def forward(ctx: Any, field: Tensor, way: float, kernels: Any) -> Tensor:
        ctx.save_for_backward(field)
        ctx.way, ctx.kernels = way, kernels
        return kernels.sample_at_itself(field, way)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (field,) = ctx.saved_tensors
        return ctx.kernels.sample_at_itself_gradient(field, ctx.way, grad), None, None
