# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Vectors and tensors turned with the space that they are in, on request.

A warp moves voxels, and the directions stored in them have to turn too. The rotation of each voxel is that of the
transform's Jacobian, by its polar decomposition: the finite strain of Alexander et al., Spatial transformations of
diffusion tensor magnetic resonance images, IEEE TMI 2001. Lengths and eigenvalues stay as they are.
"""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from monai_nodeo.files.grid import ImageGrid, PathLike, itk_geometry, vectors_of
from monai_nodeo.files.lps import RAS_TO_LPS
from monai_nodeo.files.nifti import has_nifti_name
from monai_nodeo.files.transform import Transform

__all__ = ["check_reorientable", "reoriented"]

_VECTOR, _TENSOR = 3, 6
_PLACES = ((0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2))  # lower triangle, row by row, as in NIfTI and ANTs


def check_reorientable(name: PathLike, shape: tuple[int, ...], grid: ImageGrid) -> None:
    """Refuse images that hold no vectors or tensors, before they are warped.

    Args:
        name: of the image, for messages.
        shape: of the image.
        grid: of the result.

    Raises:
        ValueError: says what it holds.
    """
    if len(shape) != 5 or shape[3] != 1 or shape[4] not in (_VECTOR, _TENSOR):
        raise ValueError(
            f"{name}: shape {shape} holds no vectors or tensors, expected (X, Y, Z, 1, C) with 3 or 6 components."
        )
    if shape[4] == _TENSOR and not has_nifti_name(name):  # ITK has another order in its own files
        raise ValueError(f"{name}: tensors are turned in NIfTI, where their order is known; convert it.")
    if grid.spatial_dims != 3:
        raise ValueError(f"{name}: directions are turned in volumes, and the reference has shape {grid.shape}.")


def reoriented(values: np.ndarray, grid: ImageGrid, transform: Transform, frame: str) -> np.ndarray:
    """Turn what a warped image holds.

    Args:
        values: (X, Y, Z, 1, C): vectors (x, y, z), or symmetric tensors (xx, xy, yy, xz, yz, zz).
        grid: the image's.
        transform: points of the grid's space -> points of the space that the values come from.
        frame: axes of the components, "lps" or "ras".

    Returns:
        The same shape and type; whole numbers are rounded.
    """
    rotation = _rotations(grid, transform)
    if frame == "ras":
        rotation = RAS_TO_LPS @ rotation @ RAS_TO_LPS
    flat = values.reshape(*grid.shape, values.shape[-1]).astype(np.float64)
    if values.shape[-1] == _VECTOR:
        turned = np.einsum("...ij,...j->...i", rotation, flat)
    else:
        tensor = np.empty((*grid.shape, 3, 3))
        for component, (row, column) in enumerate(_PLACES):
            tensor[..., row, column] = tensor[..., column, row] = flat[..., component]
        tensor = rotation @ tensor @ np.swapaxes(rotation, -1, -2)
        turned = np.stack([tensor[..., row, column] for row, column in _PLACES], axis=-1)
    if values.dtype.kind in "iu":
        turned = np.rint(turned)
    return turned.reshape(values.shape).astype(values.dtype)


def _rotations(grid: ImageGrid, transform: Transform) -> np.ndarray:
    """Of the way from the values' space to the grid's, (*grid.shape, 3, 3), LPS."""
    field = sitk.TransformToDisplacementField(
        transform.to_itk(), sitk.sitkVectorFloat64, grid.shape, *itk_geometry(grid).values()
    )
    along = np.stack(np.gradient(vectors_of(field), axis=(0, 1, 2)), axis=-1)  # mm a voxel
    jacobian = np.eye(3) + along @ np.linalg.inv(grid.voxel_to_lps)
    left, _, right = np.linalg.svd(jacobian)
    left[..., -1] *= np.sign(np.linalg.det(left @ right))[..., None]  # no mirror where the transform folds
    return np.asarray(np.swapaxes(left @ right, -1, -2))  # the inverse: the transform leads from the grid
