# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""What every velocity model offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor, nn

__all__ = ["Flow", "VelocityModel"]


class Flow(NamedTuple):
    """A velocity for one integration.

    Attributes:
        velocity: (phi, t) -> d phi / dt, as :py:meth:`VelocityModel.forward`.
        images: velocities at the voxels that it is made of, d phi / dt, each (1, D, *spatial); there may be none.
    """

    velocity: Callable[[Tensor, Tensor | None], Tensor]
    images: Sequence[Tensor]


class VelocityModel(nn.Module, ABC):
    """A learned velocity, optimised for one pair of images, for clouds of points of one shape.

    Attributes:
        min_size: smallest side of a cloud that the model takes.
    """

    min_size: int = 1

    @abstractmethod
    def forward(self, phi: Tensor, t: Tensor | None = None) -> Tensor:
        """Velocity of the cloud.

        Args:
            phi: positions in [-1, 1], (B, D, *spatial), tensor axis order.
            t: time, a scalar tensor, on the CPU or on the device of phi.

        Returns:
            d phi / dt, (B, D, *spatial).
        """

    @abstractmethod
    def fresh(self, image_size: Sequence[int], spacing: Sequence[float] | None = None) -> VelocityModel:
        """A model with the same options and new weights, for clouds of another shape.

        Args:
            image_size: spatial shape of the cloud.
            spacing: distance of its points along each axis in mm (or any unit); by default they form cubes.
        """

    def finer(self, image_size: Sequence[int], spacing: Sequence[float] | None = None) -> VelocityModel:
        """A model for a finer cloud that starts from the velocity of this one.

        Raises:
            ValueError: when the model cannot go on from another.
        """
        raise ValueError(
            f"{type(self).__name__} cannot go on from a coarser level; register at one level (shrink_factors [1])."
        )

    def flow(self, start: Tensor) -> Flow:
        """This velocity for one integration: what depends on neither position nor time is worked out once.

        Args:
            start: positions that the integration starts from, (1, D, *spatial).
        """
        return Flow(self, ())
