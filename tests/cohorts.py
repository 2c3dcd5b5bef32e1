# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Lists of tiny slices on disk, and the command over them."""

import csv
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from click.testing import CliRunner, Result
from synthetic import deformed_pair

from monai_nodeo.apps.cli import main

ROOT = Path(__file__).resolve().parents[1]
PLANE = (28, 34)
# On the CPU, from the headers on, for a few iterations and without pages.
QUICK = ("--device", "cpu", "--no-report", "--init", "none", "--set", "iterations=[3,3]")
MEASURED = {"seconds_optimisation", "seconds_total", "peak_memory_mb", "device"}


def save_slice(path: Path, values: np.ndarray) -> str:
    nib.save(nib.Nifti1Image(values.astype(np.float32)[..., None], np.diag([1.0, 1.5, 2.0, 1.0])), path)
    return str(path)


def make_rows(folder: Path, count: int, different: int = 4) -> list[dict[str, Any]]:
    """Rows with ids p00, p01, ...; their images repeat after some, as those of a study do."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(min(count, different)):
        for side, image in zip(("fixed", "moving"), deformed_pair(PLANE, seed)[:2], strict=True):
            save_slice(folder / f"{side}{seed}.nii.gz", 1000 * image[0].numpy())
    names = [
        {side: str(folder / f"{side}{n % different}.nii.gz") for side in ("fixed", "moving")} for n in range(count)
    ]
    return [{**row, "id": f"p{number:02}"} for number, row in enumerate(names)]


def write_list(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "monai_nodeo", "cohort", *map(str, words)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def cohort(*words: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    return subprocess.run(command(*words), cwd=cwd, env=environment(), capture_output=True, text=True, timeout=180)


def here(*words: object) -> Result:
    """The command in this process, which has to put it back afterwards: see `as_it_was`."""
    return CliRunner().invoke(main, ["cohort", *map(str, words)])


@contextmanager
def as_it_was() -> Iterator[None]:
    """What the command sets up for its process: levels of loggers and a handler of a signal."""
    loggers = [logging.getLogger(name) for name in (None, "monai_nodeo", "monai_nodeo.data.dataset", "ignite")]
    levels, handler = [logger.level for logger in loggers], signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def table(folder: Path) -> dict[str, dict[str, str]]:
    """Id -> row of metrics.csv without what differs from run to run."""
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return {row["id"]: {k: v for k, v in row.items() if k not in MEASURED} for row in csv.DictReader(file)}


def results(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*/result.json")}


def stamps(folder: Path) -> dict[str, int]:
    """Id -> when its result was written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/result.json")}
