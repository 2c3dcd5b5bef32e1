# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Meshes as ``.ply`` and ``.stl``. Only the coordinates of a file are changed, where they stand."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from monai_nodeo.files.grid import PathLike
from monai_nodeo.files.nifti_place import warn
from monai_nodeo.files.points.base import Points, numbers, printed, read_text, space_of, write_text

__all__ = ["read_ply", "read_stl"]

_HEADER = re.compile(rb"ply\r?\n.*?^end_header\r?\n", re.DOTALL | re.MULTILINE)
_PLY_TYPES = {
    "i1": ("char", "int8"),
    "u1": ("uchar", "uint8"),
    "i2": ("short", "int16"),
    "u2": ("ushort", "uint16"),
    "i4": ("int", "int32"),
    "u4": ("uint", "uint32"),
    "f4": ("float", "float32"),
    "f8": ("double", "float64"),
}
_CODES = {name: code for code, names in _PLY_TYPES.items() for name in names}
_FACETS = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
_START = 84  # bytes before the facets
_LINE = re.compile(r"(^[ \t]*(?:facet[ \t]+normal|vertex)[ \t]+)([^\r\n]*)", re.MULTILINE)


def read_ply(path: PathLike) -> Points:
    """The vertices of a PLY file, text or binary.

    Raises:
        ValueError: when the vertices do not come first, are no real numbers, or the file ends early.
    """
    content = Path(path).read_bytes()
    found = _HEADER.match(content)
    header = found[0].decode("latin-1") if found else ""
    words = [line.split() for line in header.splitlines()]
    elements = [at for at, line in enumerate(words) if line[:1] == ["element"]]
    kind = next((line[1] for line in words if line[:1] == ["format"] and len(line) == 3), "none")
    order = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}.get(kind)
    if found is None or order is None or not elements or words[elements[0]][1:2] != ["vertex"]:
        raise ValueError(f"{path}: not a PLY file, or one whose first elements are no vertices.")
    properties = [line for line in words[elements[0] : (*elements, len(words))[1]] if line[:1] == ["property"]]
    try:
        count = int(words[elements[0]][2])
        fields = {name: f"{order}{_CODES[kind]}" for _, kind, name in properties}
        kinds = {fields[axis][-2:] for axis in "xyz"}
    except (ValueError, KeyError, IndexError) as error:
        raise ValueError(f"{path}: the header of a PLY file with vertices of unknown numbers ({error}).") from error
    if not kinds <= {"f4", "f8"} or count < 0 or len(fields) < len(properties):
        raise ValueError(f"{path}: {count} vertices with coordinates of {kinds}, expected float or double.")
    if "nx" in fields:
        warn(f"{path}: the normals of its vertices stay as they are; compute them again.")
    to_ras = space_of(header)
    read = _ply_text if kind == "ascii" else _ply_binary
    return read(path, content, found.end(), count, fields, to_ras)


def _ply_binary(
    path: PathLike, content: bytes, start: int, count: int, fields: dict[str, str], to_ras: np.ndarray
) -> Points:
    rows = np.dtype(list(fields.items()))
    if len(content) < start + count * rows.itemsize:
        raise ValueError(f"{path}: ends within its {count} vertices; copy it again.")
    vertices = np.frombuffer(content, rows, count, start)

    def save(path: Path, ras: np.ndarray) -> None:
        moved = vertices.copy()
        moved["x"], moved["y"], moved["z"] = (ras @ to_ras).T
        path.write_bytes(content[:start] + moved.tobytes() + content[start + moved.nbytes :])

    return Points(np.stack([vertices[axis] for axis in "xyz"], axis=1).astype(np.float64) @ to_ras, save)


def _ply_text(
    path: PathLike, content: bytes, start: int, count: int, fields: dict[str, str], to_ras: np.ndarray
) -> Points:
    lines = content[start:].decode("latin-1").splitlines(keepends=True)
    if len(lines) < count:
        raise ValueError(f"{path}: ends within its {count} vertices; copy it again.")
    axes = [list(fields).index(axis) for axis in "xyz"]
    rows = [line.split() for line in lines[:count]]
    for number, row in enumerate(rows, start=1):
        if len(row) != len(fields):
            raise ValueError(f"{path}: vertex {number} has {len(row)} numbers, expected {' '.join(fields)}.")
    places = [numbers(path, number, [row[axis] for axis in axes]) for number, row in enumerate(rows, start=1)]

    def save(path: Path, ras: np.ndarray) -> None:
        there = []
        for row, point in zip(rows, ras @ to_ras, strict=True):
            moved = dict(zip(axes, map(printed, point), strict=True))
            there.append(" ".join(moved.get(at, field) for at, field in enumerate(row)) + "\n")
        path.write_bytes(content[:start] + "".join([*there, *lines[count:]]).encode("latin-1"))

    return Points(np.reshape(places, (-1, 3)) @ to_ras, save)


def read_stl(path: PathLike) -> Points:
    """The corners of the facets of an STL file, text or binary, three a facet. Their normals are computed again.

    Raises:
        ValueError: when it is no such file, or ends early.
    """
    content = Path(path).read_bytes()
    if len(content) >= _START and len(content) == _START + _FACETS.itemsize * int.from_bytes(content[80:84], "little"):
        return _stl_binary(content)
    if content.startswith(b"solid"):
        return _stl_text(path)
    raise ValueError(f"{path}: neither a text of STL nor as long as a binary one with its number of facets.")


def _stl_binary(content: bytes) -> Points:
    facets = np.frombuffer(content, _FACETS, offset=_START)
    to_ras = space_of(content[:80].decode("latin-1"))

    def save(path: Path, ras: np.ndarray) -> None:
        moved = facets.copy()
        moved["corners"] = (ras @ to_ras).reshape(-1, 3, 3)
        moved["normal"] = _normals(moved["corners"].astype(np.float64))
        path.write_bytes(content[:_START] + moved.tobytes())

    return Points(facets["corners"].astype(np.float64).reshape(-1, 3) @ to_ras, save)


def _stl_text(path: PathLike) -> Points:
    text = read_text(path)
    to_ras = space_of(text.partition("\n")[0])
    rows = [
        (start.split()[0], numbers(path, at, row.split())) for at, (start, row) in enumerate(_LINE.findall(text), 1)
    ]
    kinds = [kind for kind, row in rows if len(row) == 3]
    if kinds != ["facet", *["vertex"] * 3] * (len(rows) // 4) or len(kinds) != len(rows) or "endsolid" not in text:
        raise ValueError(f"{path}: a text of STL without its end, or with facets of no normal and three corners.")

    def save(path: Path, ras: np.ndarray) -> None:
        corners = (ras @ to_ras).reshape(-1, 3, 3)
        there = iter(np.concatenate([_normals(corners)[:, None], corners], axis=1).reshape(-1, 3))
        write_text(path, _LINE.sub(lambda line: line[1] + " ".join(map(printed, next(there))), text))

    places = [row for kind, row in rows if kind == "vertex"]
    return Points(np.reshape(places, (-1, 3)) @ to_ras, save)


def _normals(corners: np.ndarray) -> np.ndarray:
    """Unit normals (F, 3) of facets (F, 3, 3); 0 where the facet is none."""
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    return normals / np.where(lengths > 0, lengths, 1)
