# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Transforms as files, by their names.

=====================================  =================================================================
file                                   holds
=====================================  =================================================================
``*.h5``                               ITK composite: every step as it is
``*.tfm``, ``*.txt``, ``*.mat``        ITK affine, in text or binary form
``*.nii.gz``, ``*.nii``                ITK displacement field: all steps as one field
``disp_FFFF_MMMM.nii.gz``              Learn2Reg: the same in voxels of the fixed grid, (X, Y, Z, 3)
``*.x5``                               X5 of BIDS: an affine, or all steps as one field
``*.aff12.1D``                         AFNI: an affine
``*.zarr``                             OME-NGFF 0.6 (RFC-5): a field, affines as they are
``*.dcm``                              DICOM: Spatial Registration, Deformable Spatial Registration
=====================================  =================================================================

Three tools have names of these for formats of their own, and are called by name: ``afni`` (its affine and its warp
between images that may be oblique, `files.afni`), ``fsl`` (FLIRT's matrix, FNIRT's field, `files.fsl`) and ``greedy``
(its matrix; its fields are ITK's). With both images, ``*.aff12.1D`` is ``afni`` without being told.

Reading, the kinds of NIfTI are told apart by their headers, and those of other tools are read or refused, see
`files.foreign_fields`. Other vector images that ITK reads (``.mha``, ``.nrrd``) are taken as displacement fields.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from monai_nodeo.files.afni import read_aff12, read_afni, write_aff12, write_afni
from monai_nodeo.files.atomic import atomic_path, check_folder
from monai_nodeo.files.dicom_headers import pydicom_or_error
from monai_nodeo.files.dicom_registration import read_registration_object, write_registration_object
from monai_nodeo.files.foreign_fields import read_foreign
from monai_nodeo.files.fsl import read_fsl, write_fsl
from monai_nodeo.files.grid import ImageGrid, PathLike, grid_of
from monai_nodeo.files.images import open_nibabel
from monai_nodeo.files.itk_transforms import read_itk_transform, write_itk_composite
from monai_nodeo.files.ngff_transform import read_scene, write_scene
from monai_nodeo.files.nifti import intent_code, read_displacement, read_values, save_nifti, write_displacement
from monai_nodeo.files.nifti_place import warn
from monai_nodeo.files.ome_zarr import check_zarr_target, is_zarr, is_zarr_target
from monai_nodeo.files.text_matrix import read_text_matrix, write_text_matrix
from monai_nodeo.files.transform import Affine, Displacement, Transform
from monai_nodeo.files.x5 import read_x5, write_x5

__all__ = ["check_transform_target", "read_affine", "read_transform", "write_affine", "write_transform"]

_COMPOSITE = (".h5", ".hdf5")
_AFFINE = (".tfm", ".txt", ".mat")
_NIFTI = (".nii", ".nii.gz")
_X5 = (".x5",)
_AFF12 = (".aff12.1d",)
_DICOM = (".dcm",)
_ZARR = (".zarr",)
_AFNI, _FSL, _GREEDY = "afni", "fsl", "greedy"
_FIELD = (".mha", ".mhd", ".nrrd", ".nhdr")
_DICOM_ASKS = "a registration object of DICOM names both images; give their series"
_ASKS = {
    _AFNI: "AFNI's coordinates are those of its images, turned straight; give both",
    _FSL: "FSL's coordinates are those of its images; give both",
}
_HAS = {
    _AFNI: ("affines, .aff12.1D, and warps, .nii.gz", (*_AFF12, *_NIFTI)),
    _FSL: ("matrices, .mat, and fields, .nii.gz", (*_AFFINE, *_NIFTI)),
}
_LEARN2REG = re.compile(r"disp_\w+_\w+\.nii(\.gz)?")


def read_transform(
    path: PathLike, tool: str | None = None, images: tuple[PathLike, PathLike] | None = None
) -> Transform:
    """Read a transform of any of the formats above.

    Args:
        path: the file.
        tool: whose format it is, afni, fsl or greedy, where the name does not say it.
        images: files of the fixed and the moving image, for AFNI and FSL.

    Raises:
        FileNotFoundError: when there is none.
        ValueError: when it is no such transform; names the file and what was found.
    """
    name = Path(path).name.lower()
    if is_zarr(Path(path)):
        return read_scene(path)
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: there is no such file, expected a transform.")
    if tool == _AFNI or (images and name.endswith(_AFF12)):
        return Transform((read_afni(path, *_both(path, images, _ASKS[_AFNI])),))
    if tool == _FSL:
        return Transform((read_fsl(path, *_both(path, images, _ASKS[_FSL])),))
    if tool == _GREEDY and name.endswith(_AFFINE):
        return Transform((_named_affine(path, read_text_matrix(path)),))
    if name.endswith((*_COMPOSITE, *_AFFINE)):
        return _read_itk(path)
    if name.endswith(_NIFTI):
        return Transform((_read_nifti(path),))
    if name.endswith(_X5):
        return Transform((read_x5(path),))
    if name.endswith(_AFF12):
        return Transform((read_aff12(path),))
    if name.endswith(_DICOM):
        return read_registration_object(path)
    if name.endswith(_FIELD):
        return Transform((_read_field(path),))
    raise _unknown(path, (*_COMPOSITE, *_AFFINE, *_NIFTI, *_X5, *_AFF12, *_DICOM, *_ZARR, *_FIELD))


def write_transform(
    path: PathLike,
    transform: Transform,
    grid: ImageGrid | None = None,
    images: tuple[PathLike, PathLike] | None = None,
    tool: str | None = None,
) -> None:
    """Write a transform in the format that the file's name says.

    Args:
        path: target; a name of the table above.
        transform: what to write.
        grid: for the formats that hold one field, its grid; by default that of the first step.
        images: files of the fixed and the moving image, for formats that need them: AFNI, DICOM and FSL.
        tool: whose format it is, afni, fsl or greedy, where the name does not say it.

    Raises:
        MissingExtraError: when the format needs a package of an extra; names it.
        ValueError: when the format cannot hold the transform, or a field has no grid.
    """
    check_transform_target(path, images, tool)
    if tool and transform.world_dims != 3:
        raise ValueError(f"{path}: for {tool} a transform of volumes is needed, and this one is of 2D points.")
    name = Path(path).name.lower()
    if tool == _AFNI or (images and name.endswith(_AFF12)):
        assert images is not None
        write_afni(path, transform, *images)
    elif tool == _FSL:
        assert images is not None
        write_fsl(path, transform, *images)
    elif tool == _GREEDY and name.endswith(_AFFINE):
        write_text_matrix(path, transform.matrix(str(path)))
    elif name.endswith(_DICOM):
        assert images is not None
        write_registration_object(path, transform, grid, *images)
    elif name.endswith(_COMPOSITE):
        write_itk_composite(path, transform)
    elif name.endswith(_AFFINE):
        write_affine(path, transform.matrix(str(path)), transform.world_dims)
    elif name.endswith(_ZARR):
        fields = any(isinstance(step, Displacement) for step in transform.steps)
        write_scene(path, transform, grid if grid or not fields else _field_grid(path, transform))
    elif name.endswith(_AFF12):
        write_aff12(path, transform.matrix(str(path)))
    elif name.endswith(_X5) and all(isinstance(step, Affine) for step in transform.steps):
        write_x5(path, Affine(transform.matrix(str(path)), transform.world_dims))
    else:
        on = _field_grid(path, transform) if grid is None else grid
        ddf = transform.displacement_on(str(path), on)
        if name.endswith(_X5):
            write_x5(path, Displacement(on, ddf))
        else:
            (_write_learn2reg if _LEARN2REG.fullmatch(name) else write_displacement)(path, ddf, on)


def check_transform_target(
    path: PathLike, images: tuple[PathLike, PathLike] | None = None, tool: str | None = None
) -> None:
    """Refuse a target that `write_transform` cannot write, before there is something to write.

    Args:
        path: target.
        images: files of the fixed and the moving image.
        tool: whose format it is.

    Raises:
        FileNotFoundError: when its folder does not exist.
        MissingExtraError: when the format needs a package of an extra; names it.
        ValueError: when there is no format of that name, or the images are missing; lists the endings.
    """
    writable = (*_COMPOSITE, *_AFFINE, *_NIFTI, *_X5, *_AFF12, *_DICOM, *_ZARR)
    name = Path(path).name.lower()
    if not name.endswith(writable):
        raise _unknown(path, writable)
    if is_zarr_target(path):
        check_zarr_target(path)
    if name.endswith(_DICOM):
        pydicom_or_error(path)
        _both(path, images, _DICOM_ASKS)
    if tool in _HAS:
        _both(path, images, _ASKS[tool])
        kinds, endings = _HAS[tool]
        if not name.endswith(endings):
            raise ValueError(f"{path}: {tool.upper()} has {kinds}; give one of these names.")
    check_folder(path)


def read_affine(path: PathLike) -> np.ndarray:
    """Read a linear transform of ITK, such as ANTs' ``0GenericAffine.mat`` or a ``.tfm`` of SimpleITK or Slicer.

    Args:
        path: .mat, .tfm, .txt or .h5 with linear steps only.

    Returns:
        (4, 4), RAS mm: fixed physical point -> moving physical point.

    Raises:
        FileNotFoundError: when there is none.
        ValueError: when it is no linear transform of ITK.
    """
    return read_transform(path).matrix(str(path))


def write_affine(path: PathLike, affine: np.ndarray, world_dims: int = 3) -> None:
    """Write an affine as a transform of ITK.

    Args:
        path: target, .mat, .tfm, .txt or .h5.
        affine: (4, 4), RAS mm: fixed physical point -> moving physical point.
        world_dims: 3, or 2 for true 2D images.

    Raises:
        ValueError: when the affine is singular or the name is another one.
    """
    if not Path(path).name.lower().endswith((*_AFFINE, *_COMPOSITE)):
        raise _unknown(path, (*_AFFINE, *_COMPOSITE))
    step = Affine(affine, world_dims).itk
    with atomic_path(path) as partial:
        sitk.WriteTransform(step, partial)


def _unknown(path: PathLike, endings: tuple[str, ...]) -> ValueError:
    return ValueError(f"{path}: transforms are files that end with {', '.join(endings)}; give one of these.")


def _read_itk(path: PathLike) -> Transform:
    try:
        transform = read_itk_transform(Path(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}.") from error
    return Transform.from_itk(str(path), transform)


def _read_field(path: PathLike) -> Displacement:
    try:
        field = sitk.ReadImage(Path(path), sitk.sitkVectorFloat64)
    except RuntimeError as error:
        raise ValueError(f"{path}: not an image that ITK reads, expected a displacement field.") from error
    if field.GetNumberOfComponentsPerPixel() != field.GetDimension():
        raise ValueError(
            f"{path}: {field.GetNumberOfComponentsPerPixel()} values a voxel in {field.GetDimension()}D, expected a "
            "displacement field with one for each axis."
        )
    return Displacement.from_itk_field(str(path), field)


def _read_nifti(path: PathLike) -> Displacement:
    image = open_nibabel(path, path)
    foreign = read_foreign(path, image)
    if foreign is not None:
        return foreign
    if len(image.shape) != 4 or image.shape[3] != 3 or intent_code(image):
        ddf, grid = read_displacement(path)
        return Displacement(grid, ddf)
    if not _LEARN2REG.fullmatch(Path(path).name.lower()):
        warn(f"{path}: nothing says what its values are; taken for a field of Learn2Reg, in voxels of its own grid.")
    grid = grid_of(path, image, image.shape[:3])
    ddf = np.moveaxis(read_values(path, image), 3, 0).astype(np.float32)
    if grid.spatial_dims == 2:
        if np.abs(ddf[2]).max() > 1e-3:
            raise ValueError(f"{path}: the displacement leaves the slice, expected none: a 2D ddf cannot hold it.")
        ddf = ddf[:2, :, :, 0]
    return Displacement(grid, ddf)


def _write_learn2reg(path: PathLike, ddf: np.ndarray, grid: ImageGrid) -> None:
    if len(grid.shape) != 3:
        raise ValueError(
            f"{path}: Learn2Reg's fields are of volumes, and the grid has shape {grid.shape}; write a .h5."
        )
    field = np.zeros((*grid.shape, 3), np.float32)
    field[..., : len(ddf)] = np.moveaxis(ddf, 0, -1).reshape(*grid.shape, len(ddf))
    save_nifti(path, field, grid)


def _named_affine(path: PathLike, matrix: np.ndarray) -> Affine:
    try:
        return Affine(matrix)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _both(path: PathLike, images: tuple[PathLike, PathLike] | None, asks: str) -> tuple[PathLike, PathLike]:
    if images is None:
        raise ValueError(f"{path}: {asks}, as the reference and as the moving image.")
    return images


def _field_grid(path: PathLike, transform: Transform) -> ImageGrid:
    first = transform.steps[0]
    if isinstance(first, Displacement):
        return first.grid
    raise ValueError(
        f"{path}: a field needs a grid, and the transform begins with an affine; give an image with the grid as "
        "reference, or write a .h5."
    )
