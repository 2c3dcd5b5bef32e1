# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The optimisation of pairs, level by level."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from ignite.engine import Events
from torch import Tensor

from monai_nodeo.flows import CloudModel, RungeKutta, Solver, Velocity, VelocityBatch, VelocityModel
from monai_nodeo.geometry._slabs import slabs
from monai_nodeo.geometry.coordinates import identity_grid
from monai_nodeo.geometry.resizing import resize
from monai_nodeo.geometry.separable import apply_along_axes, resampling_matrix
from monai_nodeo.losses import RegistrationLoss
from monai_nodeo.registration.malloc import give_back_kept_memory
from monai_nodeo.registration.optimisation.frames import Frames
from monai_nodeo.registration.optimisation.levels import Level, PairBatch, coarser_first, make_levels
from monai_nodeo.registration.optimisation.trainer import PairTrainer
from monai_nodeo.registration.settings import Settings

__all__ = ["Components", "Fit", "fit"]

_GIVE_BACK_EVERY = 20  # iterations
_AT_A_TIME = 2**20  # voxels that follow the flow together
_CORRECTING = RungeKutta(stretch=1.0)  # .005 voxels off on average, in half the time of a finished flow


@dataclass(frozen=True, eq=False)
class Components:
    """What a level is optimised with.

    Attributes:
        velocity: model whose options are used.
        solver: integrates it.
        loss: what is minimised.
        optimizer: parameters -> optimiser of a level, which treats each parameter by itself (not LBFGS).
        handlers: factories of trainer handlers, called once a level.
        finished: integrates a velocity of places once it is finished.

    Raises:
        TypeError: when a handler is there already.
    """

    velocity: VelocityModel
    solver: Solver
    loss: RegistrationLoss
    optimizer: Callable[[Any], torch.optim.Optimizer]
    handlers: Sequence[Callable[[], Any]]
    finished: Solver = RungeKutta()

    def __post_init__(self) -> None:
        for factory in self.handlers:
            if not callable(factory) or (hasattr(factory, "attach") and not isinstance(factory, type)):
                raise TypeError(
                    f"handlers are factories, called once a level, got {factory!r}; give a class or a function that "
                    "makes one."
                )


@dataclass(frozen=True, eq=False)
class Fit:
    """What the levels came to.

    Attributes:
        models: of the last level, one a pair.
        level: the last one.
        history: "level" and loss term -> its value at every iteration, (iterations, B), on the CPU; the levels count
            from 0, the coarsest.
        interrupted: the first level that was ended early; None: none.
    """

    models: list[VelocityModel]
    level: Level
    history: dict[str, Tensor]
    interrupted: int | None


def fit(
    pairs: PairBatch | Frames,
    spacing: Sequence[float],
    settings: Settings,
    components: Components,
    both_ways: bool = False,
) -> Fit:
    """Optimise a velocity model for each pair of a batch, coarse to fine.

    A velocity of places may have a last level in which the images are compared where the finished flow takes the
    voxels. Before, the nodes of the velocity are integrated in a few steps, with straight lines between them. What both
    differ by is worked out once, at the beginning of that level: it is small and hardly changes (deferred correction).

    A level that ends with a higher loss than it began with is undone, so that an image stays where it is when it is
    registered to itself.

    Args:
        pairs: on the device to compute on; or the frames of a series, which have one model together.
        spacing: voxel size along each axis, mm.
        settings: levels, iterations, seed.
        components: what the settings name.
        both_ways: the second half of the pairs is the first one with its images exchanged, and both have the models in
            common; see :py:meth:`PairBatch.both_ways`.
    """
    count = len(pairs.fixed) // 2 if both_ways else len(pairs.fixed)
    dense = settings.dense_iterations > 0 and not isinstance(components.velocity, CloudModel)
    factors, size = list(settings.shrink_factors), pairs.fixed.shape[2:]
    if settings.coarsest_side is not None:
        factors = coarser_first(size, spacing, factors, settings.coarsest_side)
    added = [settings.iterations[0]] * (len(factors) - len(settings.iterations))
    levels = make_levels(size, spacing, factors, settings.point_spacing, dense)
    iterations = [*added, *settings.iterations, settings.dense_iterations][: len(levels)]
    costs = [n * math.prod(level.image_size) for n, level in zip(iterations, levels, strict=True)]
    loss = deepcopy(components.loss)  # a loss may keep something from one iteration to the next
    models: list[VelocityModel] = []
    curves: list[dict[str, Tensor]] = []
    interrupted: int | None = None
    optimizer: torch.optim.Optimizer | None = None
    cuda_graph = settings.cuda_graph
    for level in levels:
        offset = None
        if level.dense and optimizer:  # the same models and the same optimiser go on
            optimizer.zero_grad()  # the first loss is that of the models as they are
            velocity = VelocityBatch(models, both_ways).velocity()
            offset = _offset(velocity, components.solver, pairs.fixed, level, pairs.times or (0.0, 1.0))
        else:
            starts = [model.finer for model in models] or [components.velocity.fresh] * count
            models = _started(starts, level, pairs.fixed.device, settings.seed)
            optimizer = components.optimizer(VelocityBatch(models).parameters())
        untouched = [[x.detach().clone() for x in model.parameters()] for model in models]
        trainer = PairTrainer(
            pairs.at(level),
            VelocityBatch(models, both_ways),
            optimizer,
            loss,
            components.solver,
            iterations[level.index],
            [factory() for factory in components.handlers],
            level,
            cuda_graph,
            offset,
        )
        trainer.state.iterations_ahead = sum(costs[level.index + 1 :]) / math.prod(level.image_size)
        give_back_kept_memory()  # the holes that the coarser level left
        trainer.add_event_handler(Events.ITERATION_COMPLETED(every=_GIVE_BACK_EVERY), lambda _: give_back_kept_memory())
        trainer.run()
        cuda_graph = trainer.cuda_graph
        if interrupted is None and getattr(trainer.state, "interrupted", False):
            interrupted = level.index
        done = trainer.state.iteration
        curves.append(
            {"level": torch.full((done, count), float(level.index))}
            | {name: values[:done].cpu() for name, values in trainer.state.history.items()}
        )
        trainer.release()
        losses = curves[-1]["loss"]
        begin, end = losses[: pairs.cycle].mean(0), losses[-pairs.cycle :].mean(0)
        worse = (end > begin).tolist()  # images that are the same are moved by nothing but rounding
        if any(worse):
            for undo, weights, model in zip(worse, untouched, models, strict=True):
                if undo:
                    _put_back(weights, model)
            optimizer = components.optimizer(VelocityBatch(models).parameters())
    history = {name: torch.cat([curve[name] for curve in curves]) for name in curves[0]}
    return Fit(models, levels[-1], history, interrupted)


@torch.no_grad()
def _put_back(weights: Sequence[Tensor], model: VelocityModel) -> None:
    for kept, parameter in zip(weights, model.parameters(), strict=True):
        parameter.copy_(kept)


@torch.no_grad()
def _offset(velocity: Velocity, solver: Solver, images: Tensor, level: Level, times: Sequence[float]) -> Tensor:
    """From where straight lines between the nodes take the voxels to where the flow does, between two times."""
    count, size = len(images), level.image_size
    nodes = identity_grid(level.cloud_size, images.device, images.dtype).expand(count, *[-1] * (images.ndim - 1))
    # along the first axis as the last one, plane by plane: positions of all voxels would take as much as the result
    lines = resize(solver(velocity, nodes, times)[-1], (level.cloud_size[0], *size[1:]))
    matrix = resampling_matrix(level.cloud_size[0], size[0]).to(lines)
    offset = images.new_empty((count, len(size), *size))
    for start, stop in slabs(offset, _AT_A_TIME):
        voxels = identity_grid(size, images.device, images.dtype, slice(start, stop))
        exact = _CORRECTING(velocity, voxels.expand(count, *[-1] * (images.ndim - 1)), times)[-1]
        straight = apply_along_axes(lines, [matrix[start:stop], *[None] * (len(size) - 1)])
        torch.sub(exact, straight, out=offset[:, :, start:stop])
    return offset


def _started(
    starts: Sequence[Callable[..., VelocityModel]], level: Level, device: Any, seed: int
) -> list[VelocityModel]:
    """Models of a level as they begin, made by ``fresh`` or ``finer`` of others."""
    models = []
    for start in starts:
        with torch.random.fork_rng(devices=[]):  # the weights come from the CPU generator, whatever the device
            torch.default_generator.manual_seed(seed)
            models.append(start(level.cloud_size, level.cloud_spacing).to(device))
    return models
