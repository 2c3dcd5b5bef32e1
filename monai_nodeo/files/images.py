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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.nifti1 import Nifti1Header
from nibabel.spatialimages import SpatialImage

__all__ = [
    "RAS_TO_LPS",
    "ImageFileError",
    "StoredImage",
    "itk_place",
    "nifti_place",
    "open_stored",
    "stored_array",
    "stored_itk",
    "stored_nibabel",
]

_NIBABEL = (".nii", ".nii.gz", ".hdr", ".img", ".hdr.gz", ".img.gz", ".mgz", ".mgh")
_FORMATS = "NIfTI, NRRD, MHA, a folder of DICOM files, or PNG or TIFF for a slice"
_MILLIMETRES = {"mm": 1.0, "unknown": 1.0, "meter": 1000.0, "micron": 0.001}
_ALIGNED = 2  # NIFTI_XFORM_ALIGNED_ANAT: the code for an affine of unknown origin
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])  # and back
_SERIES_NUMBER, _SERIES_DESCRIPTION, _POSITION = "0020|0011", "0008|103e", "0020|0032"
_UNEVEN = 0.05  # of the distance of two slices: more than rounding in the headers explains


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
    """

    path: str
    affine: np.ndarray
    shape: tuple[int, ...]
    dtype: np.dtype
    load: Callable[[], np.ndarray]
    sform_code: int = _ALIGNED
    qform_code: int = _ALIGNED
    steps: tuple[tuple[float, ...], str] = ((), "unknown")


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
        return _open_series(name, file, series)
    if file.stat().st_size == 0:
        raise ImageFileError(f"{name}: the file is empty; copy or download it again.")
    return _open_nibabel(name, file) if file.name.lower().endswith(_NIBABEL) else _open_itk(name, file)


def nifti_place(image: SpatialImage) -> tuple[np.ndarray, int, int]:
    """Affine, sform code and qform code of an image of nibabel.

    Returns:
        The affine in RAS mm, whatever unit the header has, and the codes to write with it. nibabel takes the affine
        from the sform if that has a code; a qform that holds another space does not lend its code to it.

    Raises:
        ValueError: when the header's unit is no length.
    """
    affine = np.asarray(image.affine, dtype=np.float64)
    header = image.header
    if not isinstance(header, Nifti1Header):
        return affine, _ALIGNED, _ALIGNED
    unit = header.get_xyzt_units()[0]
    if unit not in _MILLIMETRES:
        raise ValueError(f"the spatial unit in the header is {unit!r}, expected 'mm'; repair the header.")
    qform, qform_code = header.get_qform(coded=True)
    sform_code = int(header["sform_code"]) or qform_code or _ALIGNED
    if qform is None or not np.allclose(qform, affine, rtol=0, atol=1e-3):
        qform_code = sform_code
    return np.diag([*[_MILLIMETRES[unit]] * 3, 1.0]) @ affine, sform_code, qform_code


def itk_place(image: sitk.Image | sitk.ImageFileReader) -> np.ndarray:
    """ITK's geometry of the first three axes as an affine in RAS mm, (4, 4), with a third axis of 1 mm in 2D."""
    dims = image.GetDimension()
    axes = min(dims, 3)
    affine = np.eye(4)
    affine[:axes, :axes] = np.reshape(image.GetDirection(), (dims, dims))[:axes, :axes] * image.GetSpacing()[:axes]
    affine[:axes, 3] = image.GetOrigin()[:axes]
    affine[:3] = RAS_TO_LPS @ affine[:3]
    return affine


def _existing(name: str) -> tuple[Path, str]:
    """The file or folder, and the series behind its ``#``."""
    whole = Path(name).expanduser()
    if whole.exists():
        return whole, ""
    folder, mark, series = name.rpartition("#")
    if mark and Path(folder).expanduser().is_dir():
        return Path(folder).expanduser(), series
    raise FileNotFoundError(f"{name}: there is no such file; check the path (relative paths start at {Path.cwd()}).")


def _open_nibabel(name: str, file: Path) -> StoredImage:
    try:
        image = nib.load(file)
    except Exception as error:  # nibabel, gzip and the disk raise too many kinds to list
        raise ImageFileError(
            f"{name}: not an image that nibabel reads, or a damaged one ({error}); expected {_FORMATS}."
        ) from error
    if not isinstance(image, SpatialImage) or image.affine is None:
        raise ImageFileError(f"{name}: a {type(image).__name__} has no voxel grid; expected {_FORMATS}.")
    return stored_nibabel(name, image)


def stored_nibabel(name: str, image: SpatialImage) -> StoredImage:
    """An image of nibabel, see `open_stored`; errors begin with the name."""
    stored = image.get_data_dtype()
    if np.issubdtype(stored, np.complexfloating):
        raise _complex(name, str(stored))
    channels = len(stored.names or ())  # NIfTI's RGB and RGBA
    dtype = stored[0] if channels else stored
    scaling = getattr(image.dataobj, "slope", 1), getattr(image.dataobj, "inter", 0)
    try:
        affine, sform_code, qform_code = nifti_place(image)
    except ValueError as error:
        raise ImageFileError(f"{name}: {error}") from error
    shape = _shape(_with_channels(image.shape, channels))
    return StoredImage(
        name,
        affine,
        shape,
        dtype if scaling == (1, 0) else np.dtype(np.float32),
        lambda: _load(name, lambda: _numbers(np.asanyarray(image.dataobj), channels).reshape(shape)),
        sform_code,
        qform_code,
        _steps(image, len(shape)),
    )


def stored_itk(name: str, image: sitk.Image) -> StoredImage:
    """An image of SimpleITK, see `open_stored`."""
    shape = _shape(_with_channels(image.GetSize(), image.GetNumberOfComponentsPerPixel()))
    return StoredImage(
        name, itk_place(image), shape, _numpy_type(image.GetPixelID()), lambda: _itk_values(image).reshape(shape)
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
    unit = image.header.get_xyzt_units()[1] if isinstance(image.header, Nifti1Header) else "unknown"
    return tuple(float(step) for step in image.header.get_zooms()[3:axes]), unit


def _open_itk(name: str, file: Path) -> StoredImage:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ImageFileError(
            f"{name}: not an image that SimpleITK reads, or a damaged one ({_short(error)}); expected {_FORMATS}."
        ) from error
    pixel, channels = sitk.GetPixelIDValueAsString(reader.GetPixelID()), reader.GetNumberOfComponents()
    if "complex" in pixel:
        raise _complex(name, pixel)
    shape = _shape(_with_channels(reader.GetSize(), channels))
    further = reader.GetSpacing()[3:]
    return StoredImage(
        name,
        itk_place(reader),
        shape,
        _numpy_type(reader.GetPixelID()),
        lambda: _load(name, lambda: _itk_values(reader.Execute()).reshape(shape)),
        steps=(further if len(shape) == 3 + len(further) else (), "unknown"),
    )


def _itk_values(image: sitk.Image) -> np.ndarray:
    """The voxels in the order of the axes, channels last."""
    values = sitk.GetArrayFromImage(image).T
    return np.moveaxis(values, 0, -1) if image.GetNumberOfComponentsPerPixel() > 1 else values


def _open_series(name: str, folder: Path, wanted: str) -> StoredImage:
    files = _choose(name, folder, wanted)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(files)
    reader.MetaDataDictionaryArrayUpdateOn()
    # ITK only warns of uneven slices, on the terminal; here they are an error, see _check_slices().
    warned = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise ImageFileError(f"{name}: the series cannot be read ({_short(error)}); copy it again.") from error
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(warned)
    _check_slices(name, image, reader, len(files))
    shape = _shape(_with_channels(image.GetSize(), image.GetNumberOfComponentsPerPixel()))
    voxels = _itk_values(image).reshape(shape)
    return StoredImage(name, itk_place(image), shape, voxels.dtype, lambda: voxels)


def _choose(name: str, folder: Path, wanted: str) -> tuple[str, ...]:
    """The files of the series that is meant."""
    series = {
        uid: sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid)
        for uid in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    }
    if not series:
        raise ImageFileError(f"{name}: the folder holds no DICOM files; expected {_FORMATS}.")
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
    raise ImageFileError(
        f"{name}: {problem} in the folder; choose one as {folder}#NUMBER or {folder}#UID. There are {listed}."
    )


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


def _check_slices(name: str, image: sitk.Image, reader: sitk.ImageSeriesReader, count: int) -> None:
    """Slices that are missing or shifted against each other make no regular grid, whatever ITK puts into the affine."""
    if count < 2 or not reader.HasMetaDataKey(0, _POSITION):
        return
    stored = [[float(number) for number in reader.GetMetaData(i, _POSITION).split("\\")] for i in range(count)]
    expected = [image.TransformIndexToPhysicalPoint((0, 0, i)) for i in range(count)]
    apart = np.linalg.norm(np.subtract(stored, expected), axis=1)
    if apart.max() > _UNEVEN * image.GetSpacing()[2]:
        raise ImageFileError(
            f"{name}: the slices are no regular grid (slice {int(apart.argmax()) + 1} of {count} lies "
            f"{apart.max():.3g} mm from its place in one): some are missing, several acquisitions are mixed, or "
            "the gantry was tilted; copy the series again, separate it, or resample it to a regular grid."
        )


def _shape(stored: tuple[int, ...]) -> tuple[int, ...]:
    shape = tuple(int(size) for size in stored)
    return shape[:3] if set(shape[3:]) <= {1} else shape  # time or vector axes of length 1 hold nothing


def _load(name: str, read: Callable[[], np.ndarray]) -> np.ndarray:
    try:
        return read()
    except Exception as error:  # as in _open_nibabel
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
