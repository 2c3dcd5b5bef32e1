# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The table over all pairs of a cohort, and what it says in a few lines."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_nodeo.apps.cohort.ledger import DONE, FAILED, Ledger, locked
from monai_nodeo.apps.cohort.storage import storage_errors
from monai_nodeo.files import atomic_path
from monai_nodeo.registration.metrics_table import TABLE, write_table

__all__ = ["describe", "write_tables"]

SUMMARY = "summary.json"
_LOCK = ".tables.lock"
_WORST = 5
# Figure of the table -> how it is called, and whether low values are the bad ones.
_FIGURES = {
    "dice_mean_after": ("Dice", True),
    "hd95_mm_mean_after": ("HD95 mm", False),
    "tre_mm_mean_after": ("TRE mm", False),
    "similarity_after": ("similarity loss", False),
    "folded_cells": ("folded cells", False),
    "sd_log_jacobian": ("SD log J", False),
    "seconds_total": ("seconds", False),
}


def _collect(ledger: Ledger, rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Id -> result, of the pairs that are done as asked for, and of those that failed."""
    found = ((row, ledger.read(row["id"])) for row in rows)
    return {
        row["id"]: result
        for row, result in found
        if result and (result["status"] == FAILED or ledger.is_current(result, row))
    }


def write_tables(ledger: Ledger, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Write metrics.csv and summary.json from what is on the disk now.

    Processes that share a folder may call it at any time: who comes last writes what all have done.

    Returns:
        The summary.

    Raises:
        StorageError: when they cannot be written.
    """
    with storage_errors(ledger.folder), locked(ledger.folder / _LOCK):
        results = _collect(ledger, rows)
        summary = _summarise(rows, results)
        table = [results[row["id"]]["row"] for row in rows if row["id"] in results]
        write_table(ledger.folder, table)
        with atomic_path(ledger.folder / SUMMARY) as partial:
            partial.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


def describe(summary: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """The summary in lines of text."""
    pending = f", {summary['pending']} not run yet" if summary["pending"] else ""
    yield f"{summary['pairs']} pairs: {summary[DONE]} done, {summary[FAILED]} failed{pending}; see {folder / TABLE}"
    for name, figure in summary["figures"].items():
        yield f"  {_FIGURES[name][0]:<16} {figure['mean']:.4f} +- {figure['sd']:.4f} (worst: {_worst(figure)})"
    for failure in summary["failures"]:
        yield f"  failed: {failure['id']}: {failure['reason']}"


def _worst(figure: Mapping[str, Any]) -> str:
    return ", ".join(f"{case['id']} {case['value']:.4f}" for case in figure["worst"][:2])


def _summarise(rows: Sequence[Mapping[str, Any]], results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    done = [result["row"] for result in results.values() if result["status"] == DONE]
    failed = [result for result in results.values() if result["status"] == FAILED]
    figures = {name: _figure(done, name) for name in _FIGURES if any(row.get(name, "") != "" for row in done)}
    return {
        "pairs": len(rows),
        DONE: len(done),
        FAILED: len(failed),
        "pending": len(rows) - len(results),
        "figures": figures,
        "failures": [{"id": result["id"], "reason": result["reason"]} for result in failed],
    }


def _figure(done: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    cases = sorted(
        ((float(row[name]), row["id"]) for row in done if row.get(name, "") != ""), reverse=not _FIGURES[name][1]
    )
    values = [value for value, _ in cases]
    return {
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else 0.0,
        "min": min(values),
        "max": max(values),
        "worst": [{"id": id, "value": value} for value, id in cases[:_WORST]],
    }
