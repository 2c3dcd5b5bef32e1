# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Intensities in one range, whatever the scanner's unit is."""

from __future__ import annotations

import numpy as np
from monai.data import MetaTensor
from monai.utils import MetaKeys

__all__ = ["to_unit_range"]

_PERCENTILES = (0.5, 99.5)


def to_unit_range(image: MetaTensor) -> MetaTensor:
    """The image with its percentiles .5 and 99.5 taken to 0 and 1, and what is beyond them clipped.

    Single bright voxels would set the range otherwise. Where these percentiles are one value, as in an image that is
    empty but for a few voxels, minimum and maximum take their place.

    Args:
        image: (C, *spatial); each channel has a range of its own.
    """
    scaled = image.as_tensor().float().clone()
    for channel in scaled:
        values = channel.numpy()
        low, high = np.percentile(values, _PERCENTILES)
        if low == high:
            low, high = values.min(), values.max()
        if low < high:
            channel.sub_(float(low)).div_(float(high - low)).clamp_(0, 1)
        else:
            channel.zero_()
    meta = {name: value for name, value in image.meta.items() if name != MetaKeys.AFFINE}
    return MetaTensor(scaled, affine=image.affine.clone(), meta=meta)
