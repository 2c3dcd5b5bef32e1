# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Charts of the figures of a pair and of many pairs."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from monai_nodeo.report.plots.planes import as_array

__all__ = ["plot_curves", "plot_dice", "plot_distribution", "plot_history"]

_BLUE, _ORANGE, _GREY = "#0072b2", "#d55e00", "#8c8c8c"  # of Okabe and Ito, for the colour-blind
_LEVELS_MAP = colormaps["cividis"]
_IN_A_ROW = 2
_MANY_BINS = 30
_MANY_CURVES = 8


def plot_history(history: Mapping[str, ArrayLike], step: str = "iteration") -> Figure:
    """Draw the curve of every loss term.

    Args:
        history: name of the term -> its value at every iteration, (iterations,); a term "level" tells the level of the
            pyramid that an iteration belongs to, 0 the coarsest: levels get colours of their own.
        step: what the values are counted in.

    Returns:
        The figure: one small plot a term, each with its own scale.

    Raises:
        ValueError: when there is no term.
    """
    curves = {name: as_array(values) for name, values in history.items()}
    levels = curves.pop("level", None)
    if not curves:
        raise ValueError("history is empty, expected at least one loss term.")
    figure, panels = _small_plots(len(curves))
    for ax, (name, curve) in zip(panels, curves.items(), strict=True):
        _draw_curve(ax, curve, levels)
        ax.set_title(name, fontsize=9)
        ax.set_xlabel(step, fontsize=8)
        _tidy(ax)
    if levels is not None:
        panels[0].legend(fontsize=7, frameon=False, title="level", title_fontsize=7)
    return figure


def plot_dice(before: Mapping[Hashable, float | None], after: Mapping[Hashable, float | None]) -> Figure:
    """Draw the Dice of every structure after registration as bars, the best on top, and that before as a mark.

    Args:
        before: structure -> Dice, or None where it is not defined.
        after: the same structures.

    Returns:
        The figure.
    """
    order = sorted(after, key=lambda label: (after[label] or 0, str(label)))
    values = [after[label] or 0 for label in order]
    marks = [before.get(label) or 0 for label in order]
    figure = Figure(figsize=(5.2, 0.75 + 0.17 * len(order)), dpi=100, layout="constrained")
    ax = figure.subplots()
    rows = np.arange(len(order))
    ax.barh(rows, values, height=0.7, color=_BLUE, label="after")
    ax.plot(marks, rows, linestyle="none", marker="D", markersize=3.5, color=_ORANGE, label="before")
    ax.set_yticks(rows, [str(label) for label in order])
    ax.set(xlim=(0, 1), ylim=(-0.6, len(order) - 0.4))
    ax.set_xlabel("Dice", fontsize=8)
    ax.set_ylabel("label", fontsize=8)
    figure.legend(loc="outside upper right", ncols=2, fontsize=7, frameon=False)
    _tidy(ax)
    return figure


def plot_curves(panels: Mapping[str, Mapping[str, tuple[ArrayLike, ArrayLike]]], along: str = "time") -> Figure:
    """Draw curves, in small plots beside each other.

    Args:
        panels: title -> name of each curve -> where along the axis, and its values there.
        along: what the axis is.

    Returns:
        The figure.
    """
    figure, places = _small_plots(len(panels))
    for ax, (title, curves) in zip(places, panels.items(), strict=True):
        for shade, (name, (at, values)) in zip(np.linspace(0.1, 0.85, len(curves)), curves.items(), strict=True):
            colour = _LEVELS_MAP(shade)
            ax.plot(as_array(at), as_array(values), color=colour, linewidth=1.2, marker=".", markersize=3, label=name)
        ax.set_title(title, fontsize=9)
        ax.set_xlabel(along, fontsize=8)
        if 1 < len(curves) <= _MANY_CURVES:
            ax.legend(fontsize=6, frameon=False)
        _tidy(ax)
    return figure


def plot_distribution(values: Sequence[float], name: str, before: Sequence[float] = ()) -> Figure:
    """Draw how a figure is distributed over many pairs: a histogram, with the median as a line.

    Args:
        values: one value a pair.
        name: what they are.
        before: the same figure before registration, drawn as an outline.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(2.9, 1.9), dpi=100, layout="constrained")
    ax = figure.subplots()
    low, high = (f([*values, *before]) for f in (min, max))
    spread = high - low or max(abs(high), 1.0) * 0.1  # of equal values, too
    edges = min(_MANY_BINS, 8 + len(values) // 4) + 1
    bins = np.linspace(low - 0.02 * spread, high + 0.02 * spread, edges).tolist()
    if before:
        ax.hist(before, bins=bins, histtype="stepfilled", facecolor="none", edgecolor=_ORANGE, label="before")
    ax.hist(values, bins=bins, color=_BLUE, alpha=0.85, label="after")
    ax.axvline(float(np.median(values)), color=_GREY, linewidth=1, linestyle="--", label="median")
    ax.set_title(name, fontsize=9)
    ax.set_ylabel("pairs", fontsize=8)
    ax.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    if before:
        ax.legend(fontsize=6, frameon=False)
    _tidy(ax)
    return figure


def _small_plots(count: int) -> tuple[Figure, list[Axes]]:
    """A figure with so many axes, some in a row."""
    columns = min(count, _IN_A_ROW)
    rows = -(-count // columns)
    figure = Figure(figsize=(2.6 * columns, 2.1 * rows), dpi=100, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[count:]:
        ax.remove()
    return figure, list(axes[:count])


def _draw_curve(ax: Axes, curve: NDArray, levels: NDArray | None) -> None:
    iterations = np.arange(1, len(curve) + 1)
    if levels is None:
        ax.plot(iterations, curve, color=_BLUE, linewidth=1.2)
        return
    present = np.unique(levels)
    for level, shade in zip(present, np.linspace(0.1, 0.85, len(present)), strict=True):
        inside = levels == level
        ax.plot(iterations[inside], curve[inside], color=_LEVELS_MAP(shade), linewidth=1.2, label=f"{level + 1:g}")


def _tidy(ax: Axes) -> None:
    ax.tick_params(labelsize=7)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25, linewidth=0.5)
    ax.set_axisbelow(True)
