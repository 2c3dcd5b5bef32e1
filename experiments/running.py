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
from monai.bundle import ConfigParser, ReferenceResolver
from torch import Tensor

from experiments.catalogue import Run
from monai_nodeo.files import atomic_path
from monai_nodeo.geometry.jacobian import jacobian_determinant
from monai_nodeo.metrics.pairs import device_name, pair_figures, peak_memory_mb

__all__ = ["field_file", "is_done", "read_result", "result_file", "run_all"]

# The ids that a registration is built from; what they refer to belongs to its config, too.
_ROOTS = ("inferer", "network_def", "preprocessing", "postprocessing")
_REPRODUCTION_BACKGROUND = 0  # the reproduction counts it as a structure
_REPRODUCTION_LABELS = (1, 2, 3, *range(5, 16), 17, 20, 21, 22, *range(24, 32), 33)
_DIGITS = 5


def result_file(results: Path, run: Run) -> Path:
    """Where the JSON of a run is."""
    return results / f"{run.name}.json"


def field_file(results: Path, run: Run) -> Path:
    """Where the displacement of a run that keeps it is; these files are not part of the repository."""
    return results / "fields" / f"{run.name}.npz"


def read_result(results: Path, run: Run) -> dict[str, Any] | None:
    """The recorded result of a run, whatever its config was."""
    file = result_file(results, run)
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def parser_of(run: Run) -> ConfigParser:
    """The config of a run."""
    parser = ConfigParser()
    parser.read_config([str(file) for file in run.config_files])
    parser.update({"quiet": True, **run.settings})
    return parser


def config_of(parser: ConfigParser) -> dict[str, Any]:
    """The ids that a registration depends on; what is disabled is left out."""
    config = parser.get()
    found: dict[str, Any] = {}
    waiting = list(_ROOTS)
    while waiting:
        id = waiting.pop()
        if id not in found:
            found[id] = _enabled(parser, id, config[id])
            references = ReferenceResolver.find_refs_in_config(found[id], id)
            waiting += [ReferenceResolver.split_id(reference)[0] for reference in references]
    return dict(sorted(found.items()))


def _enabled(parser: ConfigParser, id: str, config: Any) -> Any:
    """A part of the config without the components in it that are disabled."""
    if isinstance(config, dict):
        return {key: _enabled(parser, f"{id}::{key}", value) for key, value in config.items()}
    if not isinstance(config, list):
        return config
    return [
        _enabled(parser, f"{id}::{index}", item)
        for index, item in enumerate(config)
        if not (
            isinstance(item, dict)
            and "_disabled_" in item
            and parser.get_parsed_content(f"{id}::{index}", instantiate=False).is_disabled()
        )
    ]


def is_done(run: Run, results: Path) -> bool:
    """Whether there is a result of the same pairs and the same config, with its fields if they are needed."""
    result = read_result(results, run)
    return (
        result is not None
        and result["registered"] == repr(run.pairs)
        and result["config"] == config_of(parser_of(run))
        and (not run.keep_fields or field_file(results, run).is_file())
    )


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
    parser = parser_of(run)
    parts = {id: parser.get_parsed_content(id) for id in (*_ROOTS, "device")}
    before = peak_memory_mb(parts["device"])
    pairs, fields = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for row in run.pairs.rows(data, Path(folder)):
            figures, fields = _register(parts, row)
            pairs.append(figures)
    result = {
        "run": run.name,
        "registered": repr(run.pairs),
        "pairs": pairs,
        "memory_mb": round(peak_memory_mb(parts["device"]) - before),
        "device": device_name(parts["device"]),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("monai-nodeo", "monai", "torch", "torchdiffeq")},
        "config": config_of(parser_of(run)),
    }
    if run.keep_fields:
        with atomic_path(field_file(results, run)) as partial:
            np.savez_compressed(partial, **fields)
    with atomic_path(result_file(results, run)) as partial:
        partial.write_text(_as_lines(result), encoding="utf-8")
    return result


def _register(parts: dict[str, Any], row: dict[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures of a pair, and what a picture of it needs."""
    item = parts["preprocessing"](dict(row))
    inferer, device = parts["inferer"], parts["device"]
    fixed, moving = (item[key][None].to(device) for key in ("fixed_input", "moving_input"))
    output = parts["postprocessing"]({**item, "pred": inferer(fixed, parts["network_def"], moving)[0].cpu()})
    ddf = output["pred"]
    found = pair_figures(item, output, inferer.loss_function.similarity)
    label, truth = (torch.as_tensor(x) for x in (output["warped_label"], item["fixed_label"]))
    figures = {
        "dice": found["after"]["dice_mean"],
        "dice_before": found["before"]["dice_mean"],
        **_reproduction_dice(found["after"]["dice"], label, truth),
        "hd95_mm": found["after"]["hd95_mm_mean"],
        "folding_percent": found["folding_percent"],
        "folding_sum": jacobian_determinant(ddf[None]).neg().relu().sum().item(),
        "sd_log_jacobian": found["sd_log_jacobian"],
        "seconds": inferer.registrations[0].seconds,
    }
    fields = {
        "ddf": ddf.numpy(),
        "warped": output["warped"][0].numpy(),
        "affine": item["fixed"].affine.numpy(),
    }
    return {"id": row["id"]} | {k: float(f"{v:.{_DIGITS}g}") for k, v in figures.items()}, fields


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
    """JSON with a line for each pair and one for the config."""
    lines = []
    for key, value in result.items():
        shown = "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n ]" if key == "pairs" else json.dumps(value)
        lines.append(f" {json.dumps(key)}: {shown}")
    return "{\n" + ",\n".join(lines) + "\n}\n"
