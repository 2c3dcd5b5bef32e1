# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Streamlines (``.trk``, ``.tck``) and surfaces (``.gii``), by nibabel."""

from __future__ import annotations

import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.gifti import GiftiImage
from nibabel.streamlines import Tractogram

from monai_nodeo.files.grid import PathLike
from monai_nodeo.files.nifti_place import warn
from monai_nodeo.files.points.base import Points, damaged

__all__ = ["read_gifti", "read_streamlines"]

_POINTS = "NIFTI_INTENT_POINTSET"
_CENTRE = ("VolGeomC_R", "VolGeomC_A", "VolGeomC_S")  # of FreeSurfer, RAS mm


def read_streamlines(path: PathLike) -> Points:
    """The points of streamlines; header and data of points and streamlines are kept.

    Raises:
        ValueError: when nibabel does not read the file, or it ends early.
    """
    with damaged(path, "streamlines"), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        file = nib.streamlines.load(path)
        count = int(file.header["nb_streamlines"])
    for warning in said:
        warn(f"{path}: {warning.message}")
    tracts: Tractogram = file.tractogram
    if len(tracts.streamlines) != count:
        raise ValueError(
            f"{path}: the header says {count} streamlines and {len(tracts.streamlines)} are there; copy it again."
        )
    lengths = [len(line) for line in tracts.streamlines]

    def save(path: Path, ras: np.ndarray) -> None:
        moved = Tractogram(
            np.split(ras.astype(np.float32), np.cumsum(lengths)[:-1]),
            tracts.data_per_streamline,
            tracts.data_per_point,
            affine_to_rasmm=np.eye(4),
        )
        nib.streamlines.save(moved, path, header=file.header)

    return Points(np.concatenate([np.zeros((0, 3)), *tracts.streamlines]), save)


def read_gifti(path: PathLike) -> Points:
    """The points of a surface; faces, other arrays, labels and texts are kept.

    Raises:
        ValueError: when nibabel does not read the file, it holds no points, or they are in FreeSurfer's own space.
    """
    with damaged(path, "GIfTI"):
        image = GiftiImage.from_filename(path)
        arrays = [np.asarray(array.data) for array in image.get_arrays_from_intent(_POINTS)]
        centres = [
            float(text)
            for array in image.get_arrays_from_intent(_POINTS)
            for name in _CENTRE
            if (text := array.meta.get(name))
        ]
    for array in arrays:
        if array.ndim != 2 or array.shape[1] != 3:
            raise ValueError(f"{path}: points of shape {array.shape}, expected (N, 3).")
    if any(centres):
        raise ValueError(
            f"{path}: in FreeSurfer's own space, about {centres}; make it that of the scanner with "
            "mris_convert --to-scanner."
        )

    def save(path: Path, ras: np.ndarray) -> None:
        moved = GiftiImage.from_bytes(image.to_bytes())
        ends = np.cumsum([len(array) for array in arrays])[:-1]
        for array, there in zip(moved.get_arrays_from_intent(_POINTS), np.split(ras, ends), strict=True):
            array.data = there.astype(array.data.dtype)
        moved.to_filename(path)

    return Points(np.concatenate([np.zeros((0, 3)), *arrays]).astype(np.float64), save)
