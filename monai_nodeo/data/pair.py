# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""A pair of images with all that is known about them; nothing here is changed, a step makes a new object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from monai.data import MetaTensor
from monai.utils import ImageMetaKey, MetaKeys
from torch import Tensor

from monai_nodeo.data.errors import PairError
from monai_nodeo.files import ImageGrid

__all__ = ["Pair", "PairError", "Scan", "source_name", "stored_grid"]


@dataclass(frozen=True, eq=False)
class Scan:
    """One image of a pair, and what belongs to it.

    Attributes:
        image: (C, *spatial), float32, with its affine, voxel -> RAS mm.
        label: label map on the grid of the image, (1, *spatial), whole numbers.
        mask: 1 where the image counts, else 0, on the grid of the image, (1, *spatial).
        landmarks: points, (N, 3) RAS mm, float64.
    """

    image: MetaTensor
    label: MetaTensor | None = None
    mask: MetaTensor | None = None
    landmarks: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Pair:
    """Two scans, each on a grid of its own, as they are stored.

    Attributes:
        fixed: its grid stays.
        moving: is warped.
        id: name of the pair.
        sources: key of a data list -> path that was read, absolute, or a list of them.
        start: its affine start, as ``initial_transform`` of the settings, instead of theirs.
    """

    fixed: Scan
    moving: Scan
    id: str = ""
    sources: tuple[tuple[str, str | list[str]], ...] = ()
    start: str | None = None

    @property
    def spatial_dims(self) -> int:
        """2 for slices, 3 for volumes."""
        return self.fixed.image.ndim - 1


def source_name(key: str, image: MetaTensor) -> str:
    """How an error names an image: its key and, if it was read, its path."""
    return f"{key} {image.meta.get(ImageMetaKey.FILENAME_OR_OBJ, '')}".strip()


def stored_grid(image: MetaTensor, key: str = "image") -> ImageGrid:
    """The grid that an image was stored on, without opening its file again.

    Args:
        image: (C, *spatial), also after a data loader; without its meta, the grid in memory.
        key: what errors call it.

    Raises:
        PairError: when ITK could not hold the grid.
    """
    meta: dict[str, Any] = image.meta
    affine = meta.get(MetaKeys.ORIGINAL_AFFINE, image.affine)
    shape = meta.get(MetaKeys.SPATIAL_SHAPE, image.shape[1:])
    codes = {name: int(meta[name]) for name in ("sform_code", "qform_code") if name in meta}
    try:
        return ImageGrid(np.asarray(affine, dtype=np.float64), tuple(int(size) for size in shape), **codes)
    except ValueError as error:
        raise PairError(f"{source_name(key, image)}: {error}") from error
