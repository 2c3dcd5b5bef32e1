# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""A series of images with their times, read one at a time.

What the frames are is found out without torch and MONAI, so that a mistake is told at once.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike, fspath
from os.path import expanduser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import SimpleITK as sitk
from nibabel.spatialimages import SpatialImage

from monai_nodeo.data.errors import PairError
from monai_nodeo.files import open_stored, stored_nibabel
from monai_nodeo.files.images import open_nibabel

if TYPE_CHECKING:
    from monai.data import MetaTensor

    from monai_nodeo.data.image import Image

__all__ = ["Series", "open_series"]

_TABLES = (".csv", ".tsv")
_NUMBERED = 1.0  # between two frames of which nothing says how far apart they are


@dataclass(frozen=True, eq=False)
class Series:
    """Frames of one subject.

    Attributes:
        names: what errors call the frames: their paths, or the path of all with a number.
        times: of each frame, in any unit, all different and in any order.
        opened: gives what :py:func:`as_image` takes for a frame.
        unit: of the times, as NIfTI calls it.
    """

    names: tuple[str, ...]
    times: tuple[float, ...]
    opened: tuple[Callable[[], Image], ...]
    unit: str = "unknown"

    def frame(self, number: int, spatial_dims: int | None = None, min_size: int = 1) -> MetaTensor:
        """An image of the series, (C, *spatial), see :py:func:`as_image`.

        Raises:
            PairError: when it is none.
        """
        from monai_nodeo.data.image import as_image

        value = self.opened[number]()
        key = "frame" if isinstance(value, str | PathLike) else f"frame {self.names[number]}"
        return as_image(value, key, spatial_dims, min_size)

    def base(self, reference: int | str) -> int:
        """The frame whose grid stays and which labels and points are of: the reference frame, for "mean" frame 0.

        Raises:
            PairError: when there is none of this number, or for another word.
        """
        if reference == "mean":
            return 0
        if isinstance(reference, str):
            raise PairError(f"reference {reference!r}: expected the number of a frame, or mean.")
        if reference not in range(len(self.names)):
            raise PairError(f"there is no frame {reference}; the {len(self.names)} frames are numbered from 0.")
        return reference

    def span(self, periodic: float | None = None) -> tuple[float, float]:
        """The first and the last time; with a period, one of it after the first.

        Raises:
            PairError: when the frames last longer than the period.
        """
        first, last = min(self.times), max(self.times)
        if periodic is None:
            return first, last
        if periodic < last - first:
            raise PairError(
                f"the period is {periodic:g} and the frames last {last - first:g}; give those of one period."
            )
        return first, first + periodic


def open_series(images: Any, times: Any = None) -> Series:
    """Find out what the frames of a series are; they are read when they are asked for.

    Args:
        images: the path of a 4D file (X, Y, Z, T), of a folder with a file for each frame, whose order is that of the
            names, or of a table with the columns ``image`` and perhaps ``time``; or a sequence of images, see
            :py:func:`as_image`; a 4D image of nibabel; or a series.
        times: numbers, or the path of a text file with one in each line. By default those of the table, or as far
            apart as the header of a 4D file says, or 0, 1, 2, ...

    Raises:
        FileNotFoundError: when there is no such file.
        PairError: when there are fewer than two frames, or the times are not as many, not finite or not different.
    """
    if isinstance(images, Series) and times is None:
        return images
    found = _frames(images)
    if times is not None:
        numbers = _lines(times) if isinstance(times, str | PathLike) else [float(t) for t in times]
        found = replace(found, times=tuple(numbers), unit="unknown")
    names, numbers = found.names, list(found.times)
    what = fspath(images) if isinstance(images, str | PathLike) else "the series"
    if len(names) < 2:
        raise PairError(f"{what}: {len(names)} frames; expected two at least.")
    if len(numbers) != len(names):
        raise PairError(f"{what}: {len(names)} frames and {len(numbers)} times; give a time for each frame.")
    if not all(map(math.isfinite, numbers)) or len(set(numbers)) < len(numbers):
        raise PairError(f"{what}: the times {numbers} are not all finite and different; give each frame its own.")
    return found


def _frames(images: Any) -> Series:
    """The frames with their own times, which are looked at later."""
    if isinstance(images, Series):
        return images
    if isinstance(images, str | PathLike):
        path = Path(expanduser(images))
        if path.is_dir():
            return _of_paths(sorted(file for file in path.iterdir() if not file.name.startswith(".")))
        if path.suffix.lower() in _TABLES:
            return _of_table(path)
        return _of_file(fspath(images), path)
    if isinstance(images, SpatialImage):
        return _of_volumes("the series", images, images.shape, stored_nibabel("the series", images).steps)
    values = list(images)
    if values and all(isinstance(value, str | PathLike) for value in values):
        return _of_paths([Path(value) for value in values])
    numbers = range(len(values))
    return Series(
        tuple(f"{n} of the series" for n in numbers),
        tuple(map(float, numbers)),
        tuple(partial(_same, value) for value in values),
    )


def _of_paths(paths: Sequence[Path]) -> Series:
    for path in paths:  # all of them, before the first one is read
        if not path.expanduser().exists():
            raise FileNotFoundError(f"{path}: there is no such file; check the path.")
    names = tuple(map(str, paths))
    return Series(names, tuple(map(float, range(len(names)))), tuple(partial(_same, name) for name in names))


def _of_table(path: Path) -> Series:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ","))
    if not rows or "image" not in rows[0]:
        raise PairError(f"{path}: no column image; expected a table with the columns image and time.")
    found = _of_paths([path.parent / row["image"] for row in rows])
    try:
        return replace(found, times=tuple(float(row["time"]) for row in rows)) if "time" in rows[0] else found
    except (TypeError, ValueError) as error:
        raise PairError(f"{path}: a time is no number ({error}); give each frame its own.") from error


def _of_file(name: str, path: Path) -> Series:
    stored = open_stored(name)
    if len(stored.shape) != 4:
        raise PairError(
            f"{name}: shape {stored.shape} is no series; expected a 4D file (X, Y, Z, T), a folder with a file for "
            "each frame, or a table with the columns image and time."
        )
    try:
        image: Any = open_nibabel(name, path)
    except ValueError:  # not of nibabel
        image = sitk.ReadImage(str(path))
    return _of_volumes(name, image, stored.shape, stored.steps)


def _of_volumes(name: str, image: Any, shape: Sequence[int], steps: tuple[Sequence[float], str]) -> Series:
    if len(shape) != 4:
        raise PairError(f"{name}: shape {tuple(shape)} is no series; expected (X, Y, Z, T).")
    step = next((s for s in steps[0] if s > 0), _NUMBERED)
    numbers = range(shape[3])
    return Series(
        tuple(f"{n} of {name}" for n in numbers),
        tuple(float(f"{n * step:.12g}") for n in numbers),  # 0.3, not 0.30000000000000004
        tuple(partial(_volume, image, n) for n in numbers),
        steps[1],
    )


def _volume(image: Any, number: int) -> Image:
    """One of a 4D image of nibabel, of which no other is read, or of SimpleITK."""
    volume: Image = image.slicer[..., number] if isinstance(image, SpatialImage) else image[:, :, :, number]
    return volume


def _same(value: Image) -> Image:
    return value


def _lines(path: str | PathLike[str]) -> list[float]:
    try:
        return [float(line) for line in Path(expanduser(path)).read_text(encoding="utf-8").split()]
    except ValueError as error:
        raise PairError(f"{path}: no list of times ({error}); expected a number in each line.") from error
