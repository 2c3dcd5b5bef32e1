# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""One call that registers two images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from monai_nodeo.data.image import Image
from monai_nodeo.data.load import load_pair
from monai_nodeo.registration.inferer import PairInferer
from monai_nodeo.registration.result import Registration
from monai_nodeo.registration.settings import Settings

__all__ = ["register"]


def register(
    fixed: Image | Sequence[Image],
    moving: Image | Sequence[Image],
    settings: Settings | str | None = None,
    *,
    fixed_label: Image | None = None,
    moving_label: Image | None = None,
    fixed_mask: Image | None = None,
    moving_mask: Image | None = None,
    fixed_landmarks: Any = None,
    moving_landmarks: Any = None,
    device: torch.device | str | None = None,
    **components: Any,
) -> Registration:
    """Find the flow that takes a fixed image to a moving one.

    Args:
        fixed: image whose grid stays: a path, an image of nibabel, SimpleITK or itk, an array (X, Y, Z) or (X, Y), or
            a tensor with channels first; see :py:func:`monai_nodeo.data.as_image`. A list of images in one space, such
            as T1 and T2, are channels, on the grid of the first.
        moving: image that is warped, on a grid of its own; a list where ``fixed`` is one.
        settings: or the name of a preset; by default the best balance that was measured.
        fixed_label: label map of the fixed image, on its grid: for the figures, and to pull where the settings have a
            ``label_weight``.
        moving_label: label map of the moving image.
        fixed_mask: greater than 0 where the fixed image counts.
        moving_mask: the same of the moving image.
        fixed_landmarks: points that pull: a table of LPS mm, or an array (N, 3) of RAS mm.
        moving_landmarks: the same points in the moving image, in the same order.
        device: where to compute; by default a GPU if there is one.
        components: ``velocity``, ``solver``, ``loss``, ``optimizer`` or ``handlers`` of your own, see
            :py:class:`PairInferer`.

    Raises:
        PairError: when something is wrong with an image; the message names it.
        SettingsError: when something is wrong with the settings.

    Example:
        >>> registration = register("fixed.nii.gz", "moving.nii.gz", "fast")
        >>> registration.save("out")
    """
    row = {
        "fixed": fixed,
        "moving": moving,
        "fixed_label": fixed_label,
        "moving_label": moving_label,
        "fixed_mask": fixed_mask,
        "moving_mask": moving_mask,
        "fixed_landmarks": fixed_landmarks,
        "moving_landmarks": moving_landmarks,
    }
    if isinstance(settings, Settings):
        pair = load_pair(row, settings.spatial_dims)
    else:
        pair = load_pair(row)
        settings = Settings.preset(settings, pair.spatial_dims)
    return PairInferer(settings, **components).register([pair], device)[0]
