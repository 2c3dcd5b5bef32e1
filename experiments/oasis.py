# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The public neurite-OASIS archives: downloaded, checked, and data lists of their pairs."""

from __future__ import annotations

import json
import os
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from monai.apps import download_and_extract
from monai.apps.utils import HashCheckError

from monai_nodeo.files import atomic_path

__all__ = ["SLICES", "VOLUMES", "Archive", "fetch"]

_SERVER = "https://surfer.nmr.mgh.harvard.edu/ftp/data/neurite/data"
_SUBJECT = "OASIS_OAS1_{:04d}_MR1"
_ATLASES = (1, 10, 20, 30, 40)  # of the paper and of its reproduction
_VALIDATION = range(438, 458)  # subjects of Learn2Reg 2021, task 3: each is registered to the one before


class Archive(NamedTuple):
    """One archive of neurite-OASIS (Marcus et al., 2007; Hoopes et al., 2021); a folder a subject at its top.

    Attributes:
        name: of the folder that it becomes.
        url: where it is.
        md5: its checksum, as the publisher gives it.
        image: file of a subject.
        label: its label map.
    """

    name: str
    url: str
    md5: str
    image: str
    label: str


SLICES = Archive(
    "oasis2d",
    f"{_SERVER}/neurite-oasis.2d.v1.0.tar",
    "c9ae5864f250c7e4b8d83a104e51ae8e",
    "slice_norm.nii.gz",
    "slice_seg24.nii.gz",
)
VOLUMES = Archive(
    "oasis3d",
    f"{_SERVER}/neurite-oasis.v1.0.tar",
    "081392a8150ff99ab7a64a9ded377835",
    "aligned_norm.nii.gz",
    "aligned_seg35.nii.gz",
)


def fetch(archive: Archive, folder: Path) -> list[Path]:
    """Download and unpack an archive, unless it is there, and write its data lists beside it.

    Args:
        archive: which.
        folder: gets the folder of the archive and its lists; made if it does not exist.

    Returns:
        The lists: every subject to each of the five atlases, and the validation pairs of Learn2Reg.

    Raises:
        ValueError: when subjects or files of subjects are missing; nothing is left behind.
        OSError: when the download fails or is damaged; nothing is left behind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / archive.name
    if not target.is_dir():
        # Beside the target, so that it is put in its place by a rename.
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{archive.name}.") as temporary:
            unpacked = Path(temporary) / archive.name
            try:
                download_and_extract(
                    archive.url, output_dir=unpacked, hash_val=archive.md5, hash_type="md5", has_base=False
                )
            except (HashCheckError, EOFError, tarfile.TarError) as error:
                raise OSError(f"{archive.url} came damaged ({error}); try again.") from error
            _check(archive, unpacked)
            os.replace(unpacked, target)
    return [_write_list(archive, folder, name, pairs) for name, pairs in _lists(_check(archive, target)).items()]


def _check(archive: Archive, unpacked: Path) -> list[int]:
    """The subjects of an unpacked archive, in order."""
    subjects = sorted(int(path.name.split("_")[2]) for path in unpacked.glob(_SUBJECT.format(0).replace("0000", "*")))
    missing = [_SUBJECT.format(subject) for subject in sorted({*_ATLASES, *_VALIDATION} - set(subjects))]
    missing += [
        f"{name}/{file}"
        for name in map(_SUBJECT.format, subjects)
        for file in (archive.image, archive.label)
        if not (unpacked / name / file).is_file()
    ]
    if missing:
        raise ValueError(
            f"{archive.url}: {len(missing)} subjects or files are missing, the first is {missing[0]}; "
            f"remove {unpacked} and download again."
        )
    return subjects


def _lists(subjects: Iterable[int]) -> dict[str, list[tuple[int, int]]]:
    """Name -> (fixed, moving) of every pair."""
    return {
        "atlases": [(atlas, subject) for atlas in _ATLASES for subject in subjects if subject != atlas],
        "learn2reg_validation": [(fixed, fixed + 1) for fixed in _VALIDATION[:-1]],
    }


def _write_list(archive: Archive, folder: Path, name: str, pairs: Iterable[tuple[int, int]]) -> Path:
    rows = []
    for fixed, moving in pairs:
        row = {"id": f"{moving:04d}_to_{fixed:04d}"}
        for side, subject in (("fixed", fixed), ("moving", moving)):
            base = f"{archive.name}/{_SUBJECT.format(subject)}"
            row |= {side: f"{base}/{archive.image}", f"{side}_label": f"{base}/{archive.label}"}
        rows.append(row)
    path = folder / f"{archive.name}_{name}.json"
    with atomic_path(path) as partial:
        partial.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n", encoding="utf-8")
    return path
