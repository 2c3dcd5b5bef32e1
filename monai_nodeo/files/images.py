# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Images of any file format as numbers and a place in space.

NIfTI and its relatives are read by nibabel; NRRD, MHA, DICOM, PNG, TIFF and what else ITK knows by SimpleITK. MONAI's
reader of NIfTI is not used: it puts the qform in place of an sform that disagrees with the header's voxel size, and the
affine would not be the one that nibabel, and with it our writer, reads from the same file.

A DICOM series is a folder. Where it holds several, ``folder#5`` is the one with the series number 5, and
``folder#1.2.840.113...`` the one with that UID.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from os.path import expanduser
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.nifti1 import Nifti1Header, unit_codes
from nibabel.spatialimages import SpatialImage

from monai_nodeo.files.dicom_frames import frame_places
from monai_nodeo.files.dicom_series import read_series, series_files
from monai_nodeo.files.lps import itk_place
from monai_nodeo.files.nifti_place import ALIGNED, nifti_place, warn
from monai_nodeo.files.ome_zarr import is_zarr, open_zarr

__all__ = [
    "ImageFileError",
    "StoredImage",
    "dicom_files",
    "load_voxels",
    "open_nibabel",
    "open_stored",
    "stored_array",
    "stored_itk",
    "stored_nibabel",
]

_NIBABEL = (".nii", ".nii.gz", ".hdr", ".img", ".hdr.gz", ".img.gz", ".mgz", ".mgh")
_FORMATS = "NIfTI, NRRD, MHA, OME-Zarr, a folder of DICOM files, or PNG or TIFF for a slice"
_FRAMES = "0028|0008"


class ImageFileError(ValueError):
    """A file that is no usable image. The message names the file, what was found and what to do."""


@dataclass(frozen=True, eq=False)
class StoredImage:
    """An image as it is stored.

    Args:
        path: where it was read.
        affine: (4, 4), voxel indices -> RAS mm. A true 2D image has a third axis of 1 mm.
        shape: the stored array's, without axes of length 1 after the third. Channels are the last axis, behind one of
            time, as in a NIfTI of vectors: those of a volume (X, Y, Z, 1, C), of a picture (X, Y, 1, 1, C).
        dtype: type of the values, after the header's scaling.
        load: reads the array of this shape; an error of the file is an `ImageFileError`.
        sform_code: NIfTI code of the space, greater than 0.
        qform_code: the same for the qform.
        steps: distances along the axes after the third, and their unit, such as ``((2.0,), "sec")``.
        picture: an image with channels is a true 2D one.
    """

    path: str
    affine: np.ndarray
    shape: tuple[int, ...]
    dtype: np.dtype
    load: Callable[[], np.ndarray]
    sform_code: int = ALIGNED
    qform_code: int = ALIGNED
    steps: tuple[tuple[float, ...], str] = ((), "unknown")
    picture: bool = False

    @property
    def spatial_shape(self) -> tuple[int, ...] | None:
        """Without the channels; None for a series."""
        if len(self.shape) == 5 and self.shape[3] == 1:
            return self.shape[: 2 if self.picture else 3]
        return self.shape if len(self.shape) <= 3 else None

    @property
    def channels(self) -> int:
        """Numbers in a voxel."""
        return self.shape[4] if len(self.shape) == 5 else 1


def open_stored(path: str | os.PathLike[str]) -> StoredImage:
    """Find out what a file holds; its voxels are read when ``load`` is called, those of a DICOM series at once.

    Args:
        path: a file, or a folder of DICOM files, with ``#`` and a number or UID where it holds several series.

    Raises:
        FileNotFoundError: when there is none.
        ImageFileError: when the file is empty, damaged, of no known format, holds complex numbers, or the slices of a
            series are no regular volume.
    """
    name = os.fspath(path)
    file, series = _existing(name)
    if file.is_dir():
        return _open_zarr(name, file) if is_zarr(file) else _open_series(name, file, series)
    if file.stat().st_size == 0:
        raise ImageFileError(f"{name}: the file is empty; copy or download it again.")
    by_nibabel = file.name.lower().endswith(_NIBABEL)
    stored = stored_nibabel(name, open_nibabel(name, file), file) if by_nibabel else _open_itk(name, file)
    if 0 in stored.shape:
        raise ImageFileError(f"{name}: shape {stored.shape} holds no voxel; give an image.")
    return stored


def dicom_files(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The files of a DICOM series, in the order of their places; that of one file is itself.

    Raises:
        FileNotFoundError: when there is none.
        ImageFileError: when a folder holds no series, or several and none is chosen.
    """
    file, series = _existing(os.fspath(path))
    return _series(os.fspath(path), file, series) if file.is_dir() else (str(file),)


def _existing(name: str) -> tuple[Path, str]:
    """The file or folder, and the series behind its ``#``."""
    whole = Path(expanduser(name))
    if whole.exists():
        return whole, ""
    folder, mark, series = name.rpartition("#")
    if mark and Path(expanduser(folder)).is_dir():
        return Path(expanduser(folder)), series
    raise FileNotFoundError(f"{name}: there is no such file; check the path (relative paths start at {Path.cwd()}).")


@np.errstate(all="ignore")  # nibabel works out the affine, also of a header of infinite numbers
def open_nibabel(name: str | os.PathLike[str], file: str | os.PathLike[str]) -> SpatialImage:
    """Header and lazy voxels of an image of nibabel; errors begin with the name.

    Raises:
        FileNotFoundError: when there is none.
        ImageFileError: when it is no image, or a damaged one.
    """
    try:
        image = nib.load(file)
    except FileNotFoundError:
        raise
    except Exception as error:  # nibabel, gzip and the disk raise too many kinds to list
        raise ImageFileError(
            f"{name}: not an image that nibabel reads, or a damaged one ({_short(error)}); expected {_FORMATS}."
        ) from error
    if not isinstance(image, SpatialImage) or image.affine is None:
        raise ImageFileError(f"{name}: a {type(image).__name__} has no voxel grid; expected {_FORMATS}.")
    return image


def stored_nibabel(name: str, image: SpatialImage, file: Path | None = None) -> StoredImage:
    """An image of nibabel, read from the file or in memory, see `open_stored`; errors begin with the name."""
    stored = image.get_data_dtype()
    if np.issubdtype(stored, np.complexfloating):
        raise _complex(name, str(stored))
    channels = len(stored.names or ())  # NIfTI's RGB and RGBA
    dtype = stored[0] if channels else stored
    scaling = getattr(image.dataobj, "slope", 1), getattr(image.dataobj, "inter", 0)
    try:
        affine, sform_code, qform_code = nifti_place(name, image, file)
    except ValueError as error:
        raise ImageFileError(f"{name}: {error}") from error
    shape = _shape(_with_channels(image.shape, channels))
    return StoredImage(
        name,
        affine,
        shape,
        dtype if scaling == (1, 0) else np.result_type(dtype, np.float32),  # which holds all whole numbers of dtype
        lambda: load_voxels(name, lambda: _numbers(np.asanyarray(image.dataobj), channels).reshape(shape)),
        sform_code,
        qform_code,
        _steps(image, len(shape)),
    )


def stored_itk(name: str, image: sitk.Image) -> StoredImage:
    """An image of SimpleITK, see `open_stored`."""
    shape = _shape(_with_channels(image.GetSize(), image.GetNumberOfComponentsPerPixel()))
    return StoredImage(
        name,
        itk_place(image),
        shape,
        _numpy_type(image.GetPixelID()),
        lambda: _itk_values(image).reshape(shape),
        picture=image.GetDimension() == 2,
    )


def stored_array(values: np.ndarray) -> StoredImage:
    """An array (X, Y, Z) or (X, Y), with voxels of 1 mm."""
    shape = _shape(values.shape)
    return StoredImage("", np.eye(4), shape, values.dtype, lambda: values.reshape(shape))


def _with_channels(sizes: tuple[int, ...], channels: int) -> tuple[int, ...]:
    return (*sizes, *[1] * (4 - len(sizes)), channels) if channels > 1 else tuple(sizes)


def _numbers(values: np.ndarray, channels: int) -> np.ndarray:
    return np.stack([values[name] for name in values.dtype.names or ()], axis=-1) if channels else values


def _steps(image: SpatialImage, axes: int) -> tuple[tuple[float, ...], str]:
    unit = "unknown"
    if isinstance(image.header, Nifti1Header):
        code = int(image.header["xyzt_units"]) // 8 * 8
        unit = str(unit_codes.label[code]) if code in unit_codes.value_set() else unit
    steps = (float(str(step)) for step in image.header.get_zooms()[3:axes])  # float32: 0.1, not 0.10000000149
    return tuple(step if 0 < step < np.inf else 1.0 for step in steps), unit  # 1 is what NIfTI has by default


def _open_itk(name: str, file: Path) -> StoredImage:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        if "Unknown PixelType" in str(error):
            raise ImageFileError(
                f"{name}: its values are of a kind that SimpleITK has no image for, such as grey with transparency; "
                "save it with one real number a voxel."
            ) from error
        raise ImageFileError(
            f"{name}: not an image that SimpleITK reads, or a damaged one ({_short(error)}); expected {_FORMATS}."
        ) from error
    pixel, channels = sitk.GetPixelIDValueAsString(reader.GetPixelID()), reader.GetNumberOfComponents()
    if "complex" in pixel:
        raise _complex(name, pixel)
    shape = _shape(_with_channels(reader.GetSize(), channels))
    further = reader.GetSpacing()[3:]
    order, affine = _frames(name, file, reader, shape)
    return StoredImage(
        name,
        affine,
        shape,
        _numpy_type(reader.GetPixelID()),
        lambda: load_voxels(name, lambda: _itk_values(reader.Execute()).reshape(shape)[order]),
        steps=(further if len(shape) == 3 + len(further) else (), "unknown"),
        picture=reader.GetDimension() == 2,
    )


def _frames(
    name: str, file: Path, reader: sitk.ImageFileReader, shape: tuple[int, ...]
) -> tuple[tuple[Any, ...], np.ndarray]:
    """How to index the voxels so that their frames are sorted, and the affine."""
    affine = itk_place(reader)
    if len(shape) < 3 or shape[2] < 2 or not reader.HasMetaDataKey(_FRAMES):
        return (), affine
    try:
        places = frame_places(file, shape[2])
    except (ValueError, IndexError, struct.error) as error:
        raise ImageFileError(f"{name}: {error}") from error
    if places is None:
        warn(f"{name}: its frames have no places; they are taken in their order, with the voxel size that ITK gives.")
        return (), affine
    order, affine = places
    return (slice(None), slice(None), order), affine


def _itk_values(image: sitk.Image) -> np.ndarray:
    """The voxels in the order of the axes, channels last."""
    values = sitk.GetArrayFromImage(image).T
    return np.moveaxis(values, 0, -1) if image.GetNumberOfComponentsPerPixel() > 1 else values


def _open_zarr(name: str, folder: Path) -> StoredImage:
    try:
        image = open_zarr(folder)
    except ValueError as error:
        raise ImageFileError(f"{name}: {error}.") from error
    if image.dtype.kind not in "iufb":
        raise _complex(name, str(image.dtype))
    shape = _shape(image.sizes)
    load = image.load
    return StoredImage(
        name,
        image.affine,
        shape,
        image.dtype,
        lambda: load_voxels(name, lambda: load().reshape(shape)),
        picture=image.flat,
    )


def _open_series(name: str, folder: Path, wanted: str) -> StoredImage:
    files = _series(name, folder, wanted)
    if len(files) == 1:
        return _open_itk(name, Path(files[0]))
    try:
        image = read_series(files)
    except RuntimeError as error:
        raise ImageFileError(f"{name}: the series cannot be read ({_short(error)}); copy it again.") from error
    except ValueError as error:
        raise ImageFileError(f"{name}: {error}") from error
    shape = _shape(_with_channels(image.GetSize(), image.GetNumberOfComponentsPerPixel()))
    voxels = _itk_values(image).reshape(shape)
    return StoredImage(name, itk_place(image), shape, voxels.dtype, lambda: voxels)


def _series(name: str, folder: Path, wanted: str) -> tuple[str, ...]:
    try:
        files = series_files(folder, wanted)
    except ValueError as error:
        raise ImageFileError(f"{name}: {error}") from error
    if not files:
        raise ImageFileError(f"{name}: the folder holds no DICOM files; expected {_FORMATS}.")
    return files


def _shape(stored: tuple[int, ...]) -> tuple[int, ...]:
    shape = tuple(int(size) for size in stored)
    return shape[:3] if set(shape[3:]) <= {1} else shape  # time or vector axes of length 1 hold nothing


def load_voxels(name: str | os.PathLike[str], read: Callable[[], np.ndarray]) -> np.ndarray:
    """What a function reads; an error of the file is an `ImageFileError`."""
    try:
        return read()
    except Exception as error:  # as in open_nibabel
        raise ImageFileError(
            f"{name}: the voxels cannot be read, the file is truncated or damaged ({_short(error)}); "
            "copy or download it again."
        ) from error


def _complex(name: str, kind: str) -> ImageFileError:
    return ImageFileError(f"{name}: the voxels are {kind}; expected real numbers, take the magnitude first.")


def _numpy_type(pixel_id: int) -> np.dtype:
    return sitk.GetArrayViewFromImage(sitk.Image([1, 1], pixel_id)).dtype


def _short(error: Exception) -> str:
    """The last line, which has the reason: ITK puts its own source file and line before it."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
