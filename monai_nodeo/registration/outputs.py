# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The result folder: files and figures of each pair, and one table of all pairs."""

from __future__ import annotations

import csv
import json
import logging
import platform
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.config import PathLike
from monai.data import MetaTensor
from monai.utils import ImageMetaKey
from torch import Tensor
from torch.nn import functional as F

from monai_nodeo.data.dataset import PairDataset
from monai_nodeo.data.pair import IMAGE_KEYS, LABEL_KEYS, MASK_KEYS, stored_grid
from monai_nodeo.data.placement import physical_map
from monai_nodeo.files import Transform, atomic_path, write_image, write_labels, write_transform
from monai_nodeo.geometry.jacobian import jacobian_determinant
from monai_nodeo.metrics.pairs import device_name, pair_figures, peak_memory_mb
from monai_nodeo.registration.handlers import OnInterrupt
from monai_nodeo.registration.inferer import PairInferer, Registration

__all__ = ["PairsFailedError", "SavePair", "make_output_dir", "run"]

TABLE = "metrics.csv"
_PACKAGES = ("monai-nodeo", "monai", "torch", "torchdiffeq", "pytorch-ignite", "nibabel", "numpy")
_FILES = (*IMAGE_KEYS, *LABEL_KEYS, *MASK_KEYS)
_COLUMNS = (
    "id",
    "status",
    "reason",
    "fixed",
    "moving",
    "similarity_before",
    "similarity_after",
    "dice_mean_before",
    "dice_mean_after",
    "hd95_mm_mean_before",
    "hd95_mm_mean_after",
    "tre_mm_mean_before",
    "tre_mm_mean_after",
    "folding_percent",
    "folded_cells",
    "sd_log_jacobian",
    "displacement_mm_mean",
    "iterations",
    "seconds_optimisation",
    "seconds_total",
    "peak_memory_mb",
    "device",
)

logger = logging.getLogger(__name__)


class PairsFailedError(RuntimeError):
    """Some pairs were not registered; the table says which and why."""


def make_output_dir(output_dir: PathLike) -> Path:
    """Make the folder for the results, and find out that it can be written to before anything is computed.

    Raises:
        OSError: names the folder and what to do.
    """
    folder = Path(str(output_dir)).expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"output_dir {folder} cannot be written to ({error.strerror}); give another folder with --output_dir."
        ) from error
    return folder


class SavePair:
    """Evaluator handler that writes each registered pair to ``output_dir/<id>/`` and keeps ``metrics.csv`` complete.

    The evaluator's batch holds "fixed", "moving", "fixed_input" and "moving_input" (scaled, as the inferer saw them),
    "id", perhaps labels; its output "pred" (the ddf), "warped" and, with labels, "warped_label". Written are
    warped, displacement, jacobian and warped_label as NIfTI on the fixed grid, transform.h5, metrics.json and
    history.csv. The displacement and the transform hold the whole way from the fixed to the moving image, the
    "initial_affine" of the batch included; jacobian is that of the ddf alone.

    Args:
        output_dir: folder of the results.
        inferer: the inferer of the evaluator; its latest registration has the loss curves and the time.
        dataset: tells the rows that failed.
        config: the config of the run, kept with the figures.
        pair_folder: name of a pair's folder, ``{id}`` standing for its id; "." puts a single pair into output_dir.
        table: file in output_dir for the rows of the pairs, ``{id}`` standing for their ids.
    """

    def __init__(
        self,
        output_dir: PathLike,
        inferer: PairInferer,
        dataset: PairDataset,
        config: Mapping[str, Any] | None = None,
        pair_folder: str = "{id}",
        table: str = TABLE,
    ) -> None:
        self.output_dir = Path(str(output_dir)).expanduser().absolute()
        self.inferer = inferer
        self.dataset = dataset
        self.config = dict(config or {})
        self.pair_folder = pair_folder
        self.table = table
        self._results: dict[str, dict[str, Any]] = {}
        self._started = 0.0

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, lambda _: self._results.clear())
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, lambda _: self._write_table())

    def _start(self, engine: Engine) -> None:
        self._started = time.perf_counter()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def __call__(self, engine: Engine) -> None:
        pairs = list(zip(engine.state.batch, engine.state.output, self.inferer.registrations, strict=True))
        share = (time.perf_counter() - self._started) / len(pairs)
        for item, output, registration in pairs:
            self._save(item, output, registration, time.perf_counter() - share)

    def _save(
        self, item: Mapping[str, Any], output: Mapping[str, Any], registration: Registration, started: float
    ) -> None:
        folder = self.output_dir / self.pair_folder.format(id=item["id"])
        folder.mkdir(exist_ok=True)
        grid = stored_grid(item["fixed"])
        ddf = _plain(output["pred"])
        # The figures are written last: a folder with metrics.json is complete.
        for name in ("metrics.json", "warped_label.nii.gz"):  # an earlier run may have had labels
            (folder / name).unlink(missing_ok=True)
        dtype = item["moving"].meta.get("original_dtype", "float32")
        write_image(folder / "warped.nii.gz", _plain(output["warped"])[0], grid, dtype)
        start = physical_map(item["fixed"], item["moving"], item.get("initial_affine"))
        transform = Transform.of_registration(ddf.cpu().numpy(), grid, start.numpy())
        for name in ("transform.h5", "displacement.nii.gz"):
            write_transform(folder / name, transform)
        determinant = jacobian_determinant(ddf[None])[None]
        on_grid = F.pad(determinant, (0, 1) * grid.spatial_dims, mode="replicate")
        write_image(folder / "jacobian.nii.gz", on_grid[0, 0], grid)
        if "warped_label" in output:
            write_labels(folder / "warped_label.nii.gz", _plain(output["warped_label"])[0], grid)
        _write_history(folder / "history.csv", registration.history)
        figures = {
            "id": item["id"],
            **{key: str(item[key].meta[ImageMetaKey.FILENAME_OR_OBJ]) for key in _FILES if _has_file(item, key)},
            **pair_figures(item, output, self.inferer.loss_function.similarity),
            "iterations": registration.iterations,
            "interrupted_level": registration.interrupted_level,
            "seconds_optimisation": round(registration.seconds, 3),
            "seconds_total": round(time.perf_counter() - started, 3),
            "peak_memory_mb": peak_memory_mb(ddf.device),
            "device": device_name(ddf.device),
            "seed": self.inferer.seed,
            "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
            "config": self.config,
        }
        with atomic_path(folder / "metrics.json") as partial:
            partial.write_text(json.dumps(figures, indent=2, default=str) + "\n", encoding="utf-8")
        self._results[item["id"]] = figures
        self._write_table()
        logger.info("%s: %s", item["id"], _summary(figures))

    def _write_table(self) -> None:
        """One row for each pair that is done or failed, in the order of the data list."""
        tables: dict[str, list[dict[str, Any]]] = {}
        failed = {
            failure.id: {"id": failure.id, "status": "failed", "reason": failure.reason}
            for failure in self.dataset.failures
        }
        done = {id: _table_row(figures) for id, figures in self._results.items()}
        for id in (row["id"] for row in self.dataset.data):
            if id in failed or id in done:
                tables.setdefault(self.table.format(id=id), []).append({**failed, **done}[id])
        for name, rows in tables.items():
            with (
                atomic_path(self.output_dir / name) as partial,
                partial.open("w", newline="", encoding="utf-8") as file,
            ):
                writer = csv.DictWriter(file, _COLUMNS)
                writer.writeheader()
                writer.writerows(rows)


def run(evaluator: Engine, dataset: PairDataset, output_dir: PathLike, interrupt: OnInterrupt | None = None) -> None:
    """Register everything, then say where the results are; ctrl-C ends it with what is finished.

    Args:
        evaluator: registers the pairs of the dataset.
        dataset: tells the rows that failed.
        output_dir: folder of the results.
        interrupt: handler of the trainers, if ctrl-C shall save the field of the pair it meets.

    Raises:
        PairsFailedError: when a pair failed; the others are finished.
        SystemExit: with status 130 after ctrl-C.
    """
    folder = Path(str(output_dir)).expanduser().absolute()
    interrupt = interrupt or OnInterrupt()
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, interrupt.pair_completed)
    try:
        with interrupt.listening():
            evaluator.run()
    except KeyboardInterrupt:
        left = (
            f"finished pairs and {TABLE} are in {folder}"
            if (folder / TABLE).exists()
            else f"no pair was finished in {folder}"
        )
        logger.error("interrupted: %s, nothing is half-written. on_interrupt=save keeps the field so far.", left)
        raise SystemExit(130) from None
    if interrupt.requested:
        logger.error(
            "interrupted: the pair that was being optimised is saved as far as it came; it, finished pairs and %s are "
            "in %s.",
            TABLE,
            folder,
        )
        raise SystemExit(130)
    if len(dataset.failures) < len(dataset.data):
        logger.info("results are in %s", folder)
    if dataset.failures:
        lines = [f"row {failure.row} ({failure.id}): {failure.reason}" for failure in dataset.failures]
        raise PairsFailedError(
            f"{len(lines)} of {len(dataset.data)} pairs failed, see {folder / TABLE}:\n" + "\n".join(lines)
        )


def _has_file(item: Mapping[str, Any], key: str) -> bool:
    """Whether an image of the pair was read; a mask may have been made."""
    return key in item and ImageMetaKey.FILENAME_OR_OBJ in item[key].meta


def _plain(x: Tensor) -> Tensor:
    return x.as_tensor() if isinstance(x, MetaTensor) else x


def _table_row(figures: Mapping[str, Any]) -> dict[str, Any]:
    flat = {**figures, "status": "done"}
    for side in ("before", "after"):
        flat |= {f"{name}_{side}": value for name, value in figures[side].items()}
    return {column: flat.get(column, "") for column in _COLUMNS}


def _summary(figures: Mapping[str, Any]) -> str:
    names = {"similarity": "similarity loss", "dice_mean": "Dice", "hd95_mm_mean": "HD95 mm", "tre_mm_mean": "TRE mm"}
    changes = [
        f"{name} {figures['before'][key]:.4f} -> {figures['after'][key]:.4f}"
        for key, name in names.items()
        if figures["after"].get(key) is not None and figures["before"].get(key) is not None
    ]
    return ", ".join([*changes, f"folding {figures['folding_percent']:.4f} %", f"{figures['seconds_optimisation']} s"])


def _write_history(path: Path, history: Mapping[str, Tensor]) -> None:
    columns: Sequence[Iterable[float]] = [values.tolist() for values in history.values()]
    with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["iteration", *history])
        writer.writerows([i, *values] for i, values in enumerate(zip(*columns, strict=True), start=1))
