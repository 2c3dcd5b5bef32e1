# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""From the RAS millimetres of NIfTI to the LPS millimetres of ITK, and back.

The vectors of a displacement field go both ways in `files.grid`, by the grid that they lie on. Points: `files.points`;
affine maps: `files.transform`.
"""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

__all__ = ["RAS_TO_LPS", "itk_place"]

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])  # and back


def itk_place(image: sitk.Image | sitk.ImageFileReader) -> np.ndarray:
    """ITK's geometry of the first three axes as an affine in RAS mm, (4, 4), with a third axis of 1 mm in 2D."""
    dims = image.GetDimension()
    axes = min(dims, 3)
    affine = np.eye(4)
    affine[:axes, :axes] = np.reshape(image.GetDirection(), (dims, dims))[:axes, :axes] * image.GetSpacing()[:axes]
    affine[:axes, 3] = image.GetOrigin()[:axes]
    affine[:3] = RAS_TO_LPS @ affine[:3]
    return affine
