# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
import io
import logging
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from synthetic import deformed_pair, quick_settings, quickly, smooth_image
from torch import Tensor, nn
from tqdm import tqdm

from monai_nodeo.extras import MissingExtraError
from monai_nodeo.registration import (
    BestFit,
    EarlyStop,
    OnInterrupt,
    PairInferer,
    ProgressBar,
    TensorBoardCurves,
)
from monai_nodeo.registration.inferer import pair_of_tensors


def run(handler: Any, outputs: Sequence[dict[str, Tensor]], pause: float = 0) -> Engine:
    """An engine that does nothing but give these outputs, one an iteration."""

    def iteration(engine: Engine, _: object) -> dict[str, Tensor]:
        time.sleep(pause)
        return outputs[engine.state.iteration - 1]

    engine = Engine(iteration)
    engine.state.epoch_length = len(outputs)
    engine.state.level = SimpleNamespace(index=1, count=3)
    engine.state.history = {name: None for name in outputs[0] if name != "ddf"}
    handler.attach(engine)
    engine.run(range(len(outputs)), max_epochs=1)
    return engine


def best_of(handler: BestFit, terms: dict[str, Any], iterations: int | None = None) -> Tensor:
    """What is left of the weights (B, 2), which hold the number of the iteration, for terms (iterations, B)."""
    values = {name: torch.as_tensor(x) for name, x in terms.items()}
    count, size = next(iter(values.values())).shape
    device = next(iter(values.values())).device
    models = [nn.ParameterList([torch.zeros(2, device=device)]) for _ in range(size)]

    def iteration(engine: Engine, _: object) -> dict[str, Tensor]:
        for model in models:
            model[0].data.fill_(engine.state.iteration)
        return {name: x[engine.state.iteration - 1] for name, x in values.items()}

    engine = Engine(iteration)
    engine.state.epoch_length = count
    engine.network = SimpleNamespace(models=models)
    handler.attach(engine)
    if iterations:
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=iterations), lambda e: e.terminate())
    engine.run(range(count), max_epochs=1)
    return torch.stack([model[0].detach() for model in models])


LOSSES = torch.tensor([[0.1, 9], [5, 1], [3, 2], [1, 3], [4, 4], [2, 5]])


@pytest.mark.parametrize(
    ("window", "best"),
    [(None, (1, 2)), (6, (1, 2)), (50, (1, 2)), (5, (4, 2)), (4, (4, 3)), (3, (4, 4)), (2, (6, 5)), (1, (6, 6))],
    ids=str,
)
def test_best_fit_ends_each_pair_with_its_lowest_loss_of_the_last_iterations(window, best):
    assert best_of(BestFit(window), {"loss": LOSSES}).tolist() == [[n, n] for n in best]


@pytest.mark.parametrize(
    ("losses", "best"), [((2, 1, 1, 3, 1), 2), ((float("nan"), 3, 1, 2), 3), ((2, float("nan"), 3, 1), 4)]
)
def test_best_fit_of_equal_losses_is_the_first_and_no_number_is_never_the_best(losses, best):
    assert (best_of(BestFit(), {"loss": torch.tensor(losses)[:, None]}) == best).all()


def test_best_fit_by_a_score_of_ones_own_and_before_its_window():
    assert (best_of(BestFit(window=2), {"loss": LOSSES}, iterations=3) == 3).all()
    terms = {"similarity": [[0.1], [0.5], [0.2], [0.3]], "folding": [[9.0], [0.1], [0.2], [1.0]]}
    assert (best_of(BestFit(score=lambda terms: terms["similarity"] * terms["folding"]), terms) == 3).all()


FALL = [10.0, 9.0, 8.0, 7.0]


def stopped_after(stop: EarlyStop, losses: Sequence[float]) -> int:
    """Iterations of an engine whose history holds these losses."""
    engine = Engine(lambda *_: None)
    engine.state.history = {"loss": torch.tensor(losses)[:, None]}
    stop.attach(engine)
    return engine.run(range(len(losses)), max_epochs=1).iteration


@pytest.mark.parametrize(
    ("losses", "window", "iterations"),
    [
        ([*FALL, *[7.0] * 10], 2, 6),
        ([*FALL, *[7.0] * 10], 4, 8),
        ([*FALL, 6.9, 6.89, 6.88, 6.87, 1.0, 0.0], 4, 8),  # 0.04 a window, of 3.1 so far, is not 2 %
        ([*FALL, 9.0, 6.5, 9.0, 6.5, 9.0, 6.0], 6, 10),  # noise that still falls
        ([*FALL, 8.0, 9.0, 10.0, 11.0], 4, 8),
        ([float(-i) for i in range(20)], 5, 20),
        ([1.0] * 9, 3, 3),
        ([1.0, 2.0, 3.0, 4.0], 2, 2),
    ],
)
def test_early_stop_ends_where_the_slope_is_flat(losses, window, iterations):
    assert stopped_after(EarlyStop(0.02, window), losses) == iterations


def test_early_stop_does_not_mind_the_unit_of_the_loss():
    losses = torch.tensor([1 + 0.9**i for i in range(200)])
    stops = {stopped_after(EarlyStop(), (scale * losses + shift).tolist()) for scale, shift in ((1, 0), (50, -7))}
    assert len(stops) == 1
    assert 20 < stops.pop() < 100


def test_early_stop_ends_a_converged_run_and_the_next_pair_gets_its_own():
    shape = (25, 21)
    same = smooth_image(shape)
    fixed, moving, _ = deformed_pair(shape)
    settings = quick_settings(len(shape), iterations=(30,), shrink_factors=(1,), learning_rate=0.02)
    inferer = PairInferer(settings, handlers=(partial(EarlyStop, window=3),))
    pairs = [pair_of_tensors(*images) for images in ((same, same), (fixed, moving), (same, same))]
    first, other, last = inferer.register(pairs)
    assert first.iterations == last.iterations != other.iterations
    assert min(first.iterations, other.iterations) < 30
    assert all(len(r.history["loss"]) == r.iterations for r in (first, other, last))
    assert inferer.register(pairs[1:2])[0].iterations == other.iterations


def test_options_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="at least 2 iterations, got 1"):
        EarlyStop(window=1)
    with pytest.raises(ValueError, match="'keep', expected 'drop' or 'save'"):
        OnInterrupt("keep")


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@contextmanager
def terminal() -> Iterator[_Terminal]:
    """Stands for stderr inside; not a fixture, because pytest sets its own stderr again before each test."""
    with redirect_stderr(_Terminal()) as stream:
        yield stream


def unreadable(iterations: int) -> list[dict[str, Tensor]]:
    """Outputs without values: to look at one is an error."""
    return [{"loss": torch.empty((), device="meta")}] * iterations


FIELD = {"ddf": torch.zeros(1, 2, 3, 5)}


@pytest.fixture
def _all_bars_closed():
    before = set(getattr(tqdm, "_instances", ()))  # of all kinds of bars
    yield
    assert set(tqdm._instances) <= before


@pytest.mark.usefixtures("_all_bars_closed")
def test_progress_is_silent_and_idle_without_a_terminal_for_some_seconds(capsys, caplog):
    with caplog.at_level(logging.INFO, logger="monai_nodeo.registration.optimisation.handlers"):
        run(ProgressBar(interval=0), unreadable(3))
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
    assert caplog.messages == []


@pytest.mark.usefixtures("_all_bars_closed")
def test_progress_without_a_terminal_is_a_line_now_and_then(capsys, caplog):
    outputs = [{"loss": torch.tensor(x), **FIELD} for x in (3.0, 2.0, 1.25)]
    with caplog.at_level(logging.INFO, logger="monai_nodeo.registration.optimisation.handlers"):
        run(ProgressBar(line_interval=0), outputs, pause=0.3)
    assert len(caplog.messages) == 3
    assert caplog.messages[0] == "level 2/3, iteration 1 of 3: loss 3, folds % 0; 1 s left"
    assert caplog.messages[2].startswith("level 2/3, iteration 3 of 3: loss 1.25")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("shape", [(32, 24), (16, 24, 32)])
def test_the_time_left_counts_the_finer_levels(shape, caplog):
    ahead = []

    class Look:
        def attach(self, engine: Engine) -> None:
            engine.add_event_handler(Events.STARTED, lambda e: ahead.append(e.state.iterations_ahead))

    fixed, moving, _ = deformed_pair(shape)
    factories = [Look, partial(ProgressBar, line_interval=0)]
    with caplog.at_level(logging.INFO, logger="monai_nodeo.registration.optimisation.handlers"):
        quickly(fixed, moving, {"handlers": factories}, iterations=(5, 3), crop_air=False)
    assert ahead == [3 * 2 ** len(shape), 0]  # an iteration of the finer level counts as much as it has voxels
    assert "iteration 3 of 3" in caplog.messages[-1]
    assert caplog.messages[-1].endswith("; 0 s left")


@pytest.mark.usefixtures("_all_bars_closed")
def test_progress_bar_shows_level_terms_and_folds_in_a_terminal():
    folded = torch.zeros(1, 2, 3, 5)
    folded[:, 0] = -2 * torch.arange(3.0).view(3, 1)
    outputs = [{"loss": torch.tensor(x), "folding": torch.tensor(0.5), "ddf": folded} for x in (3.0, 2.0, 1.25)]
    with terminal() as screen:
        run(ProgressBar(interval=0), outputs, pause=0.12)  # tqdm draws ten times a second
    text = screen.getvalue()
    assert "level 2/3" in text
    assert "3/3" in text
    assert "loss=1.25, folding=0.5, folds %=100" in text
    assert "ddf" not in text


@pytest.mark.usefixtures("_all_bars_closed")
def test_progress_bar_seldom_looks_and_closes_when_the_run_fails():
    with terminal() as screen:
        run(ProgressBar(interval=1e6), unreadable(3))
    assert "level 2/3" in screen.getvalue()
    with terminal(), pytest.raises(RuntimeError, match="meta"):
        run(ProgressBar(interval=0), unreadable(3))


@pytest.mark.usefixtures("_all_bars_closed")
@pytest.mark.parametrize("kind", ["IPKernelApp", "TerminalIPythonApp"])
def test_a_notebook_shows_a_bar_although_it_is_no_terminal(kind, monkeypatch, capsys):
    shell = SimpleNamespace(config={kind: {}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    run(ProgressBar(interval=0), [{"loss": torch.tensor(1.0), **FIELD}] * 3, pause=0.12)
    assert ("level 2/3: " in capsys.readouterr().err) == (kind == "IPKernelApp")


def test_tensorboard_gets_the_figures_of_each_run(tmp_path):
    loading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    outputs = [{"loss": torch.tensor(float(x)), **FIELD} for x in range(6)]
    for _ in range(2):
        run(TensorBoardCurves(tmp_path / "runs", every=2), outputs)
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"0000_level2", "0001_level2"}
    events = loading.EventAccumulator(str(tmp_path / "runs" / "0001_level2"))
    events.Reload()
    assert [(point.step, point.value) for point in events.Scalars("loss")] == [(2, 1), (4, 3), (6, 5)]
    assert [point.value for point in events.Scalars("folds %")] == [0, 0, 0]


def test_tensorboard_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'monai-nodeo\[tensorboard\]'"):
        TensorBoardCurves(tmp_path)


def interrupted_run(handler: OnInterrupt, presses: Sequence[int], iterations: int = 6) -> Engine:
    """An engine in which ctrl-C is pressed at these iterations."""

    def iteration(engine: Engine, _: object) -> int:
        if engine.state.iteration in presses:
            signal.raise_signal(signal.SIGINT)
        return engine.state.iteration

    engine = Engine(iteration)
    handler.attach(engine)
    with handler.listening():
        engine.run(range(iterations), max_epochs=1)
    return engine


def test_ctrl_c_ends_the_run_after_the_iteration_and_later_ones_after_their_first(caplog):
    handler = OnInterrupt("save")
    assert interrupted_run(handler, [3]).state.iteration == 3
    assert handler.requested
    assert "saving the best field so far" in caplog.text
    assert interrupted_run(handler, []).state.iteration == 1


@pytest.mark.parametrize(("action", "presses"), [("drop", [3]), ("save", [3, 3])])
def test_ctrl_c_that_is_not_to_save_is_ctrl_c(action, presses, request):
    # a process that a shell starts in the background ignores ctrl-C
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(partial(signal.signal, signal.SIGINT, before))

    def twice(engine: Engine) -> None:
        if len(presses) == 2 and engine.state.iteration == 3:
            signal.raise_signal(signal.SIGINT)

    handler = OnInterrupt(action)
    engine = Engine(lambda engine, _: engine.state.iteration == 3 and signal.raise_signal(signal.SIGINT))
    handler.attach(engine)
    engine.add_event_handler(Events.ITERATION_COMPLETED, twice)
    with pytest.raises(KeyboardInterrupt), handler.listening():
        engine.run(range(6), max_epochs=1)


@pytest.mark.parametrize("moment", ["before a field", "between levels", "in the last iteration", "between pairs"])
def test_ctrl_c_at_any_moment(moment):
    before, handler = signal.getsignal(signal.SIGINT), OnInterrupt("save")
    if moment == "in the last iteration":
        assert not interrupted_run(handler, [6]).state.interrupted
    elif moment == "between levels":
        interrupted_run(handler, [])
        with handler.listening():
            signal.raise_signal(signal.SIGINT)
        assert interrupted_run(handler, []).state.iteration == 1
    else:  # nothing of this pair is there to be saved
        if moment == "between pairs":
            handler.pair_completed(interrupted_run(handler, []))
        with pytest.raises(KeyboardInterrupt), handler.listening():
            signal.raise_signal(signal.SIGINT)
    assert handler.requested == moment.endswith(("levels", "iteration"))
    assert signal.getsignal(signal.SIGINT) == before


@pytest.mark.parametrize("shape", [(25, 21), (13, 17, 11)])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_registration_knows_the_level_that_ctrl_c_ended(shape, level):
    handler = OnInterrupt("save")

    class CtrlC:
        def attach(self, engine: Engine) -> None:
            engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), self.press)

        def press(self, engine: Engine) -> None:
            if engine.state.level.index == level:
                signal.raise_signal(signal.SIGINT)

    fixed, moving, _ = deformed_pair(shape)
    levels = {"iterations": (4, 4, 4), "shrink_factors": (2, 1, 1)}
    with handler.listening():
        found = quickly(fixed, moving, {"handlers": [CtrlC, lambda: handler]}, **levels, unfold=False)
    counts = [4] * level + [2] + [1] * (2 - level)
    assert found.history["level"].tolist() == [index for index, count in enumerate(counts) for _ in range(count)]
    assert found.interrupted == level
    assert found.ddf.shape[1:] == shape
    assert found.ddf.abs().max() > 0
