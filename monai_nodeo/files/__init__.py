# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Images, points and transforms as files, in the formats of NIfTI, DICOM, OME-Zarr, ITK, ANTs, FSL and others.

The only place that converts between a ddf in voxels (tensor axis order) and millimetres in ITK's LPS space
(`files.lps`, `files.grid`), and the only place that knows how a 2D grid is stored. An `ImageGrid` says both:

=================  ============  ================================  =====================================
stored image       array shape   ddf                               displacement file
=================  ============  ================================  =====================================
3D volume          (X, Y, Z)     (3, X, Y, Z)                      (X, Y, Z, 1, 3)
slice, 3D header   (X, Y, 1)     (2, X, Y)                         (X, Y, 1, 1, 3), in the header's space
true 2D image      (X, Y)        (2, X, Y)                         (X, Y, 1, 1, 2)
=================  ============  ================================  =====================================

Nothing here imports torch: a command that only applies a transform starts at once.
"""

from __future__ import annotations

from monai_nodeo.files.atomic import (
    atomic_path,
    check_folder,
    check_no_file,
    check_output_dir,
    check_room,
    no_empty_folder,
)
from monai_nodeo.files.background import background
from monai_nodeo.files.grid import ImageGrid, itk_geometry, warn_off_slice
from monai_nodeo.files.image_targets import check_warped_target, write_warped
from monai_nodeo.files.images import ImageFileError, StoredImage, open_stored, stored_array, stored_itk, stored_nibabel
from monai_nodeo.files.nifti import (
    check_image_target,
    displacement_error,
    read_displacement,
    save_nifti,
    write_displacement,
    write_image,
    write_labels,
)
from monai_nodeo.files.points import Points, check_points_target, holds_points, read_points, write_points
from monai_nodeo.files.transform import Affine, Displacement, Transform
from monai_nodeo.files.transform_formats import (
    check_transform_target,
    read_affine,
    read_transform,
    write_affine,
    write_transform,
)

__all__ = [
    "Affine",
    "Displacement",
    "ImageFileError",
    "ImageGrid",
    "Points",
    "StoredImage",
    "Transform",
    "atomic_path",
    "background",
    "check_folder",
    "check_image_target",
    "check_no_file",
    "check_output_dir",
    "check_points_target",
    "check_room",
    "check_transform_target",
    "check_warped_target",
    "holds_points",
    "itk_geometry",
    "no_empty_folder",
    "open_stored",
    "read_affine",
    "displacement_error",
    "read_displacement",
    "read_points",
    "read_transform",
    "save_nifti",
    "stored_array",
    "stored_itk",
    "stored_nibabel",
    "warn_off_slice",
    "write_affine",
    "write_displacement",
    "write_image",
    "write_labels",
    "write_points",
    "write_transform",
    "write_warped",
]
