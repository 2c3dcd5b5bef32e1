# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Point files of elastix and transformix: ``point``, their number, then a point a line in LPS mm."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from monai_nodeo.files.grid import PathLike
from monai_nodeo.files.lps import RAS_TO_LPS
from monai_nodeo.files.points.base import Points, numbers, printed, read_text, write_text

__all__ = ["read_elastix"]


def read_elastix(path: PathLike) -> Points:
    """Points of transformix, 2D or 3D.

    Raises:
        ValueError: when the points are indices of voxels, or not as many or not such as it says.
    """
    lines = [line.split() for line in read_text(path).splitlines() if line.strip()]
    if not lines or lines[0] != ["point"]:
        raise ValueError(
            f"{path}: expected 'point' in its first line and below it their number; indices of voxels have to be made "
            "LPS mm."
        )
    count, rows = lines[1:2], lines[2:]
    lengths = {len(row) for row in rows}
    if count != [[str(len(rows))]] or len(lengths) != 1 or not lengths <= {2, 3}:
        raise ValueError(
            f"{path}: {len(rows)} lines with {sorted(lengths)} numbers are below their number, expected as many "
            "as that, with 2 or 3 numbers each."
        )
    (dims,) = lengths
    lps = np.array([numbers(path, number, row) + [0.0] * (3 - dims) for number, row in enumerate(rows, start=1)])

    def save(path: Path, ras: np.ndarray) -> None:
        there = [" ".join(map(printed, point[:dims])) for point in ras @ RAS_TO_LPS]
        write_text(path, "\n".join(["point", str(len(there)), *there, ""]))

    return Points(lps @ RAS_TO_LPS, save)
