# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""A warped image as a DICOM series: what the values are comes from the moving series, where they lie from the fixed.

Patient, study and frame of reference are the fixed series', so that viewers show the two on top of each other. The
series and its images are new ones, and their type is derived. Series are read by `files.dicom_series`.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import numpy as np

from monai_nodeo.files.atomic import atomic_path, check_folder
from monai_nodeo.files.dicom_headers import decimals, new_dataset, pydicom_or_error, reference_to, series_headers
from monai_nodeo.files.grid import ImageGrid, PathLike
from monai_nodeo.files.lps import RAS_TO_LPS

__all__ = ["check_series_target", "is_series_target", "write_series"]

_PIXELS = 0x0028
_KEPT: tuple[str, ...] = (
    "WindowCenter",
    "WindowWidth",
    "WindowCenterWidthExplanation",
    "VOILUTFunction",
    "RescaleType",
)
_KEPT += ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod", "BurnedInAnnotation")
_DROPPED: tuple[str, ...] = (
    "SliceLocation",
    "PatientOrientation",
    "IconImageSequence",
    "ImagesInAcquisition",
    "PatientPosition",
)
_DROPPED += ("ReferencedImageSequence", "ReferencedPatientSequence", "ReferencedStudySequence")
_DROPPED += ("ReferencedSeriesSequence", "ReferencedPerformedProcedureStepSequence", "RequestAttributesSequence")
_OVERLAYS = range(0x5000, 0x6100)
_SERIES_OFFSET = 1000  # a number of its own in the study
_TEXT = 64  # characters of a description


def is_series_target(path: PathLike) -> bool:
    """Whether a name means a folder of DICOM files: it ends with a slash, or is a folder."""
    return os.fspath(path).endswith(("/", os.sep)) or Path(path).is_dir()


def check_series_target(folder: PathLike, fixed: PathLike, moving: PathLike) -> None:
    """Refuse what `write_series` cannot write, before there is something to write.

    Args:
        folder: target.
        fixed: a DICOM series.
        moving: another one.

    Raises:
        FileNotFoundError: when the folder's folder does not exist.
        MissingExtraError: without pydicom.
        ValueError: when the folder holds files, or the images are no series of single slices with one value a voxel.
    """
    pydicom_or_error(folder)
    check_folder(folder)
    if Path(folder).is_dir() and any(Path(folder).iterdir()):
        raise ValueError(f"{folder}: the folder holds files, which would mix with the series; give a new one.")
    series_headers(fixed)
    header = series_headers(moving)[0]
    if "SharedFunctionalGroupsSequence" in header or int(header.get("NumberOfFrames") or 1) > 1:
        raise ValueError(f"{moving}: a multi-frame file, expected one slice a file; write .nii.gz.")
    if header.get("SamplesPerPixel", 1) != 1:
        raise ValueError(f"{moving}: has {header.SamplesPerPixel} values a voxel, expected one; write .nii.gz.")


def write_series(folder: PathLike, values: np.ndarray, grid: ImageGrid, fixed: PathLike, moving: PathLike) -> None:
    """Write a volume as one file a slice, 16 bits a voxel.

    Whole numbers that fit are stored as they are; others with a slope, to 1/65535 of their range.

    Args:
        folder: target, a new or empty folder.
        values: (X, Y, Z), on the grid.
        grid: where it lies, in the fixed frame of reference.
        fixed: the series that patient, study and frame of reference are of.
        moving: the series that the values are of.

    Raises:
        MissingExtraError: without pydicom.
        ValueError: as `check_series_target`, or for values that are not finite.
    """
    check_series_target(folder, fixed, moving)
    if not np.isfinite(values).all():
        raise ValueError(f"{folder}: the image holds NaN or infinite values, which DICOM does not store.")
    fixed_headers, moving_headers = series_headers(fixed), series_headers(moving)
    stored, slope = _stored(values.reshape(*values.shape[:2], -1))
    template = _template(moving_headers, fixed_headers[0])
    lps = RAS_TO_LPS @ grid.affine[:3]
    spacing = np.linalg.norm(lps[:, :3], axis=0)
    template.PixelSpacing, template.SliceThickness = decimals(spacing[[1, 0]]), decimals(spacing[2:])[0]
    if "SpacingBetweenSlices" in template:
        template.SpacingBetweenSlices = template.SliceThickness
    template.ImageOrientationPatient = decimals((lps[:, :2] / spacing[:2]).T)
    template.Columns, template.Rows = stored.shape[:2]
    template.PixelRepresentation = int(stored.dtype.kind == "i")
    if slope != 1 or "RescaleSlope" in moving_headers[0]:
        template.RescaleIntercept, template.RescaleSlope = "0", decimals([slope])[0]
    if "NumberOfSlices" in template:
        template.NumberOfSlices = stored.shape[2]
    with atomic_path(folder) as partial:
        partial.mkdir()
        for index in range(stored.shape[2]):
            _write_slice(partial, template, stored[:, :, index], lps @ [0, 0, index, 1], index + 1)
        if Path(folder).is_dir():
            Path(folder).rmdir()


def _write_slice(folder: Path, template: Any, pixels: np.ndarray, place: np.ndarray, number: int) -> None:
    from pydicom.uid import generate_uid

    template.SOPInstanceUID = template.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    template.ImagePositionPatient, template.InstanceNumber = decimals(place), number
    if "ImageIndex" in template:
        template.ImageIndex = number
    template.PixelData = pixels.T.astype(pixels.dtype.newbyteorder("<")).tobytes()
    template["PixelData"].VR = "OW"
    template.save_as(folder / f"{number:04d}.dcm", enforce_file_format=True)


def _stored(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Values as 16 bits, and the slope that gives them back."""
    low, high = float(values.min()), float(values.max())
    kind = np.dtype(np.int16 if low < 0 else np.uint16)
    limits = np.iinfo(kind)
    if values.dtype.kind in "iu" and limits.min <= low and high <= limits.max:
        return values.astype(kind), 1.0
    slope = max(high / limits.max, low / limits.min if limits.min else 0) or 1.0
    return np.rint(values / slope).clip(limits.min, limits.max).astype(kind), slope


def _template(moving: list[Any], fixed: Any) -> Any:
    """All elements but those of single slices."""
    from pydicom.dataset import Dataset
    from pydicom.uid import generate_uid

    header = copy.deepcopy(moving[0])
    header.remove_private_tags()
    for element in list(header):
        pixels = element.tag.group == _PIXELS and element.keyword not in _KEPT
        if pixels or element.tag.group in _OVERLAYS or element.keyword in _DROPPED:
            del header[element.tag]
    data = new_dataset(str(header.SOPClassUID), fixed, header)
    if "PatientPosition" in fixed:
        data.PatientPosition = fixed.PatientPosition
    data.ImageType = ["DERIVED", "SECONDARY", *list(moving[0].get("ImageType") or [])[2:]]
    data.SeriesInstanceUID = generate_uid()
    data.SeriesNumber = _SERIES_OFFSET + int(moving[0].get("SeriesNumber") or 0)
    text = str(moving[0].get("SeriesDescription") or moving[0].get("Modality", ""))
    data.SeriesDescription = f"{text[: _TEXT - 11]} registered".strip()
    data.DerivationDescription = "resampled on to another image by monai_nodeo"
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "113085", "DCM", "Spatial resampling"
    data.DerivationCodeSequence = [code]
    data.SourceImageSequence = [reference_to(one) for one in moving]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
    return data
