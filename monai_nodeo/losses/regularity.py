# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Regularity of a displacement or of a velocity.

`registration.named_parts` makes the terms that settings give a weight.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.utils import LossReduction
from torch import Tensor
from torch.autograd.function import once_differentiable

from monai_nodeo.geometry._kernels import kernels_for
from monai_nodeo.geometry.coordinates import axis_values
from monai_nodeo.geometry.jacobian import check_ddf, jacobian_determinant
from monai_nodeo.losses._base import SinglePrecisionLoss

__all__ = ["DDFLoss", "FoldingLoss", "LogJacobianBound", "LogJacobianLoss", "SmoothnessLoss", "VelocityMagnitudeLoss"]


class _WithGradient(torch.autograd.Function):
    """The sum of a kernel for each item, (B,), whose gradient was made on the way."""

    @staticmethod
    def forward(ctx: Any, ddf: Tensor, kernel: Callable[..., tuple[Tensor, Tensor]], *arguments: Any) -> Tensor:
        total, gradient = kernel(ddf, *arguments)
        ctx.save_for_backward(gradient)
        ctx.others = len(arguments) + 1
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad.view(-1, *[1] * (gradient.ndim - 1)), *[None] * ctx.others


def _folding_sum(ddf: Tensor, margin: float) -> Tensor:
    """Sum of relu(margin - det)^2 over the cells of each grid, (B,)."""
    kernels = kernels_for(ddf, "regularity", "losses")
    if kernels:
        return _WithGradient.apply(ddf, kernels.folding_sum, margin)
    return (margin - jacobian_determinant(ddf)).relu().square().flatten(1).sum(1)


def _log_jacobian_sum(ddf: Tensor, floor: float) -> Tensor:
    """Sum of log(det)^2 over the cells of each grid, (B,), along its tangent below the floor."""
    kernels = kernels_for(ddf, "regularity", "losses")
    if kernels:
        return _WithGradient.apply(ddf, kernels.log_jacobian_sum, floor)
    determinant = jacobian_determinant(ddf)
    inside = determinant.clamp(min=floor)
    tangent = 2 * math.log(floor) / floor * (determinant - inside)
    return (inside.log().square() + tangent).flatten(1).sum(1)


def _roughness_sum(ddf: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of the squared forward differences of each item, (B,); weights (D, D), component and axis."""
    kernels = kernels_for(ddf, "regularity", "losses")
    if kernels:
        return _WithGradient.apply(ddf, kernels.roughness_sum, weights)
    squares = [ddf.diff(dim=axis).square().flatten(2).sum(2) for axis in range(2, ddf.ndim)]
    return (torch.stack(squares, -1) * weights).sum((1, 2))


class DDFLoss(SinglePrecisionLoss):
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
        total = _folding_sum(ddf, self.margin)
        return total / math.prod(n - 1 for n in ddf.shape[2:]) if self.reduction == LossReduction.MEAN else total


class LogJacobianLoss(DDFLoss):
    """Penalty on the change of volume: ``mean(log(det J)^2)``, forward differences.

    Growth and shrinkage by one factor cost the same (Ashburner et al., Human Brain Mapping 1999), and a fold would cost
    more than any growth. Below ``floor`` the penalty goes on along its tangent, so that it is finite at a fold and
    pulls it open. The determinant does not depend on voxel sizes.

    Args:
        floor: determinant below which the tangent is taken.
    """

    def __init__(self, floor: float = 0.1) -> None:
        super().__init__()
        self.floor = floor

    def forward(self, ddf: Tensor, spacing: Sequence[float] | None = None) -> Tensor:
        """See :py:meth:`DDFLoss.forward`."""
        return self.of_each(ddf, spacing).mean()

    def of_each(self, ddf: Tensor, spacing: Sequence[float] | None = None) -> Tensor:
        """See :py:meth:`DDFLoss.of_each`."""
        check_ddf(ddf)
        return _log_jacobian_sum(ddf, self.floor) / math.prod(n - 1 for n in ddf.shape[2:])


class LogJacobianBound(LogJacobianLoss):
    """Steers the change of volume to a bound: ``multiplier * (mean(log(det J)^2) - bound^2)``, one multiplier an item.

    The multiplier is that of Lagrange. It grows by each look at a field that changes more than the bound, and falls by
    each look at one that changes less, until the pull of the images and the bound are in balance. What it has come to
    is kept: take a new one, or a copy, for each optimisation. The bound is about the standard deviation of the
    logarithm of the Jacobian determinant that :py:func:`monai_nodeo.metrics.sd_log_jacobian` gives.

    Args:
        bound: root mean square of log(det J).
        floor: see :py:class:`LogJacobianLoss`.

    Raises:
        ValueError: for a bound that is not above 0.
    """

    _FIRST = 0.1
    _RANGE = (1e-3, 30.0)
    _RATE = 0.3  # power of the ratio of the squares by which the multiplier grows
    _STEP = (0.5, 4.0)  # ratios beyond count as these: the first fields are all but 0

    def __init__(self, bound: float, floor: float = 0.1) -> None:
        super().__init__(floor)
        if not bound > 0:
            raise ValueError(f"bound is {bound}, expected more than 0.")
        self.bound = bound
        self.multiplier: Tensor | None = None  # (B,)

    def of_each(self, ddf: Tensor, spacing: Sequence[float] | None = None) -> Tensor:
        """See :py:meth:`DDFLoss.of_each`."""
        # forward differences alone would let a field change volumes that only backward ones see
        backward = -ddf.flip(tuple(range(2, ddf.ndim)))
        square = (super().of_each(ddf, spacing) + super().of_each(backward, spacing)) / 2
        ratio = square.detach() / self.bound**2
        if self.multiplier is None or self.multiplier.shape != ratio.shape:
            self.multiplier = torch.full_like(ratio, self._FIRST)
        value = self.multiplier.clone() * (square - self.bound**2)
        self.multiplier.mul_(ratio.clamp(*self._STEP) ** self._RATE).clamp_(*self._RANGE)
        return value


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
        return _roughness_sum(ddf, torch.stack(rows))


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
