# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Meshes of VTK in the older format, ``.vtk``. Only the coordinates of a file are changed, where they stand."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from monai_nodeo.files.grid import PathLike
from monai_nodeo.files.nifti_place import warn
from monai_nodeo.files.points.base import Points, numbers, printed, space_of

__all__ = ["is_vtk_image", "read_vtk"]

_HEADER = re.compile(rb"# vtk DataFile Version [^\n]*\n([^\n]*)\n\s*(ASCII|BINARY)\s+DATASET\s+(\w+)\s", re.IGNORECASE)
_POINTS = re.compile(rb"^[ \t]*POINTS[ \t]+(\d{1,12})[ \t]+(\w+)[ \t]*\r?\n", re.IGNORECASE | re.MULTILINE)
_METADATA = re.compile(rb"\s*METADATA[ \t]*\r?\n(?:[^\r\n]+\r?\n)*")  # the range of the points as they were
_NORMALS = re.compile(rb"^NORMALS[ \t]", re.MULTILINE)
_MESHES = (b"POLYDATA", b"UNSTRUCTURED_GRID", b"STRUCTURED_GRID")
_TYPES = {b"float": ">f4", b"double": ">f8"}


def is_vtk_image(path: PathLike) -> bool:
    """Whether a ``.vtk`` holds voxels and no points."""
    with open(path, "rb") as file:
        found = _HEADER.match(file.read(1000))
    return found is not None and found[3].upper() not in _MESHES


def read_vtk(path: PathLike) -> Points:
    """The points of a mesh, text or binary.

    Raises:
        ValueError: when it is no mesh of VTK, or ends early.
    """
    content = Path(path).read_bytes()
    header = _HEADER.match(content)
    found = _POINTS.search(content, header.end()) if header else None
    if header is None or header[3].upper() not in _MESHES or found is None:
        raise ValueError(f"{path}: not a mesh of VTK, or one without points; expected POLYDATA or UNSTRUCTURED_GRID.")
    count, kind = int(found[1]), _TYPES.get(found[2].lower())
    if kind is None:
        raise ValueError(f"{path}: its coordinates are {found[2].decode('latin-1')}, expected float or double.")
    if _NORMALS.search(content):
        warn(f"{path}: the normals in it stay as they are; compute them again.")
    to_ras = space_of(header[1].decode("latin-1"))
    start = found.end()
    if header[2].upper() == b"ASCII":
        fields = content[start:].split(None, 3 * count)
        rest = b"".join(fields[3 * count :])
        fields = fields[: 3 * count]
        lps = np.array(numbers(path, 1, [field.decode("latin-1") for field in fields]))
    else:
        end = start + 3 * count * np.dtype(kind).itemsize
        lps = np.frombuffer(content[start:end], kind) if end <= len(content) else np.zeros(0)
        rest = content[end:]
    if len(lps) != 3 * count:
        raise ValueError(f"{path}: ends within its {count} points; copy it again.")
    rest = _METADATA.sub(b"", rest, count=1) if _METADATA.match(rest) else rest

    def save(path: Path, ras: np.ndarray) -> None:
        there = ras @ to_ras
        if header[2].upper() == b"ASCII":
            body = "".join(" ".join(map(printed, point)) + "\n" for point in there).encode()
        else:
            body = there.astype(kind).tobytes()
        path.write_bytes(content[:start] + body + rest)

    return Points(lps.astype(np.float64).reshape(-1, 3) @ to_ras, save)
