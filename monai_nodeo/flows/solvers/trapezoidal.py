# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The trapezoidal rule with one look at the velocity a step, as the optimisation of a series uses it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from monai_nodeo.flows.solvers.protocol import Velocity, check_times

__all__ = ["TrapezoidalRule"]

_SAME = 1e-9  # times that differ by less are one


class TrapezoidalRule:
    """Second order with one velocity a step: predict by Euler, evaluate there, correct by the trapezoidal rule (PEC).

    The velocity at the predicted point serves the next step as well (Lambert, Numerical Methods for Ordinary
    Differential Systems, 1991, chapter 4). Steps end at multiples of their length, where the keyframes of a velocity
    are, and not at each time that is asked for: in between, the velocity is taken to change linearly along a step.

    Args:
        num_steps: equal steps from t = 0 to t = 1.

    Raises:
        ValueError: for fewer than one.
    """

    waits_for_device = False
    adjoint = False

    def __init__(self, num_steps: int = 1) -> None:
        if num_steps < 1 or num_steps != int(num_steps):
            raise ValueError(f"num_steps must be a whole number from 1, got {num_steps}.")
        self.num_steps = num_steps

    def options(self) -> dict[str, Any]:
        """Arguments that make the same solver."""
        return {"num_steps": self.num_steps}

    def finer(self) -> TrapezoidalRule:
        """With half the steps."""
        return TrapezoidalRule(2 * self.num_steps)

    def __call__(self, velocity: Velocity, phi0: Tensor, times: Sequence[float] = (0.0, 1.0)) -> list[Tensor]:
        """See :py:class:`monai_nodeo.flows.Solver`."""
        check_times(times)
        states, phi = [phi0], phi0
        knots = self._knots(times[0], times[-1])
        here = velocity(phi, _scalar(knots[0], phi))
        for start, end in zip(knots[:-1], knots[1:], strict=True):
            step = end - start
            there = velocity(phi + step * here, _scalar(end, phi))
            while len(states) < len(times) and (times[len(states)] - end) / step <= _SAME:
                part = (times[len(states)] - start) / step
                states.append(phi + part * step * (here + part / 2 * (there - here)))
            phi, here = phi + step / 2 * (here + there), there
        return states

    def _knots(self, start: float, end: float) -> list[float]:
        """The ends of the steps."""
        low, high = sorted((start, end))
        first, last = math.floor(low * self.num_steps) + 1, math.ceil(high * self.num_steps)
        inner = [number / self.num_steps for number in range(first, last)]
        knots = [low, *[t for t in inner if low + _SAME < t < high - _SAME], high]
        return knots if start < end else knots[::-1]


def _scalar(t: float, phi: Tensor) -> Tensor:
    return torch.tensor(t, dtype=phi.dtype)
