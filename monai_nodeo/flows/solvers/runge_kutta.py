# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""A Runge-Kutta method of third order, as finished flows use it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from monai_nodeo.flows.solvers.protocol import Velocity, check_times, steps_between
from monai_nodeo.flows.velocity import NodeVelocity
from monai_nodeo.geometry._kernels import kernels_for
from monai_nodeo.geometry.coordinates import voxels_per_unit

__all__ = ["RungeKutta"]

_MOST_STEPS = 4096  # from t = 0 to t = 1: a velocity that has run away must not take for ever


class RungeKutta:
    """The method of Bogacki and Shampine (1989), with shorter steps where the velocity changes fast.

    A velocity that is linear between the nodes of a grid has kinks there, where a higher order brings nothing. On the
    CPU each point takes steps of its own, shorter ones also where it passes strong kinks fast; elsewhere all take those
    of the fastest change.

    Args:
        num_steps: fewest steps from one keyframe of the velocity to the next; from t = 0 to t = 1 with one keyframe.
        stretch: most that neighbouring nodes move apart in a step, in their distance.

    Raises:
        ValueError: for fewer than one step or no stretch.
    """

    waits_for_device = False
    adjoint = False

    def __init__(self, num_steps: int = 2, stretch: float = 0.25) -> None:
        if num_steps < 1 or num_steps != int(num_steps) or not stretch > 0:
            raise ValueError(
                f"num_steps must be a whole number from 1 and stretch greater than 0, got {num_steps} and {stretch}."
            )
        self.num_steps = num_steps
        self.stretch = stretch

    def options(self) -> dict[str, Any]:
        """Arguments that make the same solver."""
        return {"num_steps": self.num_steps, "stretch": self.stretch}

    def finer(self) -> RungeKutta:
        """With half the steps: what the results of both differ by is about the error of this one."""
        return RungeKutta(2 * self.num_steps, self.stretch / 2)

    def __call__(self, velocity: Velocity, phi0: Tensor, times: Sequence[float] = (0.0, 1.0)) -> list[Tensor]:
        """See :py:class:`monai_nodeo.flows.Solver`."""
        check_times(times)
        steps_a_unit = self.num_steps
        if isinstance(velocity, NodeVelocity):
            steps_a_unit *= max(1, len(velocity.keyframes) - 1)
            kernels = None if _differentiable(phi0, velocity) else kernels_for(phi0, "flow")
            if kernels:
                longest, shortest = 1 / steps_a_unit, 1 / _MOST_STEPS
                return kernels.integrate(velocity.keyframes, phi0, times, longest, shortest, self.stretch)
            steps_a_unit = max(steps_a_unit, round(min(_largest_change(velocity) / self.stretch, _MOST_STEPS)))
        states = [phi0]
        for start, end in pairwise(times):
            states.append(_integrated(velocity, states[-1], start, end, steps_between(start, end, steps_a_unit)))
        return states


def _integrated(velocity: Velocity, phi: Tensor, start: float, end: float, steps: int) -> Tensor:
    """Equal steps."""
    step = (end - start) / steps
    for number in range(steps):
        times = [torch.tensor(start + (number + part) * step, dtype=phi.dtype) for part in (0, 1 / 2, 3 / 4)]
        k1 = velocity(phi, times[0])
        k2 = velocity(phi + step / 2 * k1, times[1])
        k3 = velocity(phi + 3 * step / 4 * k2, times[2])
        phi = phi + step / 9 * (2 * k1 + 3 * k2 + 4 * k3)
    return phi


def _differentiable(phi: Tensor, velocity: NodeVelocity) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in (phi, *velocity.keyframes))


@torch.no_grad()
def _largest_change(velocity: NodeVelocity) -> float:
    """The largest difference of the velocities of neighbouring nodes, in nodes per unit of time."""
    largest = 0.0
    for image in velocity.keyframes:
        size = tuple(image.shape[2:])
        nodes = image * voxels_per_unit(size, image.dtype, image.device)
        changes = [nodes.diff(dim=axis + 2).square().sum(1).amax() for axis, n in enumerate(size) if n > 1]
        largest = max(largest, float(torch.stack(changes).amax()) ** 0.5 if changes else 0.0)
    return largest
