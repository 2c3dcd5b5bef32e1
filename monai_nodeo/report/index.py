# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""One page over the pairs of a result folder, the worst first."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from markupsafe import Markup
from monai.config import PathLike

from monai_nodeo.files import atomic_path
from monai_nodeo.registration.folder import FIGURES
from monai_nodeo.registration.metrics_table import read_table
from monai_nodeo.report.layers import inline_svg
from monai_nodeo.report.page import PAGE, SUMMARY, render
from monai_nodeo.report.plots import plot_distribution
from monai_nodeo.report.view import VIEW

__all__ = ["INDEX", "index_page", "write_index"]

INDEX = "index.html"

_GRADES = {"failed": "failed", "bad": "bad", "check": "to look at", "good": "good", "unknown": "without a report"}


class _Column(NamedTuple):
    """A figure of a pair: its name in the table file, its title, and whether low values are the bad ones."""

    name: str
    title: str
    digits: int
    low_is_bad: bool = False
    before: str | None = None


_COLUMNS = (
    _Column("dice_mean_after", "Dice", 3, low_is_bad=True, before="dice_mean_before"),
    _Column("similarity_after", "Similarity", 3, before="similarity_before"),
    _Column("hd95_mm_mean_after", "HD95, mm", 2, before="hd95_mm_mean_before"),
    _Column("folded_cells", "Folded cells", 0),
    _Column("sd_log_jacobian", "SD log J", 3),
    _Column("displacement_mm_mean", "Moved, mm", 2),
    _Column("seconds_optimisation", "Seconds", 1),
)


def write_index(output_dir: PathLike) -> Path:
    """Make ``index.html`` from the table of a result folder and the reports of its pairs.

    Args:
        output_dir: holds metrics.csv; pairs are in the folders below it.

    Returns:
        The page.

    Raises:
        FileNotFoundError: when there is no table.
    """
    folder = Path(str(output_dir)).absolute()
    page = index_page(folder)
    with atomic_path(folder / INDEX) as partial_page:
        partial_page.write_text(page, encoding="utf-8")
    return folder / INDEX


def index_page(folder: Path, served: bool = False) -> str:
    """The page over many pairs as HTML.

    Args:
        folder: holds metrics.csv.
        served: link to the viewers of all finished pairs, as `server.RunServer` makes them; else to those in files.

    Raises:
        FileNotFoundError: when there is no table.
    """
    table = read_table(folder)
    columns = [column for column in _COLUMNS if any(row.get(column.name) for row in table)]
    summaries = _summaries(folder)
    rows = sorted((_row(row, summaries.get(row["id"]), columns) for row in table), key=_badness)
    for row in rows:
        shown = (folder / row["id"] / (FIGURES if served else VIEW)).exists()
        row["view"] = f"{quote(row['id'])}/{VIEW}" if shown else None
    return render(
        "index.html.j2",
        title=f"Registrations in {folder.name}",
        name=folder.name,
        grades=_GRADES,
        counts=Counter(row["grade"] for row in rows),
        charts=[_chart(column, table) for column in columns],
        columns=[{"title": "Verdict, worst first", "number": False}, {"title": "Pair", "number": False}]
        + [{"title": column.title, "number": True} for column in columns],
        rows=rows,
    )


def _row(row: Mapping[str, str], summary: Mapping[str, Any] | None, columns: Sequence[_Column]) -> dict[str, Any]:
    if row["status"] == "failed":  # there may be the report of an earlier run
        summary = {"grade": "failed", "headline": row["reason"]}
    elif summary is None:
        summary = {"grade": "unknown", "headline": "No report was made."}
    return {
        "id": row["id"],
        "grade": summary["grade"],
        "headline": summary["headline"],
        "thumbnail": summary.get("thumbnail"),
        "link": summary.get("link"),
        "cells": [_cell(row.get(column.name), column.digits) for column in columns],
        "badness": [_badness_of(row.get(column.name), column.low_is_bad) for column in columns],
    }


def _summaries(folder: Path) -> dict[str, dict[str, Any]]:
    """Pair -> what its report says, with a link to it."""
    summaries = {}
    for path in folder.glob(f"*/{SUMMARY}"):
        summary = json.loads(path.read_text(encoding="utf-8"))
        summaries[summary["id"]] = {**summary, "link": f"{quote(path.parent.name)}/{PAGE}"}
    return summaries


def _cell(value: str | None, digits: int) -> tuple[str, str]:
    """What to show, and what to sort by."""
    return (f"{float(value):.{digits}f}", value) if value else ("", "")


def _badness_of(value: str | None, low_is_bad: bool) -> float:
    if not value:
        return float("-inf")
    return -float(value) if low_is_bad else float(value)


def _badness(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Sorts by grade, then by the columns from the left."""
    return list(_GRADES).index(row["grade"]), *[-value for value in row["badness"]], row["id"]


def _chart(column: _Column, table: Sequence[Mapping[str, str]]) -> tuple[Markup, str]:
    values = _values(table, column.name)
    before = _values(table, column.before) if column.before else []
    chart = inline_svg(partial(plot_distribution, values, column.title, before), f"chart-{column.name}")
    middle = sorted(values)[len(values) // 2]
    words = f"{column.title} of {len(values)} pairs: {min(values):.4g} to {max(values):.4g}, median {middle:.4g}"
    return chart, words


def _values(table: Sequence[Mapping[str, str]], name: str) -> list[float]:
    return [float(row[name]) for row in table if row.get(name)]
