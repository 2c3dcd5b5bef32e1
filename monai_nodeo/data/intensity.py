# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Intensities in one range, whatever the scanner's unit is."""

from __future__ import annotations

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import MetaKeys

from monai_nodeo.files import background

__all__ = ["to_unit_range"]

_PERCENTILES = (0.5, 99.5)
_BRIGHT = 0.9  # of the range: a background above it is the bright end


def to_unit_range(image: MetaTensor) -> MetaTensor:
    """The image with its percentiles .5 and 99.5 taken to 0 and 1, and what is beyond them clipped.

    Single bright voxels would set the range otherwise. Where these percentiles are one value, as in an image that is
    empty but for a few voxels, minimum and maximum take their place. A channel that lies on white, as a section on a
    slide does, is turned to its negative: around an image there is 0.

    Args:
        image: (C, *spatial); each channel has a range of its own.
    """
    scaled = image.as_tensor().float().clone()
    for channel in scaled:
        values = channel.numpy()
        around = background(values)
        low, high = np.percentile(values, _PERCENTILES)
        if low == high:
            low, high = values.min(), values.max()
        if low < high:
            channel.sub_(float(low)).div_(float(high - low)).clamp_(0, 1)
            if around > low + _BRIGHT * (high - low):
                torch.sub(1, channel, out=channel)
        else:
            channel.zero_()
    meta = {name: value for name, value in image.meta.items() if name != MetaKeys.AFFINE}
    return MetaTensor(scaled, affine=image.affine.clone(), meta=meta)
