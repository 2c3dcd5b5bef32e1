# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Points as CSV, in ANTs' form: a header with x, y and z (2D: perhaps without z), LPS mm; other columns are kept."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from monai_nodeo.files.grid import PathLike
from monai_nodeo.files.lps import RAS_TO_LPS
from monai_nodeo.files.points.base import Points, printed

__all__ = ["read_csv"]

_AXES = ("x", "y", "z")


def read_csv(path: PathLike) -> Points:
    """Points of a table with a header; x, y and z in LPS mm, other columns as they like.

    Raises:
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
    rows = table[1:]
    if not rows:
        raise ValueError(f"{path}: there is no point below the header.")
    lps = np.array([_place(path, number, columns, row) for number, row in enumerate(rows, start=1)])

    def save(path: Path, ras: np.ndarray) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            for lps, row in zip(ras @ RAS_TO_LPS, rows, strict=True):
                there = dict(zip(_AXES, map(printed, lps), strict=True))
                writer.writerow([there.get(column, text) for column, text in zip(columns, row, strict=True)])

    return Points(lps @ RAS_TO_LPS, save)


def _place(path: PathLike, number: int, columns: tuple[str, ...], row: tuple[str, ...]) -> list[float]:
    try:
        named = dict(zip(columns, row, strict=True))
        return [float(named.get(axis, 0)) for axis in _AXES]
    except ValueError as error:
        raise ValueError(f"{path}: point {number} is {','.join(row)!r}, expected {','.join(columns)}.") from error
