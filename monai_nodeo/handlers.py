# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Handlers of the per-pair trainer; MONAI's own (``StatsHandler``, ``TensorBoardStatsHandler``) attach as well."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
from ignite.engine import Engine, Events
from ignite.handlers import EarlyStopping
from torch import Tensor
from tqdm import tqdm

__all__ = ["BestField", "EarlyStop", "ProgressBar"]


def _total_loss(terms: Mapping[str, Tensor]) -> Tensor:
    return terms["loss"]


class BestField:
    """Keeps the displacement with the lowest score, in ``engine.state.best_ddf``, without waiting for the device.

    Args:
        window: only the last ``window`` iterations are looked at, ``None`` for all.
        score: loss terms -> scalar tensor, lower is better; the total loss by default. The code of NODEO takes
            similarity times folding over the last 50 iterations.
    """

    def __init__(self, window: int | None = 50, score: Callable[[Mapping[str, Tensor]], Tensor] = _total_loss) -> None:
        self.window = window
        self.score = score

    def attach(self, engine: Engine) -> None:
        engine.state.best_ddf = None
        engine.state.best_score = None
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        state = engine.state
        if self.window is not None and state.iteration <= state.epoch_length - self.window:
            return
        score, ddf = self.score(state.output), state.output["ddf"]
        if state.best_ddf is None:
            state.best_score, state.best_ddf = score, ddf.clone()
            return
        better = ~(score >= state.best_score)  # so that a loss that is no number is replaced
        better &= ~score.isnan()
        state.best_score = torch.where(better, score, state.best_score)
        torch.where(better, ddf, state.best_ddf, out=state.best_ddf)


class EarlyStop:
    """Stops the optimisation when the total loss no longer falls; ignite's ``EarlyStopping``, looked at now and then.

    Args:
        patience: looks without improvement before it stops.
        min_delta: smallest fall of the loss that counts.
        every: iterations from look to look; each waits for the device once.
    """

    def __init__(self, patience: int = 3, min_delta: float = 1e-4, every: int = 10) -> None:
        self.patience = patience
        self.min_delta = min_delta
        self.every = every

    def attach(self, engine: Engine) -> None:
        stop = EarlyStopping(
            # the last by position: its name changes between versions of ignite
            self.patience,
            lambda e: -e.state.output["loss"].item(),
            engine,
            self.min_delta,
            True,
        )
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=self.every), stop)


class ProgressBar:
    """A tqdm bar of the iterations with the loss terms; silent when the output is not a terminal.

    Args:
        interval: seconds between two looks at the loss terms; each waits for the device once.
    """

    def __init__(self, interval: float = 0.5) -> None:
        self.interval = interval

    def attach(self, engine: Engine) -> None:
        self._looked = time.monotonic()
        self._bar = tqdm(total=engine.state.epoch_length, desc="registration", unit="it", disable=None, leave=False)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, lambda _: self._bar.close())
        engine.add_event_handler(Events.TERMINATE, lambda _: self._bar.close())

    def __call__(self, engine: Engine) -> None:
        now = time.monotonic()
        if not self._bar.disable and now - self._looked >= self.interval:
            self._looked = now
            terms = {name: f"{engine.state.output[name].item():.3g}" for name in engine.state.history}
            self._bar.set_postfix(terms, refresh=False)
        self._bar.update()
