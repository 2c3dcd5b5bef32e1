# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Losses of a registration: similarity of two images, regularity of a displacement or of a velocity."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from monai.utils import LossReduction
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.modules.loss import _Loss

from monai_nodeo.fields import check_ddf, jacobian_determinant, lower_corner
from monai_nodeo.layers import apply_along_axes, kernel_matrix

__all__ = ["FoldingLoss", "LocalNCCLoss", "RegistrationLoss", "SmoothnessLoss", "VelocityMagnitudeLoss"]

# Voxels that a loss works on at a time on a CPU, see _slabs().
_SLAB_VOXELS = 2**18


def _reduce(values: Tensor, reduction: str) -> Tensor:
    if reduction == LossReduction.MEAN:
        return values.mean()
    return values.sum() if reduction == LossReduction.SUM else values


def _tiny(image: Tensor) -> float:
    """A variance that keeps the quotient of a constant image from being 0 / 0; its square is still a number above 0."""
    return 100 * torch.finfo(image.dtype).tiny ** 0.5


class _LocalStatistics(NamedTuple):
    """What the squared correlation needs of one image: centred values, window means and raised window variances."""

    values: Tensor
    mean: Tensor
    variance: Tensor

    @classmethod
    def of(cls, image: Tensor, matrices: list[Tensor], eps: float) -> _LocalStatistics:
        # Sums of squares of a flat bright region cancel in float32 unless the image's mean is taken off first.
        spatial = tuple(range(2, image.ndim))
        values = image - image.mean(dim=spatial, keepdim=True)
        squares = values.square()
        mean = apply_along_axes(values, matrices)
        variance = (apply_along_axes(squares, matrices) - mean.square()).clamp(min=0)
        return cls(values, mean, variance + eps * squares.mean(dim=spatial, keepdim=True) + _tiny(image))


def _squared_correlation(p: _LocalStatistics, t: _LocalStatistics, matrices: list[Tensor]) -> Tensor:
    """Map of cov^2 / (var var), (B, C, *spatial)."""
    cov = apply_along_axes(p.values * t.values, matrices) - p.mean * t.mean
    return cov.square() / (p.variance * t.variance)


class _SquaredCorrelationSum(torch.autograd.Function):
    """Sum of :py:func:`_squared_correlation` over the image, the target's statistics given.

    The gradient is written out and made on the way: three box filters each way instead of autograd's ten, and all
    that is not a filter along the first axis is done slab by slab.
    """

    @staticmethod
    def forward(ctx: Any, pred: Tensor, t: _LocalStatistics, matrices: list[Tensor], eps: float) -> Tensor:
        spatial = tuple(range(2, pred.ndim))
        voxels = math.prod(pred.shape[2:])
        slabs: list[tuple[Any, ...]] = [(..., slice(*ends), *[slice(None)] * (pred.ndim - 3)) for ends in _slabs(pred)]
        first, inner = matrices[0], [None, *matrices[1:]]
        mean = pred.mean(dim=spatial, keepdim=True)
        # window means of the values, of their squares and of their product with the target
        sums = pred.new_empty(3, *pred.shape)
        power = torch.zeros_like(mean)
        for slab in slabs:
            values = pred[slab] - mean
            squares = values.square()
            power += squares.sum(dim=spatial, keepdim=True)
            for row, x in zip(sums, (values, squares, values * t.values[slab]), strict=True):
                row[slab] = apply_along_axes(x, inner)
        along_first = [None] * (len(spatial) - 1)
        for row in sums:  # one by one: a third of the memory
            row.copy_(apply_along_axes(row, [first, *along_first]))
        floor = power * (eps / voxels) + _tiny(pred)
        total = pred.new_zeros(())
        by_floor = torch.zeros_like(mean)
        for slab in slabs:
            local_mean, variance, cov = (row[slab] for row in sums)
            variance.addcmul_(local_mean, local_mean, value=-1).clamp_(min=0).add_(floor)
            cov.addcmul_(local_mean, t.mean[slab], value=-1)
            by_cov = cov / variance / t.variance[slab]
            cc = cov.mul_(by_cov)
            total += cc.sum()
            if ctx.needs_input_grad[0]:
                by_cov *= 2
                by_variance = cc.div_(variance).neg_()
                by_floor += by_variance.sum(dim=spatial, keepdim=True)
                by_mean = (by_cov * t.mean[slab]).addcmul_(by_variance, local_mean, value=2)
                for row, x in zip(sums, (by_cov, by_variance, by_mean), strict=True):
                    row[slab] = apply_along_axes(x, [None, *[m.t() for m in matrices[1:]]])
        if ctx.needs_input_grad[0]:
            for row in sums:
                row.copy_(apply_along_axes(row, [first.t(), *along_first]))
            by_floor *= eps / voxels
            gradient = torch.empty_like(pred)
            for slab in slabs:
                by_cov, by_variance, by_mean = (row[slab] for row in sums)
                by_variance.add_(by_floor).mul_(2)
                by_cov.mul_(t.values[slab]).addcmul_(by_variance, pred[slab] - mean)
                torch.sub(by_cov, by_mean, out=gradient[slab])
            ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad, None, None, None


class LocalNCCLoss(_Loss):
    """One minus the mean squared local normalised cross-correlation: ``1 - mean(cov^2 / (var var))``.

    As in NODEO (Wu et al., CVPR 2022) and VoxelMorph, with three differences: windows end at the image
    border instead of reaching into zeros, so the value does not change with brightness or contrast; each variance is
    raised by a share of its image's variance, which keeps flat noisy regions out and the value in [0, 1] in float32;
    the gradient is written by hand. The window statistics of the target are kept while the same tensor is passed.

    Args:
        spatial_dims: 2 or 3.
        kernel_size: voxels along each side of the window, odd.
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
        super().__init__(reduction=LossReduction(reduction).value)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be a positive odd number of voxels, got {kernel_size}.")
        self.spatial_dims = spatial_dims
        self.kernel_size = kernel_size
        self.eps = eps
        self._kept: tuple[weakref.ref, int, _LocalStatistics] | None = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_kept": None}  # a weak reference can be neither copied nor sent elsewhere

    def _statistics_of_target(self, target: Tensor, matrices: list[Tensor]) -> _LocalStatistics:
        if target.is_inference():  # has no version, so a change could not be seen
            return _LocalStatistics.of(target, matrices, self.eps)
        if self._kept is not None:
            reference, version, statistics = self._kept
            if reference() is target and version == target._version:
                return statistics
        statistics = _LocalStatistics.of(target.detach(), matrices, self.eps)
        self._kept = (weakref.ref(target), target._version, statistics)
        return statistics

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Compare two images of shape (B, C, *spatial).

        Raises:
            ValueError: when the shapes differ or do not have ``spatial_dims`` spatial axes.
        """
        if pred.shape != target.shape or pred.ndim != self.spatial_dims + 2:
            raise ValueError(
                f"expected two images (B, C) with {self.spatial_dims} spatial axes and one shape, "
                f"got {tuple(pred.shape)} and {tuple(target.shape)}."
            )
        kernel = (1.0,) * self.kernel_size
        matrices = [kernel_matrix(kernel, n, "truncate", 1, pred.dtype, pred.device) for n in pred.shape[2:]]
        if self.reduction == LossReduction.NONE or target.requires_grad:
            p, t = (_LocalStatistics.of(image, matrices, self.eps) for image in (pred, target))
            return _reduce(1 - _squared_correlation(p, t, matrices), self.reduction)
        total = _SquaredCorrelationSum.apply(pred, self._statistics_of_target(target, matrices), matrices, self.eps)
        return 1 - total / pred.numel() if self.reduction == LossReduction.MEAN else pred.numel() - total


def _slabs(field: Tensor) -> Iterator[tuple[int, int]]:
    """Ranges of the first spatial axis that a loss works through at a time.

    On a CPU they are small enough for the intermediate results to stay in its cache: one pass over the memory
    instead of one per operation. On an accelerator there is one slab, so few kernels.
    """
    planes = field.shape[2]
    step = max(1, _SLAB_VOXELS // math.prod(field.shape[3:])) if field.device.type == "cpu" else planes
    for start in range(0, planes, step):
        yield start, min(start + step, planes)


def _cofactors(columns: list[Tensor]) -> list[Tensor]:
    """Derivatives of the determinant by the columns of a matrix; each column (B, D, *cells)."""
    if len(columns) == 2:
        first, second = columns
        return [torch.stack((second[:, 1], -second[:, 0]), 1), torch.stack((-first[:, 1], first[:, 0]), 1)]
    cofactors = []
    for a, b in ((1, 2), (2, 0), (0, 1)):  # torch.linalg.cross takes ten times as long on a CPU
        product = torch.empty_like(columns[a])
        for i in range(3):
            j, k = (i + 1) % 3, (i + 2) % 3
            torch.mul(columns[a][:, j], columns[b][:, k], out=product[:, i])
            product[:, i].addcmul_(columns[a][:, k], columns[b][:, j], value=-1)
        cofactors.append(product)
    return cofactors


class _FoldingSum(torch.autograd.Function):
    """Sum of relu(margin - det)^2 over the cells of the grid; the gradient is made on the way."""

    @staticmethod
    def forward(ctx: Any, ddf: Tensor, margin: float) -> Tensor:
        dims = ddf.ndim - 2
        total = ddf.new_zeros(())
        gradient = torch.zeros_like(ddf)
        corner = lower_corner(dims)
        neighbours = [lower_corner(dims, axis) for axis in range(dims)]
        for start, stop in _slabs(ddf[:, :, 1:]):
            part = ddf[:, :, start : stop + 1]
            columns = [part[n] - part[corner] for n in neighbours]
            for axis, column in enumerate(columns):
                column[:, axis] += 1
            cofactors = _cofactors(columns)
            determinant = columns[0][:, :1] * cofactors[0][:, :1]
            for i in range(1, dims):
                determinant.addcmul_(columns[0][:, i : i + 1], cofactors[0][:, i : i + 1])
            lack = determinant.neg_().add_(margin).relu_()
            total += lack.square().sum()
            lack *= -2
            target = gradient[:, :, start : stop + 1]
            for cofactor, neighbour in zip(cofactors, neighbours, strict=True):
                cofactor *= lack
                target[neighbour] += cofactor
                target[corner] -= cofactor
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad, None


class FoldingLoss(_Loss):
    """Penalty on small or negative Jacobian determinants: ``mean(relu(margin - det J)^2)``.

    NODEO's Jacobian loss (Wu et al., CVPR 2022), forward differences.

    Args:
        margin: determinants below this are penalised, so the penalty acts before a fold happens.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (a map).
    """

    def __init__(self, margin: float = 0.5, reduction: LossReduction | str = LossReduction.MEAN) -> None:
        super().__init__(reduction=LossReduction(reduction).value)
        self.margin = margin

    def forward(self, ddf: Tensor) -> Tensor:
        """Penalise a displacement in voxels, (B, D, *spatial)."""
        check_ddf(ddf)
        if self.reduction == LossReduction.NONE:
            return (self.margin - jacobian_determinant(ddf)).relu().square()
        total = _FoldingSum.apply(ddf, self.margin)
        cells = ddf.shape[0] * math.prod(n - 1 for n in ddf.shape[2:])
        return total / cells if self.reduction == LossReduction.MEAN else total


class _RoughnessSum(torch.autograd.Function):
    """Sum over the axes of the mean squared forward difference; the gradient is made on the way."""

    @staticmethod
    def forward(ctx: Any, ddf: Tensor) -> Tensor:
        total = ddf.new_zeros(())
        gradient = torch.zeros_like(ddf)
        for start, stop in _slabs(ddf):
            for axis in range(2, ddf.ndim):
                # differences along the slab's own axis reach one plane into the next slab
                end = min(stop + 1, ddf.shape[2]) if axis == 2 else stop
                part, target = ddf[:, :, start:end], gradient[:, :, start:end]
                difference = part.diff(dim=axis)
                weight = ddf.shape[axis] / ((ddf.shape[axis] - 1) * ddf.numel())
                total += difference.square().sum() * weight
                difference *= 2 * weight
                target.narrow(axis, 1, part.shape[axis] - 1).add_(difference)
                target.narrow(axis, 0, part.shape[axis] - 1).sub_(difference)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (gradient,) = ctx.saved_tensors
        return gradient * grad


class SmoothnessLoss(nn.Module):
    """Sum over the axes of the mean squared forward difference (diffusion regulariser), in voxels.

    From NODEO (Wu et al., CVPR 2022). MONAI's ``DiffusionLoss`` uses central differences.
    """

    def forward(self, ddf: Tensor) -> Tensor:
        """Penalise a displacement in voxels, (B, D, *spatial)."""
        check_ddf(ddf)
        return _RoughnessSum.apply(ddf)


class VelocityMagnitudeLoss(nn.Module):
    """Mean over the voxels of the squared length of the velocity (Wu et al., CVPR 2022)."""

    def forward(self, velocity: Tensor) -> Tensor:
        """Penalise a velocity d phi / dt, (B, D, *spatial)."""
        # Its gradient takes one field of memory; that of square() and mean() takes four.
        return F.mse_loss(velocity, velocity.new_zeros(()).expand_as(velocity)) * velocity.shape[1]


class RegistrationLoss(nn.Module):
    """Similarity of the images plus weighted penalties on the displacement and on the velocity.

    Args:
        similarity: loss of (warped, fixed), for instance :py:class:`LocalNCCLoss` or any MONAI image loss.
        ddf_terms: name -> (weight, loss of the ddf in voxels), for instance MONAI's ``BendingEnergyLoss``.
        velocity_terms: name -> (weight, loss of a velocity), averaged along the trajectory.

    Raises:
        ValueError: when a name is taken twice, or is one that the trainer's output has.
    """

    similarity: nn.Module

    def __init__(
        self,
        similarity: nn.Module,
        ddf_terms: Mapping[str, tuple[float, nn.Module]] | None = None,
        velocity_terms: Mapping[str, tuple[float, nn.Module]] | None = None,
    ) -> None:
        super().__init__()
        self.similarity = similarity
        self.ddf_terms = dict(ddf_terms or {})
        self.velocity_terms = dict(velocity_terms or {})
        names = ["loss", "ddf", "similarity", *self.ddf_terms, *self.velocity_terms]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"the name {name!r} of a loss term is taken; the names are {names}.")

    def forward(self, warped: Tensor, fixed: Tensor, ddf: Tensor, velocities: Sequence[Tensor]) -> dict[str, Tensor]:
        """Every term, unweighted, and their weighted sum under ``"loss"``.

        Args:
            warped: moving image on the fixed grid, (B, C, *spatial).
            fixed: fixed image, (B, C, *spatial).
            ddf: displacement in voxels, (B, D, *spatial).
            velocities: d phi / dt along the trajectory, each (B, D, *spatial); a term is averaged over them.

        Returns:
            name -> scalar tensor; a term of weight 0 is left out.
        """
        terms = {"similarity": self.similarity(warped, fixed)}
        total = terms["similarity"]
        for losses, fields in ((self.ddf_terms, [ddf]), (self.velocity_terms, velocities)):
            for name, (weight, loss) in losses.items():
                if weight:
                    terms[name] = torch.stack([loss(field) for field in fields]).mean()
                    total = total + weight * terms[name]
        return {"loss": total, **terms}
