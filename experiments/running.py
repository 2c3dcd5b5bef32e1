# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Runs experiments that have no result yet."""

from __future__ import annotations

import json
import logging
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from experiments.catalogue import Run
from experiments.recorded import field_file, is_done, relevant_settings, result_file
from monai_nodeo.data import load_pair
from monai_nodeo.files import atomic_path
from monai_nodeo.geometry.jacobian import jacobian_determinant
from monai_nodeo.registration import PairInferer, Registration
from monai_nodeo.registration.machine import device_name, peak_memory_mb

__all__ = ["run_all"]

_REPRODUCTION_BACKGROUND = 0  # the reproduction counts it as a structure
_REPRODUCTION_LABELS = (1, 2, 3, *range(5, 16), 17, 20, 21, 22, *range(24, 32), 33)
_DIGITS = 5


def run_all(runs: Sequence[Run], data: Path | None, results: Path, apart: bool = True) -> None:
    """Run what is not done. A result is written when its run is complete.

    Args:
        runs: in the order in which they are run.
        data: folder of the OASIS data.
        results: folder of the results; made if it does not exist.
        apart: each run in a process of its own, so that its memory can be told; in this one they take half the time.

    Raises:
        FileNotFoundError: when data of a run are missing, before anything is run.
    """
    waiting = [run for run in runs if not is_done(run, results)]
    click.echo(f"{len(runs) - len(waiting)} of {len(runs)} runs are done already.")
    with tempfile.TemporaryDirectory() as folder:
        for pairs in {run.pairs for run in waiting}:
            pairs.rows(data, Path(folder))
    (results / "fields").mkdir(parents=True, exist_ok=True)
    # The server has imported everything and has no threads yet: its forks start at once and with the same memory.
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    for number, run in enumerate(waiting, start=1):
        started = time.perf_counter()
        if apart:
            with ProcessPoolExecutor(1, context) as process:
                result = process.submit(perform, run, data, results).result()
        else:
            result = perform(run, data, results)
        pairs = result["pairs"]
        dice = sum(pair["dice"] for pair in pairs) / len(pairs)
        seconds = time.perf_counter() - started
        click.echo(f"{number}/{len(waiting)} {run.name}: Dice {dice:.4f}, {len(pairs)} pairs in {seconds:.0f} s")


def perform(run: Run, data: Path | None, results: Path) -> dict[str, Any]:
    """Register the pairs of a run in this process and write its result."""
    logging.getLogger("monai_nodeo").setLevel(logging.WARNING)
    inferer = PairInferer(run.settings, handlers=())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    before = peak_memory_mb(device)
    pairs, fields = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for row in run.pairs.rows(data, Path(folder)):
            (registration,) = inferer.register([load_pair(row, run.pairs.spatial_dims)], device)
            pairs.append({"id": row["id"], **_figures(registration)})
            fields = _fields(registration)
    result = {
        "run": run.name,
        "registered": repr(run.pairs),
        "pairs": pairs,
        "memory_mb": round(peak_memory_mb(device) - before),
        "device": device_name(device),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("monai-nodeo", "monai", "torch", "torchdiffeq")},
        "settings": relevant_settings(run),
    }
    if run.keep_fields:
        with atomic_path(field_file(results, run)) as partial:
            np.savez_compressed(partial, **fields)
    with atomic_path(result_file(results, run)) as partial:
        partial.write_text(_as_lines(result), encoding="utf-8")
    return result


def _figures(registration: Registration) -> dict[str, float]:
    found, pair = registration.figures(), registration.pair
    label, truth = (x.as_tensor()[0] for x in (registration.warp(pair.moving.label, "nearest"), pair.fixed.label))
    figures = {
        "dice": found["after"]["dice_mean"],
        "dice_before": found["before"]["dice_mean"],
        **_reproduction_dice(found["after"]["dice"], label, truth),
        "hd95_mm": found["after"]["hd95_mm_mean"],
        "folding_percent": found["folding_percent"],
        "folding_sum": jacobian_determinant(registration.displacement[None]).neg().relu().sum().item(),
        "sd_log_jacobian": found["sd_log_jacobian"],
        "seconds": registration.seconds,
    }
    return {name: float(f"{value:.{_DIGITS}g}") for name, value in figures.items()}


def _fields(registration: Registration) -> dict[str, Any]:
    """What a picture needs."""
    return {
        "ddf": registration.displacement.cpu().numpy(),
        "warped": registration.warp(registration.pair.moving.image)[0].as_tensor().numpy(),
        "affine": registration.flow.grid.affine,
    }


def _reproduction_dice(dice: dict[int, float], label: Tensor, truth: Tensor) -> dict[str, float]:
    """Means over the structures that the reproduction counts, without and with its background, where there are all."""
    if not set(_REPRODUCTION_LABELS) <= set(dice):
        return {}
    structures = [dice[value] for value in _REPRODUCTION_LABELS]
    inside, expected = label == _REPRODUCTION_BACKGROUND, truth == _REPRODUCTION_BACKGROUND
    background = 2 * (inside & expected).sum().item() / (inside.sum() + expected.sum()).item()
    return {
        "dice_27": sum(structures) / len(structures),
        "dice_28_with_background": sum([*structures, background]) / (len(structures) + 1),
    }


def _as_lines(result: dict[str, Any]) -> str:
    """JSON with a line for each pair and one for the settings."""
    lines = []
    for key, value in result.items():
        shown = "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n ]" if key == "pairs" else json.dumps(value)
        lines.append(f" {json.dumps(key)}: {shown}")
    return "{\n" + ",\n".join(lines) + "\n}\n"
