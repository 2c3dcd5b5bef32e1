# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Registration objects of DICOM (PS3.3, C.20), in LPS mm.

======================================  ==========================================================================
object                                  holds
======================================  ==========================================================================
Spatial Registration                    a matrix **from the moving** frame of reference **to the fixed** one
Deformable Spatial Registration         fixed -> moving: post(pre(x) + d(x)), d on a grid in the fixed frame
======================================  ==========================================================================

The object's own frame of reference, the registered one, is that of the fixed image.
"""

from __future__ import annotations

import datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from monai_nodeo.files.atomic import atomic_path
from monai_nodeo.files.dicom_headers import decimals, new_dataset, pydicom_or_error, reference_to, series_headers
from monai_nodeo.files.grid import ImageGrid, PathLike, displacement_from_lps, displacement_to_lps
from monai_nodeo.files.lps import RAS_TO_LPS
from monai_nodeo.files.transform import Affine, Displacement, Transform

__all__ = ["read_registration_object", "write_registration_object"]

_RIGID, _DEFORMABLE = "1.2.840.10008.5.1.4.1.1.66.1", "1.2.840.10008.5.1.4.1.1.66.3"
_FLIP = np.diag([*np.diag(RAS_TO_LPS), 1.0])
_ORTHOGONAL = 1e-5


def read_registration_object(path: PathLike) -> Transform:
    """The transform of a registration object.

    Raises:
        MissingExtraError: without pydicom.
        ValueError: when it is no such object, or one of several images.
    """
    pydicom = pydicom_or_error(path)
    try:
        data = pydicom.dcmread(path)
        storage = str(data.SOPClassUID)
        if storage == _DEFORMABLE:
            return _deformable(path, data)
        if storage == _RIGID:
            return Transform((_rigid(path, data),))
    except (pydicom.errors.InvalidDicomError, AttributeError, KeyError, IndexError, TypeError) as error:
        raise ValueError(
            f"{path}: no registration object of DICOM, or a damaged one ({type(error).__name__})."
        ) from error
    raise ValueError(
        f"{path}: a DICOM object of the class {data.SOPClassUID.name}, expected a Spatial Registration or a "
        "Deformable Spatial Registration."
    )


def write_registration_object(
    path: PathLike, transform: Transform, grid: ImageGrid | None, fixed: PathLike, moving: PathLike
) -> None:
    """Write linear steps as a Spatial Registration, others as a Deformable Spatial Registration.

    Args:
        path: target.
        transform: points of the fixed image -> points of the moving one, of volumes. Affines behind the last
            displacement stay a matrix, all before is one field.
        grid: of the field; None: that of the fixed series.
        fixed: its series, a folder, of which the object takes patient, study and frame of reference.
        moving: its series.

    Raises:
        MissingExtraError: without pydicom.
        ValueError: when the transform is of 2D points, or a series is none.
    """
    if transform.world_dims != 3:
        raise ValueError(f"{path}: DICOM registers volumes, and the transform is of 2D points; write a .h5.")
    fixed_headers, moving_headers = series_headers(fixed), series_headers(moving)
    source = str(moving_headers[0].FrameOfReferenceUID)
    fields = [number for number, step in enumerate(transform.steps) if isinstance(step, Displacement)]
    last = fields[-1] + 1 if fields else 0
    matrix = np.eye(4)
    for step in transform.steps[last:]:
        assert isinstance(step, Affine)
        matrix = _FLIP @ step.matrix @ _FLIP @ matrix
    data = new_dataset(_DEFORMABLE if fields else _RIGID, fixed_headers[0])
    if fields:
        on = ImageGrid.from_file(fixed) if grid is None else grid
        ddf = Transform(transform.steps[:last]).displacement_on(str(path), on)
        data.DeformableRegistrationSequence = [_deformable_item(Displacement(on, ddf), matrix, source)]
        data.DeformableRegistrationSequence[0].ReferencedImageSequence = [reference_to(one) for one in moving_headers]
    else:
        items = [(np.eye(4), fixed_headers), (np.linalg.inv(matrix), moving_headers)]
        data.RegistrationSequence = [_rigid_item(toward, headers) for toward, headers in items]
    _describe(data, fixed_headers, moving_headers)
    with atomic_path(path) as partial:
        data.save_as(partial, enforce_file_format=True)


def _rigid(path: PathLike, data: Any) -> Affine:
    frame = data.get("FrameOfReferenceUID")
    items = [item for item in data.RegistrationSequence if item.get("FrameOfReferenceUID") != frame]
    if not items:  # one frame for both images: the fixed one stands still
        items = [item for item in data.RegistrationSequence if not np.array_equal(_matrix(item), np.eye(4))]
        items = items or [data.RegistrationSequence[0]]
    if len(items) != 1:
        raise ValueError(f"{path}: registers {len(items)} images, expected one; write an object for each.")
    try:
        return Affine(_FLIP @ _matrix(items[0]) @ _FLIP).inverse()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _matrix(item: Any) -> np.ndarray:
    """The product of an item's matrices; a point goes through the first one first, as in vtk-dicom and pydicomRT."""
    product = np.eye(4)
    for one in item.MatrixRegistrationSequence[0].MatrixSequence:
        product = np.reshape(np.array(one.FrameOfReferenceTransformationMatrix, np.float64), (4, 4)) @ product
    return product


def _deformable(path: PathLike, data: Any) -> Transform:
    items = [item for item in data.DeformableRegistrationSequence if item.get("DeformableRegistrationGridSequence")]
    if len(items) != 1:
        raise ValueError(f"{path}: holds {len(items)} fields, expected one; write an object for each image.")
    (item,) = items
    stored = item.DeformableRegistrationGridSequence[0]
    shape = tuple(int(size) for size in stored.GridDimensions)
    row, column = np.reshape(np.array(stored.ImageOrientationPatient, np.float64), (2, 3))
    axes = np.stack([row, column, np.cross(row, column)], axis=1) * np.array(stored.GridResolution, np.float64)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes, np.array(stored.ImagePositionPatient, np.float64)
    affine[:3] = RAS_TO_LPS @ affine[:3]
    values = np.frombuffer(stored.VectorGridData, "<f4")
    if len(shape) != 3 or values.size != 3 * np.prod(shape):
        raise ValueError(f"{path}: {values.size} numbers for a field on a grid of {shape}, expected 3 for each voxel.")
    if not np.isfinite(values).all():
        raise ValueError(f"{path}: the displacement holds NaN or infinite values.")
    try:
        grid = ImageGrid(affine, shape)
        before, after = (
            Affine(_FLIP @ np.reshape(np.array(matrix, np.float64), (4, 4)) @ _FLIP) for matrix in _matrices(item)
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    lps = values.reshape(*shape[::-1], 3).transpose(2, 1, 0, 3).astype(np.float64)
    # pre(x) + d(x) = pre(x + A^-1 d(x)), with A the linear part of pre
    lps = lps @ (RAS_TO_LPS @ before.inverse().matrix[:3, :3] @ RAS_TO_LPS).T
    field = Displacement(grid, displacement_from_lps(path, lps.reshape(*grid.spatial_shape, 3), grid))
    moves = [step for step in (before, after) if not np.array_equal(step.matrix, np.eye(4))]
    return Transform((field, *moves))


def _matrices(item: Any) -> list[Any]:
    """The matrices before and after the deformation; the identity where none is given."""
    found = [item.get(f"{name}DeformationMatrixRegistrationSequence") for name in ("Pre", "Post")]
    return [one[0].FrameOfReferenceTransformationMatrix if one else np.eye(4) for one in found]


def _rigid_item(matrix: np.ndarray, headers: list[Any]) -> Any:
    from pydicom.dataset import Dataset

    item, registration = Dataset(), Dataset()
    item.FrameOfReferenceUID = headers[0].FrameOfReferenceUID
    item.ReferencedImageSequence = [reference_to(one) for one in headers]
    registration.RegistrationTypeCodeSequence = []
    registration.MatrixSequence = [_matrix_item(matrix)]
    item.MatrixRegistrationSequence = [registration]
    return item


def _deformable_item(field: Displacement, after: np.ndarray, source: str) -> Any:
    from pydicom.dataset import Dataset

    item, stored = Dataset(), Dataset()
    lps = displacement_to_lps(np.asarray(field.ddf, np.float64), field.grid).reshape(*field.grid.shape, 3)
    axes, place = (RAS_TO_LPS @ field.grid.affine[:3])[:, :3], (RAS_TO_LPS @ field.grid.affine[:3])[:, 3]
    if np.linalg.det(axes) < 0:  # DICOM has right-handed grids only
        place, axes, lps = place + axes[:, 2] * (lps.shape[2] - 1), axes * [1, 1, -1], lps[:, :, ::-1]
    spacing = np.linalg.norm(axes, axis=0)
    stored.ImagePositionPatient = decimals(place)
    stored.ImageOrientationPatient = decimals((axes / spacing)[:, :2].T)
    stored.GridDimensions, stored.GridResolution = list(field.grid.shape), spacing.tolist()
    stored.VectorGridData = lps.transpose(2, 1, 0, 3).astype("<f4").tobytes()
    item.SourceFrameOfReferenceUID = source
    item.RegistrationTypeCodeSequence = []
    item.PreDeformationMatrixRegistrationSequence = [_matrix_item(np.eye(4))]
    item.PostDeformationMatrixRegistrationSequence = [_matrix_item(after)]
    item.DeformableRegistrationGridSequence = [stored]
    return item


def _matrix_item(matrix: np.ndarray) -> Any:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.FrameOfReferenceTransformationMatrix = decimals(matrix)
    item.FrameOfReferenceTransformationMatrixType = _type_of(matrix[:3, :3])
    return item


def _type_of(linear: np.ndarray) -> str:
    product = linear.T @ linear
    if np.linalg.det(linear) > 0 and np.abs(product - np.diag(np.diag(product))).max() < _ORTHOGONAL:
        return "RIGID" if np.abs(product - np.eye(3)).max() < _ORTHOGONAL else "RIGID_SCALE"
    return "AFFINE"


def _describe(data: Any, fixed: list[Any], moving: list[Any]) -> None:
    """What else the standard asks for."""
    from pydicom.dataset import Dataset
    from pydicom.uid import generate_uid

    now = datetime.datetime.now()
    data.Modality, data.SeriesInstanceUID, data.SeriesNumber, data.InstanceNumber = "REG", generate_uid(), 1, 1
    data.ContentDate, data.ContentTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    data.ContentLabel, data.ContentDescription, data.ContentCreatorName = "REGISTRATION", "", ""
    data.SeriesDescription = "registration"
    data.Manufacturer, data.ManufacturerModelName = "monai_nodeo", "monai_nodeo"
    data.DeviceSerialNumber, data.SoftwareVersions = "0", _version()
    series = []
    for headers in (fixed, moving):
        one = Dataset()
        one.SeriesInstanceUID = headers[0].SeriesInstanceUID
        one.ReferencedInstanceSequence = [reference_to(header) for header in headers]
        series.append((headers[0].StudyInstanceUID, one))
    data.ReferencedSeriesSequence = [one for study, one in series if study == data.StudyInstanceUID]
    for study, one in series:
        if study != data.StudyInstanceUID:
            other = Dataset()
            other.StudyInstanceUID, other.ReferencedSeriesSequence = study, [one]
            data.StudiesContainingOtherReferencedInstancesSequence = [other]


def _version() -> str:
    try:
        return version("monai-nodeo")
    except PackageNotFoundError:  # run from its sources
        return "0"
