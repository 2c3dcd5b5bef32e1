# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The optimisation of one pair as a MONAI / ignite trainer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from monai.engines import Trainer
from monai.engines.utils import IterationEvents
from torch import Tensor, nn

from monai_nodeo.fields import identity_grid, phi_to_ddf, sample
from monai_nodeo.integration import ODESolver

__all__ = ["DivergedError", "PairTrainer"]


class DivergedError(ValueError):
    """An optimisation that left the finite numbers.

    Args:
        iteration: at which it was found.
    """

    def __init__(self, iteration: int) -> None:
        super().__init__(f"the positions are not finite at iteration {iteration}; lower learning_rate or the weights.")


class PairTrainer(Trainer):
    """Optimises a velocity model for one pair of images: one iteration is one step of the optimiser.

    ``engine.state.output`` holds the loss terms of the iteration and its ``"ddf"``, ``engine.state.history`` for each
    term a tensor (iterations,); all are on the device, so that the loop never waits for it.
    A trainer is for one pair: make a new one, with a new network and optimiser, for the next.

    Args:
        fixed: (1, C, *spatial), on the device to compute on.
        moving: (1, C, *spatial), on the fixed grid.
        network: velocity model, ``forward(phi, t)``.
        optimizer: optimiser of the network's parameters.
        loss_function: gives the dict of loss terms, see :py:class:`monai_nodeo.losses.RegistrationLoss`.
        solver: integrates the velocity.
        iterations: optimiser steps.
        handlers: objects with ``attach(engine)``, for this trainer only.

    Raises:
        ValueError: when the images differ in shape.
    """

    def __init__(
        self,
        fixed: Tensor,
        moving: Tensor,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_function: nn.Module,
        solver: ODESolver,
        iterations: int,
        handlers: Sequence[Any] = (),
    ) -> None:
        if fixed.shape[2:] != moving.shape[2:]:
            raise ValueError(
                f"fixed {tuple(fixed.shape)} and moving {tuple(moving.shape)} differ in shape; "
                "resample the moving image to the fixed grid first."
            )
        super().__init__(
            device=fixed.device,
            max_epochs=1,
            data_loader=[{"fixed": fixed, "moving": moving}],
            epoch_length=iterations,
            decollate=False,
            handlers=handlers,
        )
        self.network = network
        self.optimizer = optimizer
        self.loss_function = loss_function
        self.solver = solver
        self.identity = identity_grid(fixed.shape[2:], fixed.device, fixed.dtype)
        self.state.history = {}

    def _flow(self, moving: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Warped image, ddf and velocities; the trajectory itself is not needed once they are there."""
        # unbind() makes one gradient buffer for all times, where indexing would make one for each use
        states = self.solver(self.network, self.identity).unbind()
        # Free on the CPU, whose 2D sampler reads anywhere in memory on its way back through NaN.
        if moving.device.type == "cpu" and not states[-1].detach().sum().isfinite():
            raise DivergedError(self.state.iteration)
        velocities = [after - before for before, after in pairwise(states)]
        return sample(moving, states[-1]), phi_to_ddf(states[-1], self.identity), velocities

    def _iteration(self, engine: Any, batchdata: dict[str, Tensor]) -> dict[str, Tensor]:
        self.optimizer.zero_grad(set_to_none=True)
        self.state.output = None  # a field less in memory at the peak
        warped, ddf, velocities = self._flow(batchdata["moving"])
        self.fire_event(IterationEvents.FORWARD_COMPLETED)
        terms = self.loss_function(warped, batchdata["fixed"], ddf, velocities)
        self.fire_event(IterationEvents.LOSS_COMPLETED)
        del warped, velocities  # the backward pass frees what it has used
        terms["loss"].backward()
        self.fire_event(IterationEvents.BACKWARD_COMPLETED)
        self.optimizer.step()
        self.fire_event(IterationEvents.MODEL_COMPLETED)
        figures = {name: value.detach() for name, value in terms.items()}
        self._record(figures)
        return {**figures, "ddf": ddf.detach()}

    def _record(self, figures: dict[str, Tensor]) -> None:
        # Made once and filled in: small tensors that stay would keep the freed large ones between them apart.
        if not self.state.history:
            length = self.state.epoch_length
            self.state.history = {name: value.new_full((length,), torch.nan) for name, value in figures.items()}
        for name, value in figures.items():
            self.state.history[name][self.state.iteration - 1] = value
