# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""DICOM series in a folder: which there are, and the volume of one, whose slices must be a regular grid.

They are written by `files.dicom_series_writer`; a volume in one file of many frames: `files.dicom_frames`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from monai_nodeo.files.dicom_frames import UNEVEN
from monai_nodeo.files.nifti_place import quiet_itk

__all__ = ["read_series", "series_files"]

_SERIES_NUMBER, _SERIES_DESCRIPTION, _POSITION = "0020|0011", "0008|103e", "0020|0032"


def series_files(folder: Path, wanted: str) -> tuple[str, ...]:
    """The files of a series, in the order of their places; none in a folder without DICOM files.

    Args:
        folder: of the files.
        wanted: number or UID of the series; empty where there is one only.

    Raises:
        ValueError: when there are several, and not one is meant; tells which there are.
    """
    series = {
        uid: sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid)
        for uid in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    }
    if not series:
        return ()
    if len(series) == 1 and not wanted:
        return next(iter(series.values()))
    tags = {uid: _series_tags(files[0]) for uid, files in series.items()}
    # GDCM may add details to a UID that keep different images of one series apart: the longer names begin with it.
    fitting = [uid for uid in series if wanted and wanted in (uid, tags[uid][0])]
    if len(fitting) == 1:
        return series[fitting[0]]
    listed = "; ".join(
        f"#{number} {text or '(no description)'}, {len(series[uid])} files, UID {uid}"
        for uid, (number, text) in tags.items()
    )
    problem = f"{len(fitting) or 'no'} series for {wanted!r}" if wanted else f"{len(series)} series"
    raise ValueError(f"{problem} in the folder; choose one as {folder}#NUMBER or {folder}#UID. There are {listed}.")


def _series_tags(file: str) -> tuple[str, str]:
    """Number and description of the series that a DICOM file belongs to."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(file)
    reader.ReadImageInformation()
    number, text = (
        reader.GetMetaData(tag).strip() if reader.HasMetaDataKey(tag) else ""
        for tag in (_SERIES_NUMBER, _SERIES_DESCRIPTION)
    )
    return number, text


def read_series(files: Sequence[str]) -> sitk.Image:
    """The volume of several files.

    Raises:
        RuntimeError: when ITK cannot read them.
        ValueError: when the slices are no regular grid.
    """
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(files)
    reader.MetaDataDictionaryArrayUpdateOn()
    with quiet_itk():  # it only warns of uneven slices; here they are an error
        image = reader.Execute()
    _check_slices(image, reader, len(files))
    return image


def _check_slices(image: sitk.Image, reader: sitk.ImageSeriesReader, count: int) -> None:
    """Slices that are missing or shifted against each other make no regular grid, whatever ITK puts into the affine."""
    if not reader.HasMetaDataKey(0, _POSITION):
        return
    stored = [[float(number) for number in reader.GetMetaData(i, _POSITION).split("\\")] for i in range(count)]
    expected = [image.TransformIndexToPhysicalPoint((0, 0, i)) for i in range(count)]
    apart = np.linalg.norm(np.subtract(stored, expected), axis=1)
    if apart.max() > UNEVEN * image.GetSpacing()[2]:
        raise ValueError(
            f"the slices are no regular grid (slice {int(apart.argmax()) + 1} of {count} lies "
            f"{apart.max():.3g} mm from its place in one): some are missing, several acquisitions are mixed, or "
            "the gantry was tilted; copy the series again, separate it, or resample it to a regular grid."
        )
