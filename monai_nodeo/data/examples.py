# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""A built-in pair of brain images whose true deformation is known, made without a download.

The fixed image is the MNI152 T1 template that nilearn's package carries. The moving image is the same head, deformed by
a random diffeomorphism, with another contrast, uneven brightness and noise. Grey and white matter serve as labels.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.signal.windows import tukey

from monai_nodeo.extras import extra

__all__ = ["ExamplePair", "example_pair", "write_pair"]

_BRAIN_BOX = np.array([[26, 27, 0], [170, 208, 155]])  # first and last voxel of the head in the 1 mm template
_MARGIN = 12.0  # mm around the head, so that nothing is pushed out of the image
_SLICE = 80  # axial slice of the 1 mm template through the ventricles and basal ganglia
_SMOOTHNESS = 11.0  # mm, standard deviation of the kernel that makes the random velocity smooth
_MEAN_DISPLACEMENT = 3.5  # mm, within the head
_SQUARINGS = 5


class ExamplePair(NamedTuple):
    """Two images of one head, their labels and the deformation between them; all on one grid.

    Attributes:
        fixed: the template, float32 in [0, 1], (*spatial).
        moving: the deformed head, float32 in [0, 1], (*spatial).
        fixed_label: 0 outside, 1 grey matter, 2 white matter, uint8, (*spatial).
        moving_label: the same labels of the deformed head, uint8, (*spatial).
        ddf: the true displacement in voxels, float32, (D, *spatial), channel i along axis i: what is at ``x`` in the
            fixed image is at ``x + ddf(x)`` in the moving one.
        affine: voxel -> RAS millimetres, (4, 4). In 2D the third axis is that of the slice.
    """

    fixed: NDArray[np.float32]
    moving: NDArray[np.float32]
    fixed_label: NDArray[np.uint8]
    moving_label: NDArray[np.uint8]
    ddf: NDArray[np.float32]
    affine: NDArray[np.float64]

    @property
    def spacing(self) -> tuple[float, ...]:
        """Voxel size in millimetres along each axis of the image."""
        return tuple(float(s) for s in nib.affines.voxel_sizes(self.affine)[: self.fixed.ndim])


def example_pair(spatial_dims: int = 3, spacing: float | None = None, seed: int = 0) -> ExamplePair:
    """Make the example pair.

    Args:
        spatial_dims: 3 for the head, 2 for an axial slice deformed in its plane.
        spacing: voxel size in millimetres, at least 1. Default: 2.5 in 3D and 1 in 2D.
        seed: another seed gives another deformation, bias and noise.

    Returns:
        The pair: about 70 x 80 x 70 voxels, or 170 x 210 pixels, with the default spacing.

    Raises:
        MissingExtraError: when nilearn is not installed.
    """
    if spatial_dims not in (2, 3):
        raise ValueError(f"spatial_dims is {spatial_dims}, expected 2 or 3.")
    if spacing is None:
        spacing = 1.0 if spatial_dims == 2 else 2.5
    if spacing < 1:
        raise ValueError(f"spacing is {spacing} mm, expected at least the template's 1 mm.")

    maps, affine = _template_maps()
    if spatial_dims == 2:
        maps, affine = maps[..., _SLICE], affine @ _translation(0, 0, _SLICE)
    # Blur to the new voxel size first: sampling alone would alias.
    sigma = np.sqrt(spacing**2 - 1) / 2.355
    maps = np.stack([ndimage.gaussian_filter(m, sigma) for m in maps])

    start = _BRAIN_BOX[0, :spatial_dims] - _MARGIN
    shape = np.ceil((np.diff(_BRAIN_BOX[:, :spatial_dims], axis=0)[0] + 2 * _MARGIN) / spacing).astype(int) + 1
    grid = np.indices(shape, dtype=np.float64)

    def sample(displacement: NDArray) -> NDArray:
        """The three maps at the displaced voxels of the new grid, read from the template itself."""
        positions = (grid + displacement) * spacing + start.reshape(-1, *[1] * spatial_dims)
        return np.stack([ndimage.map_coordinates(m, positions, order=1) for m in maps])

    rng = np.random.default_rng(seed)
    fixed_maps = sample(np.zeros_like(grid))
    velocity = _random_velocity(rng, fixed_maps[0] > 0, spacing)
    moving_maps = sample(_exponential(-velocity))  # moving(y) = fixed(phi^-1(y)), phi = exp(velocity)

    flat = 3 - spatial_dims
    to_template = _translation(*start, *[0] * flat) @ np.diag([spacing] * spatial_dims + [1.0] * (flat + 1))
    return ExamplePair(
        fixed=fixed_maps[0].astype(np.float32),
        moving=_another_scanner(rng, moving_maps[0], spacing).astype(np.float32),
        fixed_label=_tissue_labels(fixed_maps),
        moving_label=_tissue_labels(moving_maps),
        ddf=_exponential(velocity).astype(np.float32),
        affine=affine @ to_template,
    )


def write_pair(pair: ExamplePair, folder: str | Path) -> dict[str, str]:
    """Write the pair as NIfTI files, a slice as (X, Y, 1) like most slices found in practice.

    Args:
        pair: what `example_pair` returned.
        folder: made if it does not exist.

    Returns:
        ``{"fixed": path, "moving": ..., "fixed_label": ..., "moving_label": ...}``: a row of a data list.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    row = {}
    for name in ("fixed", "moving", "fixed_label", "moving_label"):
        array = getattr(pair, name)
        path = folder / f"{name}.nii.gz"
        image = nib.Nifti1Image(array.reshape(*array.shape, *[1] * (3 - array.ndim)), pair.affine)
        image.header.set_xyzt_units("mm")
        nib.save(image, path)
        row[name] = str(path)
    return row


@cache  # read once, for all seeds
def _template_maps() -> tuple[NDArray, NDArray]:
    """T1, grey and white matter at 1 mm, each in [0, 1], (3, 197, 233, 189), and their affine."""
    with extra("demo", "example pairs"):  # it carries the template
        from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template
    # At their own 1 mm these loaders read nilearn's package only.
    images = [load(1) for load in (load_mni152_template, load_mni152_gm_template, load_mni152_wm_template)]
    return np.stack([image.get_fdata(dtype=np.float32) for image in images]), images[0].affine


def _translation(*offset: float) -> NDArray:
    """A 4x4 matrix that shifts by `offset`."""
    return nib.affines.from_matvec(np.eye(3), offset)


def _random_velocity(rng: np.random.Generator, head: NDArray, spacing: float) -> NDArray:
    """A smooth stationary velocity in voxels per unit time, (D, *spatial), zero at the image's border."""
    noise = rng.standard_normal((head.ndim, *head.shape))
    velocity = np.stack([ndimage.gaussian_filter(n, _SMOOTHNESS / spacing) for n in noise])
    for axis, size in enumerate(head.shape):
        fade = tukey(size, min(1.0, 2 * _MARGIN / spacing / size))
        velocity *= fade.reshape([-1 if i == axis else 1 for i in range(head.ndim)])
    mean = np.linalg.norm(velocity, axis=0)[head].mean()
    return velocity * (_MEAN_DISPLACEMENT / spacing / mean)


def _exponential(velocity: NDArray) -> NDArray:
    """Displacement of the flow of a stationary velocity after unit time, by scaling and squaring; (D, *spatial)."""
    grid = np.indices(velocity.shape[1:], dtype=np.float64)

    def at(field: NDArray, displacement: NDArray) -> NDArray:
        # Cubic, because every squaring doubles the error of an interpolation.
        return np.stack([ndimage.map_coordinates(c, grid + displacement, order=3, mode="nearest") for c in field])

    step = velocity / 2**_SQUARINGS
    ddf = at(step, step / 2)  # the first step by the midpoint rule
    for _ in range(_SQUARINGS):
        ddf = ddf + at(ddf, ddf)
    return ddf


def _another_scanner(rng: np.random.Generator, image: NDArray, spacing: float) -> NDArray:
    """The image with another contrast, uneven brightness and noise, in [0, 1]; nothing outside the head."""
    bias = ndimage.gaussian_filter(rng.standard_normal(image.shape), 30 / spacing, mode="wrap")
    bias = 1 + 0.15 * bias / np.abs(bias).max()
    noisy = image**1.4 * bias + 0.02 * rng.standard_normal(image.shape)
    return np.where(image > 0.1, noisy, 0).clip(0, 1)


def _tissue_labels(maps: NDArray) -> NDArray[np.uint8]:
    """Grey (1) and white (2) matter where their map exceeds one half."""
    return np.select([maps[1] > 0.5, maps[2] > 0.5], [1, 2], 0).astype(np.uint8)
