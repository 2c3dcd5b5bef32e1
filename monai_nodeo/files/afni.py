# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Affines of AFNI, ``*.aff12.1D``: twelve numbers, row by row, from the base to the source in LPS mm.

AFNI turns oblique images straight before it uses these, so they are of images whose axes are those of the body.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from monai_nodeo.files.atomic import atomic_path
from monai_nodeo.files.grid import PathLike
from monai_nodeo.files.lps import RAS_TO_LPS
from monai_nodeo.files.transform import Affine

__all__ = ["read_aff12", "write_aff12"]

_FLIP = np.diag([*np.diag(RAS_TO_LPS), 1.0])


def read_aff12(path: PathLike) -> Affine:
    """The affine of a file: fixed physical point -> moving physical point.

    Raises:
        ValueError: when it holds other than one matrix.
    """
    lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    try:
        numbers = [float(word) for line in lines for word in line.partition("#")[0].split()]
    except ValueError as error:
        raise ValueError(f"{path}: no affine of AFNI, expected twelve numbers ({error}).") from error
    if len(numbers) != 12:
        raise ValueError(f"{path}: {len(numbers)} numbers, expected the twelve of one affine of AFNI.")
    matrix = np.vstack([np.reshape(numbers, (3, 4)), [0, 0, 0, 1]])
    try:
        return Affine(_FLIP @ matrix @ _FLIP)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def write_aff12(path: PathLike, affine: np.ndarray) -> None:
    """Write an affine, (4, 4) RAS mm: fixed physical point -> moving physical point."""
    numbers = (_FLIP @ affine @ _FLIP)[:3].ravel()
    with atomic_path(path) as partial:
        text = "# 3dvolreg matrices (DICOM-to-DICOM, row-by-row):\n" + "  ".join(f"{x:.17g}" for x in numbers) + "\n"
        partial.write_text(text, encoding="utf-8")
