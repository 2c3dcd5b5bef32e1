# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""One iteration of the optimisation of a pair, or of several as one batch: a MONAI / ignite trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from monai.engines import Trainer
from monai.engines.utils import IterationEvents
from torch import Tensor, nn

from monai_nodeo.data.pair import PairError
from monai_nodeo.flows import Solver, VelocityBatch, carried_to_each
from monai_nodeo.geometry.coordinates import identity_grid, phi_to_ddf, rescale_points, voxels_per_unit
from monai_nodeo.geometry.sampling import sample_resized, weighted_mean
from monai_nodeo.losses import RegistrationLoss
from monai_nodeo.losses.labels import label_loss, label_shares
from monai_nodeo.registration.optimisation._cuda_graphs import RecordedStep
from monai_nodeo.registration.optimisation.frames import Frames
from monai_nodeo.registration.optimisation.levels import Level, PairBatch, make_levels

__all__ = ["DivergedError", "PairTrainer"]


class DivergedError(PairError):
    """An optimisation that left the finite numbers.

    Args:
        iteration: at which it was found.
    """

    def __init__(self, iteration: int) -> None:
        super().__init__(f"the positions are not finite at iteration {iteration}; lower learning_rate or the weights.")


class PairTrainer(Trainer):
    """Optimises velocity models for pairs of images at one level: one iteration is one look at the loss.

    An iteration takes the step of the optimiser that the last one's gradient asks for, then evaluates: at its end
    weights, ``engine.state.output`` and history are of one state, and the gradient of the next step is there.
    ``engine.state.output`` holds the loss terms, each (B,), and until the next iteration the ``"ddf"`` of the cloud, in
    voxels of its grid; ``engine.state.history`` for each term a tensor (iterations, B); all are on the device, so that
    the loop never waits for it. ``engine.state.level`` is the :py:class:`Level`. No pair of a batch has an influence on
    another: what is minimised is the sum of their losses, and each has weights of its own.

    A trainer is for these pairs: make a new one, with a new network and optimiser, for the next.

    Args:
        pairs: images of one shape, and masks, on the device to compute on; or the frames of a series, of which each
            iteration sees a few, and whose terms are the means over them.
        network: velocity models for clouds of ``level.cloud_size``, one a pair, or one for the series; both ways, one
            for each pair of the first half, and terms are the means of there and back.
        optimizer: optimiser of the network's parameters, which treats each parameter by itself, as all in torch do but
            LBFGS.
        loss_function: gives the dict of loss terms, see :py:class:`monai_nodeo.losses.RegistrationLoss`.
        solver: integrates the velocity.
        iterations: evaluations of the loss.
        handlers: objects with ``attach(engine)``, for this trainer only.
        level: grids of the images and of the cloud; by default a point in every voxel, and cubes.
        cuda_graph: on CUDA, record an iteration and replay it, see `RecordedStep`. What handlers change between
            iterations then does not count, but for options of the optimiser: leave it off with handlers that change the
            loss or the images. With handlers of events inside an iteration, with a solver that waits for the device and
            with optimisers that have no ``capturable`` nothing is recorded.
        offset: from where straight lines between the points take the voxels to where the moving image is sampled,
            (B, D, *image_size), in [-1, 1].

    Attributes:
        cuda_graph: whether iterations are recorded; after a run, whether they could be.

    Raises:
        ValueError: when the images differ in shape or are not of the level's.
    """

    def __init__(
        self,
        pairs: PairBatch | Frames,
        network: VelocityBatch,
        optimizer: torch.optim.Optimizer,
        loss_function: nn.Module,
        solver: Solver,
        iterations: int,
        handlers: Sequence[Any] = (),
        level: Level | None = None,
        cuda_graph: bool = False,
        offset: Tensor | None = None,
    ) -> None:
        fixed, moving = pairs.fixed, pairs.moving
        level = level or make_levels(fixed.shape[2:], (1.0,) * (fixed.ndim - 2))[0]
        if not fixed.shape[2:] == moving.shape[2:] == level.image_size:
            raise ValueError(
                f"fixed {tuple(fixed.shape)}, moving {tuple(moving.shape)} and the level's {level.image_size} differ "
                "in shape; resample the moving image to the fixed grid first."
            )
        super().__init__(
            device=fixed.device,
            max_epochs=1,
            data_loader=[pairs] if isinstance(pairs, PairBatch) else pairs,
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
        self.offset = offset
        self.landmarks = pairs.landmarks
        if pairs.landmarks is not None:
            self.landmarks = rescale_points(pairs.landmarks, level.image_size, level.cloud_size)
        self.labels = None
        if pairs.labels is not None:
            self.labels = [label_shares(labels, level.cloud_size) for labels in pairs.labels.unbind(1)]
        self.state.history = {}
        self.state.level = level
        waits = getattr(solver, "waits_for_device", True)
        self.cuda_graph = cuda_graph and fixed.is_cuda and not waits
        self._recorded: RecordedStep | None = None

    def run(self) -> None:
        """See MONAI's ``Trainer``."""
        try:
            super().run()
        finally:
            if self._recorded is not None:
                self.cuda_graph = self._recorded.recordable
                self._recorded = None  # not at some time later: a trainer and its handlers refer to each other

    def release(self) -> None:
        """Let go of images and fields after the last look at them.

        A trainer and its handlers refer to each other, so that Python finds out late that nobody needs them.
        """
        for name in ("output", "batch", "dataloader"):
            setattr(self.state, name, None)
        for name in ("data_loader", "identity", "offset", "labels", "landmarks", "_dataloader_iter"):
            setattr(self, name, None)

    def _iteration(self, engine: Any, batchdata: PairBatch) -> dict[str, Tensor]:
        self.state.output = None  # a field less in memory at the peak
        step: Callable[[], tuple[list[str], Tensor, Tensor]] = partial(self._step, batchdata)
        if self.cuda_graph and not any(self._event_handlers[event] for event in IterationEvents):
            if self._recorded is None:
                self._recorded = RecordedStep(step, self.optimizer)
            step = self._recorded
        names, values, ddf = step()
        return {**self._noted(names, values), "ddf": ddf}

    def _step(self, pairs: PairBatch) -> tuple[list[str], Tensor, Tensor]:
        """Names of the loss terms, their values (terms, B), and the displacement, after a step of the optimiser."""
        self.optimizer.step()  # none in the first iteration, where there is no gradient yet
        # a recorded step reads the gradient from where it was when it was recorded, so that it has to stay there
        self.optimizer.zero_grad(set_to_none=not self.cuda_graph)
        self.fire_event(IterationEvents.MODEL_COMPLETED)
        states, velocities = self._cloud(pairs.times)
        ddf = phi_to_ddf(states[-1], self.identity)
        self.fire_event(IterationEvents.FORWARD_COMPLETED)
        if pairs.times is None:
            terms = self._terms(pairs, states, ddf, velocities or [ddf])
            del states, velocities  # the backward pass frees what it has used
            self.fire_event(IterationEvents.LOSS_COMPLETED)
            terms["loss"].sum().backward()
        else:
            terms = self._terms_of_frames(pairs, states[-1], velocities)
        self.fire_event(IterationEvents.BACKWARD_COMPLETED)
        return list(terms), torch.stack([value.detach() for value in terms.values()]), ddf.detach()

    def _terms(
        self, pairs: PairBatch, states: Sequence[Tensor] | Tensor, ddf: Tensor, velocities: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """The loss terms of each pair, (B,)."""
        level = self.state.level
        warped, weight = _warped(pairs, states[-1], level.image_size, self.offset)
        labels = None if self.labels is None else label_loss(self.labels[1], self.labels[0], states[-1])
        trajectory = None
        if len(states) > 2:
            trajectory = torch.stack([phi_to_ddf(phi, self.identity) for phi in states])
        terms = self.loss_function(
            warped,
            pairs.fixed,
            ddf,
            velocities,
            weight=weight,
            spacing=level.spacing,
            ddf_spacing=level.cloud_spacing,
            coarseness=level.coarseness,
            landmarks=self.landmarks,
            certainty=pairs.fixed_certainty,
            trajectory=trajectory,
            labels=labels,
        )
        if self.network.both_ways:
            terms = {name: value.unflatten(0, (2, -1)).mean(0) for name, value in terms.items()}
        return terms

    def _terms_of_frames(self, pairs: PairBatch, phi: Tensor, velocities: Sequence[Tensor]) -> dict[str, Tensor]:
        """The mean loss terms of the frames of a series, (1,), after the backward pass.

        Each frame is compared and differentiated by its positions alone, so that memory is that of one; then all go
        back through the integration together.
        """
        assert isinstance(self.loss_function, RegistrationLoss)
        level, leaf = self.state.level, phi.detach().requires_grad_()
        each = []
        for moving, there in zip(pairs.moving.split(1), leaf.split(1), strict=True):
            ddf = phi_to_ddf(there, self.identity)
            terms = self._terms(replace(pairs, moving=moving), (self.identity, there), ddf, ())
            (terms["loss"].sum() / len(phi)).backward()
            each.append({name: value.detach() for name, value in terms.items()})
        means = {name: torch.stack([terms[name] for terms in each]).mean(0) for name in each[0]}
        held = self.loss_function.of_velocities(velocities, level.cloud_spacing, level.coarseness)
        self.fire_event(IterationEvents.LOSS_COMPLETED)
        ends = [phi, held["loss"]] if held else [phi]
        torch.autograd.backward(ends, [leaf.grad, None][: len(ends)])
        return {**means, **held, "loss": means["loss"] + held.get("loss", 0)}

    def _cloud(self, frames: Sequence[float] | None) -> tuple[Sequence[Tensor] | Tensor, list[Tensor]]:
        """Where the points are at the times that the loss looks at, and velocities in voxels of their nodes."""
        velocity = self.network.velocity()
        # the adjoint method differentiates by the parameters of the module itself
        integrated = self.network if getattr(self.solver, "adjoint", False) else velocity
        if frames is None:
            states = self.solver(integrated, self.identity, getattr(self.loss_function, "times", (0.0, 1.0)))
        else:
            states = [self.identity, carried_to_each(self.solver, integrated, self.identity, frames[0], frames[1:])]
        phi = states[-1]
        # Free on the CPU, whose 2D sampler reads anywhere in memory on its way back through NaN.
        if phi.device.type == "cpu" and not phi.detach().sum().isfinite():
            raise DivergedError(self.state.iteration)
        voxels = voxels_per_unit(self.state.level.cloud_size, self.identity.dtype, self.identity.device)
        return states, [image * voxels for image in getattr(velocity, "keyframes", ())]

    def _noted(self, names: Sequence[str], values: Tensor) -> dict[str, Tensor]:
        """The terms of this iteration (terms, B), as they are kept in the history."""
        # Made once and filled in: small tensors that stay would keep the freed large ones between them apart.
        if not self.state.history:
            curves = values.new_full((self.state.epoch_length, *values.shape), torch.nan)
            self.state.history = dict(zip(names, curves.unbind(1), strict=True))
            self._curves = curves
        self._curves[self.state.iteration - 1] = values
        return dict(zip(names, self._curves[self.state.iteration - 1], strict=True))


def _warped(pairs: PairBatch, phi: Tensor, size: Sequence[int], offset: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The moving image, and how much each voxel of the fixed grid counts: the masks, the moving one where it is taken.

    No gradient goes to the weights.
    """
    if pairs.moving_mask is None:
        return sample_resized(pairs.moving, phi, size, offset), pairs.fixed_mask
    # A voxel that is masked out must not leak into the linear interpolation: its value would pull at its neighbours.
    count = sample_resized(pairs.moving_mask, phi, size, offset)
    warped = weighted_mean(sample_resized(pairs.moving * pairs.moving_mask, phi, size, offset), count)
    weight = count.detach()
    return warped, weight if pairs.fixed_mask is None else weight * pairs.fixed_mask
