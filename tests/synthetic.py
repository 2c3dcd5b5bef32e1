# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Small image pairs with a known deformation, channel first, and settings that take no time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from monai_nodeo.registration import RegisterPair, Registration, Settings


def smooth_image(shape: Sequence[int], seed: int = 0, sigma: float = 2.0) -> Tensor:
    """Blurred noise in [0, 1], (1, *shape)."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma)
    noise = (noise - noise.min()) / np.ptp(noise)
    return torch.from_numpy(noise).float()[None]


def smooth_ddf(shape: Sequence[int], seed: int = 0, largest: float = 2.0, sigma: float = 8.0) -> Tensor:
    """Blurred noise whose longest vector has ``largest`` voxels, (D, *shape)."""
    noise = np.random.default_rng(seed).normal(size=(len(shape), *shape))
    ddf = np.stack([ndimage.gaussian_filter(component, sigma) for component in noise])
    return torch.from_numpy(ddf * (largest / np.linalg.norm(ddf, axis=0).max())).float()


def voxels(shape: Sequence[int], dtype: torch.dtype = torch.float64) -> Tensor:
    """Index of every voxel, (1, D, *shape), made without the package."""
    return torch.from_numpy(np.indices(shape)).to(dtype)[None]


def noise(shape: Sequence[int], size: float = 1.0, batch: int = 1) -> Tensor:
    """A rough field, (B, D, *shape), float64."""
    return size * torch.randn(batch, len(shape), *shape, dtype=torch.float64)


def determinants(ddf: Tensor) -> Tensor:
    """Of the Jacobian of the map, by forward differences and torch.linalg, (B, *(spatial - 1))."""
    dims, sizes = ddf.shape[1], ddf.shape[2:]
    columns = [ddf.diff(dim=2 + axis)[(..., *[slice(n - 1) for n in sizes])] for axis in range(dims)]
    return torch.linalg.det(torch.stack(columns, -1).movedim(1, -2) + torch.eye(dims, dtype=ddf.dtype))


def deformed_pair(shape: Sequence[int], seed: int = 0, largest: float = 2.0) -> tuple[Tensor, Tensor, Tensor]:
    """Fixed and moving image, (1, *shape), and the ddf (D, *shape) with ``fixed(x) = moving(x + ddf(x))``."""
    moving, ddf = smooth_image(shape, seed), smooth_ddf(shape, seed + 1, largest)
    # cubic, by scipy: independent of the samplers under test
    fixed = ndimage.map_coordinates(moving[0].numpy(), np.indices(shape) + ddf.numpy(), order=3, mode="nearest")
    return torch.from_numpy(fixed)[None], moving, ddf


def quick_settings(spatial_dims: int, **changes: Any) -> Settings:
    """The default ones with two short levels of small steps, from the headers on; nothing is chosen by the images."""
    return Settings.preset(
        spatial_dims=spatial_dims,
        **{
            "initial_transform": None,
            "self_tuning": False,
            "shrink_factors": (2, 1),
            "iterations": (3, 2),
            "learning_rate": 0.4,
            "dense_iterations": 0,
            **changes,
        },
    )


def quickly(fixed: Tensor, moving: Tensor, components: dict[str, Any] | None = None, **changes: Any) -> Registration:
    """The registration of two images, (C, *spatial), with `quick_settings`."""
    settings = quick_settings(fixed.ndim - 1, **changes)
    return RegisterPair(settings, **{"handlers": (), **(components or {})})(fixed, moving)


def save_pair(
    folder: Path,
    shape: Sequence[int],
    affine: np.ndarray,
    moving_affine: np.ndarray | None = None,
    units: tuple[float, float] = (1, 1),
) -> dict[str, str]:
    """Files of a deformed pair and its label maps; slices have the shape (X, Y, 1). Key -> path."""
    fixed, moving, _ = deformed_pair([n for n in shape if n > 1])
    row = {}
    for side, image, place, unit in (("fixed", fixed, affine, units[0]), ("moving", moving, moving_affine, units[1])):
        for key, values in ((side, unit * image), (f"{side}_label", (image > 0.5).float())):
            row[key] = str(folder / f"{key}.nii.gz")
            place = affine if place is None else place
            nib.save(nib.Nifti1Image(values[0].numpy().reshape(shape), place), row[key])
    return row
