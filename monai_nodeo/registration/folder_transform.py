# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The transform of a result folder, and points taken along by it, by its flow.

Transforms of other tools: `files.resampling`; files of points, streamlines and surfaces: `files.points`.
"""

from __future__ import annotations

from os import PathLike
from os.path import expanduser
from pathlib import Path
from typing import Any

import torch
from nibabel.affines import apply_affine

from monai_nodeo.data.keys import images_of
from monai_nodeo.files import ImageGrid, Points, Transform, warn_off_slice
from monai_nodeo.flows import Flow
from monai_nodeo.metrics.certificate import Certificate
from monai_nodeo.registration.folder import FLOW, read_figures, start_of
from monai_nodeo.registration.pair_map import PairMap

__all__ = ["certificate_of_folder", "moved_points", "transform_of_folder"]


def transform_of_folder(
    path: str | PathLike[str],
    inverse: bool = False,
    grid: ImageGrid | None = None,
    t0: float = 0.0,
    t1: float = 1.0,
) -> Transform:
    """The way between the images of a registration, sampled on a grid.

    Args:
        path: folder of the registration.
        inverse: from the moving to the fixed image.
        grid: of the image whose points are taken; by default that of the fixed, or of the moving image.
        t0: time of the flow at which they are there; see :py:meth:`PairMap.points`.
        t1: time of the arrival.

    Raises:
        ValueError: when the grid is of another dimension; for the inverse, without a grid, when the moving image is
            not there any more.
    """
    way = _map_of_folder(path)
    if grid is not None and grid.spatial_dims != way.grid.spatial_dims:
        kinds = {2: "slice", 3: "volume"}
        found, expected = kinds[grid.spatial_dims], kinds[way.grid.spatial_dims]
        raise ValueError(f"{path}: a registration of {expected}s, and the reference is a {found}; give a {expected}.")
    if inverse:
        way = way.inverse(grid or _moving_grid(path, read_figures(Path(path))))
    elif grid is not None:
        way = way.on(grid)
    return way.transform if (t0, t1) == (0, 1) else way.on(way.grid, t0, t1).transform


def moved_points(
    path: str | PathLike[str], points: Points, inverse: bool = False, t0: float = 0.0, t1: float = 1.0
) -> Points:
    """A table of points, taken along by the flow of a registration; for the arguments see `transform_of_folder`."""
    way = _map_of_folder(path)
    if inverse:
        way = way.inverse(way.grid)
    began = apply_affine(way.before.numpy(), points.ras) if t0 == 0 else points.ras
    warn_off_slice(points.path, began, way.grid.affine, way.grid.shape)
    return points.moved_to(way.points(torch.from_numpy(points.ras), t0, t1).numpy())


def certificate_of_folder(path: str | PathLike[str]) -> Certificate:
    """The proof of the flow of a registration, which holds for both ways."""
    return Certificate.from_dict(read_figures(Path(path))["certificate"])


def _map_of_folder(path: str | PathLike[str]) -> PairMap:
    folder = Path(expanduser(path))
    figures = read_figures(folder)
    try:
        start = start_of(figures)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: damaged figures ({type(error).__name__}: {error}).") from error
    return PairMap.of(Flow.load(folder / FLOW), start)


def _moving_grid(path: str | PathLike[str], figures: dict[str, Any]) -> ImageGrid:
    try:
        return ImageGrid.from_file(images_of(figures["moving"])[0])
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f"{path}: the moving image is not there; give one with its grid as reference.") from error
