# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""What the bundle's config refers to, and a workflow of MONAI that takes a command line literally."""

from __future__ import annotations

import difflib
import logging
import time
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow

from monai_nodeo.data.dataset import PairDataset
from monai_nodeo.data.keys import PATH_KEYS
from monai_nodeo.data.lists import requested_pairs
from monai_nodeo.data.pair import Pair
from monai_nodeo.files import check_output_dir
from monai_nodeo.registration.presets import bundle_dir, preset_files
from monai_nodeo.registration.result import Registration
from monai_nodeo.registration.table import TABLE, failed_row, row_of, summary_of, write_table

__all__ = ["NodeoWorkflow", "PairsFailedError", "SavePairs", "register_pairs", "requested", "run"]

_PATHS = (*PATH_KEYS, "datalist", "dataset_dir", "output_dir")
_WORDS = {"true": True, "false": False, "null": None}

logger = logging.getLogger(__name__)


class PairsFailedError(RuntimeError):
    """Some pairs were not registered; the table says which and why."""


class NodeoWorkflow(ConfigWorkflow):
    """Runs the bundle's config with inputs that are taken as they are.

    A path is a path, whatever characters it has: MONAI would evaluate one that begins with ``$``. An override of an id
    that there is not is an error. With no config file it is that of the bundle, with the differences for slices if the
    fixed image is one.

    Args:
        config_file: one or several files of a config.
        preset: settings laid over the bundle's, where no config file is given.
        workflow_type: as MONAI has it.
        override: ids and values.

    Raises:
        ValueError: names an id that there is not, and the nearest one.

    Example:
        >>> workflow = NodeoWorkflow(fixed="a.nii.gz", moving="b.nii.gz", output_dir="out")
        >>> workflow.initialize()
        >>> workflow.run()
    """

    def __init__(
        self,
        config_file: str | Sequence[str] | None = None,
        preset: str | None = None,
        workflow_type: str | None = "infer",
        **override: Any,
    ) -> None:
        known = {name: override.pop(name) for name in _ARGUMENTS if name in override}
        if config_file is None:
            dims = _dims_of(override)
            config_file = [str(file) for file in preset_files(dims, preset)]
            override.setdefault("bundle_root", str(bundle_dir()))
            known = {"meta_file": str(bundle_dir() / "configs" / "metadata.json"), "logging_file": False} | known
            # it remarks that the preset lies in another folder than the bundle
            logging.getLogger(ConfigWorkflow.__module__).addFilter(_no_remark)
        super().__init__(config_file=config_file, workflow_type=workflow_type, **known)
        for id in override:
            self._check_id(id)
        self.parser.update({id: _literal(id, value) for id, value in override.items()})

    def _check_id(self, id: str) -> None:
        if id in self.parser:
            return
        ids = list(self.parser.get())
        nearest = difflib.get_close_matches(id.replace("::", "#").split("#")[0], ids, n=1, cutoff=0.5)
        hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
        raise ValueError(f"unknown config id {id!r}{hint}; there are {', '.join(ids)}.")


_ARGUMENTS = ("meta_file", "logging_file", "init_id", "run_id", "final_id", "tracking", "properties_path")


def _no_remark(record: logging.LogRecord) -> bool:
    return "Not all config files are in" not in record.getMessage()


def _literal(id: str, value: Any) -> Any:
    """Paths as objects that MONAI does not look into, and the words of JSON for what they say."""
    if id in _PATHS and isinstance(value, str):
        return Path(value)
    return _WORDS.get(value, value) if isinstance(value, str) else value


def _dims_of(override: Mapping[str, Any]) -> int:
    from monai_nodeo.files import ImageGrid

    if override.get("fixed") is None:
        return 3
    return ImageGrid.from_file(override["fixed"]).spatial_dims


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


def register_pairs(engine: Engine, pairs: Sequence[Pair]) -> list[Registration]:
    """An iteration of a MONAI evaluator whose inferer is a :py:class:`monai_nodeo.registration.PairInferer`."""
    return engine.inferer.register(pairs, engine.state.device, engine.network)


def run(evaluator: Engine) -> None:
    """Register everything.

    Args:
        evaluator: of the config.

    Raises:
        ValueError: when there is nothing to register.
        PairsFailedError: when a pair failed; the others are finished.
    """
    saving = next((handler for handler in _handlers(evaluator) if isinstance(handler, SavePairs)), None)
    if saving is not None and not saving.dataset.data:
        raise ValueError("no fixed and no moving image was given; give both, or a datalist.")
    evaluator.run()
    if saving is not None:
        saving.conclude()


def _handlers(evaluator: Engine) -> list[Any]:
    found = (handler for handlers in evaluator._event_handlers.values() for handler, *_ in handlers)
    return list({id(owner): owner for f in found if (owner := getattr(f, "__self__", f)) is not None}.values())


class SavePairs:
    """Evaluator handler that writes the folder of each pair, and keeps ``metrics.csv`` complete.

    Args:
        output_dir: folder of the results; each pair gets a folder of its id in it.
        dataset: whose pairs they are; tells the rows that failed.
        report: make ``report.html`` of each pair, and ``index.html`` over all of them.
    """

    def __init__(self, output_dir: str | PathLike[str], dataset: PairDataset, report: bool = True) -> None:
        self.output_dir = Path(output_dir).expanduser().absolute()
        self.dataset = dataset
        self.report = report
        self._rows: dict[str, dict[str, Any]] = {}
        self._started = 0.0

    def attach(self, engine: Engine) -> None:
        """Called by MONAI."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._look_at_the_clock)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _start(self, engine: Engine) -> None:
        check_output_dir(self.output_dir)
        self._rows.clear()

    def _look_at_the_clock(self, engine: Engine) -> None:
        self._started = time.perf_counter()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def __call__(self, engine: Engine) -> None:
        registrations: list[Registration] = engine.state.output
        share = (time.perf_counter() - self._started) / len(registrations)
        for registration in registrations:
            self._save(registration, share)

    def _save(self, registration: Registration, share: float) -> None:
        started = time.perf_counter()
        pair = registration.pair
        assert pair is not None
        folder = self.output_dir / pair.id
        figures = registration.save(folder, seconds_total=share + time.perf_counter() - started)
        self._rows[pair.id] = row_of(figures)
        self._write_table()
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

    def conclude(self) -> None:
        """Say where the results are.

        Raises:
            PairsFailedError: when a pair failed; the others are finished.
        """
        failures = self.dataset.failures
        if self._rows:
            logger.info("results are in %s", self.output_dir)
        if failures:
            lines = [f"row {failure.row} ({failure.id}): {failure.reason}" for failure in failures]
            raise PairsFailedError(
                f"{len(lines)} of {len(self.dataset.data)} pairs failed, see {self.output_dir / TABLE}:\n"
                + "\n".join(lines)
            )
