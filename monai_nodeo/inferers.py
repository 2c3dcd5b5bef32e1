# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Registration as a MONAI inferer: two images in, the displacement out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from ignite.engine import Events
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor

from monai_nodeo.engines import DivergedError, PairTrainer
from monai_nodeo.handlers import BestField, ProgressBar
from monai_nodeo.host_memory import keep_freed_memory
from monai_nodeo.integration import ODESolver
from monai_nodeo.losses import FoldingLoss, LocalNCCLoss, RegistrationLoss, SmoothnessLoss, VelocityMagnitudeLoss
from monai_nodeo.networks import VelocityModel

__all__ = ["PairInferer", "Registration", "prepare_pair"]

_GIVE_BACK_EVERY = 20  # iterations


@dataclass(frozen=True, eq=False)
class Registration:
    """Result of one pair.

    Attributes:
        ddf: displacement in voxels of the fixed grid, (D, *spatial), tensor axis order.
        history: loss term -> its value at every iteration, (iterations,), on the CPU.
        iterations: optimiser steps that were done.
        seconds: time of the optimisation, from images to displacement.
    """

    ddf: Tensor
    history: dict[str, Tensor]
    iterations: int
    seconds: float


class PairInferer(Inferer):
    """Registers each pair of a batch with weights, optimiser and trainer of its own.

    A stock ``SupervisedEvaluator`` registers a data list with it (``prepare_batch=prepare_pair``). Results do not
    depend on the order of the pairs, and the same seed gives the same result on the CPU.

    Args:
        spatial_dims: 2 or 3.
        loss_function: see :py:class:`monai_nodeo.losses.RegistrationLoss`; by default that of NODEO.
        solver: integrates the velocity; by default one Euler step, as NODEO.
        optimizer: parameters -> optimiser; by default Adam (amsgrad) with a learning rate of 0.005.
        iterations: optimiser steps.
        handlers: factories of trainer handlers, called once a pair.
        seed: of the weights.

    Attributes:
        registrations: the :py:class:`Registration` of each pair of the latest batch.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        loss_function: RegistrationLoss | None = None,
        solver: ODESolver | None = None,
        optimizer: Callable[[Any], torch.optim.Optimizer] | None = None,
        iterations: int = 300,
        handlers: Sequence[Callable[[], Any]] = (BestField, ProgressBar),
        seed: int = 0,
    ) -> None:
        super().__init__()
        if iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {iterations}.")
        self.spatial_dims = spatial_dims
        self.loss_function = loss_function or RegistrationLoss(
            LocalNCCLoss(spatial_dims, 21),
            ddf_terms={"folding": (2.5, FoldingLoss()), "smoothness": (0.05, SmoothnessLoss())},
            velocity_terms={"magnitude": (5e-5, VelocityMagnitudeLoss())},
        )
        self.solver = solver or ODESolver("euler", num_steps=1)
        self.optimizer = optimizer or partial(torch.optim.Adam, lr=0.005, amsgrad=True)
        self.iterations = iterations
        self.handlers = tuple(handlers)
        self.seed = seed
        self.registrations: list[Registration] = []

    def _register(self, fixed: Tensor, moving: Tensor, network: VelocityModel) -> Registration:
        """One pair, (1, C, *spatial) each."""
        started = time.perf_counter()
        with torch.random.fork_rng(devices=[]):  # the weights come from the CPU generator, whatever the device
            torch.default_generator.manual_seed(self.seed)
            model = network.fresh(fixed.shape[2:]).to(fixed.device)
        trainer = PairTrainer(
            fixed,
            moving,
            model,
            self.optimizer(model.parameters()),
            self.loss_function,
            self.solver,
            self.iterations,
            [make() for make in self.handlers],
        )
        if fixed.device.type == "cpu":
            with keep_freed_memory() as give_back:
                trainer.add_event_handler(Events.ITERATION_COMPLETED(every=_GIVE_BACK_EVERY), lambda _: give_back())
                trainer.run()
        else:
            trainer.run()
        best = getattr(trainer.state, "best_ddf", None)
        ddf = trainer.state.output["ddf"] if best is None else best
        if not ddf.isfinite().all():
            raise DivergedError(trainer.state.iteration)
        history = {name: values[: trainer.state.iteration].cpu() for name, values in trainer.state.history.items()}
        return Registration(ddf[0], history, trainer.state.iteration, time.perf_counter() - started)

    def __call__(self, inputs: Tensor, network: VelocityModel, *args: Any, **kwargs: Any) -> Tensor:
        """Register.

        Args:
            inputs: fixed images, (B, C, *spatial).
            network: model whose options are used; its weights are neither used nor changed.
            args: the moving images on the fixed grid, (B, C, *spatial), also as keyword ``moving``.
            kwargs: see ``args``.

        Returns:
            ddf in voxels of the fixed grid, (B, D, *spatial).

        Raises:
            ValueError: when the images do not have ``spatial_dims`` spatial axes or differ in shape, or are too small.
        """
        (moving,) = args or (kwargs["moving"],)
        fixed, moving = (x.as_tensor() if isinstance(x, MetaTensor) else x for x in (inputs, moving))
        if fixed.ndim != self.spatial_dims + 2 or fixed.shape != moving.shape:
            raise ValueError(
                f"expected fixed and moving images (B, C) with {self.spatial_dims} spatial axes and one shape, "
                f"got {tuple(fixed.shape)} and {tuple(moving.shape)}."
            )
        # An evaluator calls inferers under no_grad, perhaps under autocast too; half precision stops the optimisation.
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(fixed.device.type, enabled=False):
            self.registrations = [
                self._register(_trainable(f[None]), _trainable(m[None]), network)
                for f, m in zip(fixed, moving, strict=True)
            ]
        return torch.stack([r.ddf for r in self.registrations])


def _trainable(image: Tensor) -> Tensor:
    """The image in float32, fit for autograd."""
    image = image.detach().float()
    return image.clone() if image.is_inference() else image


def prepare_pair(
    batchdata: dict[str, Tensor], device: torch.device | str | None = None, non_blocking: bool = False, **kwargs: Any
) -> tuple[Tensor, None, tuple[Tensor], dict]:
    """``prepare_batch`` of a ``SupervisedEvaluator``: fixed image as input, moving image as the inferer's argument."""
    fixed, moving = (
        batchdata[key].to(device=device, non_blocking=non_blocking, **kwargs) for key in ("fixed_input", "moving_input")
    )
    return fixed, None, (moving,), {}
