# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The pairs of images that the experiments register: each kind gives rows of a data list."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

__all__ = ["PairSet", "Shapes", "Slices", "Volumes", "disc_and_c"]

Row = dict[str, str]


class PairSet(ABC):
    """Pairs that one experiment registers, one after the other."""

    spatial_dims: int

    @abstractmethod
    def rows(self, data: Path | None, folder: Path) -> list[Row]:
        """Rows with "fixed", "moving", their labels and "id".

        Args:
            data: folder of the OASIS data.
            folder: where files that are made go.

        Raises:
            FileNotFoundError: names the first file that is missing, and how to get it.
        """


def _subject_files(data: Path | None, archive: str, subject: int, image: str, label: str) -> tuple[Path, Path]:
    if data is None:
        raise FileNotFoundError("the OASIS data are needed: name their folder with --data; `make oasis` fetches them.")
    names = (f"OASIS_OAS1_{subject:04d}_MR1", f"{subject:04d}")
    folder = next((data / archive / name for name in names if (data / archive / name).is_dir()), None)
    for file in (image, label):
        if folder is None or not (folder / file).is_file():
            missing = (folder or data / archive / names[0]) / file
            raise FileNotFoundError(f"{missing} is missing; `make oasis` fetches the OASIS data .")
    return folder / image, folder / label


def _row(fixed: tuple[Path, Path], moving: tuple[Path, Path], id: str) -> Row:
    keys = ("fixed", "fixed_label", "moving", "moving_label")
    return {**{key: str(path) for key, path in zip(keys, (*fixed, *moving), strict=True)}, "id": id}


@dataclass(frozen=True)
class Slices(PairSet):
    """Coronal slices of OASIS heads, 160x192, 24 labels.

    Args:
        subjects: (fixed, moving) of each pair.
    """

    subjects: tuple[tuple[int, int], ...]
    spatial_dims = 2

    def rows(self, data: Path | None, folder: Path) -> list[Row]:
        files = ("slice_norm.nii.gz", "slice_seg24.nii.gz")
        return [
            _row(
                *(_subject_files(data, "oasis2d", subject, *files) for subject in pair),
                "{1:04d}_to_{0:04d}".format(*pair),
            )
            for pair in self.subjects
        ]


@dataclass(frozen=True)
class Volumes(PairSet):
    """One pair of OASIS heads, affinely aligned, 160x192x224, 35 labels.

    Args:
        fixed: subject.
        moving: subject.
        planes: first and last (exclusive) along the third axis; all by default.
    """

    fixed: int
    moving: int
    planes: tuple[int, int] | None = None
    spatial_dims = 3

    def rows(self, data: Path | None, folder: Path) -> list[Row]:
        names = ("aligned_norm.nii.gz", "aligned_seg35.nii.gz")
        files = [_subject_files(data, "oasis3d", subject, *names) for subject in (self.fixed, self.moving)]
        if self.planes is not None:
            files = [tuple(self._cropped(path, folder) for path in pair) for pair in files]
        return [_row(*files, f"{self.moving:04d}_to_{self.fixed:04d}")]

    def _cropped(self, path: Path, folder: Path) -> Path:
        target = folder / f"{path.parent.name}_{path.name}"
        nib.save(nib.load(path).slicer[:, :, slice(*self.planes)], target)
        return target


@dataclass(frozen=True)
class Shapes(PairSet):
    """A disc (moving) and a C (fixed): the large deformation that diffeomorphic registration is shown on.

    Args:
        size: pixels of 1 mm along each axis.
        openings: half the width of the gap in the C, in radii; a pair for each.
    """

    size: tuple[int, int] = (128, 144)
    openings: tuple[float, ...] = (0.25,)
    spatial_dims = 2

    def rows(self, data: Path | None, folder: Path) -> list[Row]:
        rows = []
        for opening in self.openings:
            disc, c = (
                _stored(shape, folder / f"{name}_{opening}")
                for name, shape in zip(("disc", "c"), disc_and_c(self.size, opening), strict=True)
            )
            rows.append(_row(c, disc, f"disc_to_c_{opening}"))
        return rows


def disc_and_c(size: tuple[int, int], opening: float = 0.25) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A disc, and the same disc with a round hole that is open to one side; (*size) each.

    Args:
        size: pixels along each axis.
        opening: half the width of the gap, in radii.
    """
    centre = (np.array(size) - 1) / 2
    x, y = np.indices(size) - centre.reshape(2, 1, 1)
    radius = 0.33 * min(size)
    distance = np.hypot(x, y)
    disc = distance < radius
    gap = (x > 0) & (np.abs(y) < opening * radius)
    c = disc & (distance > 0.45 * radius) & ~gap
    return disc.astype(np.uint8), c.astype(np.uint8)


def _stored(shape: NDArray[np.uint8], stem: Path) -> tuple[Path, Path]:
    """Files of a shape's image, whose edge is blurred, and of its label map."""
    files = stem.with_name(f"{stem.name}_image.nii.gz"), stem.with_name(f"{stem.name}_label.nii.gz")
    for path, values in zip(files, (gaussian_filter(shape.astype(np.float32), 1.0), shape), strict=True):
        nib.save(nib.Nifti1Image(values[..., None], np.eye(4)), path)
    return files
