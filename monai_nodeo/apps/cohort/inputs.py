# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Whether the files of a pair are those that it was registered from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from glob import escape
from pathlib import Path
from typing import Any

from monai_nodeo.data.keys import PATH_KEYS, START_KEY, images_of

__all__ = ["fingerprints", "same_inputs"]

_WITH_DATA_BESIDE = {".hdr", ".img", ".mhd", ".nhdr"}  # header and voxels in two files of one stem


def fingerprints(row: Mapping[str, Any]) -> dict[str, dict[str, Any] | None]:
    """Key of a row -> path, size, time and SHA-256 of what it names; None when there is none to be read.

    The second image of a list under "fixed" has the key "fixed 2".
    """
    return {key: _fingerprint(path) for key, path in _paths(row).items()}


def _paths(row: Mapping[str, Any]) -> dict[str, str]:
    return {
        key if number == 1 else f"{key} {number}": path
        for key in (*PATH_KEYS, START_KEY)
        if row.get(key)
        for number, path in enumerate(images_of(row[key]), start=1)
    }


def same_inputs(recorded: Mapping[str, Mapping[str, Any] | None], row: Mapping[str, Any]) -> bool:
    """Whether a row still names what the fingerprints were taken of.

    A file of the same path, size and time is taken as the same unread; else the contents are compared, so that data
    may be copied or touched without anything being computed again.
    """
    paths = _paths(row)
    return set(recorded) == set(paths) and all(_same(print_, paths[key]) for key, print_ in recorded.items())


def _same(recorded: Mapping[str, Any] | None, path: str) -> bool:
    stamp = _stamp(path)
    if recorded is None or stamp is None:
        return False
    if (recorded["path"], recorded["size"], recorded["mtime_ns"]) == (path, *stamp):
        return True
    now = _fingerprint(path) if recorded["size"] == stamp[0] else None
    return now is not None and recorded["sha256"] == now["sha256"]


def _fingerprint(path: str) -> dict[str, Any] | None:
    stamp = _stamp(path)
    try:
        digest = _digest(path, stamp) if stamp else None
    except OSError:  # who registers the pair will say it better
        digest = None
    return {"path": path, "size": stamp[0], "mtime_ns": stamp[1], "sha256": digest} if stamp and digest else None


def _stamp(path: str) -> tuple[int, int] | None:
    """Bytes and times of change in ns of all files behind a path, summed: a file that gets older counts, too."""
    try:
        stats = [file.stat() for file in _files(path)]
    except OSError:
        return None
    return (sum(s.st_size for s in stats), sum(s.st_mtime_ns for s in stats)) if stats else None


@lru_cache(maxsize=4096)  # an atlas belongs to thousands of pairs
def _digest(path: str, stamp: tuple[int, int]) -> str:
    digest = hashlib.sha256()
    for file in _files(path):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _files(path: str) -> list[Path]:
    """The file, the two of an image in two parts, or those of a DICOM folder, whose series may stand behind a #."""
    file = Path(path)
    if not file.exists() and "#" in path:
        file = Path(path.rpartition("#")[0])
    if file.is_dir():
        return sorted(part for part in file.iterdir() if part.is_file())
    if file.suffix.lower() in _WITH_DATA_BESIDE:
        return sorted(part for part in file.parent.glob(f"{escape(file.stem)}.*") if part.is_file())
    return [file]
