# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Transforms of FSL: matrices of FLIRT and fields of FNIRT.

FSL's coordinates are voxels times their size, in mm, with x mirrored in images whose affine has a positive determinant:
x = (number of voxels - 1 - index) * size. So a transform says nothing without both images.

=========  =====================================================================================================
FLIRT      text, 4 x 4: from FSL's coordinates of the **moving** image to those of the fixed one
FNIRT      NIfTI on the fixed grid, (X, Y, Z, 3), from the fixed to the moving image in FSL's coordinates:
           relative (a displacement) or absolute (the place itself); nothing in the header tells them apart
=========  =====================================================================================================

Sources: https://fsl.fmrib.ox.ac.uk/fsl/docs/#/registration/flirt/faq and fslpy's ``fsl.transform``.
"""

from __future__ import annotations

import os

import nibabel as nib
import numpy as np

from monai_nodeo.files.atomic import atomic_path
from monai_nodeo.files.foreign_fields import displacement_from_ras
from monai_nodeo.files.grid import ImageGrid, PathLike, displacement_to_lps, grid_of
from monai_nodeo.files.images import open_nibabel
from monai_nodeo.files.lps import RAS_TO_LPS
from monai_nodeo.files.nifti import intent_code, read_values
from monai_nodeo.files.text_matrix import read_text_matrix, with_last_row, write_text_matrix
from monai_nodeo.files.transform import Affine, Displacement, Transform

__all__ = ["read_fsl", "write_fsl"]

_NIFTI = (".nii", ".nii.gz")
_FIELD, _COEFFICIENTS = 2006, range(2007, 2019)  # NIfTI's intent codes


def read_fsl(path: PathLike, fixed: PathLike, moving: PathLike) -> Affine | Displacement:
    """A matrix of FLIRT, or a field of FNIRT if the name is one of NIfTI.

    Args:
        path: the file.
        fixed: the image that FSL calls the reference, NIfTI.
        moving: the image that it calls the input.

    Raises:
        ValueError: when it is neither, or a field of coefficients.
    """
    from_moving = np.linalg.inv(_fsl_from_ras(moving, ImageGrid.from_file(moving)))
    if not os.fspath(path).endswith(_NIFTI):
        try:
            back = np.linalg.inv(read_text_matrix(path))
            return Affine(with_last_row(from_moving @ back @ _fsl_from_ras(fixed, ImageGrid.from_file(fixed))))
        except (np.linalg.LinAlgError, ValueError) as error:
            raise ValueError(f"{path}: no matrix of FLIRT; {error}") from error
    image = open_nibabel(path, path)
    if intent_code(image) in _COEFFICIENTS:
        raise ValueError(f"{path}: coefficients of FNIRT, no field; make one of them with  fnirtfileutils --withaff.")
    if len(image.shape) != 4 or image.shape[3] != 3:
        raise ValueError(f"{path}: a field of shape {image.shape}, expected (X, Y, Z, 3).")
    grid = grid_of(path, image, image.shape[:3])
    place = _map(_fsl_from_ras(path, grid), grid.world)
    there = read_values(path, image)
    if not _are_places(there, place):
        there = there + place
    return displacement_from_ras(path, _map(from_moving, there), grid, places=True)


def write_fsl(path: PathLike, transform: Transform, fixed: PathLike, moving: PathLike) -> None:
    """Write linear steps as a matrix of FLIRT, or all steps as a field of FNIRT if the name is one of NIfTI.

    The field is relative, unless it would be taken for absolute, as between an axial and a coronal image; then it is
    absolute.

    Args:
        path: target.
        transform: points of the fixed image -> points of the moving one, of volumes.
        fixed: the image that FSL calls the reference, NIfTI; a field is on its grid.
        moving: the image that it calls the input.

    Raises:
        ValueError: when the transform is of 2D points, or a matrix cannot hold it.
    """
    grid = ImageGrid.from_file(fixed)
    to_fixed = _fsl_from_ras(fixed, grid)
    to_moving = _fsl_from_ras(moving, ImageGrid.from_file(moving))
    if not os.fspath(path).endswith(_NIFTI):
        matrix = to_moving @ transform.matrix(str(path)) @ np.linalg.inv(to_fixed)
        return write_text_matrix(path, np.linalg.inv(matrix))
    lps = displacement_to_lps(transform.displacement_on(str(path), grid), grid).reshape(*grid.shape, 3)
    place, there = _map(to_fixed, grid.world), _map(to_moving, grid.world + lps @ RAS_TO_LPS)
    field = there if _are_places(there - place, place) else there - place
    image = nib.Nifti1Image(field.astype(np.float32), grid.affine)
    image.set_sform(grid.affine, grid.sform_code)
    image.set_qform(grid.affine, grid.qform_code)
    image.header.set_intent(_FIELD, allow_unknown=True)
    with atomic_path(path) as partial:
        nib.save(image, partial)


def _fsl_from_ras(path: PathLike, grid: ImageGrid) -> np.ndarray:
    """RAS mm -> FSL's coordinates of an image, (4, 4)."""
    if not os.fspath(path).endswith(_NIFTI) or len(grid.shape) != 3:
        raise ValueError(f"{path}: FSL's coordinates are those of a volume in NIfTI; give the file that FSL has read.")
    scale = np.diag([*np.linalg.norm(grid.affine[:3, :3], axis=0), 1.0])
    if np.linalg.det(grid.affine) > 0:
        scale[0] *= -1
        scale[0, 3] = -scale[0, 0] * (grid.shape[0] - 1)
    return scale @ np.linalg.inv(grid.affine)


def _map(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def _are_places(field: np.ndarray, place: np.ndarray) -> bool:
    """Whether a field would be taken for absolute, by the rule of fslpy: it varies more than relative to the places."""
    return bool(np.std(field, axis=(0, 1, 2)).sum() > np.std(field - place, axis=(0, 1, 2)).sum())
