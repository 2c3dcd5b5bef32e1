# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Registration of pairs: each gets a flow of its own."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor

from monai_nodeo.data.load import load_pair
from monai_nodeo.data.pair import Pair, PairError, stored_grid
from monai_nodeo.data.placement import affine_3d, physical_map
from monai_nodeo.flows import CloudModel, Flow, Solver, VelocityModel
from monai_nodeo.flows.unfolding import unfolded, unfolded_both_ways
from monai_nodeo.geometry.sampling import warp_in_slabs
from monai_nodeo.losses import RegistrationLoss
from monai_nodeo.metrics.certificate import certify_flow
from monai_nodeo.registration.choice import choose
from monai_nodeo.registration.machine import usable_device
from monai_nodeo.registration.malloc import give_back_kept_memory
from monai_nodeo.registration.named_parts import make_loss, make_optimizer, make_score, make_solver, make_velocity
from monai_nodeo.registration.needed_memory import check_memory, pairs_at_once
from monai_nodeo.registration.optimisation.fitting import Components, Fit, fit
from monai_nodeo.registration.optimisation.handlers import BestFit, EarlyStop, ProgressBar
from monai_nodeo.registration.optimisation.levels import PairBatch
from monai_nodeo.registration.optimisation.trainer import DivergedError
from monai_nodeo.registration.pair_map import PairMap
from monai_nodeo.registration.preparation.channels import compared
from monai_nodeo.registration.preparation.prepared_pair import grid_like, prepare
from monai_nodeo.registration.refusal import defended, start_alone
from monai_nodeo.registration.result import Registration
from monai_nodeo.registration.settings import Settings
from monai_nodeo.registration.task import Task
from monai_nodeo.registration.uncertainty import deviation, ways_of_changed

__all__ = ["PairInferer", "pair_of_tensors"]

logger = logging.getLogger(__name__)


class PairInferer(Inferer):
    """Registers pairs, coarse to fine, each with weights of its own.

    Pairs that are given together are optimised as a batch as far as they are of one size without the air around them;
    no pair has an influence on another, and its result is that of the pair alone within rounding. Nothing is kept
    between two calls, so that threads may share an inferer; the same seed gives the same result on the CPU.

    Args:
        settings: by default the default preset.
        velocity: model whose options are used, instead of the settings'.
        solver: integrates it during the optimisation, instead of the settings'.
        loss: what is minimised, instead of the settings'; or a function that makes it of settings. With a loss that
            is made already, ``self_tuning`` is off.
        optimizer: parameters -> optimiser of a level, instead of the settings'.
        handlers: factories of trainer handlers, called once a level, besides the settings'; with one that says
            ``one_pair = True``, pairs are optimised one by one.
        uncertainty: how often each pair is registered again, with what its result should not depend on changed; see
            `registration.uncertainty`.

    Raises:
        ValueError: when the settings name something that there is not, ``loss`` is an image loss alone, or
            ``uncertainty`` is no whole number of 0 or more.

    Example:
        >>> inferer = PairInferer(Settings.preset("fast"), loss=RegistrationLoss(MyLoss()))
        >>> registration = inferer.register([load_pair({"fixed": "fixed.nii.gz", "moving": "moving.nii.gz"})])[0]
    """

    def __init__(
        self,
        settings: Settings | None = None,
        velocity: VelocityModel | None = None,
        solver: Solver | None = None,
        loss: RegistrationLoss | Callable[[Settings], RegistrationLoss] = make_loss,
        optimizer: Callable[[Any], torch.optim.Optimizer] | None = None,
        handlers: Sequence[Callable[[], Any]] = (ProgressBar,),
        uncertainty: int = 0,
    ) -> None:
        super().__init__()
        if isinstance(uncertainty, bool) or not isinstance(uncertainty, int) or uncertainty < 0:
            raise ValueError(f"uncertainty is {uncertainty!r}, expected how often to register again, 0 or more.")
        if isinstance(loss, torch.nn.Module) and not isinstance(loss, RegistrationLoss):
            kind = type(loss).__name__
            raise ValueError(f"loss is a {kind}; put it in a RegistrationLoss({kind}(...), velocity_terms=...).")
        self.settings = settings or Settings.preset()
        self.uncertainty = uncertainty
        own: list[Callable[[], Any]] = []
        if self.settings.best_window is not None:
            own.append(partial(BestFit, self.settings.best_window, make_score(self.settings)))
        threshold = self.settings.convergence_threshold
        if threshold is not None:
            own.append(partial(EarlyStop, threshold))
        self._loss_of = None if isinstance(loss, RegistrationLoss) else loss
        self.components = Components(
            velocity or make_velocity(self.settings),
            solver or make_solver(self.settings),
            loss if isinstance(loss, RegistrationLoss) else loss(self.settings),
            optimizer or make_optimizer(self.settings),
            (*own, *handlers),
        )

    def register(
        self, pairs: Sequence[Pair], device: torch.device | str | None = None, network: VelocityModel | None = None
    ) -> list[Registration]:
        """Register pairs.

        Args:
            pairs: of ``settings.spatial_dims``.
            device: where to compute; by default a GPU if there is one.
            network: velocity model whose options are used, instead of the inferer's.

        Raises:
            PairError: when the images of a pair cannot be aligned or do not overlap, are too small, need more memory
                than is free, or the loss cannot take masks that are given.
            DivergedError: when an optimisation leaves the finite numbers.
        """
        where = usable_device(device)
        velocity = network or self.components.velocity
        for pair in pairs:
            self._check(pair, velocity)
        # An evaluator calls inferers under no_grad, perhaps under autocast too; half precision stops the optimisation.
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(where.type, enabled=False):
            tasks = [self._task(pair, where, velocity) for pair in pairs]
            one_by_one = len(pairs) > 1 and self._one_by_one()
            alike: dict[Any, list[int]] = {}
            for number, task in enumerate(tasks):
                alike.setdefault(number if one_by_one else task.kind, []).append(number)
            found: dict[int, Registration] = {}
            for numbers in alike.values():
                together = self._register_alike([tasks[n] for n in numbers], [pairs[n] for n in numbers], velocity)
                found |= dict(zip(numbers, together, strict=True))
        results = [found[number] for number in range(len(pairs))]
        return [self._with_uncertainty(result, where, velocity) for result in results] if self.uncertainty else results

    def __call__(self, inputs: Tensor, network: VelocityModel | None = None, *args: Any, **kwargs: Any) -> Tensor:
        """Register tensors, as an inferer of MONAI.

        Args:
            inputs: fixed images, (B, C, *spatial), on the device to compute on; a MetaTensor's affine is used.
            network: velocity model whose options are used, instead of the inferer's.
            args: the moving images, (B, C, *spatial), also as keyword ``moving``; a plain tensor is taken to be on the
                fixed grid.
            kwargs: see ``args``; also ``fixed_mask`` and ``moving_mask``, (B, 1, *spatial).

        Returns:
            ddf of the whole way in voxels of the fixed grid, (B, D, *spatial).

        Raises:
            PairError: see :py:meth:`register`.
        """
        (moving,) = args or (kwargs["moving"],)
        names = {"fixed_mask": kwargs.get("fixed_mask"), "moving_mask": kwargs.get("moving_mask")}
        if len(inputs) != len(moving):
            raise PairError(f"{len(inputs)} fixed images and {len(moving)} moving ones; expected as many.")
        pairs = [
            pair_of_tensors(inputs[i], moving[i], **{name: None if x is None else x[i] for name, x in names.items()})
            for i in range(len(inputs))
        ]
        found = self.register(pairs, inputs.device, network)
        return torch.stack([registration.ddf.to(inputs.device) for registration in found])

    def _one_by_one(self) -> bool:
        return any(_for_one_pair(factory) for factory in self.components.handlers)

    def _check(self, pair: Pair, velocity: VelocityModel) -> None:
        dims = self.settings.spatial_dims
        if pair.spatial_dims != dims:
            raise PairError(
                f"{pair.id or 'the pair'} is {pair.spatial_dims}D and the settings are for {dims}D; "
                f"take Settings.preset(spatial_dims={pair.spatial_dims})."
            )
        if self.settings.symmetric and isinstance(velocity, CloudModel):
            raise PairError(f"symmetric: {type(velocity).__name__} is no velocity of places; take another velocity.")
        smallest = min(pair.fixed.image.shape[1:])
        if smallest < velocity.min_size:
            raise PairError(
                f"the fixed image {tuple(pair.fixed.image.shape[1:])} has {smallest} voxels along an axis, the "
                f"velocity needs {velocity.min_size}; crop less or resample to smaller voxels."
            )

    def _task(self, pair: Pair, device: torch.device, velocity: VelocityModel) -> Task:
        seen = compared(pair, self.settings)
        prepared = prepare(seen.pair, seen.settings, self.components.loss)
        tensors = prepared.batch(device)
        inside, choice = tensors.cropped(prepared.box), None
        if self.settings.self_tuning and self._loss_of is not None and not isinstance(velocity, CloudModel):
            trial = replace(self.components, velocity=velocity, handlers=())
            choice = choose(inside, prepared.spacing, seen.settings, lambda s: self._with_loss(trial, s))
        settings = seen.settings if choice is None else choice.settings
        recorded = seen.of_all(settings, self.settings)
        grid = stored_grid(pair.fixed.image, "fixed")
        return Task(prepared.held_by(tensors), grid, inside, settings, choice, recorded)

    def _with_loss(self, components: Components, settings: Settings) -> Components:
        """With the loss of other settings."""
        if settings == self.settings or self._loss_of is None:
            return components
        return replace(components, loss=self._loss_of(settings))

    def _register_alike(
        self, tasks: Sequence[Task], pairs: Sequence[Pair], velocity: VelocityModel
    ) -> list[Registration]:
        started = time.perf_counter()
        settings, one = tasks[0].settings, tasks[0].tensors.fixed
        voxels = one[0, 0].numel()
        check_memory(settings, tasks[0].grid.spatial_shape, len(tasks), one.device, one.shape[1], voxels)
        components = self._with_loss(replace(self.components, velocity=velocity), settings)
        batch = PairBatch.of([task.tensors for task in tasks])
        if settings.symmetric:
            batch = batch.both_ways()
        fitted = fit(batch, tasks[0].prepared.spacing, settings, components, settings.symmetric)
        del batch
        give_back_kept_memory()  # what comes now are other arrays
        flows = [self._finished(n, fitted, task, components) for n, task in enumerate(tasks)]
        give_back_kept_memory()
        seconds = (time.perf_counter() - started) / len(tasks)
        return [
            self._result(n, fitted, task, pair, *flow, components, seconds)
            for n, (task, pair, flow) in enumerate(zip(tasks, pairs, flows, strict=True))
        ]

    def _finished(self, number: int, fitted: Fit, task: Task, components: Components) -> tuple[Flow, Tensor]:
        """The flow of a pair, and its displacement of the fixed grid, (D, *spatial), voxels."""
        model = fitted.models[number].kept()
        # the published model is a cloud of points and its own steps; a velocity of places is integrated as finely as
        # it needs
        solver = components.solver if isinstance(model, CloudModel) else components.finished
        flow = Flow(model.requires_grad_(False), solver, task.domain(fitted.level), task.grid)
        if self.settings.unfold:
            flow, ddf = (unfolded_both_ways if self.settings.symmetric else unfolded)(flow)
        else:
            ddf = flow.displacement()
        if not ddf.sum().isfinite():
            raise DivergedError(len(fitted.history["loss"]))
        return flow, ddf

    def _result(
        self,
        number: int,
        fitted: Fit,
        task: Task,
        pair: Pair,
        flow: Flow,
        ddf: Tensor,
        components: Components,
        seconds: float,
    ) -> Registration:
        started = time.perf_counter()
        registration = Registration(
            flow=flow,
            start=_start(pair, task.prepared.start.affine),
            alignment=task.prepared.start.figures(),
            displacement=ddf,
            history={name: values[:, number] for name, values in fitted.history.items()},
            settings=task.recorded,
            certificate=certify_flow(flow, ddf),
            similarity=self._similarity(task, flow, ddf, components),
            seconds=seconds,
            interrupted=fitted.interrupted,
            choice=None if task.choice is None else task.choice.figures(),
            pair=pair,
        )
        if task.choice is not None and not defended(task, task.choice, flow):
            registration = start_alone(registration, pair)
        logger.debug("certificate and similarity took %.2f s", time.perf_counter() - started)
        return registration

    def _with_uncertainty(self, result: Registration, device: torch.device, velocity: VelocityModel) -> Registration:
        """The same, and how far other registrations of the pair are from it."""
        found = self.samples(result, self.uncertainty, device, velocity)
        return replace(result, uncertainty=deviation(result, (way.ddf for way in found))) if found else result

    def samples(
        self,
        result: Registration,
        count: int,
        device: torch.device | str | None = None,
        network: VelocityModel | None = None,
    ) -> list[PairMap]:
        """Other registrations of a pair, with what its result should not depend on changed.

        Args:
            result: of the pair, with its images.
            count: how many.
            device: where to compute; by default a GPU if there is one.
            network: velocity model whose options are used, instead of the inferer's.

        Returns:
            What each has for the flow of the result; none if one could not be made or was interrupted.
        """
        where = usable_device(device)
        velocity = network or self.components.velocity
        again = copy(self)
        again.uncertainty = 0
        several = [factory for factory in self.components.handlers if not _for_one_pair(factory)]
        again.components = self._with_loss(replace(self.components, handlers=several), result.settings)
        again.settings = result.settings.replace(initial_transform=None, self_tuning=False)
        at_once = pairs_at_once(again.settings, result.flow.grid.spatial_shape, where)
        logger.info("%s more registrations for the uncertainty", count)
        return ways_of_changed(
            result, count, again.components.loss, lambda pairs: again.register(pairs, where, velocity), at_once
        )

    @torch.no_grad()
    def _similarity(self, task: Task, flow: Flow, ddf: Tensor, components: Components) -> tuple[float, float]:
        """The similarity loss before and after, on the grid of the optimisation, where the masks count."""
        matched = task.prepared.matched
        fixed, moving = (x.as_tensor()[None].to(ddf.device) for x in (matched.fixed, matched.moving))
        if task.settings.symmetric or fixed.shape[2:] != ddf.shape[1:]:
            grid = grid_like(task.grid, affine_3d(matched.fixed).numpy(), fixed.shape[2:])
            ddf = flow.displacement(task.prepared.in_fixed(grid))
        ddf = ddf[None].to(fixed)
        before, after = [moving], [warp_in_slabs(moving, ddf)]
        if matched.fixed_mask is not None or matched.moving_mask is not None:
            here, there = (
                torch.ones_like(fixed[:, :1]) if mask is None else mask[None].to(fixed)
                for mask in (matched.fixed_mask, matched.moving_mask)
            )
            before, after = [moving, here * there], [*after, here * warp_in_slabs(there, ddf)]
        loss = components.loss.similarity
        return loss(before[0], fixed, *before[1:]).item(), loss(after[0], fixed, *after[1:]).item()


def pair_of_tensors(
    fixed: Tensor, moving: Tensor, fixed_mask: Tensor | None = None, moving_mask: Tensor | None = None
) -> Pair:
    """A pair of images in memory, channels first also as arrays; see `load_pair`.

    Raises:
        PairError: when a tensor is no image, or a plain one has another shape than what it is on the grid of.
    """
    given = {"fixed": fixed, "moving": moving, "fixed_mask": fixed_mask, "moving_mask": moving_mask}
    return load_pair({key: None if x is None else torch.as_tensor(x) for key, x in given.items()}, min_size=1)


def _for_one_pair(factory: Callable[[], Any]) -> bool:
    """Whether a handler is for one pair at a time; only what a factory makes can tell."""
    return getattr(factory(), "one_pair", False)


def _start(pair: Pair, start: Tensor | None) -> Tensor | None:
    """From the fixed to the moving image in space: slices of different levels are put on one another."""
    if pair.spatial_dims == 3:
        return start
    through = physical_map(pair.fixed.image, pair.moving.image, start)
    return start if start is None and torch.allclose(through, torch.eye(4).to(through), atol=1e-6) else through
