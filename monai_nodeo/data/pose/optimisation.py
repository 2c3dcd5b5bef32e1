# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""From a linear map to a better one near it."""

from __future__ import annotations

import torch
from torch import Tensor

from monai_nodeo.data.pose.information import Level
from monai_nodeo.data.pose.poses import Poses, generators

__all__ = ["climb"]


def climb(level: Level, poses: Poses, kind: str, steps: int) -> tuple[Poses, Tensor]:
    """Levenberg and Marquardt's steps to more information; never to less."""
    basis = generators(level.dims, kind)
    value, gradient, curvature = level.evaluate(poses, basis)
    damping = torch.full_like(value, 0.1)
    for _ in range(steps):
        diagonal = torch.diagonal(curvature, dim1=1, dim2=2)
        floor = 1e-3 * diagonal.mean(-1, keepdim=True) + 1e-9
        damped = curvature + torch.diag_embed(damping[:, None] * diagonal + floor)
        change = torch.linalg.solve(damped, gradient)
        length = change.abs().amax(-1, keepdim=True)
        change = change * (0.3 / length.clamp_min(0.3))
        tried = poses.moved(change, basis)
        new = level.evaluate(tried, basis)
        better = new[0] > value
        poses = Poses(
            torch.where(better[:, None, None], tried.matrix, poses.matrix),
            torch.where(better[:, None], tried.shift, poses.shift),
        )
        gain = torch.where(better, new[0] - value, torch.zeros_like(value))
        value = torch.where(better, new[0], value)
        gradient = torch.where(better[:, None], new[1], gradient)
        curvature = torch.where(better[:, None, None], new[2], curvature)
        damping = torch.where(better, damping / 3, damping * 6).clamp(1e-4, 1e5)
        if not bool(((gain > 1e-4 * value) | (~better & (damping < 1e3))).any()):
            break
    return poses, value
