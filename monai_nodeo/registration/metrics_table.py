# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""``metrics.csv``: a row for each pair of a run. Needs neither torch nor MONAI."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from monai_nodeo.data.keys import IMAGE_KEYS, images_of
from monai_nodeo.files.atomic import atomic_path

__all__ = ["TABLE", "failed_row", "read_table", "row_of", "summary_of", "write_table"]

TABLE = "metrics.csv"
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
    "wrong_probability",
    "displacement_mm_mean",
    "iterations",
    "seconds_optimisation",
    "seconds_total",
    "peak_memory_mb",
    "device",
)


def row_of(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a pair that is done, from what is in its ``metrics.json``."""
    flat = {**figures, "status": "done"}
    for side in ("before", "after"):
        flat |= {f"{name}_{side}": value for name, value in figures[side].items()}
    return {column: "" if (value := flat.get(column, "")) is None else value for column in _COLUMNS} | _paths(flat)


def failed_row(row: Mapping[str, Any], reason: str) -> dict[str, Any]:
    """The row of a pair that failed; ``row`` is that of the data list."""
    return dict.fromkeys(_COLUMNS, "") | {"id": row["id"], "status": "failed", "reason": reason, **_paths(row)}


def _paths(row: Mapping[str, Any]) -> dict[str, str]:
    """Those of several contrasts one after the other."""
    return {key: " ".join(images_of(row[key])) for key in IMAGE_KEYS if key in row}


def write_table(folder: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write the rows to ``metrics.csv``, whole or not at all."""
    target = folder / TABLE
    with atomic_path(target) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return target


def read_table(folder: Path) -> list[dict[str, str]]:
    """The rows of a result folder's ``metrics.csv``.

    Raises:
        FileNotFoundError: when there is none.
    """
    try:
        with (folder / TABLE).open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{folder} holds no {TABLE}; give the output_dir of a run.") from error


def summary_of(figures: Mapping[str, Any]) -> str:
    """The figures of a pair in a line."""
    names = {"similarity": "similarity loss", "dice_mean": "Dice", "hd95_mm_mean": "HD95 mm", "tre_mm_mean": "TRE mm"}
    changes = [
        f"{name} {figures['before'][key]:.4f} -> {figures['after'][key]:.4f}"
        for key, name in names.items()
        if figures["after"].get(key) is not None and figures["before"].get(key) is not None
    ]
    refused = [] if figures.get("accepted", True) else ["no deformation can be defended: the start alone"]
    wrong = figures.get("wrong_probability")
    doubt = [] if wrong is None else [f"wrong with a probability of {wrong:.0%}"]
    return ", ".join(
        [*refused, *changes, *doubt, f"{figures['folded_cells']} folded cells", f"{figures['seconds_optimisation']} s"]
    )
