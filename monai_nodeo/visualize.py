# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Figures of a registration: images, differences, deformed grid, Jacobian determinant, loss curves.

The functions keep no state and leave pyplot alone. Images are turned to RAS for the eye, whatever the orientation of
the stored array: the patient's right on the right, anterior and superior up, in millimetres.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, QuadMesh
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation, io_orientation
from numpy.typing import ArrayLike, NDArray

from monai_nodeo.fields import jacobian_determinant

__all__ = ["plot_grid", "plot_history", "plot_jacobian", "plot_registration"]

_DIFFERENCE_COLOURS = "PuOr"
_JACOBIAN_COLOURS = "PRGn"  # readable for the colour-blind, and holds neither the red of folds nor an orange
_FOLD_COLOUR = "#e4002b"
_JACOBIAN_LIMITS = (0.25, 4.0)
_PANEL = 1.9  # inches
_LINES_ACROSS = 30

_VIEWS = {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}  # RAS axes that point right and up
_SIDES = ("LR", "PA", "IS")


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
    views = _views([_array(x) for x in (fixed, moving, warped)], _array(ddf), affine)
    titles = ("fixed", "moving", "warped", "difference before", "difference after", "deformed grid")
    heights = [_PANEL * view.size[1] / view.size[0] for view in views]
    figure = Figure(figsize=(_PANEL * len(titles) + 0.9, sum(heights) + 0.4), dpi=100, layout="compressed")
    panels = figure.subplots(len(views), len(titles), squeeze=False, height_ratios=heights)

    for row, view in zip(panels, views, strict=True):
        for ax, image in zip(row[:3], view.images, strict=True):
            _show(ax, image, view.spacing, "gray", (0, 1))
        for ax, difference in zip(row[3:5], view.images[1:] - view.images[0], strict=True):
            _show(ax, difference, view.spacing, _DIFFERENCE_COLOURS, (-1, 1))
        mesh = plot_jacobian(view.determinant, row[5], view.spacing, view.ddf)
        plot_grid(view.ddf, row[5], view.spacing)
        row[5].set(xlim=(0, view.size[0]), ylim=(0, view.size[1]))
        if affine is not None:
            _name_sides(row[0], view.sides)
    for ax, title in zip(panels[0], titles, strict=True):
        ax.set_title(title, fontsize=9)
    _add_colour_bar(figure, mesh, panels[:, 5])
    return figure


def plot_grid(ddf: ArrayLike, ax: Axes, spacing: Sequence[float] = (1, 1)) -> None:
    """Draw the grid lines of a plane where a displacement takes them.

    Args:
        ddf: in-plane displacement in voxels, (2, X, Y); X is drawn to the right and Y up.
        ax: where to draw.
        spacing: voxel size along X and Y.
    """
    x, y = _positions(_array(ddf), spacing)
    step = max(1, round(max(x.shape) / _LINES_ACROSS))
    points = np.stack([x, y], axis=-1)
    lines = [*points[::step], *points[:, ::step].swapaxes(0, 1)]
    ax.add_collection(LineCollection(lines, colors="black", linewidths=0.4))
    _frame(ax)


def plot_jacobian(
    determinant: ArrayLike, ax: Axes, spacing: Sequence[float] = (1, 1), ddf: ArrayLike | None = None
) -> QuadMesh:
    """Colour the cells between the voxels of a plane by the Jacobian determinant, folds (0 or less) in red.

    The scale is logarithmic and white at 1, so that halving and doubling a volume are equally far from white.

    Args:
        determinant: a plane of :py:func:`monai_nodeo.fields.jacobian_determinant`, (X - 1, Y - 1).
        ax: where to draw.
        spacing: voxel size along X and Y.
        ddf: in-plane displacement in voxels, (2, X, Y): draws each cell where it is taken. Default: where it was.

    Returns:
        The coloured cells, for ``figure.colorbar``.
    """
    values = _array(determinant)
    corners = np.zeros((2, values.shape[0] + 1, values.shape[1] + 1)) if ddf is None else _array(ddf)
    x, y = _positions(corners, spacing)
    # A logarithm of 0 or less is invalid: exactly the folds get the colour of invalid values.
    mesh = ax.pcolormesh(
        x, y, values, cmap=colormaps[_JACOBIAN_COLOURS].with_extremes(bad=_FOLD_COLOUR), norm=LogNorm(*_JACOBIAN_LIMITS)
    )
    _frame(ax)
    return mesh


def plot_history(history: Mapping[str, ArrayLike]) -> Figure:
    """Draw the curve of every loss term.

    Args:
        history: name of the term -> its value at every iteration, (iterations,).

    Returns:
        The figure: one small plot a term, each with its own scale.

    Raises:
        ValueError: when there is no term.
    """
    if not history:
        raise ValueError("history is empty, expected at least one loss term.")
    figure = Figure(figsize=(2.6 * len(history), 2.1), dpi=100, layout="constrained")
    panels = figure.subplots(1, len(history), squeeze=False)[0]
    for ax, (name, values) in zip(panels, history.items(), strict=True):
        curve = _array(values)
        ax.plot(np.arange(1, len(curve) + 1), curve, color="#0072b2", linewidth=1.2)
        ax.set_title(name, fontsize=9)
        ax.set_xlabel("iteration", fontsize=8)
        ax.tick_params(labelsize=7)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25, linewidth=0.5)
    return figure


class _View(NamedTuple):
    """One plane of the pair, turned to RAS: axis 0 is drawn to the right, axis 1 up."""

    images: NDArray  # (3, X, Y): fixed, moving, warped, windowed to [0, 1]
    ddf: NDArray  # (2, X, Y), voxels
    determinant: NDArray  # (X - 1, Y - 1)
    spacing: tuple[float, float]
    sides: str  # of the patient, at the left and the right edge

    @property
    def size(self) -> tuple[float, float]:
        """Width and height, in the unit of the spacing."""
        return self.images.shape[1] * self.spacing[0], self.images.shape[2] * self.spacing[1]


def _views(images: list[NDArray], ddf: NDArray, affine: ArrayLike | None) -> list[_View]:
    """The plane of a slice, or three planes of a volume."""
    shape = images[0].shape
    if len(shape) not in (2, 3) or any(i.shape != shape for i in images) or ddf.shape != (len(shape), *shape):
        raise ValueError(
            "expected three images of one shape, 2D or 3D, and a ddf (D, *spatial), got images "
            f"{', '.join(str(i.shape) for i in images)} and a ddf {ddf.shape}."
        )
    flat = 3 - len(shape)
    matrix = np.eye(4) if affine is None else np.asarray(affine, dtype=np.float64)
    turn = io_orientation(matrix)
    determinant = jacobian_determinant(torch.from_numpy(ddf)[None])[0].numpy()

    def to_ras(volume: NDArray) -> NDArray:
        return apply_orientation(volume.reshape(*volume.shape, *[1] * flat), turn)

    pictures = np.stack([to_ras(_windowed(i)) for i in images])
    field = np.zeros((3, *pictures.shape[1:]))
    spacing = np.ones(3)
    for axis, (target, sign) in enumerate(turn):
        spacing[int(target)] = voxel_sizes(matrix)[axis]
        if axis < len(ddf):
            field[int(target)] = sign * to_ras(ddf[axis])
    cells = to_ras(determinant)
    centre = [round(float(c)) for c in _centre_of_mass(pictures[0])]

    views = []
    for across, up in _VIEWS.values():
        (normal,) = {0, 1, 2} - {across, up}
        if flat and normal != turn[2, 0]:
            continue
        at = centre[normal]
        views.append(
            _View(
                pictures.take(at, axis=normal + 1),
                field[[across, up]].take(at, axis=normal + 1),
                cells.take(min(at, cells.shape[normal] - 1), axis=normal),
                (spacing[across], spacing[up]),
                _SIDES[across],
            )
        )
    return views


def _array(values: ArrayLike) -> NDArray:
    """A float array of an array or a tensor on any device."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    return np.array(values, dtype=np.float64, order="C")  # copied: torch takes no views of flipped arrays


def _windowed(image: NDArray) -> NDArray:
    """Grey values from the lowest (0) to the 99.5 % quantile (1), those above cut off."""
    low, high = image.min(), np.quantile(image, 0.995)
    return ((image - low) / max(high - low, np.finfo(np.float32).tiny)).clip(0, 1)


def _centre_of_mass(image: NDArray) -> NDArray:
    """Index of the centre of the grey values, (D,); the middle of an image without any."""
    weight = image if image.any() else np.ones_like(image)
    return np.array([np.average(i, weights=weight) for i in np.indices(image.shape)])


def _positions(ddf: NDArray, spacing: Sequence[float]) -> NDArray:
    """Where the voxel centres of a plane are taken, (2, X, Y); the plane starts at 0, half a voxel before the first."""
    return (np.indices(ddf.shape[1:]) + 0.5 + ddf) * np.reshape(spacing, (2, 1, 1))


def _show(ax: Axes, image: NDArray, spacing: tuple[float, float], colours: str, limits: tuple[float, float]) -> None:
    extent = (0, image.shape[0] * spacing[0], 0, image.shape[1] * spacing[1])
    ax.imshow(image.T, origin="lower", extent=extent, cmap=colours, vmin=limits[0], vmax=limits[1])
    ax.set_axis_off()


def _frame(ax: Axes) -> None:
    ax.set_aspect("equal")
    ax.set_axis_off()
    ax.autoscale_view()


def _name_sides(ax: Axes, sides: str) -> None:
    """Letters in the upper corners of a panel, readable on any grey."""
    outline = [withStroke(linewidth=1, foreground="black")]
    look: dict[str, Any] = {"color": "white", "fontsize": 9, "path_effects": outline}
    ax.text(0.03, 0.97, sides[0], transform=ax.transAxes, ha="left", va="top", **look)
    ax.text(0.97, 0.97, sides[1], transform=ax.transAxes, ha="right", va="top", **look)


def _add_colour_bar(figure: Figure, mesh: QuadMesh, panels: NDArray) -> None:
    bar = figure.colorbar(mesh, ax=list(panels), extend="both", shrink=0.7, aspect=30, ticks=[0.25, 0.5, 1, 2, 4])
    bar.ax.set_yticklabels(["¼", "½", "1", "2", "4"], fontsize=7)
    bar.ax.minorticks_off()
    bar.set_label("Jacobian determinant (red: folded)", fontsize=7)
