# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Markups of Slicer: ``.fcsv``, a table with comments, and ``.mrk.json``. Both say whether they are LPS or RAS mm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from monai_nodeo.files.grid import PathLike
from monai_nodeo.files.points.base import TO_RAS, Points, damaged, numbers, printed, read_text, write_text

__all__ = ["read_fcsv", "read_markups"]

_COLUMNS = "id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID"
_NUMBERED = {"0": "RAS", "1": "LPS"}  # before Slicer 4.11, and by programs that still write so
_KINDS = ("Fiducial", "Line", "Angle", "Curve", "ClosedCurve")  # the others have sizes and directions too


def read_fcsv(path: PathLike) -> Points:
    """Points of a table of Slicer.

    Raises:
        ValueError: when it says no space, or a row is no point; names the row.
    """
    lines = read_text(path).splitlines(keepends=True)
    parts = [line[1:].partition("=") for line in lines if line.startswith("#")]
    said = {name.strip(): value.strip() for name, _, value in parts}
    to_ras = _space(path, said.get("CoordinateSystem", "none"))
    columns = said.get("columns", _COLUMNS).split(",")
    if not {"x", "y", "z"} <= set(columns):
        raise ValueError(f"{path}: the columns are {','.join(columns)!r}, expected x, y and z among them.")
    axes = [columns.index(axis) for axis in "xyz"]
    rows = {at: line.split(",") for at, line in enumerate(lines) if line.strip() and not line.startswith("#")}
    places = []
    for number, row in enumerate(rows.values(), start=1):
        if len(row) <= max(axes):
            raise ValueError(f"{path}: point {number} has too few fields, expected {','.join(columns)}.")
        places.append(numbers(path, number, [row[axis] for axis in axes]))

    def save(path: Path, ras: np.ndarray) -> None:
        there = list(lines)
        for (at, row), point in zip(rows.items(), ras @ to_ras, strict=True):
            fields = dict(zip(axes, map(printed, point), strict=True))
            there[at] = ",".join(fields.get(number, field) for number, field in enumerate(row))
        write_text(path, "".join(there))

    return Points(np.reshape(places, (-1, 3)) @ to_ras, save)


def read_markups(path: PathLike) -> Points:
    """Points of a JSON file of Slicer: fiducials, lines, angles and curves. Those without a position stay so.

    Raises:
        ValueError: when it is no such file, or holds a plane or a ROI, which are more than their points.
    """
    with damaged(path, "Slicer's markups"):
        text = Path(path).read_bytes().decode("utf-8")
        markups = json.loads(text)["markups"]
        kinds = [(str(markup["type"]), str(markup["coordinateSystem"])) for markup in markups]
        controls = [
            [control for control in markup["controlPoints"] if control.get("position") is not None]
            for markup in markups
        ]
        places = [np.reshape(np.array([c["position"] for c in one], np.float64), (-1, 3)) for one in controls]
    for kind, _ in kinds:
        if kind not in _KINDS:
            raise ValueError(f"{path}: holds a {kind}, which is more than its points; expected {', '.join(_KINDS)}.")
    spaces = [_space(path, space) for _, space in kinds]

    def save(path: Path, ras: np.ndarray) -> None:
        content: Any = json.loads(text)
        there = iter(ras)
        for markup, to_ras in zip(content["markups"], spaces, strict=True):
            for control in markup["controlPoints"]:
                if control.get("position") is not None:
                    control["position"] = (next(there) @ to_ras).tolist()
        path.write_text(json.dumps(content, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")

    placed = [place @ to_ras for place, to_ras in zip(places, spaces, strict=True)]
    return Points(np.concatenate([np.zeros((0, 3)), *placed]), save)


def _space(path: PathLike, said: str) -> np.ndarray:
    space = _NUMBERED.get(said, said)
    if space not in TO_RAS:
        raise ValueError(f"{path}: the coordinate system is {space}, expected LPS or RAS.")
    return TO_RAS[space]
