# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Points as CSV, in ANTs' form: a header with x, y and z (2D: perhaps without z), LPS mm; other columns are kept."""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace

import numpy as np

from monai_nodeo.files.atomic import atomic_path
from monai_nodeo.files.grid import PathLike
from monai_nodeo.files.lps import RAS_TO_LPS

__all__ = ["Points", "read_points", "write_points"]

_AXES = ("x", "y", "z")


@dataclass(frozen=True, eq=False)
class Points:
    """A table of points.

    Args:
        ras: (N, 3), mm; z is 0 where the table has none.
        columns: names in the header.
        rows: N rows of texts, as they were read.
    """

    ras: np.ndarray
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def moved_to(self, ras: np.ndarray) -> Points:
        """The same table with other places, (N, 3) RAS mm."""
        return replace(self, ras=ras)


def read_points(path: PathLike) -> Points:
    """Read a table of points.

    Args:
        path: CSV file with a header; x, y and z in LPS mm, other columns as they like.

    Raises:
        FileNotFoundError: when there is none.
        ValueError: without x and y in the header, without a point, or when a row is no point; names the row.
    """
    with open(path, newline="", encoding="utf-8-sig") as file:
        try:
            table = [tuple(field.strip() for field in row) for row in csv.reader(file) if row]
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not a CSV table ({error}).") from error
    columns = table[0] if table else ()
    if not {"x", "y"} <= set(columns):
        raise ValueError(
            f"{path}: the header is {','.join(columns)!r}, expected x,y,z (LPS mm) and what else you like."
        )
    if len(table) == 1:
        raise ValueError(f"{path}: there is no point below the header.")
    lps = np.array([_point(path, number, columns, row) for number, row in enumerate(table[1:], start=1)])
    return Points(lps @ RAS_TO_LPS, columns, tuple(table[1:]))


def write_points(path: PathLike, points: Points) -> None:
    """Write a table of points, the inverse of `read_points`, to a thousandth of a micrometre."""
    places = [dict(zip(_AXES, point, strict=True)) for point in points.ras @ RAS_TO_LPS]
    with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(points.columns)
        for place, row in zip(places, points.rows, strict=True):
            fields = zip(points.columns, row, strict=True)
            writer.writerow([f"{place[column]:.6f}" if column in place else text for column, text in fields])


def _point(path: PathLike, number: int, columns: tuple[str, ...], row: tuple[str, ...]) -> list[float]:
    try:
        named = dict(zip(columns, row, strict=True))
        point = [float(named.get(axis, 0)) for axis in _AXES]
    except ValueError as error:
        raise ValueError(f"{path}: point {number} is {','.join(row)!r}, expected {','.join(columns)}.") from error
    if not np.isfinite(point).all():
        raise ValueError(f"{path}: point {number} is not finite ({','.join(row)}).")
    return point
