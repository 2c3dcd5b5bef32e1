# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Regularity of a displacement or of a velocity."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from monai.utils import LossReduction
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from monai_nodeo.geometry._slabs import slabs
from monai_nodeo.geometry._triton import kernels_for
from monai_nodeo.geometry.coordinates import axis_values
from monai_nodeo.geometry.jacobian import check_ddf, jacobian_determinant, lower_corner

__all__ = ["DDFLoss", "FoldingLoss", "SmoothnessLoss", "VelocityMagnitudeLoss"]


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
    """Sum of relu(margin - det)^2 over the cells of each grid, (B,); the gradient is made on the way."""

    @staticmethod
    def forward(ctx: Any, ddf: Tensor, margin: float) -> Tensor:
        kernels = kernels_for(ddf, "regularity")
        total, gradient = (kernels.folding_sum if kernels else _folding_in_slabs)(ddf, margin)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad.view(-1, *[1] * (gradient.ndim - 1)), None


def _folding_in_slabs(ddf: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    dims = ddf.ndim - 2
    total = ddf.new_zeros(len(ddf))
    gradient = torch.zeros_like(ddf)
    corner = lower_corner(dims)
    neighbours = [lower_corner(dims, axis) for axis in range(dims)]
    for start, stop in slabs(ddf[:, :, 1:]):
        part = ddf[:, :, start : stop + 1]
        columns = [part[n] - part[corner] for n in neighbours]
        for axis, column in enumerate(columns):
            column[:, axis] += 1
        cofactors = _cofactors(columns)
        determinant = columns[0][:, :1] * cofactors[0][:, :1]
        for i in range(1, dims):
            determinant.addcmul_(columns[0][:, i : i + 1], cofactors[0][:, i : i + 1])
        lack = determinant.neg_().add_(margin).relu_()
        total += lack.square().flatten(1).sum(1)
        lack *= -2
        target = gradient[:, :, start : stop + 1]
        for cofactor, neighbour in zip(cofactors, neighbours, strict=True):
            cofactor *= lack
            target[neighbour] += cofactor
            target[corner] -= cofactor
    return total, gradient


class DDFLoss(nn.Module, ABC):
    """A loss of a displacement or velocity that knows voxel sizes; MONAI's losses count in voxels."""

    @abstractmethod
    def forward(self, ddf: Tensor, spacing: Sequence[float] | None = None) -> Tensor:
        """Penalise a field.

        Args:
            ddf: displacement, or velocity per unit time, in voxels, (B, D, *spatial), tensor axis order.
            spacing: voxel size along each axis in mm (or any unit); by default the voxels are cubes.
        """

    def of_each(self, ddf: Tensor, spacing: Sequence[float] | None = None) -> Tensor:
        """The loss of each item of a batch, (B,); see :py:meth:`monai_nodeo.losses.ImageLoss.of_each`."""
        return torch.stack([self(item, spacing) for item in ddf.split(1)])


class FoldingLoss(DDFLoss):
    """Penalty on small or negative Jacobian determinants: ``mean(relu(margin - det J)^2)``.

    NODEO's Jacobian loss (Wu et al., CVPR 2022), forward differences. The determinant does not depend on voxel sizes.

    Args:
        margin: determinants below this are penalised, so the penalty acts before a fold happens.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (a map).
    """

    def __init__(self, margin: float = 0.5, reduction: LossReduction | str = LossReduction.MEAN) -> None:
        super().__init__()
        self.reduction = LossReduction(reduction).value
        self.margin = margin

    def forward(self, ddf: Tensor, spacing: Sequence[float] | None = None) -> Tensor:
        """See :py:meth:`DDFLoss.forward`."""
        check_ddf(ddf)
        if self.reduction == LossReduction.NONE:
            return (self.margin - jacobian_determinant(ddf)).relu().square()
        values = self.of_each(ddf, spacing)
        return values.mean() if self.reduction == LossReduction.MEAN else values.sum()

    def of_each(self, ddf: Tensor, spacing: Sequence[float] | None = None) -> Tensor:
        """See :py:meth:`DDFLoss.of_each`."""
        check_ddf(ddf)
        total = _FoldingSum.apply(ddf, self.margin)
        return total / math.prod(n - 1 for n in ddf.shape[2:]) if self.reduction == LossReduction.MEAN else total


class _RoughnessSum(torch.autograd.Function):
    """Weighted sum of the squared forward differences of each item, (B,); the gradient is made on the way.

    ``weights`` are those of each component along each axis, (D, D).
    """

    @staticmethod
    def forward(ctx: Any, ddf: Tensor, weights: Tensor) -> Tensor:
        kernels = kernels_for(ddf, "regularity")
        total, gradient = (kernels.roughness_sum if kernels else _roughness_in_slabs)(ddf, weights)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad.view(-1, *[1] * (gradient.ndim - 1)), None


def _roughness_in_slabs(ddf: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    total = ddf.new_zeros(len(ddf))
    gradient = torch.zeros_like(ddf)
    slopes = [column.view(1, -1, *[1] * (ddf.ndim - 2)) for column in (2 * weights).unbind(1)]
    for start, stop in slabs(ddf):
        for axis, slope in enumerate(slopes, start=2):
            # differences along the slab's own axis reach one plane into the next slab
            end = min(stop + 1, ddf.shape[2]) if axis == 2 else stop
            part, target = ddf[:, :, start:end], gradient[:, :, start:end]
            difference = part.diff(dim=axis)
            by_difference = difference * slope
            total += difference.mul_(by_difference).flatten(1).sum(1)
            target.narrow(axis, 1, part.shape[axis] - 1).add_(by_difference)
            target.narrow(axis, 0, part.shape[axis] - 1).sub_(by_difference)
    return total / 2, gradient


class SmoothnessLoss(DDFLoss):
    """Sum over the axes of the mean squared derivative (diffusion regulariser), forward differences.

    From NODEO (Wu et al., CVPR 2022). Derivatives are in mm per mm, so a field is as smooth on anisotropic voxels as on
    isotropic ones. MONAI's ``DiffusionLoss`` uses central differences and voxels.
    """

    def forward(self, ddf: Tensor, spacing: Sequence[float] | None = None) -> Tensor:
        """See :py:meth:`DDFLoss.forward`."""
        return self.of_each(ddf, spacing).mean()

    def of_each(self, ddf: Tensor, spacing: Sequence[float] | None = None) -> Tensor:
        """See :py:meth:`DDFLoss.of_each`."""
        check_ddf(ddf)
        size = ddf.shape[2:]
        sides = spacing or (1.0,) * len(size)
        weights = [
            # means over one voxel less along the axis; a step of the component in its voxels per voxel of the axis
            tuple((component / side) ** 2 * n / ((n - 1) * ddf[0].numel()) for side, n in zip(sides, size, strict=True))
            for component in sides
        ]
        rows = [axis_values(row, ddf.dtype, ddf.device) for row in weights]
        return _RoughnessSum.apply(ddf, torch.stack(rows))


class VelocityMagnitudeLoss(DDFLoss):
    """Mean over the voxels of the squared length of d phi / dt, phi in [-1, 1] (Wu et al., CVPR 2022)."""

    def forward(self, ddf: Tensor, spacing: Sequence[float] | None = None) -> Tensor:
        """See :py:meth:`DDFLoss.forward`."""
        # The gradient of this takes one field of memory; that of square() and mean() takes four.
        zero = ddf.new_zeros(())
        magnitudes = [
            torch.nn.functional.mse_loss(component, zero.expand_as(component)) * (2 / (n - 1)) ** 2
            for component, n in zip(ddf.unbind(1), ddf.shape[2:], strict=True)
            if n > 1
        ]
        return torch.stack(magnitudes).sum()
