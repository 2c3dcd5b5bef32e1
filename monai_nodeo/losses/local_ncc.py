# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Local normalised cross-correlation, in windows in millimetres.

Its gradient by hand: `losses._numba.local_ncc`, on CUDA `losses._triton.local_ncc`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from monai.utils import LossReduction
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakTensorKeyDictionary

from monai_nodeo.geometry._kernels import kernels_for
from monai_nodeo.geometry.windows import Windows
from monai_nodeo.losses.similarity import ImageLoss, voxel_counts

__all__ = ["LocalNCCLoss"]


class _LocalStatistics(NamedTuple):
    """What the squared correlation needs of one image: its mean, window means less that and raised window variances."""

    centre: Tensor
    mean: Tensor
    variance: Tensor

    @classmethod
    def of(cls, image: Tensor, windows: Windows, eps: float) -> _LocalStatistics:
        # Sums of squares of a flat bright region cancel in float32 unless the image's mean is taken off first.
        centre = windows.image_mean(image)
        values = image - centre
        squares = values.square()
        mean = windows.mean(values)
        variance = (windows.mean(squares) - mean.square()).clamp(min=0)
        return cls(centre, mean, variance + eps * windows.image_mean(squares) + _tiny(image))


def _tiny(image: Tensor) -> float:
    """A variance that keeps the quotient of a constant image from being 0 / 0; its square is still a number above 0."""
    return 100 * torch.finfo(image.dtype).tiny ** 0.5


def _squared_correlation(
    input: Tensor, p: _LocalStatistics, target: Tensor, t: _LocalStatistics, windows: Windows
) -> Tensor:
    """Map of cov^2 / (var var), (B, C, *spatial)."""
    cov = windows.mean((input - p.centre) * (target - t.centre)) - p.mean * t.mean
    return cov.square() / (p.variance * t.variance)


class _SquaredCorrelationSum(torch.autograd.Function):
    """Weighted sum of :py:func:`_squared_correlation` over each image, (B,).

    Their kernels are `losses._numba.local_ncc` and `losses._triton.local_ncc`. The gradient is made
    on the way: three box filters each way instead of autograd's ten.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, target: Tensor, t: _LocalStatistics, windows: Windows, eps: float, kernels: Any
    ) -> Tensor:
        images = input, (target, *t)
        total, gradient = kernels.squared_correlation(*images, windows, eps, _tiny(input), ctx.needs_input_grad[0])
        ctx.save_for_backward(gradient)
        return total.sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad.view(-1, *[1] * (gradient.ndim - 1)), None, None, None, None, None


def _squared_correlation_sum(
    input: Tensor, target: Tensor, t: _LocalStatistics, windows: Windows, eps: float
) -> Tensor:
    kernels = kernels_for(input, "local_ncc", "losses")
    if kernels:
        return _SquaredCorrelationSum.apply(input, target.detach(), t, windows, eps, kernels)
    squared = _squared_correlation(input, _LocalStatistics.of(input, windows, eps), target, t, windows)
    return (squared if windows.weight is None else squared * windows.weight).flatten(1).sum(1)


class LocalNCCLoss(ImageLoss):
    """One minus the mean squared local normalised cross-correlation: ``1 - mean(cov^2 / (var var))``.

    As in NODEO (Wu et al., CVPR 2022) and VoxelMorph, with three differences: windows end at the image
    border instead of reaching into zeros, so the value does not change with brightness or contrast; each variance is
    raised by a share of its image's variance, which keeps flat noisy regions out and the value in [0, 1] in float32.
    The window statistics of the target are kept while the same tensors are passed.

    With weights, the window means are weighted means and each window counts by the weight of its centre: what is
    masked out neither counts nor leaks into its neighbours' windows.

    Args:
        spatial_dims: 2 or 3.
        kernel_size: side of the window, odd, in units of the smallest voxel side: voxels of an isotropic image, fewer
            along an axis of longer voxels.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (a map).
        eps: share of each image's variance added to the window variances.

    Raises:
        ValueError: when ``kernel_size`` is not a positive odd number.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        kernel_size: int = 21,
        reduction: LossReduction | str = LossReduction.MEAN,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.reduction = LossReduction(reduction).value
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be a positive odd number of voxels, got {kernel_size}.")
        self.spatial_dims = spatial_dims
        self.kernel_size = kernel_size
        self.eps = eps
        self._kept = WeakTensorKeyDictionary()  # target -> its version, window and statistics, as long as it lives

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_kept"}  # cannot be sent elsewhere

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._kept = WeakTensorKeyDictionary()

    def _statistics_of_target(self, target: Tensor, windows: Windows) -> _LocalStatistics:
        # A tensor made under inference_mode has no version, so a change could not be seen; weights may change too.
        if target.is_inference() or windows.weight is not None:
            return _LocalStatistics.of(target.detach(), windows, self.eps)
        state = (target._version, windows.sides)
        kept, statistics = self._kept.get(target, (None, None))
        if kept != state:
            statistics = _LocalStatistics.of(target.detach(), windows, self.eps)
            self._kept[target] = (state, statistics)
        return statistics

    def forward(
        self, input: Tensor, target: Tensor, weight: Tensor | None = None, spacing: Sequence[float] | None = None
    ) -> Tensor:
        """See :py:meth:`ImageLoss.forward`.

        Raises:
            ValueError: when the shapes differ or do not have ``spatial_dims`` spatial axes.
        """
        if self.reduction == LossReduction.NONE or target.requires_grad:
            windows = self._windows(input, target, weight, spacing)
            p, t = (_LocalStatistics.of(image, windows, self.eps) for image in (input, target))
            dissimilarity = 1 - _squared_correlation(input, p, target, t, windows)
            if weight is not None:
                dissimilarity = dissimilarity * weight.detach()
            if self.reduction == LossReduction.NONE:
                return dissimilarity
            return self._reduced(dissimilarity.sum(), voxel_counts(input, windows.weight).sum())
        unlike, voxels = self._sums(input, target, weight, spacing)
        return self._reduced(unlike.sum(), voxels.sum())

    def of_each(
        self, input: Tensor, target: Tensor, weight: Tensor | None = None, spacing: Sequence[float] | None = None
    ) -> Tensor:
        """See :py:meth:`ImageLoss.of_each`."""
        if self.reduction == LossReduction.NONE or target.requires_grad:
            return super().of_each(input, target, weight, spacing)
        return self._reduced(*self._sums(input, target, weight, spacing))

    def _sums(
        self, input: Tensor, target: Tensor, weight: Tensor | None, spacing: Sequence[float] | None
    ) -> tuple[Tensor, Tensor]:
        """Weighted sum of one minus the correlation, and of the weights, of each item, (B,)."""
        windows = self._windows(input, target, weight, spacing)
        statistics = self._statistics_of_target(target, windows)
        voxels = voxel_counts(input, windows.weight)
        return voxels - _squared_correlation_sum(input, target, statistics, windows, self.eps), voxels

    def _reduced(self, total: Tensor, count: Tensor) -> Tensor:
        return total if self.reduction == LossReduction.SUM else total / count

    def _windows(
        self, input: Tensor, target: Tensor, weight: Tensor | None, spacing: Sequence[float] | None
    ) -> Windows:
        if input.shape != target.shape or input.ndim != self.spatial_dims + 2:
            raise ValueError(
                f"expected two images (B, C) with {self.spatial_dims} spatial axes and one shape, "
                f"got {tuple(input.shape)} and {tuple(target.shape)}."
            )
        return Windows(input, self.kernel_size, spacing, weight)
