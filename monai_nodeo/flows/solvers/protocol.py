# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""What a solver is, and what it integrates.

A new solver is a file of its own beside this one, exported in `flows/__init__.pyi`. Settings know it by its name in
`registration.named_parts`; a flow that is integrated by it is read again when `flows.flow_file._SOLVERS` has it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Solver", "Velocity", "carried_to_each", "check_times", "steps_between"]


class Velocity(Protocol):
    """What a solver integrates."""

    def __call__(self, phi: Tensor, t: Tensor | None = None) -> Tensor:
        """Velocity d phi / dt, (B, D, *spatial), at positions phi in [-1, 1] and time t, a scalar tensor."""


class Solver(Protocol):
    """How a velocity is integrated."""

    def __call__(
        self, velocity: Velocity, phi0: Tensor, times: Sequence[float] = (0.0, 1.0)
    ) -> Sequence[Tensor] | Tensor:
        """Positions at each of the times, (B, D, *spatial) each, or stacked; at the first one they are ``phi0``.

        Args:
            velocity: (phi, t) -> d phi / dt.
            phi0: positions in [-1, 1], (B, D, *spatial).
            times: at least two, all in one direction, forwards or backwards.
        """


def check_times(times: Sequence[float]) -> None:
    """Refuse times that a solver cannot go along.

    Raises:
        ValueError: when there are fewer than two, or they do not all go in one direction.
    """
    ways = {b > a for a, b in pairwise(times)}
    if len(times) < 2 or len(ways) > 1 or any(a == b for a, b in pairwise(times)):
        raise ValueError(f"times must be at least two and go in one direction, got {tuple(times)}.")


def steps_between(start: float, end: float, steps_a_unit: int) -> int:
    """Equal steps from one time to another, none longer than those of a unit of time."""
    return max(1, math.ceil(abs(end - start) * steps_a_unit - 1e-6))


def carried_to_each(solver: Solver, velocity: Velocity, phi0: Tensor, start: float, times: Sequence[float]) -> Tensor:
    """Where a cloud is at several times, before and after its own.

    Args:
        solver: integrates the velocity.
        velocity: of one cloud.
        phi0: positions at ``start``, (1, D, *spatial).
        start: time of the cloud.
        times: where to go, in any order; an item of the result for each.

    Returns:
        (len(times), D, *spatial).
    """
    found = {start: phi0}
    for way in (sorted({t for t in times if t > start}), sorted({t for t in times if t < start}, reverse=True)):
        if way:
            found |= dict(zip(way, solver(velocity, phi0, (start, *way))[1:], strict=True))
    return torch.cat([found[t] for t in times])
