# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The difference of two images after the best linear fit, in two passes through them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from monai_nodeo.geometry._numba._threads import as_array, compiled, in_threads

__all__ = ["fitted_squares"]

_PART = 2**16  # voxels that are added up at a time


def fitted_squares(pred: Tensor, target: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weighted sum of the squared differences between ``target`` and the best linear function of ``pred``.

    Args:
        pred: (B, C, *spatial).
        target: same shape.
        weight: how much each voxel counts, (B, 1, *spatial).

    Returns:
        (B, C), and the gradient by ``pred``.
    """
    images, targets = (as_array(x).reshape(-1, pred[0, 0].numel()) for x in (pred, target))
    weights = images[:1] if weight is None else as_array(weight).reshape(len(pred), -1)
    parts = -(-images.shape[1] // _PART)
    gradient = np.empty_like(images)
    total = np.empty(len(images), images.dtype)
    for number, (p, t) in enumerate(zip(images, targets, strict=True)):
        w = weights[0 if weight is None else number // pred.shape[1]]
        sums = np.zeros((parts, 6))
        # differences from the first voxels, so that the squares do not cancel
        in_threads(_moments, parts, p, t, w, weight is not None, p[0], t[0], sums)
        count, of_p, of_t, of_pp, of_pt, of_tt = sums.sum(0)
        count = max(count, 1e-30)
        variance, covariance = of_pp - of_p * of_p / count, of_pt - of_p * of_t / count
        scale = covariance / max(variance, 1e-30)
        shift = t[0] + of_t / count - scale * (p[0] + of_p / count)
        total[number] = of_tt - of_t * of_t / count - scale * covariance
        in_threads(_slopes, parts, p, t, w, weight is not None, *images.dtype.type([scale, shift]), gradient[number])
    return torch.from_numpy(total).view(pred.shape[:2]), torch.from_numpy(gradient).view(pred.shape)


@compiled
def _moments(p, t, weight, weighted, p_zero, t_zero, sums, start, stop):  # type: ignore[no-untyped-def]
    for part in range(start, stop):
        count = of_p = of_t = of_pp = of_pt = of_tt = 0.0
        for n in range(part * _PART, min((part + 1) * _PART, len(p))):
            w = weight[n] if weighted else 1.0
            x, y = p[n] - p_zero, t[n] - t_zero
            count += w
            of_p += w * x
            of_t += w * y
            of_pp += w * x * x
            of_pt += w * x * y
            of_tt += w * y * y
        sums[part, 0], sums[part, 1], sums[part, 2] = count, of_p, of_t
        sums[part, 3], sums[part, 4], sums[part, 5] = of_pp, of_pt, of_tt


@compiled
def _slopes(p, t, weight, weighted, scale, shift, gradient, start, stop):  # type: ignore[no-untyped-def]
    two = scale * 0 + 2
    for n in range(start * _PART, min(stop * _PART, len(p))):
        slope = two * scale * (scale * p[n] + shift - t[n])
        gradient[n] = slope * weight[n] if weighted else slope
