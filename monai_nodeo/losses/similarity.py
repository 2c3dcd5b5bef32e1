# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Similarity of two images, voxel by voxel or in any other way, with weights from masks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from monai.utils import LossReduction
from torch import Tensor
from torch.autograd.function import once_differentiable

from monai_nodeo.geometry._kernels import kernels_for
from monai_nodeo.geometry.windows import SMALLEST_WEIGHT
from monai_nodeo.losses._base import SinglePrecisionLoss

__all__ = ["ImageLoss", "IntensityLoss", "VoxelwiseLoss", "each_item", "voxel_counts"]


class ImageLoss(SinglePrecisionLoss):
    """A loss of two images that knows masks and voxel sizes; MONAI's losses know neither."""

    @abstractmethod
    def forward(
        self, input: Tensor, target: Tensor, weight: Tensor | None = None, spacing: Sequence[float] | None = None
    ) -> Tensor:
        """Compare two images.

        Args:
            input: (B, C, *spatial).
            target: same shape.
            weight: how much each voxel counts, not negative, (B, 1, *spatial); no gradient goes to it.
            spacing: voxel size along each axis in mm (or any unit); by default the voxels are cubes.
        """

    def of_each(
        self, input: Tensor, target: Tensor, weight: Tensor | None = None, spacing: Sequence[float] | None = None
    ) -> Tensor:
        """The loss of each item of a batch, (B,): what :py:meth:`forward` gives for it alone.

        Here item by item; a loss that can do better does.
        """
        weights = [None] * len(input) if weight is None else each_item(weight)
        items = zip(each_item(input), each_item(target), weights, strict=True)
        return torch.stack([self(p, t, w, spacing) for p, t, w in items])


def each_item(batch: Tensor) -> Sequence[Tensor]:
    """Each item as a batch of one; the very tensor if there is one, by which a loss may know a target again."""
    return [batch] if len(batch) == 1 else batch.split(1)


def voxel_counts(image: Tensor, weight: Tensor | None) -> Tensor:
    """How many there are in all channels of each item, as far as they count, (B,)."""
    if weight is None:
        return image.new_full((len(image),), image[0].numel())
    return weight.flatten(1).sum(1).clamp(min=SMALLEST_WEIGHT) * image.shape[1]


class VoxelwiseLoss(ImageLoss):
    """A loss that is the mean, the sum or the map of a value at every voxel.

    Attributes:
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
    """

    reduction: str

    @abstractmethod
    def _map(self, input: Tensor, target: Tensor, weight: Tensor | None, spacing: Sequence[float] | None) -> Tensor:
        """The values, (B, C, *spatial), times the weight; arguments as for :py:meth:`ImageLoss.forward`."""

    def forward(
        self, input: Tensor, target: Tensor, weight: Tensor | None = None, spacing: Sequence[float] | None = None
    ) -> Tensor:
        """See :py:meth:`ImageLoss.forward`.

        Raises:
            ValueError: when the shapes differ or are not those of images that the loss takes.
        """
        values = self._map(input, target, weight, spacing)
        if self.reduction == LossReduction.NONE:
            return values
        total = values.sum()
        return total if self.reduction == LossReduction.SUM else total / voxel_counts(input, weight).sum()

    def of_each(
        self, input: Tensor, target: Tensor, weight: Tensor | None = None, spacing: Sequence[float] | None = None
    ) -> Tensor:
        """See :py:meth:`ImageLoss.of_each`."""
        total = self._map(input, target, weight, spacing).flatten(1).sum(1)
        return total if self.reduction == LossReduction.SUM else total / voxel_counts(input, weight)


class IntensityLoss(ImageLoss):
    """Mean squared difference of the target and the best linear function of ``input``; with weights, weighted means.

    The function is fitted to each channel of each item anew (least squares), so that brightness and contrast of a
    scanner do not count: a difference of 3 % costs more Dice than many iterations bring. The gradient is that of the
    whole loss, since at the best fit a change of the fit changes nothing.
    """

    def forward(
        self, input: Tensor, target: Tensor, weight: Tensor | None = None, spacing: Sequence[float] | None = None
    ) -> Tensor:
        """See :py:meth:`ImageLoss.forward`."""
        total, count = self._sums(input, target, weight)
        return total.sum() / count.sum()

    def of_each(
        self, input: Tensor, target: Tensor, weight: Tensor | None = None, spacing: Sequence[float] | None = None
    ) -> Tensor:
        """See :py:meth:`ImageLoss.of_each`."""
        total, count = self._sums(input, target, weight)
        return total / count

    def _sums(self, input: Tensor, target: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        """Weighted squares and weights of each item, (B,)."""
        weight = None if weight is None else weight.detach()
        kernels = None if target.requires_grad else kernels_for(input, "intensity", "losses")
        if kernels:
            squares = _FittedSquares.apply(input, target, weight, kernels)
            return squares.sum(1), voxel_counts(input, weight)
        scale, shift = _linear_fit(input.detach(), target.detach(), weight)
        squares = torch.nn.functional.mse_loss(input * scale + shift, target, reduction="none")
        if weight is not None:
            squares = weight * squares
        return squares.flatten(1).sum(1), voxel_counts(input, weight)


class _FittedSquares(torch.autograd.Function):
    """Weighted squares of each channel after the best fit, (B, C), by kernels."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, target: Tensor, weight: Tensor | None, kernels: Any) -> Tensor:
        total, gradient = kernels.fitted_squares(input, target, weight)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad.view(*grad.shape, *[1] * (gradient.ndim - 2)), None, None, None


def _linear_fit(input: Tensor, target: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Factor and summand that make ``target`` of ``input``, (B, C, 1, ...); of a constant image, 0 and the mean."""
    spatial = tuple(range(2, input.ndim))

    def mean(x: Tensor) -> Tensor:
        if weight is None:
            return x.mean(spatial, keepdim=True)
        total = weight.sum(spatial, keepdim=True).clamp(min=SMALLEST_WEIGHT)
        return (weight * x).sum(spatial, keepdim=True) / total

    middle, centre = mean(input), mean(target)
    offset = input - middle
    variance = mean(offset.square())
    scale = mean(offset * (target - centre)) / variance.clamp(min=torch.finfo(input.dtype).tiny)
    return scale, centre - scale * middle
