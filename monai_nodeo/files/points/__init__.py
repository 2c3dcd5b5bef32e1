# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Files of points, by their names. What else is in a file stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from monai_nodeo.files.atomic import atomic_path, check_folder
from monai_nodeo.files.grid import PathLike
from monai_nodeo.files.points.base import Points
from monai_nodeo.files.points.tables import read_csv

__all__ = ["Points", "check_points_target", "holds_points", "read_points", "write_points"]

_READERS: dict[str, Callable[[PathLike], Points]] = {".csv": read_csv}


def holds_points(path: PathLike) -> bool:
    """Whether a file is one of points, by its name."""
    return _ending(path) is not None


def read_points(path: PathLike) -> Points:
    """Read a file of points.

    Args:
        path: a file of one of the formats of this package.

    Raises:
        FileNotFoundError: when there is none.
        ValueError: when it is no such file, a damaged one, or holds no point; names the file and what was found.
    """
    ending = _ending(path)
    if ending is None:
        raise ValueError(f"{path}: points are files that end with {', '.join(_READERS)}; give one of these.")
    points = _READERS[ending](path)
    if not len(points.ras):
        raise ValueError(f"{path}: there is no point in it.")
    finite = np.isfinite(points.ras).all(1)
    if not finite.all():
        raise ValueError(f"{path}: point {finite.argmin() + 1} is not finite.")
    return points


def write_points(path: PathLike, points: Points) -> None:
    """Write the file that points are of, with them where they are now."""
    with atomic_path(path) as partial:
        points.save(partial, points.ras)


def check_points_target(path: PathLike, source: PathLike) -> None:
    """Refuse a target that points of a source cannot be written to, before there is something to write.

    Raises:
        FileNotFoundError: when its folder does not exist.
        ValueError: when its name is of another format than the source, which is kept.
    """
    ending = _ending(source)
    if _ending(path) != ending:
        raise ValueError(f"{path}: the points come from a {ending} file, and their format is kept; end it so too.")
    check_folder(path)


def _ending(path: PathLike) -> str | None:
    name = Path(path).name.lower()
    return next((ending for ending in _READERS if name.endswith(ending)), None)
