# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Tables of results, in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import ttest_1samp

from experiments.catalogue import Run
from experiments.recorded import read_result

__all__ = ["ablation_table", "cohort_table", "mean", "pair_table", "paired_difference", "volume_table"]

Result = Mapping[str, Any]
NOT_RUN = "not run yet"


def mean(result: Result, key: str) -> float:
    """Mean of a figure over the pairs."""
    return statistics.fmean(pair[key] for pair in result["pairs"])


def paired_difference(result: Result, reference: Result, key: str = "dice") -> tuple[float, float]:
    """Mean difference over the same pairs, and half its 95 % confidence interval (t distribution).

    Raises:
        ValueError: when the pairs differ.
    """
    if [p["id"] for p in result["pairs"]] != [p["id"] for p in reference["pairs"]]:
        raise ValueError(f"{result['run']} and {reference['run']} are of different pairs; run both again.")
    differences = [a[key] - b[key] for a, b in zip(result["pairs"], reference["pairs"], strict=True)]
    low, high = ttest_1samp(differences, 0.0).confidence_interval() if len(set(differences)) > 1 else (0.0, 0.0)
    return statistics.fmean(differences), (high - low) / 2


def volume_table(runs: Mapping[str, Run], results: Path) -> str:
    """Table 1: a row a run."""
    columns: dict[str, Callable[[Result], str]] = {
        "Dice, 35 labels": lambda r: f"{mean(r, 'dice'):.4f}",
        "28 (1 is background)": lambda r: f"{mean(r, 'dice_28_with_background'):.4f}",
        "27": lambda r: f"{mean(r, 'dice_27'):.4f}",
        "r %": lambda r: f"{mean(r, 'folding_percent'):.4f}",
        "s": lambda r: f"{mean(r, 'folding_sum'):.1f}",
        "HD95 mm": lambda r: f"{mean(r, 'hd95_mm'):.2f}",
        **_COST,
    }
    return _table(runs, results, columns)


def pair_table(runs: Mapping[str, Run], results: Path) -> str:
    """The pairs of the figure: a row a run."""
    columns: dict[str, Callable[[Result], str]] = {
        "Dice before": lambda r: f"{mean(r, 'dice_before'):.4f}",
        "Dice": lambda r: f"{mean(r, 'dice'):.4f}",
        **_REGULARITY,
    }
    return _table(runs, results, columns)


def cohort_table(runs: Mapping[str, Run], results: Path, reference: str) -> str:
    """Mean and standard deviation over the pairs, and differences to the row ``reference``, pair by pair."""
    published = read_result(results, runs[reference])
    columns: dict[str, Callable[[Result], str]] = {
        "Dice": lambda r: _spread(r, "dice", ".4f"),
        "folding %": lambda r: _spread(r, "folding_percent", ".4f"),
        "SDlogJ": lambda r: _spread(r, "sd_log_jacobian", ".3f"),
        f"Dice, difference to {reference[:3]}": lambda r: _difference(r, published, "dice", ".4f"),
        f"folding, difference to {reference[:3]}": lambda r: _difference(r, published, "folding_percent", ".4f"),
    }
    return _table(runs, results, columns)


def ablation_table(runs: Mapping[str, Run], results: Path, published: Run) -> str:
    """Effect of one setting over the pairs; differences to the published settings, pair by pair."""
    reference = read_result(results, published)
    columns: dict[str, Callable[[Result], str]] = {
        "Dice": lambda r: f"{mean(r, 'dice'):.4f}",
        "difference": lambda r: _difference(r, reference, "dice", ".4f"),
        **_REGULARITY,
        **_COST,
    }
    return _table(runs, results, columns)


_COST: dict[str, Callable[[Result], str]] = {
    "seconds": lambda r: f"{statistics.median(pair['seconds'] for pair in r['pairs']):.1f}",
    "memory MB": lambda r: f"{r['memory_mb']}",
}
_REGULARITY: dict[str, Callable[[Result], str]] = {
    "folding %": lambda r: f"{mean(r, 'folding_percent'):.4f}",
    "SDlogJ": lambda r: f"{mean(r, 'sd_log_jacobian'):.3f}",
}


def _spread(result: Result, key: str, form: str) -> str:
    values = [pair[key] for pair in result["pairs"]]
    return f"{statistics.fmean(values):{form}} ± {statistics.stdev(values):{form}}"


def _difference(result: Result, reference: Result | None, key: str, form: str) -> str:
    if reference is None or result["run"] == reference["run"]:
        return ""
    difference, half = paired_difference(result, reference, key)
    return f"{difference:+{form}} ± {half:{form}}"


def _table(runs: Mapping[str, Run], results: Path, columns: Mapping[str, Callable[[Result], str]]) -> str:
    lines: list[Sequence[str]] = [["", *columns], ["---"] * (len(columns) + 1)]
    for label, run in runs.items():
        result = read_result(results, run)
        cells = [NOT_RUN] + [""] * (len(columns) - 1) if result is None else [show(result) for show in columns.values()]
        lines.append([label, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
