# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""What a pair consists of while it goes through the transforms: the keys of a row, and its errors.

Paths of a data list:

===================================  ==============================================================================
"fixed", "moving"                    the images
"fixed_label", "moving_label"        label maps, both or none, each on the grid of its image
"fixed_mask", "moving_mask"          where an image counts (greater than 0), either, each on the grid of its image
"fixed_landmarks",                   CSV of points in LPS mm, both or none, one below the other in the same order
"moving_landmarks"
===================================  ==============================================================================

`LoadPaird` puts what they hold in their place, `AlignPaird` adds "initial_affine", `RefineThickSlicesd` adds
"fixed_input" and "moving_input", and `MatchGridd` brings what the optimisation needs to the grid of "fixed_input":
"moving_input", the masks and "landmarks". "fixed", "moving" and their labels stay as they are stored: results are on
the fixed grid, and sampled once, through the affine start and the displacement.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from monai.data import MetaTensor
from monai.utils import ImageMetaKey, MetaKeys

from monai_nodeo.data.keys import IMAGE_KEYS, INPUT_KEYS, LABEL_KEYS, LANDMARK_KEYS, MASK_KEYS, PATH_KEYS
from monai_nodeo.files import ImageGrid

__all__ = [
    "IMAGE_KEYS",
    "INPUT_KEYS",
    "LABEL_KEYS",
    "LANDMARK_KEYS",
    "MASK_KEYS",
    "PATH_KEYS",
    "PairError",
    "root_cause",
    "source_name",
    "stored_grid",
]


class PairError(ValueError):
    """A pair that cannot be registered. The message names the file, what was found and what to do."""


def root_cause(error: BaseException) -> BaseException:
    """The error that a transform raised, without the RuntimeErrors that MONAI's ``Compose`` wraps around it.

    Args:
        error: what a call of a (nested) ``Compose`` raised.

    Example:
        >>> from monai.transforms import Compose
        >>> from monai_nodeo.data.load import LoadPaird
        >>> try:
        ...     Compose([LoadPaird()])({"fixed": "a.nii.gz"})
        ... except RuntimeError as error:
        ...     print(root_cause(error))
        moving: no path was given; give one as "moving".
    """
    while isinstance(error, RuntimeError) and str(error).startswith("applying transform") and error.__cause__:
        error = error.__cause__
    return error


def source_name(key: str, image: MetaTensor) -> str:
    """How an error names an image: its key and, if it was read, its path."""
    return f"{key} {image.meta.get(ImageMetaKey.FILENAME_OR_OBJ, '')}".strip()


def stored_grid(image: MetaTensor) -> ImageGrid:
    """The grid that an image was stored on, without opening its file again.

    Args:
        image: as `LoadPaird` made it, (1, *spatial), also after a data loader; without its meta, the grid in memory.

    Raises:
        ValueError: when ITK could not hold the grid.
    """
    meta: dict[str, Any] = image.meta
    affine = meta.get(MetaKeys.ORIGINAL_AFFINE, image.affine)
    shape = meta.get(MetaKeys.SPATIAL_SHAPE, image.shape[1:])
    codes = {name: int(meta[name]) for name in ("sform_code", "qform_code") if name in meta}
    return ImageGrid(np.asarray(affine, dtype=np.float64), tuple(int(size) for size in shape), **codes)
