# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The optimisation of a pair, or of several as one batch, as a MONAI / ignite trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from monai.engines import Trainer
from monai.engines.utils import IterationEvents
from torch import Tensor, nn

from monai_nodeo.flows import VelocityModel
from monai_nodeo.flows.solver import ODESolver
from monai_nodeo.geometry.coordinates import identity_grid, phi_to_ddf, rescale_points, voxels_per_unit
from monai_nodeo.geometry.sampling import sample_resized, weighted_mean
from monai_nodeo.registration._cuda_graphs import RecordedStep
from monai_nodeo.registration.levels import ImagePair, Level, make_levels

__all__ = ["DivergedError", "PairTrainer"]


class DivergedError(ValueError):
    """An optimisation that left the finite numbers.

    Args:
        iteration: at which it was found.
    """

    def __init__(self, iteration: int) -> None:
        super().__init__(f"the positions are not finite at iteration {iteration}; lower learning_rate or the weights.")


class PairTrainer(Trainer):
    """Optimises a velocity model for one pair of images at one level: one iteration is one step of the optimiser.

    ``engine.state.output`` holds the loss terms of the iteration, each (B,), and the ``"ddf"`` of the cloud, in voxels
    of its grid, until the next iteration; ``engine.state.history`` for each term a tensor (iterations, B); all are on
    the device, so that the loop never waits for it. ``engine.state.level`` is the
    :py:class:`monai_nodeo.registration.levels.Level`.
    A trainer is for one pair: make a new one, with a new network and optimiser, for the next. Or it is for a batch of B
    pairs, none of which has an influence on another: what is minimised is the sum of their losses, and each has weights
    of its own.

    Args:
        pair: images of one shape, and masks, on the device to compute on.
        network: velocity model for clouds of ``level.cloud_size``; of several pairs a
            :py:class:`monai_nodeo.flows.VelocityBatch`.
        optimizer: optimiser of the network's parameters, which treats each parameter by itself, as all in torch do but
            LBFGS.
        loss_function: gives the dict of loss terms, see :py:class:`monai_nodeo.losses.RegistrationLoss`.
        solver: integrates the velocity.
        iterations: optimiser steps.
        handlers: objects with ``attach(engine)``, for this trainer only.
        level: grids of the images and of the cloud; by default a point in every voxel, and cubes.
        cuda_graph: on CUDA, record an iteration and replay it, see `RecordedStep`.
            What handlers change between iterations then does not count, but for options of the optimiser: leave it off
            with handlers that change the loss or the images. With handlers of events inside an iteration, with an
            adaptive or adjoint solver and with optimisers that have no ``capturable`` nothing is recorded.

    Attributes:
        cuda_graph: whether iterations are recorded; after a run, whether they could be.

    Raises:
        ValueError: when the images differ in shape or are not of the level's.
    """

    def __init__(
        self,
        pair: ImagePair,
        network: VelocityModel,
        optimizer: torch.optim.Optimizer,
        loss_function: nn.Module,
        solver: ODESolver,
        iterations: int,
        handlers: Sequence[Any] = (),
        level: Level | None = None,
        cuda_graph: bool = False,
    ) -> None:
        fixed, moving = pair.fixed, pair.moving
        level = level or make_levels(fixed.shape[2:], (1.0,) * (fixed.ndim - 2))[0]
        if not fixed.shape[2:] == moving.shape[2:] == level.image_size:
            raise ValueError(
                f"fixed {tuple(fixed.shape)}, moving {tuple(moving.shape)} and the level's {level.image_size} differ "
                "in shape; resample the moving image to the fixed grid first."
            )
        super().__init__(
            device=fixed.device,
            max_epochs=1,
            data_loader=[pair],
            epoch_length=iterations,
            decollate=False,
            handlers=handlers,
        )
        self.network = network
        self.optimizer = optimizer
        self.loss_function = loss_function
        self.solver = solver
        self.identity = identity_grid(level.cloud_size, fixed.device, fixed.dtype).expand(
            len(fixed), *[-1] * (fixed.ndim - 1)
        )
        self.landmarks = pair.landmarks
        if pair.landmarks is not None:
            self.landmarks = rescale_points(pair.landmarks, level.image_size, level.cloud_size)
        self.state.history = {}
        self.state.level = level
        self.cuda_graph = cuda_graph and fixed.is_cuda and not solver.waits_for_device
        self._recorded: RecordedStep | None = None

    def _flow(self) -> tuple[Tensor, list[Tensor]]:
        """Where the cloud arrives, and velocities in its voxels; the trajectory is not needed once they are there."""
        velocity, images = self.network.flow(self.identity)
        # the adjoint method differentiates by the parameters of the model itself
        # unbind() makes one gradient buffer for all times, where indexing would make one for each use
        states = self.solver(self.network if self.solver.adjoint else velocity, self.identity).unbind()
        # Free on the CPU, whose 2D sampler reads anywhere in memory on its way back through NaN.
        if states[-1].device.type == "cpu" and not states[-1].detach().sum().isfinite():
            raise DivergedError(self.state.iteration)
        return states[-1], [image * self._voxels for image in images]

    @torch.no_grad()
    def displacement(self) -> Tensor:
        """Displacement of the cloud by the network as it is, in voxels of its grid, (B, D, *spatial)."""
        return phi_to_ddf(self._flow()[0], self.identity)

    @property
    def _voxels(self) -> Tensor:
        identity = self.identity
        return voxels_per_unit(tuple(identity.shape[2:]), identity.dtype, identity.device)

    def run(self) -> None:
        """See MONAI's ``Trainer``."""
        try:
            super().run()
        finally:
            if self._recorded is not None:
                self.cuda_graph = self._recorded.recordable
                self._recorded = None  # not at some time later: a trainer and its handlers refer to each other

    def _iteration(self, engine: Any, batchdata: ImagePair) -> dict[str, Tensor]:
        self.state.output = None  # a field less in memory at the peak
        step: Callable[[], tuple[list[str], Tensor, Tensor]] = partial(self._step, batchdata)
        if self.cuda_graph and not any(self._event_handlers[event] for event in IterationEvents):
            if self._recorded is None:
                self._recorded = RecordedStep(step, self.optimizer)
            step = self._recorded
        names, values, ddf = step()
        return {**self._noted(names, values), "ddf": ddf}

    def _step(self, pair: ImagePair) -> tuple[list[str], Tensor, Tensor]:
        """Names of the loss terms, their values (terms, B), and the displacement; a step of the optimiser is done."""
        level = self.state.level
        self.optimizer.zero_grad(set_to_none=True)
        phi, velocities = self._flow()
        ddf = phi_to_ddf(phi, self.identity)
        warped, weight = _warped(pair, phi, level.image_size)
        del phi
        self.fire_event(IterationEvents.FORWARD_COMPLETED)
        terms = self.loss_function(
            warped,
            pair.fixed,
            ddf,
            velocities or [ddf],
            weight=weight,
            spacing=level.spacing,
            ddf_spacing=level.cloud_spacing,
            coarseness=level.coarseness,
            landmarks=self.landmarks,
            certainty=pair.fixed_certainty,
        )
        self.fire_event(IterationEvents.LOSS_COMPLETED)
        del warped, velocities  # the backward pass frees what it has used
        terms["loss"].sum().backward()
        self.fire_event(IterationEvents.BACKWARD_COMPLETED)
        self.optimizer.step()
        self.fire_event(IterationEvents.MODEL_COMPLETED)
        return list(terms), torch.stack([value.detach() for value in terms.values()]), ddf.detach()

    def _noted(self, names: Sequence[str], values: Tensor) -> dict[str, Tensor]:
        """The terms of this iteration (terms, B), as they are kept in the history."""
        # Made once and filled in: small tensors that stay would keep the freed large ones between them apart.
        if not self.state.history:
            curves = values.new_full((self.state.epoch_length, *values.shape), torch.nan)
            self.state.history = dict(zip(names, curves.unbind(1), strict=True))
            self._curves = curves
        self._curves[self.state.iteration - 1] = values
        return dict(zip(names, self._curves[self.state.iteration - 1], strict=True))


def _warped(pair: ImagePair, phi: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """The moving image, and how much each voxel of the fixed grid counts: the masks, the moving one where it is taken.

    No gradient goes to the weights.
    """
    if pair.moving_mask is None:
        return sample_resized(pair.moving, phi, size), pair.fixed_mask
    # A voxel that is masked out must not leak into the linear interpolation: its value would pull at its neighbours.
    count = sample_resized(pair.moving_mask, phi, size)
    warped = weighted_mean(sample_resized(pair.moving * pair.moving_mask, phi, size), count)
    weight = count.detach()
    return warped, weight if pair.fixed_mask is None else weight * pair.fixed_mask
