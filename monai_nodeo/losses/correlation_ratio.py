# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Similarity of images of different contrast: how well is one a function of the other?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.utils import LossReduction
from torch import Tensor

from monai_nodeo.geometry.windows import SMALLEST_WEIGHT, Windows
from monai_nodeo.losses.similarity import ImageLoss, VoxelwiseLoss

__all__ = ["LocalCorrelationRatioLoss", "MappedIntensityLoss"]


class LocalCorrelationRatioLoss(VoxelwiseLoss):
    """One minus the share of the local variance that a parabola of the other image's values explains.

    In every window the best ``a + b target + c target^2`` is fitted to ``input``; the loss is one minus the mean of its
    coefficient of determination. Contrasts may be inverted, bent or peak at a tissue in the middle, and they may change
    from place to place, which global mutual information takes for noise; a local correlation, for which they have to be
    straight lines, is the case ``c = 0``. (Correlation ratio: Roche et al., MICCAI 1998.)

    Args:
        spatial_dims: 2 or 3.
        kernel_size: side of the window, odd, in units of the smallest voxel side.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (a map).
        eps: noise that is taken to be in every window, as a share of the variance of the image.

    Raises:
        ValueError: when ``kernel_size`` is not a positive odd number.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        kernel_size: int = 21,
        reduction: LossReduction | str = LossReduction.MEAN,
        eps: float = 1e-3,
    ) -> None:
        super().__init__()
        self.reduction = LossReduction(reduction).value
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be a positive odd number of voxels, got {kernel_size}.")
        self.spatial_dims = spatial_dims
        self.kernel_size = kernel_size
        self.eps = eps

    def _map(self, input: Tensor, target: Tensor, weight: Tensor | None, spacing: Sequence[float] | None) -> Tensor:
        if input.shape != target.shape or input.ndim != self.spatial_dims + 2:
            raise ValueError(
                f"expected two images (B, C) with {self.spatial_dims} spatial axes and one shape, "
                f"got {tuple(input.shape)} and {tuple(target.shape)}."
            )
        windows = Windows(input, self.kernel_size, spacing, weight)
        unexplained = 1 - self._explained(windows, input, target)
        return unexplained if weight is None else unexplained * weight

    def _explained(self, windows: Windows, input: Tensor, target: Tensor) -> Tensor:
        """Coefficient of determination of the fit in each window, (B, C, *spatial), in [0, 1).

        The noise is added to the variances only, a ridge: two explanations that are alike there share the weight.
        """
        first = _standardised(windows, target)
        second = _standardised(windows, first.square())
        values = _standardised(windows, input)
        means = [windows.mean(x) for x in (first, second, values)]

        def covariance(x: Tensor, y: Tensor, mean_x: Tensor, mean_y: Tensor) -> Tensor:
            return windows.mean(x * y) - mean_x * mean_y

        v11 = covariance(first, first, means[0], means[0]).clamp(min=0) + self.eps
        v22 = covariance(second, second, means[1], means[1]).clamp(min=0) + self.eps
        v12 = covariance(first, second, means[0], means[1])
        c1 = covariance(first, values, means[0], means[2])
        c2 = covariance(second, values, means[1], means[2])
        variance = covariance(values, values, means[2], means[2]).clamp(min=0) + self.eps
        determinant = (v11 * v22 - v12.square()).clamp(min=self.eps**2)
        return (c1.square() * v22 - 2 * c1 * c2 * v12 + c2.square() * v11) / (determinant * variance)


def _standardised(windows: Windows, x: Tensor) -> Tensor:
    """With mean 0 and variance 1 over the image."""
    centred = x - windows.image_mean(x)
    return centred / windows.image_mean(centred.square()).clamp(min=torch.finfo(x.dtype).tiny).sqrt()


class MappedIntensityLoss(ImageLoss):
    """Mean squared difference of ``input`` from the best function of ``target``, for images of different contrast.

    The function is the mean of ``input`` where ``target`` has a value, linear between ``num_bins`` values: the
    intensity loss of two images of one contrast after the other contrast has been learnt from the images as they lie.
    (Divided by the variance of ``input`` it would be one minus the correlation ratio, Roche et al., MICCAI 1998.)

    Args:
        num_bins: values of the target at which the function is free.

    Raises:
        ValueError: when there are fewer than two bins.
    """

    def __init__(self, num_bins: int = 32) -> None:
        super().__init__()
        if num_bins < 2:
            raise ValueError(f"num_bins is {num_bins}, expected 2 or more.")
        self.num_bins = num_bins

    def forward(
        self, input: Tensor, target: Tensor, weight: Tensor | None = None, spacing: Sequence[float] | None = None
    ) -> Tensor:
        """See :py:meth:`monai_nodeo.losses.ImageLoss.forward`; each channel has a function of its own."""
        if input.shape != target.shape:
            raise ValueError(f"the images have shapes {tuple(input.shape)} and {tuple(target.shape)}, expected one.")
        counts = torch.ones_like(input) if weight is None else weight.expand_as(input)
        values, positions, counts = (x.reshape(input.shape[0] * input.shape[1], -1) for x in (input, target, counts))
        fitted = self._fitted(values, positions.detach(), counts)
        return (counts * (values - fitted).square()).sum() / counts.sum().clamp(min=SMALLEST_WEIGHT)

    def _fitted(self, values: Tensor, positions: Tensor, counts: Tensor) -> Tensor:
        """Each row of values (rows, N) averaged by its position and read off at the positions again."""
        low, high = positions.amin(1, keepdim=True), positions.amax(1, keepdim=True)
        range_ = (high - low).clamp(min=torch.finfo(positions.dtype).tiny)
        scaled = (positions - low) / range_ * (self.num_bins - 1)
        lower = scaled.long().clamp(max=self.num_bins - 2)
        share = scaled - lower
        sums = values.new_zeros((2, values.shape[0], self.num_bins))
        for index, part in ((lower, (1 - share) * counts), (lower + 1, share * counts)):
            sums = sums + torch.stack(
                [torch.zeros_like(sums[0]).scatter_add(1, index, x) for x in (part * values, part)]
            )
        means = sums[0] / sums[1].clamp(min=SMALLEST_WEIGHT)
        return (1 - share) * means.gather(1, lower) + share * means.gather(1, lower + 1)
