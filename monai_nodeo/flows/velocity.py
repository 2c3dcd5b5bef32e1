# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""What every velocity model offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Flow", "VelocityBatch", "VelocityModel"]


class Flow(NamedTuple):
    """A velocity for one integration.

    Attributes:
        velocity: (phi, t) -> d phi / dt, as :py:meth:`VelocityModel.forward`.
        images: velocities at the voxels that it is made of, d phi / dt, each (B, D, *spatial); there may be none.
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
        return self.joint_flow([self], start)

    @staticmethod
    def joint_flow(models: Sequence[Any], start: Tensor) -> Flow:
        """The flows of models of one class and one shape as one, each model for its item of a batch.

        Args:
            models: B of them.
            start: (B, D, *spatial).
        """
        if len(models) == 1:
            return Flow(models[0], ())

        def velocity(phi: Tensor, t: Tensor | None = None) -> Tensor:
            return torch.cat([model(item, t) for model, item in zip(models, phi.split(1), strict=True)])

        return Flow(velocity, ())


class VelocityBatch(VelocityModel):
    """A model for each pair of a batch; the item of a cloud's batch goes to the model with its number.

    Args:
        models: of one class, for clouds of one shape.
    """

    models: Any  # a ModuleList, whose items are VelocityModels

    def __init__(self, models: Sequence[VelocityModel]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, phi: Tensor, t: Tensor | None = None) -> Tensor:
        return self.flow(phi).velocity(phi, t)

    def fresh(self, image_size: Sequence[int], spacing: Sequence[float] | None = None) -> VelocityBatch:
        return VelocityBatch([model.fresh(image_size, spacing) for model in self.models])

    def finer(self, image_size: Sequence[int], spacing: Sequence[float] | None = None) -> VelocityBatch:
        return VelocityBatch([model.finer(image_size, spacing) for model in self.models])

    def flow(self, start: Tensor) -> Flow:
        return self.models[0].joint_flow(list(self.models), start)
