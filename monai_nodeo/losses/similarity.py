# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Similarity of two images, with weights from masks and windows in millimetres."""

from __future__ import annotations

import math
import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from monai.utils import LossReduction, ensure_tuple_rep
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from monai_nodeo.layers import apply_along_axes, kernel_matrix, odd_window
from monai_nodeo.slabs import slabs

__all__ = ["ImageLoss", "IntensityLoss", "LocalNCCLoss", "each_item", "voxel_counts"]

# Share of a window that must lie inside the mask for its mean to be a number.
_SMALLEST_WEIGHT = 1e-6


class ImageLoss(nn.Module, ABC):
    """A loss of two images that knows masks and voxel sizes; MONAI's losses know neither."""

    @abstractmethod
    def forward(
        self, pred: Tensor, target: Tensor, weight: Tensor | None = None, spacing: Sequence[float] | None = None
    ) -> Tensor:
        """Compare two images.

        Args:
            pred: (B, C, *spatial).
            target: same shape.
            weight: how much each voxel counts, not negative, (B, 1, *spatial); no gradient goes to it.
            spacing: voxel size along each axis in mm (or any unit); by default the voxels are cubes.
        """

    def of_each(
        self, pred: Tensor, target: Tensor, weight: Tensor | None = None, spacing: Sequence[float] | None = None
    ) -> Tensor:
        """The loss of each item of a batch, (B,): what :py:meth:`forward` gives for it alone.

        Here item by item; a loss that can do better does.
        """
        weights = [None] * len(pred) if weight is None else each_item(weight)
        items = zip(each_item(pred), each_item(target), weights, strict=True)
        return torch.stack([self(p, t, w, spacing) for p, t, w in items])


def each_item(batch: Tensor) -> Sequence[Tensor]:
    """Each item as a batch of one; the very tensor if there is one, by which a loss may know a target again."""
    return [batch] if len(batch) == 1 else batch.split(1)


def voxel_counts(image: Tensor, weight: Tensor | None) -> Tensor:
    """How many there are in all channels of each item, as far as they count, (B,)."""
    if weight is None:
        return image.new_full((len(image),), image[0].numel())
    return weight.flatten(1).sum(1).clamp(min=_SMALLEST_WEIGHT) * image.shape[1]


class VoxelwiseLoss(ImageLoss):
    """A loss that is the mean, the sum or the map of a value at every voxel.

    Attributes:
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
    """

    reduction: str

    @abstractmethod
    def _map(self, pred: Tensor, target: Tensor, weight: Tensor | None, spacing: Sequence[float] | None) -> Tensor:
        """The values, (B, C, *spatial), times the weight; arguments as for :py:meth:`ImageLoss.forward`."""

    def forward(
        self, pred: Tensor, target: Tensor, weight: Tensor | None = None, spacing: Sequence[float] | None = None
    ) -> Tensor:
        """See :py:meth:`ImageLoss.forward`.

        Raises:
            ValueError: when the shapes differ or are not those of images that the loss takes.
        """
        values = self._map(pred, target, weight, spacing)
        if self.reduction == LossReduction.NONE:
            return values
        total = values.sum()
        return total if self.reduction == LossReduction.SUM else total / voxel_counts(pred, weight).sum()

    def of_each(
        self, pred: Tensor, target: Tensor, weight: Tensor | None = None, spacing: Sequence[float] | None = None
    ) -> Tensor:
        """See :py:meth:`ImageLoss.of_each`."""
        total = self._map(pred, target, weight, spacing).flatten(1).sum(1)
        return total if self.reduction == LossReduction.SUM else total / voxel_counts(pred, weight)


class IntensityLoss(ImageLoss):
    """Mean squared difference of the target and the best linear function of ``pred``; with weights, weighted means.

    The function is fitted to each channel of each item anew (least squares), so that brightness and contrast of a
    scanner do not count: a difference of 3 % costs more Dice than many iterations bring. The gradient is that of the
    whole loss, since at the best fit a change of the fit changes nothing.
    """

    def forward(
        self, pred: Tensor, target: Tensor, weight: Tensor | None = None, spacing: Sequence[float] | None = None
    ) -> Tensor:
        """See :py:meth:`ImageLoss.forward`."""
        total, count = self._sums(pred, target, weight)
        return total.sum() / count.sum()

    def of_each(
        self, pred: Tensor, target: Tensor, weight: Tensor | None = None, spacing: Sequence[float] | None = None
    ) -> Tensor:
        """See :py:meth:`ImageLoss.of_each`."""
        total, count = self._sums(pred, target, weight)
        return total / count

    def _sums(self, pred: Tensor, target: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        """Weighted squares and weights of each item, (B,)."""
        weight = None if weight is None else weight.detach()
        scale, shift = _linear_fit(pred.detach(), target.detach(), weight)
        squares = torch.nn.functional.mse_loss(pred * scale + shift, target, reduction="none")
        if weight is not None:
            squares = weight * squares
        return squares.flatten(1).sum(1), voxel_counts(pred, weight)


def _linear_fit(pred: Tensor, target: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Factor and summand that make ``target`` of ``pred``, (B, C, 1, ...); of a constant image, 0 and the mean."""
    spatial = tuple(range(2, pred.ndim))

    def mean(x: Tensor) -> Tensor:
        if weight is None:
            return x.mean(spatial, keepdim=True)
        total = weight.sum(spatial, keepdim=True).clamp(min=_SMALLEST_WEIGHT)
        return (weight * x).sum(spatial, keepdim=True) / total

    middle, centre = mean(pred), mean(target)
    offset = pred - middle
    variance = mean(offset.square())
    scale = mean(offset * (target - centre)) / variance.clamp(min=torch.finfo(pred.dtype).tiny)
    return scale, centre - scale * middle


class _Windows:
    """Weighted means over sliding windows, and their transpose.

    Args:
        matrices: moving average along each axis, windows that end at the border.
        weight: of the voxels, (B, 1, *spatial).
    """

    def __init__(self, matrices: list[Tensor], weight: Tensor | None = None) -> None:
        self.first = matrices[0]
        self.inner: list[Tensor | None] = [None, *matrices[1:]]
        self.weight = weight
        if weight is not None:
            self.by_share = 1 / apply_along_axes(weight, matrices).clamp(min=_SMALLEST_WEIGHT)

    def _along_first(self, x: Tensor, matrix: Tensor) -> Tensor:
        return apply_along_axes(x, [matrix, *[None] * (x.ndim - 3)])

    def inner_mean(self, x: Tensor, part: Any) -> Tensor:
        """The mean along all axes but the first, of a slab; ``part`` is its place in the image."""
        return apply_along_axes(x if self.weight is None else x * self.weight[part], self.inner)

    def first_mean(self, x: Tensor) -> Tensor:
        """The rest of the mean, of the whole image."""
        x = self._along_first(x, self.first)
        return x if self.weight is None else x.mul_(self.by_share)

    def mean(self, x: Tensor) -> Tensor:
        return self.first_mean(self.inner_mean(x, ...))

    def inner_transpose(self, x: Tensor, part: Any) -> Tensor:
        """The transpose of the mean along all axes but the first, of a slab, without the weight of the voxels."""
        x = x if self.weight is None else x * self.by_share[part]
        return apply_along_axes(x, [None, *[m.t() for m in self.inner if m is not None]])

    def first_transpose(self, x: Tensor) -> Tensor:
        return self._along_first(x, self.first.t())

    def image_mean(self, x: Tensor) -> Tensor:
        """(B, C, 1, ...)."""
        spatial = tuple(range(2, x.ndim))
        if self.weight is None:
            return x.mean(dim=spatial, keepdim=True)
        total = self.weight.sum(dim=spatial, keepdim=True).clamp(min=_SMALLEST_WEIGHT)
        return (x * self.weight).sum(dim=spatial, keepdim=True) / total


class _LocalStatistics(NamedTuple):
    """What the squared correlation needs of one image: centred values, window means and raised window variances."""

    values: Tensor
    mean: Tensor
    variance: Tensor

    @classmethod
    def of(cls, image: Tensor, windows: _Windows, eps: float) -> _LocalStatistics:
        # Sums of squares of a flat bright region cancel in float32 unless the image's mean is taken off first.
        values = image - windows.image_mean(image)
        squares = values.square()
        mean = windows.mean(values)
        variance = (windows.mean(squares) - mean.square()).clamp(min=0)
        return cls(values, mean, variance + eps * windows.image_mean(squares) + _tiny(image))


def _tiny(image: Tensor) -> float:
    """A variance that keeps the quotient of a constant image from being 0 / 0; its square is still a number above 0."""
    return 100 * torch.finfo(image.dtype).tiny ** 0.5


def _squared_correlation(p: _LocalStatistics, t: _LocalStatistics, windows: _Windows) -> Tensor:
    """Map of cov^2 / (var var), (B, C, *spatial)."""
    cov = windows.mean(p.values * t.values) - p.mean * t.mean
    return cov.square() / (p.variance * t.variance)


class _SquaredCorrelationSum(torch.autograd.Function):
    """Weighted sum of :py:func:`_squared_correlation` over each image, (B,), the target's statistics given.

    The gradient is written out and made on the way: three box filters each way instead of autograd's ten, and all
    that is not a filter along the first axis is done slab by slab.
    """

    @staticmethod
    def forward(ctx: Any, pred: Tensor, t: _LocalStatistics, windows: _Windows, eps: float) -> Tensor:
        spatial = tuple(range(2, pred.ndim))
        weight = windows.weight
        voxels: Any = math.prod(pred.shape[2:])
        if weight is not None:
            voxels = weight.sum(dim=spatial, keepdim=True).clamp(min=_SMALLEST_WEIGHT)  # of each item of the batch
        parts: list[Any] = [(..., slice(*ends), *[slice(None)] * (pred.ndim - 3)) for ends in slabs(pred)]
        mean = windows.image_mean(pred)
        # window means of the values, of their squares and of their product with the target
        sums = pred.new_empty((3, *pred.shape))  # MetaTensor takes a tuple only
        power = torch.zeros_like(mean)
        for part in parts:
            values = pred[part] - mean
            squares = values.square()
            power += (squares if weight is None else squares * weight[part]).sum(dim=spatial, keepdim=True)
            for row, x in zip(sums, (values, squares, values * t.values[part]), strict=True):
                row[part] = windows.inner_mean(x, part)
        for row in sums:  # one by one: a third of the memory
            row.copy_(windows.first_mean(row))
        floor = power * (eps / voxels) + _tiny(pred)
        total = pred.new_zeros(len(pred))
        by_floor = torch.zeros_like(mean)
        for part in parts:
            local_mean, variance, cov = (row[part] for row in sums)
            variance.addcmul_(local_mean, local_mean, value=-1).clamp_(min=0).add_(floor)
            cov.addcmul_(local_mean, t.mean[part], value=-1)
            by_cov = cov / variance / t.variance[part]
            if weight is not None:
                by_cov *= weight[part]
            cc = cov.mul_(by_cov)
            total += cc.flatten(1).sum(1)
            if ctx.needs_input_grad[0]:
                by_cov *= 2
                by_variance = cc.div_(variance).neg_()
                by_floor += by_variance.sum(dim=spatial, keepdim=True)
                by_mean = (by_cov * t.mean[part]).addcmul_(by_variance, local_mean, value=2)
                for row, x in zip(sums, (by_cov, by_variance, by_mean), strict=True):
                    row[part] = windows.inner_transpose(x, part)
        if ctx.needs_input_grad[0]:
            for row in sums:
                row.copy_(windows.first_transpose(row))
            by_floor *= eps / voxels
            gradient = torch.empty_like(pred)
            for part in parts:
                by_cov, by_variance, by_mean = (row[part] for row in sums)
                by_variance.add_(by_floor).mul_(2)
                by_cov.mul_(t.values[part]).addcmul_(by_variance, pred[part] - mean)
                torch.sub(by_cov, by_mean, out=gradient[part])
                if weight is not None:
                    gradient[part] *= weight[part]
            ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad.view(-1, *[1] * (gradient.ndim - 1)), None, None, None


class LocalNCCLoss(ImageLoss):
    """One minus the mean squared local normalised cross-correlation: ``1 - mean(cov^2 / (var var))``.

    As in NODEO (Wu et al., CVPR 2022) and VoxelMorph, with three differences: windows end at the image
    border instead of reaching into zeros, so the value does not change with brightness or contrast; each variance is
    raised by a share of its image's variance, which keeps flat noisy regions out and the value in [0, 1] in float32;
    the gradient is written by hand. The window statistics of the target are kept while the same tensors are passed.

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
        self._kept: tuple[weakref.ref, int, tuple[int, ...], _LocalStatistics] | None = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_kept": None}  # a weak reference can be neither copied nor sent elsewhere

    def _matrices(self, image: Tensor, spacing: Sequence[float] | None) -> tuple[tuple[int, ...], list[Tensor]]:
        """Window in voxels and moving average along each axis."""
        sides = ensure_tuple_rep(1.0, self.spatial_dims) if spacing is None else tuple(spacing)
        window = tuple(odd_window(self.kernel_size * min(sides) / side) for side in sides)
        shape = image.shape[2:]
        return window, [
            kernel_matrix((1.0,) * k, n, "truncate", 1, image.dtype, image.device)
            for k, n in zip(window, shape, strict=True)
        ]

    def _statistics_of_target(self, target: Tensor, window: tuple[int, ...], windows: _Windows) -> _LocalStatistics:
        # A tensor made under inference_mode has no version, so a change could not be seen; weights may change too.
        if target.is_inference() or windows.weight is not None:
            return _LocalStatistics.of(target.detach(), windows, self.eps)
        if self._kept is not None:
            reference, version, kept_window, statistics = self._kept
            if reference() is target and (version, kept_window) == (target._version, window):
                return statistics
        statistics = _LocalStatistics.of(target.detach(), windows, self.eps)
        self._kept = (weakref.ref(target), target._version, window, statistics)
        return statistics

    def forward(
        self, pred: Tensor, target: Tensor, weight: Tensor | None = None, spacing: Sequence[float] | None = None
    ) -> Tensor:
        """See :py:meth:`ImageLoss.forward`.

        Raises:
            ValueError: when the shapes differ or do not have ``spatial_dims`` spatial axes.
        """
        if self.reduction == LossReduction.NONE or target.requires_grad:
            windows, _ = self._windows(pred, target, weight, spacing)
            p, t = (_LocalStatistics.of(image, windows, self.eps) for image in (pred, target))
            dissimilarity = 1 - _squared_correlation(p, t, windows)
            if weight is not None:
                dissimilarity = dissimilarity * weight.detach()
            if self.reduction == LossReduction.NONE:
                return dissimilarity
            return self._reduced(dissimilarity.sum(), voxel_counts(pred, windows.weight).sum())
        unlike, voxels = self._sums(pred, target, weight, spacing)
        return self._reduced(unlike.sum(), voxels.sum())

    def of_each(
        self, pred: Tensor, target: Tensor, weight: Tensor | None = None, spacing: Sequence[float] | None = None
    ) -> Tensor:
        """See :py:meth:`ImageLoss.of_each`."""
        if self.reduction == LossReduction.NONE or target.requires_grad:
            return super().of_each(pred, target, weight, spacing)
        return self._reduced(*self._sums(pred, target, weight, spacing))

    def _sums(
        self, pred: Tensor, target: Tensor, weight: Tensor | None, spacing: Sequence[float] | None
    ) -> tuple[Tensor, Tensor]:
        """Weighted sum of one minus the correlation, and of the weights, of each item, (B,)."""
        windows, window = self._windows(pred, target, weight, spacing)
        statistics = self._statistics_of_target(target, window, windows)
        voxels = voxel_counts(pred, windows.weight)
        return voxels - _SquaredCorrelationSum.apply(pred, statistics, windows, self.eps), voxels

    def _reduced(self, total: Tensor, count: Tensor) -> Tensor:
        return total if self.reduction == LossReduction.SUM else total / count

    def _windows(
        self, pred: Tensor, target: Tensor, weight: Tensor | None, spacing: Sequence[float] | None
    ) -> tuple[_Windows, tuple[int, ...]]:
        """The windows, and their sides in voxels."""
        if pred.shape != target.shape or pred.ndim != self.spatial_dims + 2:
            raise ValueError(
                f"expected two images (B, C) with {self.spatial_dims} spatial axes and one shape, "
                f"got {tuple(pred.shape)} and {tuple(target.shape)}."
            )
        if weight is not None and weight.shape != (pred.shape[0], 1, *pred.shape[2:]):
            raise ValueError(f"weight {tuple(weight.shape)} does not fit images {tuple(pred.shape)}: one channel each.")
        window, matrices = self._matrices(pred, spacing)
        return _Windows(matrices, None if weight is None else weight.detach()), window
