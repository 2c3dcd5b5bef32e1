# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Registration as a MONAI inferer: two images in, the displacement out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from ignite.engine import Events
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor

from monai_nodeo.data.placement import voxel_sides
from monai_nodeo.flows import VelocityBatch, VelocityModel
from monai_nodeo.flows.solver import ODESolver
from monai_nodeo.geometry.cropping import Box, extended, foreground_box
from monai_nodeo.geometry.folding import unfold
from monai_nodeo.geometry.resizing import resize_ddf
from monai_nodeo.losses import FoldingLoss, IntensityLoss, LocalNCCLoss, RegistrationLoss, SmoothnessLoss
from monai_nodeo.registration._host_memory import keep_freed_memory
from monai_nodeo.registration.handlers import ProgressBar
from monai_nodeo.registration.levels import ImagePair, Level, make_levels
from monai_nodeo.registration.trainer import DivergedError, PairTrainer

__all__ = ["PairInferer", "Registration", "prepare_pair"]

# What a pair may have besides its images, as keys of a batch and as arguments of the inferer.
PAIR_EXTRAS = ("fixed_mask", "moving_mask", "fixed_certainty", "landmarks")

_GIVE_BACK_EVERY = 20  # iterations
# Voxels of the images: above, what is kept between two uses costs more memory (a fifth) than it saves time.
_KEEP_UP_TO = 2**23

# The best balance that was measured, for slices and for volumes; the bundle's configs say the same.
_SHRINK_FACTORS = {2: (2, 1), 3: (4, 2, 1)}
_ITERATIONS = {2: (30, 60), 3: (40, 30, 20)}
_POINT_SPACING = {2: 1, 3: 1.5}
_WINDOW = {2: 21, 3: 9}


@dataclass(frozen=True, eq=False)
class Registration:
    """Result of one pair.

    Attributes:
        ddf: displacement in voxels of the fixed grid, (D, *spatial), tensor axis order.
        history: "level" and loss term -> its value at every iteration, (iterations,), on the CPU; the levels count
            from 0, the coarsest.
        iterations: optimiser steps that were done, at all levels.
        seconds: time of the optimisation, from images to displacement; of a pair in a batch, its share.
        interrupted_level: the first level that ctrl-C ended early; it and the finer ones lack iterations. None: none.
    """

    ddf: Tensor
    history: dict[str, Tensor]
    iterations: int
    seconds: float
    interrupted_level: int | None = None


def _default_loss(spatial_dims: int) -> RegistrationLoss:
    return RegistrationLoss(
        LocalNCCLoss(spatial_dims, _WINDOW[spatial_dims]),
        image_terms={"intensity": (10.0, IntensityLoss())},
        ddf_terms={"folding": (2.5, FoldingLoss())},
        velocity_terms={"smoothness": (0.3, SmoothnessLoss())},
    )


class PairInferer(Inferer):
    """Registers the pairs of a batch, coarse to fine, each with weights of its own.

    A stock ``SupervisedEvaluator`` registers a data list with it (``prepare_batch=prepare_pair``). Pairs of a batch are
    optimised together, as far as they are of one size without the air around them; no pair has an influence on
    another, and its result is that of the pair alone within rounding. A level that ends with a higher loss than it
    began with is undone, so that an image stays where it is when it is registered to itself. Results do not depend on
    the order of the pairs, and the same seed gives the same result on the CPU.

    Args:
        spatial_dims: 2 or 3.
        loss_function: see :py:class:`monai_nodeo.losses.RegistrationLoss`.
        solver: integrates the velocity.
        optimizer: parameters -> optimiser of a level, which treats each parameter by itself (not LBFGS).
        iterations: optimiser steps, one number a level.
        shrink_factors: how much coarser the voxels of each level are, coarse to fine, as in ANTs.
        point_spacing: smallest distance of the points that are integrated, in (smallest) voxel sides; between them
            positions are interpolated.
        handlers: factories of trainer handlers, called once a level; with one that says ``one_pair = True``, pairs of
            a batch are optimised one by one.
        crop_air: leave out what is nothing but the minimum of both images around them; displacements go on there.
        unfold: take out what folds at the end, see :py:func:`monai_nodeo.geometry.folding.unfold`.
        cuda_graph: on CUDA, record an iteration and replay it, see :py:class:`PairTrainer`: leave it
            off with handlers that change the loss between iterations.
        seed: of the weights.

    Attributes:
        registrations: the :py:class:`Registration` of each pair of the latest batch.

    Raises:
        ValueError: when iterations and shrink factors do not fit together.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        loss_function: RegistrationLoss | None = None,
        solver: ODESolver | None = None,
        optimizer: Callable[[Any], torch.optim.Optimizer] | None = None,
        iterations: Sequence[int] | None = None,
        shrink_factors: Sequence[float] | None = None,
        point_spacing: float | None = None,
        handlers: Sequence[Callable[[], Any]] = (ProgressBar,),
        crop_air: bool = True,
        unfold: bool = True,
        cuda_graph: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims
        self.loss_function = loss_function or _default_loss(spatial_dims)
        self.solver = solver or ODESolver("euler", num_steps=2)
        self.optimizer = optimizer or partial(torch.optim.Adam, lr=0.4, fused=True)
        self.iterations = tuple(iterations or _ITERATIONS[spatial_dims])
        self.shrink_factors = tuple(shrink_factors or _SHRINK_FACTORS[spatial_dims])
        self.point_spacing = point_spacing or _POINT_SPACING[spatial_dims]
        if len(self.iterations) != len(self.shrink_factors) or min(self.iterations) < 1:
            raise ValueError(
                "iterations and shrink_factors need one number a level, iterations at least 1, "
                f"got {list(self.iterations)} and {list(self.shrink_factors)}."
            )
        self.handlers = tuple(handlers)
        self.crop_air = crop_air
        self.unfold = unfold
        self.cuda_graph = cuda_graph
        self.seed = seed
        self.registrations: list[Registration] = []

    def _register(
        self, pairs: Sequence[ImagePair], network: VelocityModel, spacings: Sequence[tuple[float, ...]]
    ) -> list[Registration]:
        """The pairs, those together whose grids are alike once the air is left out."""
        dims = self.spatial_dims
        one_by_one = any(getattr(make(), "one_pair", False) for make in self.handlers)
        alike: dict[Any, list[int]] = {}
        boxes = []
        for number, (pair, spacing) in enumerate(zip(pairs, spacings, strict=True)):
            box = foreground_box(pair.fixed, pair.moving) if self.crop_air else (slice(None),) * dims
            boxes.append(box)
            size = tuple(len(range(*part.indices(n))) for part, n in zip(box, pair.fixed.shape[2:], strict=True))
            alike.setdefault((spacing, number if one_by_one else size), []).append(number)
        found: dict[int, Registration] = {}
        for (spacing, _), numbers in alike.items():
            together = self._register_alike([pairs[n] for n in numbers], [boxes[n] for n in numbers], network, spacing)
            found |= dict(zip(numbers, together, strict=True))
        return [found[number] for number in range(len(pairs))]

    def _register_alike(
        self, pairs: Sequence[ImagePair], boxes: Sequence[Box], network: VelocityModel, spacing: Sequence[float]
    ) -> list[Registration]:
        started = time.perf_counter()
        shape = tuple(pairs[0].fixed.shape[2:])
        batch = ImagePair.batch_of([pair.cropped(box) for pair, box in zip(pairs, boxes, strict=True)])
        size = tuple(batch.fixed.shape[2:])
        keep = batch.fixed.device.type == "cpu" and len(pairs) * math.prod(size) <= _KEEP_UP_TO
        with keep_freed_memory() if keep else nullcontext(None) as give_back:
            cloud, history, interrupted = self._optimise(batch, network, spacing, give_back)
            del batch
            done = len(history["level"])
            ddfs = [extended(ddf, box, shape) for ddf, box in zip(resize_ddf(cloud, size).split(1), boxes, strict=True)]
            if not all(ddf.isfinite().all() for ddf in ddfs):
                raise DivergedError(done)
            if self.unfold:
                ddfs = [unfold(ddf, spacing) for ddf in ddfs]
        seconds = (time.perf_counter() - started) / len(pairs)
        return [
            Registration(ddf[0], {name: x[:, n] for name, x in history.items()}, done, seconds, interrupted)
            for n, ddf in enumerate(ddfs)
        ]

    def _started(self, starts: Sequence[Callable[..., VelocityModel]], level: Level, device: Any) -> VelocityBatch:
        """Models of a level as they begin, made by ``fresh`` or ``finer`` of others."""
        models = []
        for start in starts:
            with torch.random.fork_rng(devices=[]):  # the weights come from the CPU generator, whatever the device
                torch.default_generator.manual_seed(self.seed)
                models.append(start(level.cloud_size, level.cloud_spacing).to(device))
        return VelocityBatch(models)

    def _optimise(
        self, pair: ImagePair, network: VelocityModel, spacing: Sequence[float], give_back: Callable[[], Any] | None
    ) -> tuple[Tensor, dict[str, Tensor], int | None]:
        """Displacement in voxels of the last level's cloud, the loss curves, and the level that was interrupted."""
        size, device = pair.fixed.shape[2:], pair.fixed.device
        curves: list[dict[str, Tensor]] = []
        model: VelocityBatch | None = None
        interrupted: int | None = None
        cuda_graph = self.cuda_graph
        levels = make_levels(size, spacing, self.shrink_factors, self.point_spacing)
        costs = [n * math.prod(level.image_size) for n, level in zip(self.iterations, levels, strict=True)]
        for level in levels:
            starts = [network.fresh] * len(pair.fixed) if model is None else [each.finer for each in model.models]
            model = self._started(starts, level, device)
            trainer = PairTrainer(
                pair.at(level),
                model,
                self.optimizer(model.parameters()),
                self.loss_function,
                self.solver,
                self.iterations[level.index],
                [make() for make in self.handlers],
                level,
                cuda_graph,
            )
            trainer.state.iterations_ahead = sum(costs[level.index + 1 :]) / math.prod(level.image_size)
            if give_back is not None:
                give_back()  # the holes that the coarser level left
                trainer.add_event_handler(Events.ITERATION_COMPLETED(every=_GIVE_BACK_EVERY), lambda _: give_back())
            trainer.run()
            cuda_graph = trainer.cuda_graph
            if interrupted is None and getattr(trainer.state, "interrupted", False):
                interrupted = level.index
            done = trainer.state.iteration
            losses = trainer.state.history["loss"][:done]
            worse = losses[-1] > losses[0]
            if worse.any():  # images that are the same are moved by nothing but rounding
                choices = zip(worse.tolist(), self._started(starts, level, device).models, model.models, strict=True)
                model = trainer.network = VelocityBatch([old if undo else new for undo, old, new in choices])
                undone = worse.view(-1, *[1] * (self.spatial_dims + 1))
                output = trainer.state.output
                output["ddf"] = torch.where(undone, trainer.displacement(), output["ddf"])
            curves.append(
                {"level": torch.full((done, len(pair.fixed)), float(level.index))}
                | {name: values[:done].cpu() for name, values in trainer.state.history.items()}
            )
        best = getattr(trainer.state, "best_ddf", None)
        history = {name: torch.cat([curve[name] for curve in curves]) for name in curves[0]}
        return trainer.state.output["ddf"] if best is None else best, history, interrupted

    def __call__(self, inputs: Tensor, network: VelocityModel, *args: Any, **kwargs: Any) -> Tensor:
        """Register.

        Args:
            inputs: fixed images, (B, C, *spatial); the voxel sizes of a MetaTensor are used, else they count as cubes.
            network: model whose options are used; its weights are neither used nor changed.
            args: the moving images on the fixed grid, (B, C, *spatial), also as keyword ``moving``.
            kwargs: see ``args``; also ``fixed_mask`` and ``moving_mask``, (B, 1, *spatial), how much each voxel counts,
                ``fixed_certainty``, see :py:class:`ImagePair`, and ``landmarks``, (B, N, 2, D), see
                :py:mod:`monai_nodeo.losses.landmarks`.

        Returns:
            ddf in voxels of the fixed grid, (B, D, *spatial).

        Raises:
            ValueError: when the images do not have ``spatial_dims`` spatial axes or differ in shape, or are too small;
                or when there are masks and the loss cannot take them.
        """
        (moving,) = args or (kwargs["moving"],)
        fixed, moving = _plain(inputs), _plain(moving)
        more = {key: _plain(kwargs[key]) for key in PAIR_EXTRAS if kwargs.get(key) is not None}
        if fixed.ndim != self.spatial_dims + 2 or fixed.shape != moving.shape:
            raise ValueError(
                f"expected fixed and moving images (B, C) with {self.spatial_dims} spatial axes and one shape, "
                f"got {tuple(fixed.shape)} and {tuple(moving.shape)}."
            )
        if "fixed_mask" in more or "moving_mask" in more:
            self.loss_function.check_masks()
        # An evaluator calls inferers under no_grad, perhaps under autocast too; half precision stops the optimisation.
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(fixed.device.type, enabled=False):
            pairs = [
                ImagePair(
                    _trainable(f[None]), _trainable(m[None]), **{k: _trainable(x[i : i + 1]) for k, x in more.items()}
                )
                for i, (f, m) in enumerate(zip(fixed, moving, strict=True))
            ]
            self.registrations = self._register(pairs, network, [_spacing(image) for image in inputs.split(1)])
        return torch.stack([r.ddf for r in self.registrations])


def _plain(x: Tensor) -> Tensor:
    return x.as_tensor() if isinstance(x, MetaTensor) else x


def _spacing(image: Tensor) -> tuple[float, ...]:
    """Voxel size along each axis in mm of a (B, C, *spatial) image, 1 if it does not know."""
    dims = image.ndim - 2
    if not isinstance(image, MetaTensor):
        return (1.0,) * dims
    affine = image.affine if image.affine.ndim == 2 else image.affine[0]
    return voxel_sides(affine, dims)


def _trainable(image: Tensor) -> Tensor:
    """The image in float32, fit for autograd.

    Where a tensor begins in memory decides about the last bit of its sums: copies begin alike, items of a batch do not.
    """
    image = image.detach().float().contiguous()
    return image.clone() if image.is_inference() or image.storage_offset() else image


def prepare_pair(
    batchdata: dict[str, Tensor], device: torch.device | str | None = None, non_blocking: bool = False, **kwargs: Any
) -> tuple[Tensor, None, tuple[Tensor], dict]:
    """``prepare_batch`` of a ``SupervisedEvaluator``: fixed image as input, the moving one and more for the inferer."""
    fixed, moving = (
        batchdata[key].to(device=device, non_blocking=non_blocking, **kwargs) for key in ("fixed_input", "moving_input")
    )
    more = {key: batchdata[key].to(device=device, non_blocking=non_blocking) for key in PAIR_EXTRAS if key in batchdata}
    return fixed, None, (moving,), more
