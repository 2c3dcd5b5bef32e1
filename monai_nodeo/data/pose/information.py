# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""How well a linear map explains two images: the information that one has about the other, and its derivatives."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from monai_nodeo.data.pose.poses import Poses
from monai_nodeo.data.pose.views import NOISE, View, sampled

__all__ = ["Level"]

_WINDOW = 1.5  # standard deviation of the windows of the local correlation, in grid points


class Level:
    """Two views, and the information that one has about the other.

    In each Gaussian window both are taken as jointly normal, which is any linear relation of the window: the
    information is ``-log(1 - r^2) / 2`` for a correlation r. Points outside the other view have none.
    """

    def __init__(self, fixed: View, moving: View) -> None:
        self.fixed, self.moving = fixed, moving
        self.points = fixed.grid.points()
        self.dims = len(fixed.grid.shape)
        self._stack = torch.cat([moving.values[None], moving.weight[None], moving.gradient()])
        reach = math.ceil(3 * _WINDOW)
        kernel = [math.exp(-0.5 * (i / _WINDOW) ** 2) for i in range(-reach, reach + 1)]
        total = sum(kernel)
        self._bands = [_band([k / total for k in kernel], n) for n in fixed.grid.shape]

    def _windows(self, x: Tensor) -> Tensor:
        """Window means of (B, C, N), where points outside count as 0."""
        shaped = x.view(*x.shape[:2], *self.fixed.grid.shape)
        for axis, band in enumerate(self._bands):
            shaped = torch.matmul(shaped.transpose(2 + axis, -1), band).transpose(2 + axis, -1)
        return shaped.reshape(x.shape)

    def evaluate(self, poses: Poses, basis: Tensor | None = None) -> tuple[Tensor, ...]:
        """The information (B,); with a basis its gradient (B, P + D) and its curvature (B, P + D, P + D) too."""
        places = self.points @ poses.matrix.transpose(1, 2) + poses.shift[:, None]
        stack = self._stack if basis is not None else self._stack[:2]
        seen, inside = sampled(stack, self.moving.grid, places)
        m = seen[:, 0]
        f = self.fixed.values.reshape(1, -1).expand_as(m)
        w = self.fixed.weight.reshape(1, -1) * inside * seen[:, 1]
        means = self._windows(torch.stack([w, w * f, w * m, w * f * f, w * m * m, w * f * m], 1))
        weight = means[:, 0]
        f_mean, m_mean, ff, mm, fm = (means[:, 1:] / weight[:, None].clamp_min(1e-3)).unbind(1)
        ff = (ff - f_mean**2).clamp_min(0) + NOISE**2
        mm = (mm - m_mean**2).clamp_min(0) + NOISE**2
        fm = fm - f_mean * m_mean
        rest = (1 - fm**2 / (ff * mm)).clamp_min(1e-4)
        size = torch.linalg.det(poses.matrix).abs().sqrt() / self.fixed.weight.sum()
        information = (-0.5 * weight * rest.log()).sum(-1) * size
        if basis is None:
            return (information,)
        a, b = fm / (ff * mm * rest), -0.5 * fm**2 / (ff * mm * rest) / mm
        back = self._windows(torch.stack([a, a * f_mean, b, b * m_mean, 1 / (mm * rest)], 1))
        slope = w * (back[:, 0] * f - back[:, 1] + 2 * (back[:, 2] * m - back[:, 3]))
        along = seen[:, 2:].transpose(1, 2) @ poses.matrix  # gradient by fixed place, (B, N, D)
        ways = torch.cat(
            [torch.einsum("pij,nj->npi", basis, self.points), torch.eye(self.dims).expand(len(self.points), -1, -1)], 1
        )
        jacobian = torch.einsum("bnd,npd->bnp", along, ways)
        gradient = torch.einsum("bn,bnp->bp", slope, jacobian) * size[:, None]
        curvature = torch.einsum("bnp,bnq->bpq", jacobian * (w * back[:, 4] * size[:, None])[..., None], jacobian)
        return information, gradient, curvature


def _band(kernel: Sequence[float], size: int) -> Tensor:
    """(size, size): the kernel along an axis beyond whose ends there is 0."""
    reach = len(kernel) // 2
    away = torch.arange(size)[:, None] - torch.arange(size)[None] + reach
    inside = (away >= 0) & (away < len(kernel))
    return torch.where(inside, torch.tensor(kernel)[away.clamp(0, len(kernel) - 1)], 0.0)
