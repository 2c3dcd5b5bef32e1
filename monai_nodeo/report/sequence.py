# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The report of a series: a page with the curves of its frames, labels and points, in a single file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from monai.config import PathLike

from monai_nodeo.files import atomic_path
from monai_nodeo.registration.sequences.result import SequenceRegistration
from monai_nodeo.report.layers import inline_svg
from monai_nodeo.report.page import PAGE, render
from monai_nodeo.report.plots.charts import plot_curves, plot_history

__all__ = ["write_sequence_report"]

Rows = Sequence[Mapping[str, Any]]
_UNITS = {"volume_mm3": "volume, mm³", "area_mm2": "area, mm²"}


def write_sequence_report(sequence: SequenceRegistration, figures: Mapping[str, Any], folder: PathLike) -> Path:
    """Make the page of a series.

    Args:
        sequence: the result.
        figures: content of its metrics.json.
        folder: of the result.

    Returns:
        The page, ``report.html``.
    """
    curves = {"frames": _of_frames(figures["frames"])}
    if figures["labels"]:
        curves["labels"] = _of_labels(figures["labels"])
    if figures["points"]:
        curves["points"] = {"path of the points, mm": _columns(figures["points"], {"path_mm": "mean"})}
    page = render(
        "sequence.html.j2",
        title=f"Series {Path(str(folder)).name}",
        name=Path(str(folder)).name,
        charts=[(name, inline_svg(partial(plot_curves, panels), f"{name}-chart")) for name, panels in curves.items()],
        history_chart=inline_svg(
            partial(plot_history, {name: values.numpy() for name, values in sequence.history.items()}), "history-chart"
        ),
        frames=figures["frames"],
        tiles=[
            ("Frames", str(len(figures["frames"]))),
            ("Reference", str(figures["reference"])),
            ("Keyframes of the velocity", str(figures["keyframes"])),
            ("Period", "none" if figures["periodic"] is None else f"{figures['periodic']:g}"),
            ("Iterations", str(figures["iterations"])),
            ("Time", f"{figures['seconds']:.1f} s"),
        ],
    )
    target = Path(str(folder)) / PAGE
    with atomic_path(target) as partial_page:
        partial_page.write_text(page, encoding="utf-8")
    return target


def _of_frames(rows: Rows) -> dict[str, Any]:
    sides = {"similarity_before": "before", "similarity_after": "after"}
    return {
        "similarity loss": _columns(rows, sides),
        "displacement, mm": _columns(rows, {"displacement_mm_mean": "mean"}),
    }


def _of_labels(rows: Rows) -> dict[str, Any]:
    labels = sorted({row["label"] for row in rows})
    size = next(name for name in _UNITS if name in rows[0])
    found: dict[str, Any] = {}
    for name, title in ((size, _UNITS[size]), ("strain_largest", "largest strain"), ("strain_least", "least strain")):
        found[title] = {}
        for label in labels:
            found[title] |= _columns([row for row in rows if row["label"] == label], {name: f"label {label}"})
    return found


def _columns(rows: Rows, names: Mapping[str, str]) -> dict[str, Any]:
    """Name of each curve -> its times and values."""
    times = [row["time"] for row in rows]
    return {title: (times, [row[name] for row in rows]) for name, title in names.items()}
