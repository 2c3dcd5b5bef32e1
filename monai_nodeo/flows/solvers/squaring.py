# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The flow of a stationary velocity at the nodes of its grid, by scaling and squaring."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from monai_nodeo.flows.solvers.protocol import Velocity, check_times
from monai_nodeo.flows.velocity import NodeVelocity
from monai_nodeo.geometry.sampling import sample_at_itself

__all__ = ["ScalingAndSquaring"]


class ScalingAndSquaring:
    """Takes one short step and composes it with itself: n compositions are 2^n steps (Arsigny et al., MICCAI 2006).

    The short step is one of the midpoint rule. Where the nodes are, the velocity is known without sampling, so that
    this takes n + 1 samplings where a solver of any points takes 2^(n + 1). Between the nodes the steps are linear.

    Args:
        num_squarings: n.

    Raises:
        ValueError: for fewer than none.
    """

    waits_for_device = False
    adjoint = False
    from_nodes_alone = True

    def __init__(self, num_squarings: int = 1) -> None:
        if num_squarings < 0:
            raise ValueError(f"num_squarings must be 0 or more, got {num_squarings}.")
        self.num_squarings = num_squarings

    def __call__(self, velocity: Velocity, phi0: Tensor, times: Sequence[float] = (0.0, 1.0)) -> tuple[Tensor, Tensor]:
        """Integrate from the nodes.

        Args:
            velocity: stationary, a :py:class:`NodeVelocity`.
            phi0: positions of its nodes in [-1, 1], (B, D, *spatial): :py:func:`identity_grid` of their shape.
            times: two.

        Raises:
            ValueError: when there are more times, the velocity is another, or there are not as many points as nodes.
        """
        check_times(times)
        if len(times) != 2 or not isinstance(velocity, NodeVelocity) or not velocity.stationary:
            raise ValueError(
                "scaling and squaring needs one velocity at the nodes of a grid for all times, and two times; take an "
                "ODESolver for others."
            )
        image = velocity.at_nodes()
        if image.shape[2:] != phi0.shape[2:]:
            raise ValueError(f"{tuple(phi0.shape[2:])} points differ from the {tuple(image.shape[2:])} nodes.")
        step = (times[1] - times[0]) / 2**self.num_squarings
        way = step * sample_at_itself(image, step / 2)
        for _ in range(self.num_squarings):
            way = way + sample_at_itself(way, 1.0)
        return phi0, phi0 + way
