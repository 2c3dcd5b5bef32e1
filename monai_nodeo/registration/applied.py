# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""A finished registration as a transform for files, by its flow."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import torch

from monai_nodeo.data.pair import stored_grid
from monai_nodeo.files import Displacement, ImageGrid, Points, Transform
from monai_nodeo.metrics.certificate import Certificate
from monai_nodeo.registration.folder import read_figures
from monai_nodeo.registration.pair_map import PairMap
from monai_nodeo.registration.result import Registration

__all__ = ["certificate_of_folder", "map_of_folder", "moved_points", "transform_on"]


def map_of_folder(path: str | PathLike[str], inverse: bool = False, grid: ImageGrid | None = None) -> PairMap:
    """The way between the images of a registration.

    Args:
        path: folder of the registration.
        inverse: from the moving to the fixed image.
        grid: of the image whose points are taken; by default that of the fixed, or of the moving image.

    Raises:
        ValueError: for the inverse, without a grid, when the moving image is not there any more.
    """
    registration = Registration.load(path, with_pair=inverse and grid is None)
    if not inverse:
        return registration.map if grid is None else registration.map.on(grid)
    if grid is None:
        if registration.pair is None:
            raise ValueError(f"{path}: the moving image is not there; give one with its grid as reference.")
        grid = stored_grid(registration.pair.moving.image)
    return registration.map.inverse(grid)


def certificate_of_folder(path: str | PathLike[str]) -> Certificate:
    """The proof of the flow of a registration, which holds for both ways."""
    return Certificate.from_dict(read_figures(Path(path))["certificate"])


def transform_on(way: PairMap, t0: float = 0.0, t1: float = 1.0) -> Transform:
    """A way as one field on its grid."""
    part = way if (t0, t1) == (0, 1) else way.on(way.grid, t0, t1)
    return Transform((Displacement(part.grid, part.ddf.cpu().numpy()),))


def moved_points(way: PairMap, points: Points, t0: float = 0.0, t1: float = 1.0) -> Points:
    """A table of points, taken along by the flow."""
    return points.moved_to(way.points(torch.from_numpy(points.ras), t0, t1).numpy())
