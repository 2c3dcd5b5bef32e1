# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Files of points, by their names. What else is in a file stays as it is.

==================  ========================================================  ===========================
ending              holds                                                     coordinates
==================  ========================================================  ===========================
``.csv``            a table with x, y, z, as ANTs has it                      LPS mm
``.fcsv``           fiducials of Slicer                                       LPS or RAS mm, as they say
``.mrk.json``       markups of Slicer                                         LPS or RAS mm, as they say
``.pts``, ``.txt``  points of elastix                                         LPS mm
``.trk``, ``.tck``  streamlines of TrackVis and MRtrix, by nibabel            RAS mm, by their headers
``.gii``            surfaces, by nibabel                                      RAS mm
``.vtk``, ``.vtp``  meshes of VTK                                             LPS mm, or SPACE=RAS
``.ply``, ``.stl``  meshes                                                    LPS mm, or SPACE=RAS
==================  ========================================================  ===========================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from monai_nodeo.files.atomic import atomic_path, check_folder
from monai_nodeo.files.grid import PathLike
from monai_nodeo.files.points.base import Points
from monai_nodeo.files.points.elastix import read_elastix
from monai_nodeo.files.points.meshes import read_ply, read_stl
from monai_nodeo.files.points.neuro import read_gifti, read_streamlines
from monai_nodeo.files.points.slicer import read_fcsv, read_markups
from monai_nodeo.files.points.tables import read_csv
from monai_nodeo.files.points.vtk import is_vtk_image, read_vtk
from monai_nodeo.files.points.vtp import read_vtp

__all__ = ["Points", "check_points_target", "holds_points", "read_points", "write_points"]

_READERS: dict[str, Callable[[PathLike], Points]] = {
    ".csv": read_csv,
    ".fcsv": read_fcsv,
    ".mrk.json": read_markups,
    ".pts": read_elastix,
    ".txt": read_elastix,
    ".trk": read_streamlines,
    ".tck": read_streamlines,
    ".gii": read_gifti,
    ".vtk": read_vtk,
    ".vtp": read_vtp,
    ".ply": read_ply,
    ".stl": read_stl,
}


def holds_points(path: PathLike) -> bool:
    """Whether a file is one of points, by its name; a ``.vtk`` may be an image too, and says so."""
    ending = _ending(path)
    return ending is not None and not (ending == ".vtk" and Path(path).is_file() and is_vtk_image(path))


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
    with np.errstate(all="ignore"):  # of numbers that are not finite, which are told below
        points = _READERS[ending](path)
    if not len(points.ras):
        raise ValueError(f"{path}: there is no point in it.")
    finite = np.isfinite(points.ras).all(1)
    if not finite.all():
        raise ValueError(f"{path}: point {finite.argmin() + 1} is not finite.")
    return replace(points, path=str(path))


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
