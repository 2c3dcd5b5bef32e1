# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Displacement fields that other tools write as NIfTI, told by their headers: read where exact, else refused by name.

============  ================================  ================================================
tool          header                            values
============  ================================  ================================================
SPM           intent name "Mapping"             places in RAS mm, ``y_*.nii``: read
NiftyReg      intent name "NREG_TRANS", p1 = 0  places in RAS mm: read
NiftyReg      the same, p1 = 1                  displacements in RAS mm: read
NiftyReg      the same, p1 > 1                  control points or velocities: refused
FSL           intent 2006 to 2018               need both images: refused here, see `files.fsl`
AFNI          AFNI's extension                  displacements in LPS mm: read; on an oblique grid they need both
                                                images: refused here, see `files.afni`
============  ================================  ================================================
"""

from __future__ import annotations

import numpy as np
from nibabel.affines import obliquity
from nibabel.nifti1 import Nifti1Header, Nifti1Pair
from nibabel.spatialimages import SpatialImage

from monai_nodeo.files.grid import ImageGrid, PathLike, displacement_from_lps, grid_of
from monai_nodeo.files.lps import RAS_TO_LPS
from monai_nodeo.files.nifti import read_values
from monai_nodeo.files.transform import Displacement

__all__ = ["AFNI_EXTENSION", "check_straight", "displacement_from_ras", "is_afni_warp", "read_foreign"]

_FSL = range(2006, 2019)
AFNI_EXTENSION = 4
_SPM, _NIFTYREG = "Mapping", "NREG_TRANS"
_PLACES, _DISPLACEMENTS = 0, 1  # NiftyReg's intent_p1
_OBLIQUE = np.deg2rad(0.01)  # from there on AFNI turns a grid straight
_SAME = np.eye(3)
_BY_US = "convert it with  monai-nodeo convert FROM TO.h5 --from {} -r FIXED -m MOVING"


def read_foreign(path: PathLike, image: SpatialImage) -> Displacement | None:
    """The field of another tool; None if the file is of none of them.

    Args:
        path: the file.
        image: the same, opened.

    Raises:
        ValueError: when it is a field of another tool that is not read; names the tool and what to do.
    """
    header = image.header
    if not isinstance(image, Nifti1Pair) or not isinstance(header, Nifti1Header):
        return None
    intent, name = int(header["intent_code"]), header.get_intent()[2].strip()
    if intent in _FSL:
        raise _refused(path, "FSL", f"intent code {intent}", _BY_US.format("fsl"))
    if is_afni_warp(image):
        check_straight(path, "its grid", image.affine)
        return _read(path, image, places=False, to_ras=RAS_TO_LPS)
    if name == _SPM:
        return _read(path, image, places=True)
    if name == _NIFTYREG:
        kind = float(header["intent_p1"])
        if kind not in (_PLACES, _DISPLACEMENTS):
            found = f"kind {kind:g}, control points or velocities"
            raise _refused(path, "NiftyReg", found, "make a field of it with reg_transform")
        return _read(path, image, places=kind == _PLACES)
    return None


def is_afni_warp(image: SpatialImage) -> bool:
    """Whether a field has AFNI's extension."""
    extensions = getattr(image.header, "extensions", ())
    return any(extension.get_code() == AFNI_EXTENSION for extension in extensions)


def check_straight(path: PathLike, what: str, affine: np.ndarray) -> None:
    """Refuse a transform of AFNI that is taken as it is where something of its images is oblique.

    Args:
        path: the transform.
        what: has the affine, for the message.
        affine: (4, 4), voxels -> RAS mm.

    Raises:
        ValueError: when the affine is oblique.
    """
    if obliquity(affine).max() > _OBLIQUE:
        raise _refused(path, "AFNI", f"{what} is oblique, which AFNI drops", _BY_US.format("afni"))


def displacement_from_ras(path: PathLike, ras: np.ndarray, grid: ImageGrid, places: bool) -> Displacement:
    """A field in RAS mm as one in voxels.

    Args:
        path: the file, for messages.
        ras: (*grid.shape, 3), the places of the voxels in the moving image, or the way there.
        grid: where it lies.
        places: which of the two.

    Raises:
        ValueError: when it holds NaN or leaves a slice.
    """
    lps = ((ras - grid.world if places else ras) @ RAS_TO_LPS).reshape(*grid.spatial_shape, 3)
    return Displacement(grid, displacement_from_lps(path, lps, grid))


def _refused(path: PathLike, tool: str, found: str, advice: str) -> ValueError:
    return ValueError(f"{path}: a transform of {tool} ({found}), which is not read; {advice}.")


def _read(path: PathLike, image: SpatialImage, places: bool, to_ras: np.ndarray = _SAME) -> Displacement:
    """Values in mm, (X, Y, Z, 1, 3): the places of the voxels in the moving image, or the way there."""
    shape = image.shape
    if len(shape) != 5 or shape[3:] != (1, 3):
        raise ValueError(f"{path}: a field of shape {shape}, expected (X, Y, Z, 1, 3).")
    grid = grid_of(path, image, shape[:3])
    return displacement_from_ras(path, read_values(path, image)[:, :, :, 0] @ to_ras, grid, places)
