# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Headers of DICOM series, by pydicom, for what is written: registration objects and warped series."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

import numpy as np

from monai_nodeo.extras import extra
from monai_nodeo.files.grid import PathLike
from monai_nodeo.files.images import dicom_files

__all__ = ["decimals", "element_names_of", "new_dataset", "pydicom_or_error", "reference_to", "series_headers"]

_STUDY = (
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "StudyDescription",
    "AccessionNumber",
    "ReferringPhysicianName",
)
_FRAME = ("FrameOfReferenceUID", "PositionReferenceIndicator")
_PATIENT_GROUP = 0x0010


def pydicom_or_error(path: PathLike) -> Any:
    """The library.

    Raises:
        MissingExtraError: names the extra that has it.
    """
    with extra("dicom", f"DICOM objects such as {path}"):
        import pydicom
    return pydicom


def series_headers(path: PathLike) -> list[Any]:
    """The headers of a series, without its pixels.

    Args:
        path: a folder of DICOM files, with ``#`` and a number or UID where it holds several series, or one file.

    Raises:
        ValueError: when it is no DICOM, or names no frame of reference.
    """
    pydicom = pydicom_or_error(path)
    headers = []
    for file in dicom_files(path):
        try:
            header = pydicom.dcmread(file, stop_before_pixels=True)
        except pydicom.errors.InvalidDicomError as error:
            raise ValueError(f"{path}: no DICOM; expected the series of an image, a folder.") from error
        header.decode()  # texts as they are read, whatever the character set of the file
        headers.append(header)
    if not headers[0].get("FrameOfReferenceUID"):
        raise ValueError(f"{path}: names no frame of reference, so nothing can be placed in it; give another series.")
    return headers


def element_names_of(header: Any) -> list[str]:
    """What a result takes from the fixed series: the patient, the study and the frame of reference."""
    patient = [element.keyword for element in header if element.tag.group == _PATIENT_GROUP and element.keyword]
    return [*patient, *(name for name in (*_STUDY, *_FRAME) if name in header)]


def new_dataset(storage: str, fixed: Any, template: Any = None) -> Any:
    """A DICOM object in the study and the frame of the fixed series.

    Args:
        storage: UID of the class of the object.
        fixed: header of the fixed series.
        template: what else it begins with; by default nothing.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    now = datetime.datetime.now()
    data: Any = Dataset() if template is None else template
    data.SpecificCharacterSet = "ISO_IR 192"
    for element in [element for element in data if element.tag.group == _PATIENT_GROUP]:
        del data[element.tag]
    for name in (*_STUDY, *_FRAME):
        if name in data:
            del data[name]
    for name in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex"):  # these may be empty, not absent
        setattr(data, name, "")
    for name in (*_STUDY[1:4], *_STUDY[5:], _FRAME[1]):
        setattr(data, name, "")
    for name in element_names_of(fixed):
        setattr(data, name, getattr(fixed, name))
    data.SOPClassUID, data.SOPInstanceUID = storage, generate_uid()
    data.InstanceCreationDate, data.InstanceCreationTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = storage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    return data


def reference_to(header: Any) -> Any:
    """What points to an image."""
    from pydicom.dataset import Dataset

    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    return reference


def decimals(values: np.ndarray | Sequence[float]) -> list[Any]:
    """Numbers as DICOM's texts of at most 16 characters."""
    from pydicom.valuerep import DSfloat

    return [DSfloat(float(value), auto_format=True) for value in np.ravel(values)]
