# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Figures of a registered pair."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import fill
from typing import Any

from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import ArrayLike, NDArray

from monai_nodeo.report.plots.panels import draw_difference, draw_grid, draw_image, draw_jacobian
from monai_nodeo.report.plots.planes import Plane, cut

__all__ = ["plot_columns", "plot_grid", "plot_jacobian", "plot_registration"]

_PANEL = 1.9  # inches
_LARGE_PANEL = 3.2
_TITLE_WIDTH = 24  # characters


def plot_registration(
    fixed: ArrayLike, moving: ArrayLike, warped: ArrayLike, ddf: ArrayLike, affine: ArrayLike | None = None
) -> Figure:
    """Draw a registered pair: the images, what differs before and after, and the deformed grid.

    A slice gives one row, a volume three: axial, coronal and sagittal, through the centre of mass of the fixed image.
    Each image has a grey window of its own (up to its 99.5 % quantile); differences are those of the windowed images,
    minus the fixed one. The grid is drawn where the deformation takes it, coloured by the Jacobian determinant.

    Args:
        fixed: array or tensor, (*spatial), 2D or 3D.
        moving: on the grid of the fixed image, (*spatial).
        warped: the moving image after registration, (*spatial).
        ddf: displacement in voxels, (D, *spatial), channel i along axis i.
        affine: voxel -> RAS millimetres of the fixed image, (4, 4). Without it the axes of the array are taken for the
            world's, in voxels, and the sides of the patient are not named.

    Returns:
        The figure; ``figure.savefig(path)`` writes it.

    Raises:
        ValueError: when the shapes do not fit.
    """
    planes = cut({"fixed": fixed, "moving": moving, "warped": warped}, ddf, affine)
    titles = ("fixed", "moving", "warped", "difference before", "difference after", "deformed grid")
    heights = [_PANEL * plane.size[1] / plane.size[0] for plane in planes]
    figure = Figure(figsize=(_PANEL * len(titles) + 0.9, sum(heights) + 0.4), dpi=100, layout="compressed")
    panels = figure.subplots(len(planes), len(titles), squeeze=False, height_ratios=heights)

    for row, plane in zip(panels, planes, strict=True):
        for ax, name in zip(row[:3], plane.images, strict=True):
            draw_image(ax, plane, name)
        for ax, name in zip(row[3:5], ("moving", "warped"), strict=True):
            draw_difference(ax, plane, name)
        mesh = draw_jacobian(row[5], plane, deformed=True)
        draw_grid(row[5], plane)
        _fit(row[5], plane)
        if affine is not None:
            _name_sides(row[0], plane)
    for ax, title in zip(panels[0], titles, strict=True):
        ax.set_title(title, fontsize=9)
    _add_colour_bar(figure, mesh, panels[:, 5])
    return figure


def plot_columns(columns: Mapping[str, tuple[ArrayLike, ArrayLike]], affine: ArrayLike | None = None) -> Figure:
    """Draw registrations of one pair side by side: the warped image, the deformed grid, and the Jacobian determinant.

    Args:
        columns: title -> warped image (*spatial) and displacement in voxels (D, *spatial), all on one grid. Of volumes
            the axial plane through the centre of mass is shown.
        affine: voxel -> RAS millimetres, (4, 4), as for :py:func:`plot_registration`.

    Returns:
        The figure.

    Raises:
        ValueError: when the shapes do not fit.
    """
    planes = [cut({"warped": warped}, ddf, affine)[0] for warped, ddf in columns.values()]
    height = _PANEL * planes[0].size[1] / planes[0].size[0]
    # finer than the others, so that folds of one cell are seen
    figure = Figure(figsize=(_PANEL * len(planes) + 0.9, 3 * height + 0.6), dpi=160, layout="compressed")
    panels = figure.subplots(3, len(planes), squeeze=False)
    for title, plane, (top, middle, bottom) in zip(columns, planes, panels.T, strict=True):
        top.set_title(fill(title, _TITLE_WIDTH), fontsize=8)
        draw_image(top, plane, "warped")
        draw_grid(middle, plane)
        _fit(middle, plane)
        mesh = draw_jacobian(bottom, plane)
    _add_colour_bar(figure, mesh, panels[2])
    return figure


def plot_grid(ddf: ArrayLike, affine: ArrayLike | None = None) -> Figure:
    """Draw the deformed grid, in one plane of a slice or three planes through the middle of a volume.

    Args:
        ddf: displacement in voxels, (D, *spatial), channel i along axis i.
        affine: voxel -> RAS millimetres, (4, 4), as for :py:func:`plot_registration`.

    Returns:
        The figure.
    """
    planes = cut({}, ddf, affine)
    figure, panels = _row(planes)
    for ax, plane in zip(panels, planes, strict=True):
        draw_grid(ax, plane)
    return figure


def plot_jacobian(ddf: ArrayLike, affine: ArrayLike | None = None) -> Figure:
    """Draw the Jacobian determinant on a logarithmic scale, folds in red, in the planes of :py:func:`plot_grid`.

    Args:
        ddf: displacement in voxels, (D, *spatial), channel i along axis i.
        affine: voxel -> RAS millimetres, (4, 4), as for :py:func:`plot_registration`.

    Returns:
        The figure.
    """
    planes = cut({}, ddf, affine)
    figure, panels = _row(planes)
    meshes = [draw_jacobian(ax, plane) for ax, plane in zip(panels, planes, strict=True)]
    _add_colour_bar(figure, meshes[0], panels)
    return figure


def _row(planes: list[Plane]) -> tuple[Figure, NDArray]:
    """A figure with a panel for each plane, beside each other on one scale."""
    widths = [plane.size[0] for plane in planes]
    height = max(plane.size[1] for plane in planes) * _LARGE_PANEL / max(widths)
    width = _LARGE_PANEL * sum(widths) / max(widths)
    figure = Figure(figsize=(width + 0.9, height + 0.4), dpi=100, layout="compressed")
    panels = figure.subplots(1, len(planes), squeeze=False, width_ratios=widths)[0]
    for ax, plane in zip(panels, planes, strict=True):
        ax.set_title(plane.name, fontsize=9)
    return figure, panels


def _fit(ax: Axes, plane: Plane) -> None:
    ax.set(xlim=(0, plane.size[0]), ylim=(0, plane.size[1]))


def _name_sides(ax: Axes, plane: Plane) -> None:
    """Letters in the upper corners of a panel, readable on any grey."""
    outline = [withStroke(linewidth=1, foreground="black")]
    look: dict[str, Any] = {"color": "white", "fontsize": 9, "path_effects": outline}
    sides = plane.sides[0]
    ax.text(0.03, 0.97, sides[0], transform=ax.transAxes, ha="left", va="top", **look)
    ax.text(0.97, 0.97, sides[1], transform=ax.transAxes, ha="right", va="top", **look)


def _add_colour_bar(figure: Figure, mesh: QuadMesh, panels: NDArray) -> None:
    bar = figure.colorbar(mesh, ax=list(panels), extend="both", shrink=0.7, aspect=30, ticks=[0.25, 0.5, 1, 2, 4])
    bar.ax.set_yticklabels(["¼", "½", "1", "2", "4"], fontsize=7)
    bar.ax.minorticks_off()
    bar.set_label("Jacobian determinant (red: folded)", fontsize=7)
