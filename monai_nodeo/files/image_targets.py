# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Where a warped image goes: the name says the format.

==========================  ======================================================================
name                        format
==========================  ======================================================================
``*.nii.gz``, ``*.nii``     NIfTI
``*.zarr``                  OME-Zarr 0.5
``folder/``                 DICOM, one file a slice; both images are DICOM series
==========================  ======================================================================
"""

from __future__ import annotations

import numpy as np

from monai_nodeo.files.dicom_series_writer import check_series_target, is_series_target, write_series
from monai_nodeo.files.grid import ImageGrid, PathLike
from monai_nodeo.files.images import StoredImage
from monai_nodeo.files.nifti import check_image_target, has_nifti_name, save_nifti
from monai_nodeo.files.ome_zarr import check_zarr_target, is_zarr_target, write_zarr

__all__ = ["check_warped_target", "write_warped"]


def check_warped_target(output: PathLike, image: PathLike, reference: PathLike) -> None:
    """Refuse a target that the image cannot be written to, before it is warped.

    Args:
        output: target.
        image: file of the moving image.
        reference: file of the image whose grid the result has.

    Raises:
        OSError: when its folder does not exist.
        MissingExtraError: when the format needs a package of an extra; names it.
        ValueError: when there is no format of that name, or it cannot hold the image.
    """
    if is_zarr_target(output):
        check_zarr_target(output)
    elif is_series_target(output):
        check_series_target(output, reference, image)
    elif not has_nifti_name(output):
        raise ValueError(f"{output}: images are .nii.gz, .nii, .ome.zarr, or FOLDER/ for DICOM; rename it.")
    else:
        check_image_target(output)


def write_warped(
    output: PathLike,
    values: np.ndarray,
    grid: ImageGrid,
    stored: StoredImage,
    reference: PathLike,
    intent: str = "vector",
) -> None:
    """Write a warped image.

    Args:
        output: target; a name of the table above.
        values: (*grid.shape, *further axes of the stored image).
        grid: where it lies.
        stored: the moving image.
        reference: file of the image whose grid it is.
        intent: what the components of a voxel are, as NIfTI calls it.

    Raises:
        ValueError: when the format cannot hold it.
    """
    further = stored.shape[3:]
    if is_series_target(output) and not is_zarr_target(output):
        if further or len(grid.shape) != 3:
            raise ValueError(f"{output}: a DICOM series is one volume, and the image has shape {values.shape}.")
        write_series(output, values, grid, reference, stored.path)
        return
    if further:  # in a file, these come after three axes of space
        values = values.reshape(*grid.shape, *[1] * (3 - len(grid.shape)), *further)
    if is_zarr_target(output):
        write_zarr(output, values, grid.affine, 3 if further else len(grid.shape))
        return
    save_nifti(output, values, grid, intent if further[:1] == (1,) else "none", stored.steps)
