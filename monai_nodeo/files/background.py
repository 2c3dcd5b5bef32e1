# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The value of what an image does not show: black around a scan, white around a section on a slide."""

from __future__ import annotations

import numpy as np

__all__ = ["background"]

_ALIKE = 0.02  # share of the range within which values are taken for one


def background(image: np.ndarray) -> float:
    """The value around an image of one channel.

    It is the one that prevails along the border: the median of the border, where more than half of the border is like
    it. Where none prevails, as around an image that is cut off within the body, and where it is like the minimum, as
    around most scans, it is the minimum.

    Args:
        image: (*spatial), real numbers; infinite ones and NaN do not count.
    """
    values = image.reshape([n for n in image.shape if n > 1] or [1])
    low, high = _finite_range(values)
    sides = [np.take(values, end, axis).ravel() for axis in range(values.ndim) for end in (0, -1)]
    border = np.concatenate(sides).astype(np.float64)
    border = border[np.isfinite(border)]
    if not border.size:
        return low
    middle = float(np.partition(border, border.size // 2)[border.size // 2])
    alike = _ALIKE * (high - low)
    prevails = np.count_nonzero(np.abs(border - middle) <= alike) > border.size / 2
    return middle if prevails and middle - low > alike else low


def _finite_range(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    if np.isfinite(low) and np.isfinite(high):
        return low, high
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
