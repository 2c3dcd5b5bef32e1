# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Places of the frames of a multi-frame DICOM file, whose order in the file means nothing.

ITK reads the frames as they come, and gives voxels of 1 mm to those that do not come in order. The places stand in
sequences, which SimpleITK does not show, so the elements of the header are walked through here.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from monai_nodeo.files.lps import RAS_TO_LPS

__all__ = ["UNEVEN", "frame_places"]

UNEVEN = 0.05  # of the distance of two slices: more than rounding in the headers explains
_IMPLICIT, _BIG_ENDIAN, _DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
_TRANSFER_SYNTAX, _PIXELS = 0x00020010, 0x7FE00010
_LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
_ENDLESS = 0xFFFFFFFF
_POSITION, _ORIENTATION, _SPACING = (0x00209113, 0x00200032), (0x00209116, 0x00200037), (0x00289110, 0x00280030)


@dataclass
class _Frames:
    """What the functional groups say, in the order of the file; groups that all frames share say it once."""

    found: dict[tuple[int, int], list[list[float]]] = field(
        default_factory=lambda: {_POSITION: [], _ORIENTATION: [], _SPACING: []}
    )

    def same(self, key: tuple[int, int], name: str) -> np.ndarray:
        values = np.array(self.found[key])
        if not len(values) or np.abs(values - values[0]).max() > 1e-4:
            raise ValueError(f"its frames have {'several' if len(values) else 'no'} {name}s; split it into series.")
        return np.asarray(values[0])


def frame_places(file: Path, count: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Where the frames of a file lie.

    Args:
        file: DICOM.
        count: of its frames.

    Returns:
        The order that sorts the frames by their place, (count,), and the affine of the sorted ones in RAS mm, (4, 4);
        None if the file gives its frames no places.

    Raises:
        ValueError: when the frames make no regular grid: several at one place, missing or turned ones.
    """
    frames = _Frames()
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for key, value in _elements(data):
            if key in frames.found:
                frames.found[key].append([float(number) for number in value.decode("ascii").strip("\0 ").split("\\")])
    positions = np.array(frames.found[_POSITION])
    if not len(positions):
        return None
    if len(positions) != count:
        raise ValueError(f"it has {count} frames and {len(positions)} places; split it into series.")
    row, column = frames.same(_ORIENTATION, "orientation").reshape(2, 3)
    between_rows, between_columns = frames.same(_SPACING, "pixel spacing")
    along = positions @ np.cross(row, column)
    order = np.argsort(along, kind="stable")
    step = (positions[order[-1]] - positions[order[0]]) / (count - 1)
    apart = np.linalg.norm(positions[order] - positions[order[0]] - np.outer(np.arange(count), step), axis=1)
    if apart.max() > UNEVEN * np.linalg.norm(step) or not np.any(step):
        raise ValueError(
            f"its {count} frames are no regular grid (one lies {apart.max():.3g} mm from its place in one): some are "
            "missing, or it holds several volumes; split it into series or resample it."
        )
    affine = np.eye(4)
    affine[:3] = RAS_TO_LPS @ np.stack([row * between_columns, column * between_rows, step, positions[order[0]]], 1)
    return order, affine


def _elements(data: mmap.mmap) -> Iterator[tuple[tuple[int, int], bytes]]:
    """The elements before the pixels, with the tag of the sequence that was opened last."""
    place, sequence, implicit = 132, 0, False
    while place + 8 <= len(data):
        group, number = struct.unpack_from("<HH", data, place)
        tag = group << 16 | number
        if tag == _PIXELS:
            return
        kind = data[place + 4 : place + 6]
        if group == 0xFFFE:  # an item begins or ends: its elements follow
            place += 8
            continue
        if implicit and group != 2:
            (length,) = struct.unpack_from("<I", data, place + 4)
            place += 8
        elif kind in _LONG:
            (length,) = struct.unpack_from("<I", data, place + 8)
            place += 12
        else:
            (length,) = struct.unpack_from("<H", data, place + 6)
            place += 8
        if kind == b"SQ" or length == _ENDLESS or (implicit and _begins_an_item(data, place, length)):
            sequence = tag
            continue
        value = data[place : place + length]
        place += length
        if tag == _TRANSFER_SYNTAX:
            syntax = value.decode("ascii").strip("\0 ")
            if syntax in (_BIG_ENDIAN, _DEFLATED):
                raise ValueError("the places of its frames are compressed or big-endian; convert it with dcmtk.")
            implicit = syntax == _IMPLICIT
        yield (sequence, tag), value


def _begins_an_item(data: mmap.mmap, place: int, length: int) -> bool:
    """Whether an element without a type is a sequence."""
    return length >= 8 and data[place : place + 4] == b"\xfe\xff\x00\xe0"
