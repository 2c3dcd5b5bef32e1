# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Handlers of the per-pair trainer; MONAI's own (``StatsHandler``, ``TensorBoardStatsHandler``) attach as well."""

from __future__ import annotations

import logging
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.config import PathLike
from monai.handlers import TensorBoardStatsHandler
from torch import Tensor

from monai_nodeo.extras import check_tensorboard
from monai_nodeo.metrics.fields import folding_fraction

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # a notebook without ipywidgets shows the bar as text
    from tqdm.auto import tqdm

__all__ = ["BestFit", "EarlyStop", "OnInterrupt", "ProgressBar", "TensorBoardCurves"]

# tqdm's own time left is that of one level.
_BAR_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"

logger = logging.getLogger(__name__)


def _total_loss(terms: Mapping[str, Tensor]) -> Tensor:
    return terms["loss"]


class BestFit:
    """Keeps the weights with the lowest score, without waiting for the device; the level ends with them.

    Each pair of a batch has its own best iteration.

    Args:
        window: only the last ``window`` iterations are looked at, ``None`` for all.
        score: loss terms, each (B,) -> (B,), lower is better; the total loss by default. The code of NODEO takes
            similarity times folding over the last 50 iterations.
    """

    def __init__(self, window: int | None = 50, score: Callable[[Mapping[str, Tensor]], Tensor] = _total_loss) -> None:
        self.window = window
        self.score = score

    def attach(self, engine: Engine) -> None:
        engine.state.best_score = None
        engine.state.best_weights = None
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._take)

    def __call__(self, engine: Engine) -> None:
        state = engine.state
        if self.window is not None and state.iteration <= state.epoch_length - self.window:
            return
        score = self.score(state.output)
        weights = [[x.detach() for x in model.parameters()] for model in engine.network.models]
        if state.best_weights is None:
            state.best_score = score
            state.best_weights = [[x.clone() for x in of_model] for of_model in weights]
            return
        better = ~(score >= state.best_score)  # so that a loss that is no number is replaced
        better &= ~score.isnan()
        state.best_score = torch.where(better, score, state.best_score)
        for wins, best, current in zip(better, state.best_weights, weights, strict=True):
            for kept, x in zip(best, current, strict=True):
                torch.where(wins, x, kept, out=kept)

    @staticmethod
    @torch.no_grad()
    def _take(engine: Engine) -> None:
        for model, best in zip(engine.network.models, engine.state.best_weights or (), strict=False):
            for x, kept in zip(model.parameters(), best, strict=True):
                x.copy_(kept)


class EarlyStop:
    """Ends a level when the loss is flat: the slope of a window of iterations, as ANTs and ITK look at it.

    The slope is that of the line through the last losses (least squares). It is flat when what it promises for another
    window is less than a share of how far the loss has fallen from its highest, so that no unit matters. The loss as a
    whole is looked at: the similarity alone is flat long before the folds are gone.

    Pairs of a batch are then optimised one by one, since each stops at a time of its own.

    Args:
        threshold: that share.
        window: iterations that are looked at, and from look to look; each look waits for the device once.

    Raises:
        ValueError: for a window of less than two iterations.
    """

    one_pair = True

    def __init__(self, threshold: float = 0.01, window: int = 10) -> None:
        if window < 2:
            raise ValueError(f"a slope needs a window of at least 2 iterations, got {window}.")
        self.threshold = threshold
        self.window = window

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=self.window), self)

    def __call__(self, engine: Engine) -> None:
        losses = engine.state.history["loss"][: engine.state.iteration, 0].double()
        last = losses[-self.window :]
        steps = torch.arange(self.window, device=last.device).double() - (self.window - 1) / 2
        fall = -self.window * (steps * last).sum() / steps.square().sum()
        if (fall <= self.threshold * (losses.max() - last.mean())).item():
            engine.terminate()


class ProgressBar:
    """Level, iteration, loss terms, folds and time left: a tqdm bar, or in a file a line of the log now and then.

    In a notebook the bar is one of ipywidgets, or text without them.

    The time left is that of all levels, if the run says in ``engine.state.iterations_ahead`` what the finer ones cost,
    in iterations of this level.

    Args:
        interval: seconds between two looks at the figures; each waits for the device once.
        line_interval: the same where the output is no terminal.
    """

    def __init__(self, interval: float = 1.0, line_interval: float = 5.0) -> None:
        self.interval = interval
        self.line_interval = line_interval

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, lambda _: self._bar.close())
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def _start(self, engine: Engine) -> None:
        level = engine.state.level
        self._name = f"level {level.index + 1}/{level.count}"
        self._started = self._looked = time.monotonic()
        self._bar = tqdm(
            total=engine.state.epoch_length,
            desc=self._name,
            disable=False if _in_notebook() else None,  # None: where the output is no terminal
            leave=False,
            bar_format=_BAR_FORMAT,
        )

    def __call__(self, engine: Engine) -> None:
        now = time.monotonic()
        if now - self._looked >= (self.line_interval if self._bar.disable else self.interval):
            self._looked = now
            figures = {name: f"{value:.3g}" for name, value in _figures(engine).items()}
            left = f"{self._seconds_left(engine, now):.0f} s left"
            if self._bar.disable:
                done, total = engine.state.iteration, engine.state.epoch_length
                shown = ", ".join(f"{name} {value}" for name, value in figures.items())
                logger.info("%s, iteration %d of %d: %s; %s", self._name, done, total, shown, left)
            else:
                shown = ", ".join(f"{name}={value}" for name, value in figures.items())
                self._bar.set_postfix_str(f"{left}, {shown}", refresh=False)
        self._bar.update()

    def _seconds_left(self, engine: Engine, now: float) -> float:
        done, total = engine.state.iteration, engine.state.epoch_length
        return (now - self._started) / done * (total - done + getattr(engine.state, "iterations_ahead", 0))

    def _fail(self, engine: Engine, error: BaseException) -> None:
        self._bar.close()
        raise error  # ignite would be silent about it from here on


class TensorBoardCurves:
    """The figures of :py:class:`ProgressBar` for TensorBoard, by MONAI's handler; a run for each pair and level.

    Pairs of a batch are then optimised one by one.

    Args:
        log_dir: folder of the runs, which are numbered.
        every: iterations from one point of a curve to the next; each waits for the device once.

    Raises:
        MissingExtraError: when TensorBoard is not installed.
    """

    one_pair = True

    def __init__(self, log_dir: PathLike, every: int = 5) -> None:
        check_tensorboard()
        self.log_dir = Path(str(log_dir))
        self.every = every

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)

    def _start(self, engine: Engine) -> None:
        self.log_dir.mkdir(parents=True, exist_ok=True)
        number = len(list(self.log_dir.iterdir()))
        writer = TensorBoardStatsHandler(
            log_dir=str(self.log_dir / f"{number:04d}_level{engine.state.level.index + 1}"),
            iteration_log=self.every,
            epoch_log=False,
            iteration_event_writer=_write_figures,
        )
        writer.attach(engine)
        engine.add_event_handler(Events.COMPLETED, lambda _: writer.close())


class OnInterrupt:
    """What ctrl-C does to a pair that is being optimised: drop it, or keep the best field so far.

    One for all trainers of a run, told by the run when a pair is complete. To keep the field, the level ends with the
    iteration, and each finer one after its first, so that the field is on the full grid; what is being written then is
    written to its end. A level that ends before its last iteration has ``engine.state.interrupted`` set.

    Args:
        action: "drop" or "save".

    Attributes:
        requested: whether a field was asked for.
    """

    def __init__(self, action: str = "drop") -> None:
        if action not in ("drop", "save"):
            raise ValueError(f"on_interrupt is {action!r}, expected 'drop' or 'save'.")
        self.action = action
        self.requested = False
        self._in_pair = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Catch ctrl-C while the block runs."""
        before = signal.getsignal(signal.SIGINT)
        if self.action == "save":
            signal.signal(signal.SIGINT, self._interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._stop_level)

    def pair_completed(self, engine: Engine) -> None:
        """Handler of the run's engine: no further pair after a saved one."""
        self._in_pair = False
        self._stop(engine)

    def _stop(self, engine: Engine) -> None:
        if self.requested:
            engine.terminate()

    def _stop_level(self, engine: Engine) -> None:
        engine.state.interrupted = self.requested and engine.state.iteration < engine.state.epoch_length
        self._stop(engine)

    def _begin(self, engine: Engine) -> None:
        self._in_pair = True

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.requested or not self._in_pair:  # the second time, or there is no field yet
            raise KeyboardInterrupt
        self.requested = True
        logger.warning("interrupted: saving the best field so far; once more to drop it.")


def _in_notebook() -> bool:
    """Whether a notebook shows what is printed: no terminal, but a bar can move there."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and "IPKernelApp" in shell.config


def _figures(engine: Engine) -> dict[str, float]:
    """Loss terms of the iteration, and how much of its field folds; means of a batch."""
    output = engine.state.output
    figures = {name: output[name].mean().item() for name in engine.state.history}
    return {**figures, "folds %": 100 * folding_fraction(output["ddf"]).mean().item()}


def _write_figures(engine: Engine, writer: Any) -> None:
    for name, value in _figures(engine).items():
        writer.add_scalar(name, value, engine.state.iteration)
