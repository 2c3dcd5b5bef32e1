# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Images with a place in space, and pairs of them."""

from typing import Any

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from monai_nodeo.data import Pair, PairError, load_pair

VOLUME, SLICE, FLAT = (9, 11, 13), (9, 11, 1), (9, 11)


def smooth(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Smooth random image with values in [0, 100]."""
    image = ndimage.gaussian_filter(
        np.random.default_rng(seed).normal(size=shape), [1.5 if n > 1 else 0 for n in shape]
    )
    return (100 * (image - image.min()) / np.ptp(image)).astype(np.float32)


def make_affine(
    spacing: tuple[float, float, float],
    angles: tuple[float, float, float] = (0, 0, 0),
    origin: tuple[float, ...] = (0, 0, 0),
) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("XYZ", np.multiply(angles, (1, -1, 1))).as_matrix() * spacing
    affine[:3, 3] = origin
    return affine


def centred(affine: np.ndarray, shape: tuple[int, ...], centre: tuple[float, ...] = (0, 0, 0)) -> np.ndarray:
    """The affine moved so that the middle of the grid lies at the centre."""
    affine = affine.copy()
    middle = np.array([(n - 1) / 2 for n in (*shape, 1)[:3]])
    affine[:3, 3] = np.asarray(centre) - affine[:3, :3] @ middle
    return affine


def load(fixed: Any, moving: Any, spatial_dims: int | None = None, **others: Any) -> Pair:
    return load_pair({"fixed": fixed, "moving": moving, "id": "pair", **others}, spatial_dims)


def refuse(fixed: Any, moving: Any, spatial_dims: int | None = None, **others: Any) -> str:
    """What a user is told, in one line."""
    with pytest.raises(PairError) as info:
        load(fixed, moving, spatial_dims, **others)
    (line,) = str(info.value).splitlines()
    return line
