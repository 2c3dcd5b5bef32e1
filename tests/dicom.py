# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""DICOM series on disk, written by SimpleITK."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])


def write_series(
    folder: Path,
    volume: np.ndarray,
    affine: np.ndarray,
    number: int = 1,
    skip: Sequence[int] = (),
    shear: Sequence[float] = (0, 0, 0),
) -> str:
    """Write (X, Y, Z) whole numbers with an affine in RAS mm as a series, one file a slice, and return its UID.

    Args:
        folder: made if it does not exist.
        volume: int16.
        affine: (4, 4), without shear.
        number: of the series.
        skip: slices that are left out.
        shear: mm in LPS that each slice is shifted against the one before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    uid = f"1.2.826.0.1.3680043.2.1125.{number}"
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    lps = RAS_TO_LPS @ affine[:3]
    axes = lps[:, :3] / spacing
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for index in sorted(set(range(volume.shape[2])) - set(skip)):
        image = sitk.GetImageFromArray(volume[:, :, index].T.astype(np.int16))
        image.SetSpacing(spacing[:2].tolist())
        place = lps[:, 3] + lps[:, 2] * index + np.multiply(shear, index)
        tags = {
            "0008|0060": "MR",
            "0008|0018": f"{uid}.{index + 1}",
            "0008|103e": f"echo {number}",
            "0018|0050": f"{spacing[2]:g}",
            "0020|000d": "1.2.826.0.1.3680043.2.1125",
            "0020|000e": uid,
            "0020|0011": str(number),
            "0020|0013": str(index + 1),
            "0020|0032": "\\".join(f"{x:.6f}" for x in place),
            "0020|0037": "\\".join(f"{x:.8f}" for x in axes[:, :2].T.ravel()),
        }
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        # names in another order than the slices
        writer.SetFileName(str(folder / f"{number}_{7 * index % volume.shape[2]:03d}_{index}.dcm"))
        writer.Execute(image)
    return uid
