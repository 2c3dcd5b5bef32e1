# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Affines as four rows of four numbers, the text that FLIRT and greedy write. Nothing in it says what it means.

greedy's goes from the fixed to the moving image in RAS mm, FLIRT's is told in `files.fsl`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from monai_nodeo.files.atomic import atomic_path
from monai_nodeo.files.grid import PathLike

__all__ = ["read_text_matrix", "with_last_row", "write_text_matrix"]


def read_text_matrix(path: PathLike) -> np.ndarray:
    """The matrix, (4, 4).

    Raises:
        ValueError: when the file holds anything but sixteen numbers.
    """
    words = Path(path).read_text(encoding="utf-8", errors="replace").split()
    try:
        return np.reshape([float(word) for word in words], (4, 4))
    except ValueError as error:
        raise ValueError(f"{path}: expected four rows of four numbers ({error}).") from error


def write_text_matrix(path: PathLike, matrix: np.ndarray) -> None:
    """Write a matrix, (4, 4)."""
    with atomic_path(path) as partial:
        np.savetxt(partial, matrix, fmt="%.17g", encoding="utf-8")


def with_last_row(matrix: np.ndarray) -> np.ndarray:
    """The matrix, (4, 4), with a last row of 0 and 1 to the bit, which an inverse may miss."""
    return np.vstack([matrix[:3], [0, 0, 0, 1]])
