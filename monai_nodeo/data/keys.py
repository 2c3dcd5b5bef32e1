# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The keys of a row of a data list.

===================================  ==============================================================================
"fixed", "moving"                    the images; of several contrasts, a list of them
"fixed_label", "moving_label"        label maps, both or none, each on the grid of its image
"fixed_mask", "moving_mask"          where an image counts (greater than 0), either, each on the grid of its image
"fixed_landmarks",                   CSV of points in LPS mm, both or none, one below the other in the same order
"moving_landmarks"
"initial_transform"                  affine start of this pair, a file, instead of that of the settings
===================================  ==============================================================================
"""

from __future__ import annotations

from typing import Any

__all__ = ["IMAGE_KEYS", "LABEL_KEYS", "LANDMARK_KEYS", "MASK_KEYS", "PATH_KEYS", "START_KEY", "images_of"]

IMAGE_KEYS = ("fixed", "moving")
LABEL_KEYS = ("fixed_label", "moving_label")
MASK_KEYS = ("fixed_mask", "moving_mask")
LANDMARK_KEYS = ("fixed_landmarks", "moving_landmarks")
PATH_KEYS = (*IMAGE_KEYS, *LABEL_KEYS, *MASK_KEYS, *LANDMARK_KEYS)
START_KEY = "initial_transform"


def images_of(value: Any) -> list[Any]:
    """What a key names, as a list: the images of several contrasts, or the one."""
    return list(value) if isinstance(value, list | tuple) else [value]
