# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The volumes of a registered pair as a page draws them: codes from 0 to 255 in files of NIfTI, all on one grid."""

from __future__ import annotations

import gzip
from base64 import b64encode
from typing import Any

import nibabel as nib
import numpy as np
import torch
from matplotlib import colormaps
from monai.data import MetaTensor
from numpy.typing import NDArray
from torch.nn import functional as F

from monai_nodeo.files import ImageGrid
from monai_nodeo.geometry.jacobian import jacobian_determinant
from monai_nodeo.registration.result import Registration
from monai_nodeo.report.plots.panels import FOLD_COLOUR, JACOBIAN_COLOURS, JACOBIAN_LIMITS
from monai_nodeo.report.plots.planes import grey_window

__all__ = ["scene_of"]

_FRAMES = 6  # on the way, both ends included
_MOST_VOXELS = 2**24  # of a volume
_LONGEST = 2048  # voxels along an axis: what a texture of WebGL holds
_CELLS_ACROSS = 20  # of the grid that is drawn
_CELL_VOXELS = 4  # at least: a side of a cell
_COLOURED_LABELS = "tab20"
_PLANES = ("sagittal", "coronal", "axial")  # by the RAS axis across them


def scene_of(registration: Registration) -> dict[str, Any]:
    """Everything that the page shows, as JSON holds it.

    The way is seen at several times, from where the moving image was to where it lies on the fixed one. A volume is a
    gzipped NIfTI file in base64. Grids too large for a browser are thinned: ``step`` is how many voxels one stands for.

    Args:
        registration: with its pair.

    Raises:
        ValueError: without the pair, which the page shows.
    """
    pair = registration.pair
    if pair is None:
        raise ValueError("the images that were registered are not where they were.")
    grid, step = _thinned(registration.flow.grid)
    every = (slice(None, None, step),) * grid.spatial_dims
    times = np.linspace(1, 0, _FRAMES).tolist()
    ways = [registration.map.on(grid, time, 1.0) for time in times]
    fixed = _values(pair.fixed.image)[every]
    moved = [_values(way.warp(pair.moving.image)) for way in ways]
    windows = {"fixed": grey_window(fixed), "moved": grey_window(moved[0])}
    whole = registration.displacement if step == 1 else ways[-1].flow_displacement
    extent = max(n * size for n, size in zip(grid.spatial_shape, grid.spacing, strict=True))
    cell = max(extent / _CELLS_ACROSS, _CELL_VOXELS * max(grid.spacing))
    scene = {
        "plane": None if grid.spatial_dims == 3 else _PLANES[int(np.abs(grid.affine[:3, 2]).argmax())],
        "to_voxel": np.linalg.inv(grid.affine).tolist(),
        "shape": grid.spatial_shape,
        "step": step,
        "times": times,
        "windows": windows,
        "cell_mm": cell,
        "fixed": _file(_grey(fixed, windows["fixed"]), grid),
        "moved": [_file(_grey(image, windows["moved"]), grid) for image in moved],
        "jacobian": {"volume": _file(_volume_changes(whole), grid), "limits": JACOBIAN_LIMITS, **_jacobian_colours()},
        "grid": [_file(_chequers(way.flow_displacement, grid, cell), grid) for way in ways],
    }
    labels = {}
    if pair.fixed.label is not None:
        labels["fixed"] = [_values(pair.fixed.label)[every]]
    if pair.moving.label is not None:
        labels["moved"] = [_values(way.warp(pair.moving.label, "nearest")) for way in ways]
    if labels:
        known = np.unique(np.concatenate([[0], *(np.unique(x) for maps in labels.values() for x in maps)]))
        scene["labels"] = {
            "values": known.tolist(),
            **_label_colours(known),
            **{name: [_file(_ranks(x, known), grid) for x in maps] for name, maps in labels.items()},
        }
    return scene


def _thinned(grid: ImageGrid) -> tuple[ImageGrid, int]:
    """A grid that a browser can hold, and how many voxels one of it stands for along an axis."""
    shape = np.array(grid.spatial_shape)
    step = max(1, -(-int(shape.max()) // _LONGEST))
    while np.prod(-(-shape // step)) > _MOST_VOXELS:
        step += 1
    steps = np.ones(4)
    steps[: len(shape)] = step
    left = (*(-(-shape // step)).tolist(), *grid.shape[len(shape) :])
    return ImageGrid(grid.affine * steps, left), step


def _values(image: MetaTensor) -> NDArray:
    """First channel, (*spatial)."""
    return image.as_tensor()[0].detach().cpu().numpy()


def _grey(image: NDArray, window: tuple[float, float]) -> NDArray:
    low, high = window
    return np.rint(255 * ((image - low) / max(high - low, 1e-30)).clip(0, 1)).astype(np.uint8)


def _volume_changes(ddf: torch.Tensor) -> NDArray:
    """The Jacobian determinant in 255 steps of its logarithm within the limits; 0: folded."""
    determinant = jacobian_determinant(ddf[None].cpu())[None]
    padded = F.pad(determinant, (0, 1) * len(ddf), mode="replicate")[0, 0].numpy()
    low, high = np.log(JACOBIAN_LIMITS)
    share = (np.log(padded.clip(min=1e-30)) - low) / (high - low)
    return np.where(padded > 0, 1 + np.rint(254 * share.clip(0, 1)), 0).astype(np.uint8)


def _chequers(ddf: torch.Tensor, grid: ImageGrid, cell: float) -> NDArray:
    """Chequers of the moving space where the flow takes them, 0 and 255; their sides are a cell long, mm."""
    field = ddf.cpu().numpy()
    lit = np.zeros(field.shape[1:], bool)
    for axis, size in enumerate(grid.spacing):
        along = np.arange(field.shape[axis + 1]).reshape([-1 if i == axis else 1 for i in range(len(field))])
        lit ^= np.floor((along + field[axis]) * size / cell).astype(int) % 2 == 1
    return np.where(lit, 255, 0).astype(np.uint8)


def _ranks(labels: NDArray, known: NDArray) -> NDArray:
    return np.searchsorted(known, labels).astype(np.uint8 if len(known) <= 256 else np.uint16)


def _jacobian_colours() -> dict[str, Any]:
    colours = (255 * JACOBIAN_COLOURS(np.linspace(0, 1, 255))).round().astype(int)
    fold = [int(FOLD_COLOUR[i : i + 2], 16) for i in (1, 3, 5)]
    red, green, blue = ([first, *channel] for first, channel in zip(fold, colours.T[:3].tolist(), strict=True))
    return {"colours": {"R": red, "G": green, "B": blue, "A": [255] * 256, "I": list(range(256))}}


def _label_colours(known: NDArray) -> dict[str, Any]:
    palette = colormaps[_COLOURED_LABELS]
    colours = (255 * palette(np.arange(len(known)) % palette.N)).round().astype(int)
    red, green, blue, _ = colours.T.tolist()
    alpha = [0 if label == 0 else 255 for label in known]
    return {"colours": {"R": red, "G": green, "B": blue, "A": alpha, "I": list(range(len(known)))}}


def _file(codes: NDArray, grid: ImageGrid) -> str:
    image = nib.Nifti1Image(codes.reshape(grid.shape), grid.affine, dtype=codes.dtype)
    return b64encode(gzip.compress(image.to_bytes(), 6, mtime=0)).decode()
