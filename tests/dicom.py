# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""DICOM on disk: series written by SimpleITK, frames of one file by hand."""

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])


def write_series(
    folder: Path,
    volume: np.ndarray,
    affine: np.ndarray,
    number: int = 1,
    skip: Sequence[int] = (),
    shear: Sequence[float] = (0, 0, 0),
) -> str:
    """Write (X, Y, Z) whole numbers with an affine in RAS mm as a series, one file a slice, and return its UID.

    Some slices may be left out; the shear, in LPS mm, shifts each slice against the one before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    uid = f"1.2.826.0.1.3680043.2.1125.{number}"
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    lps = RAS_TO_LPS @ affine[:3]
    axes = lps[:, :3] / spacing
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for index in sorted(set(range(volume.shape[2])) - set(skip)):
        image = sitk.GetImageFromArray(volume[:, :, index].T.astype(np.int16))
        image.SetSpacing(spacing[:2].tolist())
        place = lps[:, 3] + lps[:, 2] * index + np.multiply(shear, index)
        tags = {
            "0008|0060": "MR",
            "0008|0018": f"{uid}.{index + 1}",
            "0008|103e": f"echo {number}",
            "0018|0050": f"{spacing[2]:g}",
            "0020|000d": "1.2.826.0.1.3680043.2.1125",
            "0020|000e": uid,
            "0020|0011": str(number),
            "0020|0013": str(index + 1),
            "0020|0032": "\\".join(f"{x:.6f}" for x in place),
            "0020|0037": "\\".join(f"{x:.8f}" for x in axes[:, :2].T.ravel()),
            "0020|0052": f"{uid}.0",
        }
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        # names in another order than the slices
        writer.SetFileName(str(folder / f"{number}_{7 * index % volume.shape[2]:03d}_{index}.dcm"))
        writer.Execute(image)
    return uid


def write_frames(path: Path, volume: np.ndarray, affine: np.ndarray, order: Sequence[int]) -> None:
    """Write slices of (X, Y, Z) int16 as the frames of one enhanced MR file, in this order; by hand, in explicit VR."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    lps = RAS_TO_LPS @ affine[:3]
    axes = lps[:, :3] / spacing

    def numbers(values: Sequence[float]) -> bytes:
        return "\\".join(f"{value:.6f}"[:16] for value in values).encode()

    shared = _item(
        _sequence(0x0020, 0x9116, _item(_element(0x0020, 0x0037, "DS", numbers(axes[:, :2].T.ravel())))),
        _sequence(0x0028, 0x9110, _item(_element(0x0028, 0x0030, "DS", numbers((spacing[1], spacing[0]))))),
    )
    frames = [
        _item(_sequence(0x0020, 0x9113, _item(_element(0x0020, 0x0032, "DS", numbers(lps[:, 3] + lps[:, 2] * index)))))
        for index in order
    ]
    short = {0x0002: 1, 0x0010: volume.shape[1], 0x0011: volume.shape[0], 0x0100: 16, 0x0101: 16, 0x0102: 15, 0x0103: 1}
    pixels = np.stack([volume[:, :, index].T for index in order]).astype("<i2").tobytes()
    storage = b"1.2.840.10008.5.1.4.1.1.4.1"
    meta = (
        _element(2, 2, "UI", storage) + _element(2, 3, "UI", b"1.2.3") + _element(2, 16, "UI", b"1.2.840.10008.1.2.1")
    )
    body = [
        _element(0x0008, 0x0016, "UI", storage),
        _element(0x0008, 0x0018, "UI", b"1.2.3"),
        _element(0x0008, 0x0060, "CS", b"MR"),
        _element(0x0020, 0x000D, "UI", b"1.2.4"),
        _element(0x0020, 0x000E, "UI", b"1.2.5"),
        _element(0x0028, 0x0002, "US", struct.pack("<H", short[0x0002])),
        _element(0x0028, 0x0004, "CS", b"MONOCHROME2"),
        _element(0x0028, 0x0008, "IS", str(len(order)).encode()),
        *[_element(0x0028, tag, "US", struct.pack("<H", value)) for tag, value in short.items() if tag != 0x0002],
        _sequence(0x5200, 0x9229, shared),
        _sequence(0x5200, 0x9230, *frames),
        _element(0x7FE0, 0x0010, "OW", pixels),
    ]
    length = _element(2, 0, "UL", struct.pack("<I", len(meta)))
    path.write_bytes(bytes(128) + b"DICM" + length + meta + b"".join(body))


def _element(group: int, number: int, kind: str, value: bytes) -> bytes:
    value += b"\0" * (len(value) % 2) if kind in ("UI", "OW") else b" " * (len(value) % 2)
    length = struct.pack("<HI", 0, len(value)) if kind in ("OW", "SQ") else struct.pack("<H", len(value))
    return struct.pack("<HH", group, number) + kind.encode() + length + value


def _sequence(group: int, number: int, *items: bytes) -> bytes:
    return _element(group, number, "SQ", b"".join(items))


def _item(*elements: bytes) -> bytes:
    content = b"".join(elements)
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(content)) + content
