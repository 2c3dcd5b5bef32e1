# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Grids of every kind, smooth fields and images on them, and what they say about points and voxels, by numpy."""

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

from monai_nodeo.files import ImageGrid, Transform

LARGEST_SHIFT = 2.0  # voxels


def make_affine(angles: Sequence[float], zooms: Sequence[float]) -> np.ndarray:
    """Rotation about x, y and z and voxel sizes, away from the origin."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles).as_matrix() @ np.diag(zooms)
    affine[:3, 3] = 12.5, -30.25, 41.75
    return affine


OBLIQUE = make_affine((0.3, -0.2, 0.4), (1.2, 0.9, 2.5))
FLIPPED = make_affine((-0.5, 0.35, 2.8), (-0.7, 1.3, 1.9))
CORONAL = np.array([[-1.0, 0, 0, 80], [0, 0, 1, -0.5], [0, -1, 0, 96], [0, 0, 0, 1]])
IN_PLANE = make_affine((0.0, 0.0, 0.4), (-1.2, 0.9, 2.5))

VOLUME = ImageGrid(OBLIQUE, (23, 27, 31))
SLICE = ImageGrid(CORONAL, (29, 37, 1))
PLANE = ImageGrid(IN_PLANE, (29, 37))
GRIDS = {"volume": VOLUME, "slice": SLICE, "plane": PLANE}


def smooth_noise(shape: Sequence[int], seed: int) -> np.ndarray:
    noise = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 3.0)
    return noise / np.abs(noise).max()


def make_ddf(grid: ImageGrid, seed: int = 0) -> np.ndarray:
    """(D, *spatial), float32, voxels, up to `LARGEST_SHIFT` along an axis."""
    noise = [smooth_noise(grid.spatial_shape, seed + axis) for axis in range(grid.spatial_dims)]
    return LARGEST_SHIFT * np.stack(noise).astype(np.float32)


def make_image(grid: ImageGrid, seed: int = 99) -> np.ndarray:
    """(*spatial), from 0 to 1000."""
    return 500 * (1 + smooth_noise(grid.spatial_shape, seed))


def make_start(grid: ImageGrid) -> np.ndarray:
    """An affine start in RAS mm that keeps a slice in its plane, about the middle of the grid."""
    dims = grid.spatial_dims
    in_voxels = np.eye(4)
    in_voxels[:2, :2] = [[0.97, 0.06], [-0.04, 1.03]]
    in_voxels[:dims, 3] = [0.8, -0.6, 0.4][:dims]
    middle = np.eye(4)
    middle[:dims, 3] = (np.array(grid.spatial_shape) - 1) / 2
    to_world = grid.affine @ middle
    return to_world @ in_voxels @ np.linalg.inv(to_world)


def registration(grid: ImageGrid) -> Transform:
    return Transform.of_registration(make_ddf(grid), grid, make_start(grid))


def world(grid: ImageGrid, index: np.ndarray) -> np.ndarray:
    """RAS mm (N, 3) of voxel positions (N, D)."""
    padded = np.pad(index, ((0, 0), (0, 3 - index.shape[1])))
    return padded @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def moved(grid: ImageGrid, ddf: np.ndarray, start: np.ndarray, index: np.ndarray) -> np.ndarray:
    """RAS mm (N, 3) where a displacement and then an affine take voxels (N, D) of the grid."""
    there = world(grid, index + ddf[(slice(None), *index.T)].T)
    return there @ start[:3, :3].T + start[:3, 3]


def warped(grid: ImageGrid, moving: np.ndarray, ddf: np.ndarray, start: np.ndarray) -> np.ndarray:
    """The moving image, on the same grid as the fixed one, sampled once through displacement and affine."""
    index = np.indices(grid.spatial_shape).reshape(grid.spatial_dims, -1).T
    back = np.linalg.inv(grid.affine)
    there = moved(grid, ddf, start, index) @ back[:3, :3].T + back[:3, 3]
    return map_coordinates(moving, there[:, : grid.spatial_dims].T, order=1, cval=0).reshape(grid.spatial_shape)


def interior(array: np.ndarray, margin: int = 5) -> np.ndarray:
    """Without the border, where what lies outside matters."""
    return array[(slice(margin, -margin),) * array.ndim]
