# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The points that a displacement takes to given ones, for inverse fields and the way back through a cloud."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from monai_nodeo.geometry.coordinates import lengths

__all__ = ["Sources", "find_sources"]

_ITERATIONS = 200
_SMALLEST_STEP = 1e-3


class Sources(NamedTuple):
    """Points that are taken to the targets.

    Attributes:
        offset: from the targets, (D, N).
        left: from their target to where they arrive in fact, (D, N).
    """

    offset: Tensor
    left: Tensor


@torch.no_grad()
def find_sources(displacement: Callable[[Tensor], Tensor], targets: Tensor, tolerance: float) -> Sources:
    """Iterate ``v <- v - s (v + u(y + v))`` with a step s for each point.

    The plain iteration (s = 1) runs away where u stretches by more than two. Halving the step wherever the residual
    would grow finds the point wherever u does not fold. Where it folds there may be none: then the point with the
    smallest residual is kept, which tells it.

    Args:
        displacement: u, points (D, N) -> (D, N).
        targets: y, (D, N).
        tolerance: residual at which a point is done, in the unit of the points.
    """
    offset = -displacement(targets)
    lack = offset + displacement(targets + offset)
    size = lengths(lack, 0)
    # Most points are done after a few steps, and only the others are looked at again.
    active = (size > tolerance).nonzero().squeeze(1)
    step = torch.ones_like(size[active])
    for _ in range(_ITERATIONS):
        if not len(active):
            break
        tried = offset[:, active] - step * lack[:, active]
        left = tried + displacement(targets[:, active] + tried)
        error = lengths(left, 0)
        better = error < size[active]
        won = active[better]
        offset[:, won], lack[:, won], size[won] = tried[:, better], left[:, better], error[better]
        step = torch.where(better, step, step / 2)
        open_ = (size[active] > tolerance) & (step > _SMALLEST_STEP)
        active, step = active[open_], step[open_]
    return Sources(offset, lack)
