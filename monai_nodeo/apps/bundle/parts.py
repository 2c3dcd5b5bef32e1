# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""What the bundle's config refers to: rows as pairs, an iteration of the evaluator, the run, the files."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from os import PathLike
from os.path import expanduser
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from monai_nodeo.data.dataset import PairDataset
from monai_nodeo.data.keys import PATH_KEYS
from monai_nodeo.data.lists import requested_pairs
from monai_nodeo.data.load import load_pair
from monai_nodeo.data.pair import Pair, PairError
from monai_nodeo.extras import report_or_not
from monai_nodeo.files import check_output_dir
from monai_nodeo.flows import VelocityModel
from monai_nodeo.registration.metrics_table import TABLE, failed_row, row_of, summary_of, write_table
from monai_nodeo.registration.needed_memory import needed_room
from monai_nodeo.registration.result import Registration
from monai_nodeo.registration.settings import Settings

__all__ = ["PairsFailedError", "SavePairs", "reader", "register_pairs", "requested", "run"]

logger = logging.getLogger(__name__)


class PairsFailedError(RuntimeError):
    """Some pairs were not registered; the table says which and why."""


def requested(
    datalist: str | PathLike[str] | None, dataset_dir: str | PathLike[str] | None, *paths: str | PathLike[str] | None
) -> list[dict[str, Any]]:
    """Rows of a data list, or of the one pair whose paths are given; none when nothing is given yet.

    Args:
        datalist: see :py:func:`monai_nodeo.data.load_datalist`.
        dataset_dir: see there.
        paths: in the order of `data.keys.PATH_KEYS`.
    """
    pair = dict(zip(PATH_KEYS, paths, strict=True))
    if datalist is None and all(path is None for path in paths):
        return []
    return requested_pairs(datalist, dataset_dir, **pair)


def reader(settings: Settings, network: VelocityModel) -> Callable[[dict[str, Any]], Pair]:
    """Reads the pair of a row, of the dimension of the settings and not too small for the network."""
    return partial(load_pair, spatial_dims=settings.spatial_dims, min_size=network.min_size)


def register_pairs(engine: Engine, pairs: Sequence[Pair]) -> list[Registration]:
    """An iteration of a MONAI evaluator whose inferer is a :py:class:`monai_nodeo.registration.PairInferer`.

    A pair that cannot be registered is a failure of the dataset, and the others go on.
    """
    try:
        found: list[Registration] = engine.inferer.register(pairs, engine.state.device, engine.network)
        return found
    except PairError as error:
        if len(pairs) > 1:  # whose fault it is shows when each is alone
            return [registration for pair in pairs for registration in register_pairs(engine, [pair])]
        engine.data_loader.dataset.fail(pairs[0].id, error)
        return []


def run(evaluator: Engine, dataset: PairDataset, output_dir: str | PathLike[str]) -> None:
    """Register everything.

    Args:
        evaluator: of the config.
        dataset: what it registers.
        output_dir: folder of the results.

    Raises:
        ValueError: when there is nothing to register.
        PairsFailedError: when a pair failed; the others are finished.
    """
    if not dataset.data:
        raise ValueError("no fixed and no moving image was given; give both, or a datalist.")
    evaluator.run()
    folder = Path(expanduser(output_dir)).absolute()
    failures = [f"row {failure.row} ({failure.id}): {failure.reason}" for failure in dataset.failures]
    if failures:
        raise PairsFailedError(
            "\n".join([f"{len(failures)} of {len(dataset.data)} pairs failed, see {folder / TABLE}:", *failures])
        )
    logger.info("results are in %s", folder)


class SavePairs:
    """Evaluator handler that writes the folder of each pair, and keeps ``metrics.csv`` complete.

    Args:
        output_dir: folder of the results; each pair gets a folder of its id in it.
        dataset: whose pairs they are; tells the rows that failed.
        report: make ``report.html`` of each pair, and ``index.html`` over all of them.
    """

    def __init__(self, output_dir: str | PathLike[str], dataset: PairDataset, report: bool = True) -> None:
        if not isinstance(report, bool):
            raise ValueError(f"report is {report!r}, expected True or False.")
        self.output_dir = Path(expanduser(output_dir)).absolute()
        self.dataset = dataset
        self.report = report_or_not(report)
        self._rows: dict[str, dict[str, Any]] = {}
        self._started = 0.0

    def attach(self, engine: Engine) -> None:
        """Called by MONAI."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._look_at_the_clock)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _start(self, engine: Engine) -> None:
        check_output_dir(self.output_dir, needed_room(self.dataset.data))
        self._rows.clear()

    def _look_at_the_clock(self, engine: Engine) -> None:
        self._started = time.perf_counter()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def __call__(self, engine: Engine) -> None:
        registrations: list[Registration] = engine.state.output
        seconds = time.perf_counter() - self._started
        for registration in registrations:
            self._save(registration, seconds / len(registrations))
        self._write_table()

    def _save(self, registration: Registration, share: float) -> None:
        pair = registration.pair
        assert pair is not None
        folder = self.output_dir / pair.id
        figures = registration.save(folder, seconds_total=share)
        self._rows[pair.id] = row_of(figures)
        logger.info("%s: %s", pair.id, summary_of(figures))
        if self.report:
            from monai_nodeo.report import write_report

            try:
                write_report(registration, figures, folder)
            except (OSError, ValueError) as error:  # the registration is there, and the next pair waits
                logger.warning("%s: no report: %s", pair.id, error)

    def _write_table(self) -> None:
        """One row for each pair that is done or failed, in the order of the data list."""
        rows = dict(self._rows)
        for failure in self.dataset.failures:
            rows[failure.id] = failed_row(self._listed(failure.row, failure.id), failure.reason)
        named = [row.get("id", f"row_{number}") for number, row in enumerate(self.dataset.data, start=1)]
        write_table(self.output_dir, [rows[id] for id in named if id in rows])

    def _listed(self, number: int, id: str) -> dict[str, Any]:
        return {**self.dataset.data[number - 1], "id": id}

    def _finish(self, engine: Engine) -> None:
        self._write_table()
        if self.report:
            from monai_nodeo.report import write_index

            write_index(self.output_dir)
