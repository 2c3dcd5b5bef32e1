# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Transforms of AFNI: affines of 3dAllineate, ``*.aff12.1D``, and warps of 3dQwarp, NIfTI.

AFNI computes in coordinates from which it has dropped the obliquity of each image: each axis of voxels becomes the axis
of the body that is nearest to it, and the first voxel stays where it is. So between oblique images a transform says
nothing without both of them.

=========  =====================================================================================================
affine     text, twelve numbers, row by row: from the base (fixed) to the source (moving) in LPS mm
warp       NIfTI, (X, Y, Z, 1, 3): displacements from the base to the source in LPS mm; its header is as oblique as the
           base
=========  =====================================================================================================

Sources: AFNI's ``src/mri_nwarp.c`` (warps and images are placed by ``ijk_to_dicom``, not by ``ijk_to_dicom_real``) and
``THD_dicom_real_to_card``; nitransforms' ``io.afni`` for the affines.
"""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine
from nibabel.nifti1 import Nifti1Extension
from nibabel.orientations import io_orientation

from monai_nodeo.files.atomic import atomic_path
from monai_nodeo.files.foreign_fields import AFNI_EXTENSION, check_straight, displacement_from_ras, is_afni_warp
from monai_nodeo.files.grid import ImageGrid, PathLike, displacement_to_lps, grid_of
from monai_nodeo.files.images import open_nibabel
from monai_nodeo.files.lps import RAS_TO_LPS
from monai_nodeo.files.nifti import read_values
from monai_nodeo.files.text_matrix import with_last_row
from monai_nodeo.files.transform import Affine, Displacement, Transform

__all__ = ["check_straight_images", "read_aff12", "read_afni", "write_aff12", "write_afni"]

_FLIP = np.diag([*np.diag(RAS_TO_LPS), 1.0])
_NIFTI = (".nii", ".nii.gz")
_AFF12 = ".aff12.1d"
_VECTOR = 1007  # NIfTI's intent code
_ATTRIBUTES = b'<AFNI_attributes ni_form="ni_group">\n</AFNI_attributes>\n'


def read_aff12(path: PathLike) -> Affine:
    """The affine of a file between images that are not oblique: fixed physical point -> moving physical point.

    Raises:
        ValueError: when it holds other than one matrix.
    """
    lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    try:
        numbers = [float(word) for line in lines for word in line.partition("#")[0].split()]
    except ValueError as error:
        raise ValueError(f"{path}: no affine of AFNI, expected twelve numbers ({error}).") from error
    if len(numbers) != 12:
        raise ValueError(f"{path}: {len(numbers)} numbers, expected the twelve of one affine of AFNI.")
    matrix = np.vstack([np.reshape(numbers, (3, 4)), [0, 0, 0, 1]])
    try:
        return Affine(_FLIP @ matrix @ _FLIP)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def write_aff12(path: PathLike, affine: np.ndarray) -> None:
    """Write an affine between images that are not oblique, (4, 4) RAS mm: fixed -> moving physical point."""
    numbers = (_FLIP @ affine @ _FLIP)[:3].ravel()
    with atomic_path(path) as partial:
        text = "# 3dvolreg matrices (DICOM-to-DICOM, row-by-row):\n" + "  ".join(f"{x:.17g}" for x in numbers) + "\n"
        partial.write_text(text, encoding="utf-8")


def read_afni(path: PathLike, fixed: PathLike, moving: PathLike) -> Affine | Displacement:
    """An affine, or a warp if the name is one of NIfTI, between images that may be oblique.

    Args:
        path: the file.
        fixed: the image that AFNI calls the base.
        moving: the image that it calls the source.

    Raises:
        ValueError: when it is neither.
    """
    to_fixed, to_moving = _straight_from_world(fixed), _straight_from_world(moving)
    from_fixed, from_moving = np.linalg.inv(to_fixed), np.linalg.inv(to_moving)
    if not os.fspath(path).endswith(_NIFTI):
        return Affine(with_last_row(from_moving @ read_aff12(path).matrix @ to_fixed))
    image = open_nibabel(path, path)
    if len(image.shape) != 5 or image.shape[3:] != (1, 3):
        raise ValueError(f"{path}: a field of shape {image.shape}, expected (X, Y, Z, 1, 3).")
    own = grid_of(path, image, image.shape[:3])
    straight = _straight(own.affine)
    there = apply_affine(straight, np.moveaxis(np.indices(own.shape), 0, -1))
    there += read_values(path, image)[:, :, :, 0] @ RAS_TO_LPS
    grid = ImageGrid(with_last_row(from_fixed @ straight), own.shape)
    return displacement_from_ras(path, apply_affine(from_moving, there), grid, places=True)


def write_afni(path: PathLike, transform: Transform, fixed: PathLike, moving: PathLike) -> None:
    """Write linear steps as an affine, or all steps as a warp if the name is one of NIfTI.

    Args:
        path: target.
        transform: points of the fixed image -> points of the moving one, of volumes.
        fixed: the image that AFNI calls the base; a warp is on its grid.
        moving: the image that it calls the source.

    Raises:
        ValueError: when an affine cannot hold the transform.
    """
    to_fixed, to_moving = _straight_from_world(fixed), _straight_from_world(moving)
    if not os.fspath(path).endswith(_NIFTI):
        return write_aff12(path, with_last_row(to_moving @ transform.matrix(str(path)) @ np.linalg.inv(to_fixed)))
    grid = ImageGrid.from_file(fixed)
    lps = displacement_to_lps(transform.displacement_on(str(path), grid), grid).reshape(*grid.shape, 3)
    there = apply_affine(to_moving, grid.world + lps @ RAS_TO_LPS)
    field = (there - apply_affine(to_fixed, grid.world)) @ RAS_TO_LPS
    image = nib.Nifti1Image(field[:, :, :, None].astype(np.float32), grid.affine)
    image.set_sform(grid.affine, grid.sform_code)
    image.set_qform(grid.affine, grid.qform_code)
    image.header.set_intent(_VECTOR)
    image.header.extensions.append(Nifti1Extension(AFNI_EXTENSION, _ATTRIBUTES))  # tells it from a field of ITK
    with atomic_path(path) as partial:
        nib.save(image, partial)
    return None


def check_straight_images(path: PathLike, fixed: np.ndarray, moving: np.ndarray) -> None:
    """Refuse a transform of AFNI that is taken as it is between images of which one is oblique; others pass.

    Args:
        path: file of a transform of any format. Of a warp only the moving image is looked at: its own grid says what
            the fixed one is.
        fixed: (4, 4), voxels -> RAS mm.
        moving: the same of the moving image.

    Raises:
        ValueError: names the file, the image and what to do.
    """
    name = os.fspath(path).lower()
    affine = name.endswith(_AFF12)
    if affine:
        check_straight(path, "the fixed image", fixed)
    if affine or (name.endswith(_NIFTI) and is_afni_warp(open_nibabel(path, path))):
        check_straight(path, "the moving image", moving)


def _straight_from_world(path: PathLike) -> np.ndarray:
    """World -> AFNI's coordinates of an image, both RAS mm, (4, 4)."""
    grid = ImageGrid.from_file(path)
    if len(grid.shape) != 3:
        raise ValueError(f"{path}: AFNI's transforms are of volumes, and the image has shape {grid.shape}.")
    return _straight(grid.affine) @ np.linalg.inv(grid.affine)


def _straight(affine: np.ndarray) -> np.ndarray:
    """Voxels -> AFNI's coordinates, RAS mm."""
    straight = np.eye(4)
    straight[:3, :3] = 0
    for axis, (nearest, sign) in enumerate(io_orientation(affine)):
        straight[int(nearest), axis] = sign * np.linalg.norm(affine[:3, axis])
    straight[:3, 3] = affine[:3, 3]
    return straight
