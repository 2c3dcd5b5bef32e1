# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The keys of a pair, most of them of paths that a row of a data list may hold; `pairs` tells what each is."""

from __future__ import annotations

__all__ = ["IMAGE_KEYS", "INPUT_KEYS", "LABEL_KEYS", "LANDMARK_KEYS", "MASK_KEYS", "PATH_KEYS"]

IMAGE_KEYS = ("fixed", "moving")
INPUT_KEYS = ("fixed_input", "moving_input")  # no paths: what the optimisation sees
LABEL_KEYS = ("fixed_label", "moving_label")
MASK_KEYS = ("fixed_mask", "moving_mask")
LANDMARK_KEYS = ("fixed_landmarks", "moving_landmarks")
PATH_KEYS = (*IMAGE_KEYS, *LABEL_KEYS, *MASK_KEYS, *LANDMARK_KEYS)
