# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The points of a file, whatever its format: places, and the way to write the file again with other places."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from monai_nodeo.files.grid import PathLike

__all__ = ["Points", "place", "printed", "read_text", "write_text"]


@dataclass(frozen=True, eq=False)
class Points:
    """Points, and the file that they are of.

    Args:
        ras: (N, 3), mm; z is 0 where the file has none.
        save: ``save(path, ras)`` writes the file with its points at other places, and all else as it was.
    """

    ras: np.ndarray
    save: Callable[[Path, np.ndarray], None]

    def moved_to(self, ras: np.ndarray) -> Points:
        """The same file with other places, (N, 3) RAS mm."""
        return replace(self, ras=ras)


def place(path: PathLike, number: int, fields: Sequence[str], expected: str) -> list[float]:
    """The coordinates of point ``number`` of a text file.

    Raises:
        ValueError: when they are no numbers.
    """
    try:
        return [float(field) for field in fields]
    except ValueError as error:
        raise ValueError(f"{path}: point {number} is {','.join(fields)!r}, expected {expected}.") from error


def printed(value: float) -> str:
    """A coordinate as text, to a thousandth of a micrometre."""
    return f"{value:.6f}"


def read_text(path: PathLike) -> str:
    """A text file with its line ends; bytes that are no UTF-8 stay as they are when it is written again."""
    return Path(path).read_bytes().decode("utf-8", "surrogateescape")


def write_text(path: Path, text: str) -> None:
    """The inverse of `read_text`."""
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
