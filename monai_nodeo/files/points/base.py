# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The points of a file, whatever its format: places, and the way to write the file again with other places."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from monai_nodeo.files.grid import PathLike
from monai_nodeo.files.lps import RAS_TO_LPS

__all__ = ["TO_RAS", "Points", "damaged", "numbers", "printed", "read_text", "space_of", "write_text"]

TO_RAS = {"LPS": RAS_TO_LPS, "RAS": np.eye(3)}  # and back
_SPACE = re.compile(r"SPACE=(LPS|RAS)\b")


@dataclass(frozen=True, eq=False)
class Points:
    """Points, and the file that they are of.

    Args:
        ras: (N, 3), mm; z is 0 where the file has none.
        save: ``save(path, ras)`` writes the file with its points at other places, and all else as it was.
        path: of the file.
    """

    ras: np.ndarray
    save: Callable[[Path, np.ndarray], None]
    path: str = ""

    def moved_to(self, ras: np.ndarray) -> Points:
        """The same file with other places, (N, 3) RAS mm."""
        return replace(self, ras=ras)


@contextmanager
def damaged(path: PathLike, kind: str) -> Iterator[None]:
    """What a library raises at a bad file, as a ValueError of one line; libraries raise too many kinds to list."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: not a file of {kind}, or a damaged one ({reason[:200]}).") from error


def numbers(path: PathLike, number: int, fields: Sequence[str]) -> list[float]:
    """The coordinates of point ``number`` of a text file.

    Raises:
        ValueError: when they are no numbers.
    """
    try:
        return [float(field) for field in fields]
    except ValueError as error:
        raise ValueError(f"{path}: point {number} is {' '.join(fields)[:80]!r}, expected numbers.") from error


def printed(value: float) -> str:
    """A coordinate as text, to a thousandth of a micrometre."""
    return f"{value:.6f}"


def read_text(path: PathLike) -> str:
    """A text file with its line ends; bytes that are no UTF-8 come back when it is written again."""
    return Path(path).read_bytes().decode("utf-8", "surrogateescape")


def write_text(path: Path, text: str) -> None:
    """The inverse of `read_text`."""
    path.write_bytes(text.encode("utf-8", "surrogateescape"))


def space_of(header: str) -> np.ndarray:
    """From the space of a mesh to RAS and back, (3, 3): as Slicer writes it, ``SPACE=RAS``; else LPS, ITK's."""
    said = _SPACE.search(header)
    return TO_RAS[said[1] if said else "LPS"]
