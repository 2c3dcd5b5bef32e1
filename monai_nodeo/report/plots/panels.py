# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""What is drawn on one plane of a pair. Each function draws on an Axes in the unit of the spacing, from (0, 0)."""

from __future__ import annotations

from typing import Any

import numpy as np
import SimpleITK as sitk
from contourpy import contour_generator
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, QuadMesh
from matplotlib.colors import Colormap, LogNorm
from matplotlib.image import AxesImage
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from monai_nodeo.report.plots.planes import Plane

__all__ = [
    "DIFFERENCE_COLOURS",
    "DISPLACEMENT_COLOURS",
    "FIXED_COLOUR",
    "FOLD_COLOUR",
    "JACOBIAN_COLOURS",
    "JACOBIAN_LIMITS",
    "MOVING_COLOUR",
    "draw_contours",
    "draw_difference",
    "draw_displacement",
    "draw_edges",
    "draw_grid",
    "draw_image",
    "draw_jacobian",
    "draw_uncertainty",
]

# Maps and pairs of colours that the colour-blind tell apart.
DIFFERENCE_COLOURS = colormaps["PuOr"]
DISPLACEMENT_COLOURS = colormaps["cividis"]
FOLD_COLOUR = "#e4002b"
JACOBIAN_COLOURS: Colormap = colormaps["PRGn"].with_extremes(bad=FOLD_COLOUR)  # holds neither red nor black
JACOBIAN_LIMITS = (0.25, 4.0)
FIXED_COLOUR, MOVING_COLOUR = "#ffb000", "#4cc9ff"

_LINES_ACROSS = 30
_EDGE_CLASSES = 2  # thresholds between background, and darker and brighter tissue


def draw_image(ax: Axes, plane: Plane, name: str) -> None:
    """Draw an image of the plane in grey."""
    _show(ax, plane, plane.images[name], "gray", (0, 1))


def draw_difference(ax: Axes, plane: Plane, name: str) -> None:
    """Draw the image ``name`` minus the fixed one, both in their grey windows, from -1 to 1."""
    _show(ax, plane, plane.images[name] - plane.images["fixed"], DIFFERENCE_COLOURS, (-1, 1))


def draw_displacement(ax: Axes, plane: Plane, largest: float) -> None:
    """Draw the length of the displacement, from 0 to ``largest`` in the unit of the spacing."""
    _show(ax, plane, plane.length, DISPLACEMENT_COLOURS, (0, largest))


def draw_uncertainty(ax: Axes, plane: Plane, largest: float) -> None:
    """Draw the uncertainty of the displacement, from 0 to ``largest`` in the unit of the spacing."""
    assert plane.uncertainty is not None
    _show(ax, plane, plane.uncertainty, DISPLACEMENT_COLOURS, (0, largest))


def draw_jacobian(ax: Axes, plane: Plane, deformed: bool = False) -> QuadMesh:
    """Colour the cells between the voxels by the Jacobian determinant; folds (0 or less) are red in a black outline.

    The scale is logarithmic and white at 1, so that halving and doubling a volume are equally far from white.

    Args:
        ax: where to draw.
        plane: see :py:class:`Plane`.
        deformed: draw each cell where the displacement takes it, instead of where it was.

    Returns:
        The coloured cells, for ``figure.colorbar``.
    """
    x, y = _positions(plane, deformed)
    # A logarithm of 0 or less is invalid: exactly the folds get the colour of invalid values.
    values = np.ma.masked_less_equal(plane.determinant, 0)
    mesh = ax.pcolormesh(x, y, values, cmap=JACOBIAN_COLOURS, norm=LogNorm(*JACOBIAN_LIMITS))
    rim = _rim(np.ma.getmaskarray(values), np.stack([x, y], axis=-1))
    if rim:  # colour alone would not tell
        ax.add_collection(LineCollection(rim, colors="black", linewidths=0.5))
    _frame(ax)
    return mesh


def draw_grid(ax: Axes, plane: Plane) -> None:
    """Draw grid lines where the displacement takes them."""
    x, y = _positions(plane, deformed=True)
    step = max(1, round(max(x.shape) / _LINES_ACROSS))
    points = np.stack([x, y], axis=-1)
    lines = [*points[::step], *points[:, ::step].swapaxes(0, 1)]
    ax.add_collection(LineCollection(lines, colors="black", linewidths=0.4))
    _frame(ax)


def draw_edges(ax: Axes, plane: Plane, name: str, colour: str) -> None:
    """Outline the tissues of an image: level lines at Otsu's thresholds between its grey values."""
    image = gaussian_filter(plane.images[name], 0.7)
    if np.ptp(image) == 0:
        return
    thresholds = sitk.OtsuMultipleThresholdsImageFilter()
    thresholds.SetNumberOfThresholds(_EDGE_CLASSES)
    thresholds.Execute(sitk.GetImageFromArray(image))
    levels = [level for level in sorted(set(thresholds.GetThresholds())) if image.min() < level < image.max()]
    if levels:
        x, y = _positions(plane, deformed=False)
        ax.contour(x, y, image, levels, colors=colour, linewidths=0.9)


def draw_contours(ax: Axes, plane: Plane, name: str, colour: str) -> None:
    """Outline every structure of a label map."""
    labels = plane.labels[name]
    x, y = _positions(plane, deformed=False)
    masks = (np.where(labels == value, 1.0, 0.0) for value in np.unique(labels[labels > 0]))
    outlines: Any = [line for mask in masks for line in contour_generator(x, y, mask).lines(0.5)]
    # one collection for all: a call of contour() for each takes ten times as long
    ax.add_collection(LineCollection(outlines, colors=colour, linewidths=0.8))
    _frame(ax)


def _rim(folds: NDArray, corners: NDArray) -> list[NDArray]:
    """Sides of folded cells (X - 1, Y - 1) that their neighbours do not share; corners (X, Y, 2)."""
    outside = np.pad(folds, 1)
    along_x = outside[1:-1, 1:] != outside[1:-1, :-1]  # between the cells below and above, (X - 1, Y)
    along_y = outside[1:, 1:-1] != outside[:-1, 1:-1]
    return [
        *np.stack([corners[:-1], corners[1:]], axis=2)[along_x],
        *np.stack([corners[:, :-1], corners[:, 1:]], axis=2)[along_y],
    ]


def _positions(plane: Plane, deformed: bool) -> NDArray:
    """Of the voxel centres, (2, X, Y); the plane starts at 0, half a voxel before the first."""
    shift = plane.ddf if deformed else 0
    return (np.indices(plane.length.shape) + 0.5 + shift) * np.reshape(plane.spacing, (2, 1, 1))


def _show(ax: Axes, plane: Plane, values: NDArray, colours: Colormap | str, limits: tuple[float, float]) -> AxesImage:
    extent = (0, plane.size[0], 0, plane.size[1])
    image = ax.imshow(values.T, origin="lower", extent=extent, cmap=colours, vmin=limits[0], vmax=limits[1])
    ax.set_axis_off()
    return image


def _frame(ax: Axes) -> None:
    ax.set_aspect("equal")
    ax.set_axis_off()
    ax.autoscale_view()
