# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Meshes of VTK in XML, ``.vtp``. Only the coordinates of a file are changed, in the encoding that they have.

An array stands in its element, as numbers or base64, or behind all of them in ``AppendedData``, as base64 or raw bytes,
at the offset that its element says. Bytes may be in blocks that are compressed one by one. The format is that of "VTK
XML Formats" in VTK's documentation.
"""

from __future__ import annotations

import base64
import lzma
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from xml.parsers import expat

import numpy as np

from monai_nodeo.files.grid import PathLike
from monai_nodeo.files.nifti_place import warn
from monai_nodeo.files.points.base import TO_RAS, Points, damaged, printed

__all__ = ["read_vtp"]

_APPENDED = re.compile(rb"<AppendedData[^>]*>\s*_")
_TYPES = {"Float32": "f4", "Float64": "f8"}
_HEADERS = {"UInt32": "u4", "UInt64": "u8"}
_BLOCK = 1 << 15  # bytes, VTK's own
_Codec = tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]
_CODECS: dict[str, _Codec] = {
    "vtkZLibDataCompressor": (zlib.compress, zlib.decompress),
    "vtkLZMADataCompressor": (lzma.compress, lzma.decompress),
}


@dataclass
class _Array:
    """An element with numbers: its place in the file, what it says of itself, and what it holds."""

    path: str
    said: dict[str, str]
    start: int  # of the element
    content: int = 0  # where its start tag ends
    end: int = 0  # where its end tag begins
    inside: int = 0  # where the first element in it begins, or 0

    def __post_init__(self) -> None:
        self.format = self.said["format"]
        self.offset = int(self.said["offset"]) if self.format == "appended" else 0


class _Bytes:
    """Arrays as bytes: blocks, their sizes, base64."""

    def __init__(self, said: dict[str, str]) -> None:
        order = {"LittleEndian": "<", "BigEndian": ">"}[said["byte_order"]]
        self.order = order
        self.sizes = np.dtype(order + _HEADERS[said.get("header_type", "UInt32")])
        compressor = said.get("compressor")
        self.codec = _CODECS[compressor] if compressor else None

    def decode(self, data: bytes, raw: bool) -> tuple[bytes, int]:
        """The array that the data begin with, and how many bytes of them it takes."""
        head, taken = self._head(data, raw)
        if self.codec is None:
            if raw:
                return data[taken : taken + int(head[0])], taken + int(head[0])
            whole = 4 * -(-(self.sizes.itemsize + int(head[0])) // 3)
            return base64.b64decode(data[:whole], validate=True)[self.sizes.itemsize :], whole
        lengths = [int(length) for length in head[3:]]
        total = sum(lengths)
        end = taken + (total if raw else 4 * -(-total // 3))
        body = data[taken:end] if raw else base64.b64decode(data[taken:end], validate=True)
        ends = np.cumsum([0, *lengths])
        blocks = [self.codec[1](body[first:last]) for first, last in zip(ends[:-1], ends[1:], strict=True)]
        return b"".join(blocks), end

    def encode(self, array: bytes, raw: bool) -> bytes:
        """The inverse of `decode`."""
        if self.codec is None:
            data = np.array([len(array)], self.sizes).tobytes() + array
            return data if raw else base64.b64encode(data)
        blocks = [self.codec[0](array[at : at + _BLOCK]) for at in range(0, len(array), _BLOCK)]
        head = np.array([len(blocks), _BLOCK, len(array) % _BLOCK, *map(len, blocks)], self.sizes).tobytes()
        parts = (head, b"".join(blocks))
        return b"".join(parts if raw else map(base64.b64encode, parts))

    def _head(self, data: bytes, raw: bool) -> tuple[np.ndarray, int]:
        """The sizes before an array, and how many bytes they take."""

        def first(count: int) -> tuple[np.ndarray, int]:
            length = count * self.sizes.itemsize
            taken = length if raw else 4 * -(-length // 3)
            head = data[:taken] if raw else base64.b64decode(data[:taken], validate=True)
            return np.frombuffer(head[:length], self.sizes, count), taken

        head, taken = first(1)
        return (head, taken) if self.codec is None else first(3 + int(head[0]))


def read_vtp(path: PathLike) -> Points:
    """The points of a mesh.

    Raises:
        ValueError: when it is no such file, a damaged one, or compressed by LZ4.
    """
    content = Path(path).read_bytes()
    mark = _APPENDED.search(content)
    with damaged(path, "VTK's XML"):
        arrays, said = _elements(content if mark is None else content[: mark.start()], whole=mark is None)
        if said.get("compressor", "") not in ("", *_CODECS):
            raise ValueError(f"compressed by {said['compressor']}, expected zlib, LZMA or nothing")
        coder = _Bytes(said)
        raw = mark is not None and b"raw" in mark[0]
        appended = mark.end() if mark else len(content)

        def values(array: _Array) -> bytes:
            form = array.format
            if form == "appended":
                return coder.decode(content[appended + array.offset :], raw)[0]
            text = content[array.content : array.inside or array.end]
            if form == "binary":
                return coder.decode(b"".join(text.split()), raw=False)[0]
            if array.said["type"] == "String":
                return bytes(int(code) for code in text.split())
            return np.array(text.split(), np.float64).astype(coder.order + _TYPES[array.said["type"]]).tobytes()

        spaces = [
            values(array).rstrip(b"\0").decode("latin-1") for array in arrays if array.said.get("Name") == "SPACE"
        ]
        points = [array for array in arrays if array.path.endswith("Piece/Points")]
        to_ras = TO_RAS[spaces[0] if spaces else "LPS"]
        kinds = [np.dtype(coder.order + _TYPES[array.said["type"]]) for array in points]
        places = [
            np.frombuffer(values(array), kind).reshape(-1, 3).astype(np.float64) @ to_ras
            for array, kind in zip(points, kinds, strict=True)
        ]
    if any(array.path.endswith("PointData") and array.said.get("Name") == "Normals" for array in arrays):
        warn(f"{path}: the normals in it stay as they are; compute them again.")

    def save(path: Path, ras: np.ndarray) -> None:
        ends = np.cumsum([len(place) for place in places])[:-1]
        changed = {}
        for array, kind, there in zip(points, kinds, np.split(ras @ to_ras, ends), strict=True):
            changed[array.start] = there.astype(kind)
        path.write_bytes(_rewritten(content, arrays, changed, coder, appended, raw))

    return Points(np.concatenate([np.zeros((0, 3)), *places]), save)


def _elements(text: bytes, whole: bool) -> tuple[list[_Array], dict[str, str]]:
    """The arrays of a file, and what its root says. Without its end, the text stops before the appended data."""
    parser = expat.ParserCreate()
    stack: list[str] = []
    arrays: list[_Array] = []
    root: dict[str, str] = {}
    opened: _Array | None = None

    def start(name: str, said: dict[str, str]) -> None:
        nonlocal opened
        if opened is not None:
            opened.inside = opened.inside or parser.CurrentByteIndex
        elif name in ("DataArray", "Array"):
            begin = parser.CurrentByteIndex
            opened = _Array("/".join(stack), said, begin, text.index(b">", begin) + 1)
        if not stack:
            root.update(said)
        stack.append(name)

    def stop(name: str) -> None:
        nonlocal opened
        stack.pop()
        if opened is not None and "/".join(stack) == opened.path:
            opened.end = max(opened.content, parser.CurrentByteIndex)
            arrays.append(opened)
            opened = None

    def refuse(*_: object) -> None:
        raise ValueError("it declares entities, which a mesh has no use for")

    parser.StartElementHandler, parser.EndElementHandler, parser.EntityDeclHandler = start, stop, refuse
    parser.Parse(text, whole)
    return arrays, root


def _rewritten(
    content: bytes, arrays: list[_Array], changed: dict[int, np.ndarray], coder: _Bytes, appended: int, raw: bool
) -> bytes:
    """The file with other values in some of its arrays; the arrays behind them in the appended data move up or down."""
    blocks: list[tuple[int, int, bytes]] = []  # offset, length before, what is there now
    for array in arrays:
        if array.start in changed and array.format == "appended":
            _, length = coder.decode(content[appended + array.offset :], raw)
            blocks.append((array.offset, length, coder.encode(changed[array.start].tobytes(), raw)))
    parts, done = [], 0
    for array in arrays:
        tag = content[array.start : array.content]
        if array.format == "appended":
            new = array.offset + sum(len(now) - length for at, length, now in blocks if at < array.offset)
            tag = re.sub(rb'(\boffset\s*=\s*["\'])\d+', rb"\g<1>%d" % new, tag)
        body = content[array.content : array.end]
        if array.start in changed:
            # the ranges in the tag, and the keys below it, are of the points as they were
            tag = re.sub(rb"\s+Range(?:Min|Max)\s*=\s*(\"[^\"]*\"|'[^']*')", b"", tag)
            numbers = changed[array.start]
            if array.format == "ascii":
                body = "".join(["\n", *(" ".join(map(printed, point)) + "\n" for point in numbers)]).encode()
            elif array.format == "binary":
                body = coder.encode(numbers.tobytes(), raw=False)
            else:
                body = b""
        parts += [content[done : array.start], tag, body]
        done = max(array.end, array.content)
    parts.append(content[done:appended])
    done = 0
    for offset, length, now in sorted(blocks):
        parts += [content[appended + done : appended + offset], now]
        done = offset + length
    return b"".join([*parts, content[appended + done :]])
