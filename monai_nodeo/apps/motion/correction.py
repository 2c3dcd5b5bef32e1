# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Motion correction: every frame of a series in the place of one of them, or of their mean."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
from monai.data import MetaTensor
from numpy.typing import NDArray

from monai_nodeo.apps.motion.result import Motion
from monai_nodeo.apps.motion.rigid import RigidSearch
from monai_nodeo.data.pair import PairError
from monai_nodeo.data.series import Series, open_series
from monai_nodeo.files import ImageGrid

__all__ = ["correct_motion"]

_MEANS = 2  # references that are made, each of the frames as the one before it has placed them
_SAME = 1e-3  # mm that the affines of two frames may differ by


def correct_motion(images: Any, reference: int | str = "mean") -> Motion:
    """Find the rigid motion of a head, or of anything rigid, in a series of volumes.

    The frames are compared up to gain and offset, so they have to be of one contrast.

    Args:
        images: a series, see :py:func:`monai_nodeo.data.open_series`; all frames on one grid.
        reference: number of the frame in whose place the others are put, from 0; or "mean": that of all frames as they
            are, then of the frames as it has placed them, so that no frame is preferred.

    Raises:
        PairError: when the frames are no volumes of one grid, or there is no such frame.

    Example:
        >>> ball = np.hypot(*np.ogrid[-8:9, -8:9])[..., None] + np.abs(np.arange(-8, 9))
        >>> series = [np.exp(-ball / 4), np.roll(np.exp(-ball / 4), 1, axis=0)]
        >>> correct_motion(series, reference=0).parameters[1].round(2) + 0.0
        array([1., 0., 0., 0., 0., 0.])
    """
    began = time.perf_counter()
    series = open_series(images)
    series.base(reference)
    frames, grid, dtype = _read(series)
    poses = np.broadcast_to(np.eye(4), (len(frames), 4, 4))
    motion = Motion(series, frames, grid, dtype, poses, reference, 0.0)
    for number in range(_MEANS if reference == "mean" else 1):
        target = motion.frames[reference] if isinstance(reference, int) else motion.mean()
        search = RigidSearch(target, grid.affine, near=number > 0)
        if not search.sees:
            raise PairError(
                f"{series.names[0]}: {grid.shape} voxels show too little to tell a motion; expected larger volumes."
            )
        poses = np.stack([search.pose(frame, pose) for frame, pose in zip(frames, motion.poses, strict=True)])
        if isinstance(reference, int):
            poses[reference] = np.eye(4)
        motion = replace(motion, poses=poses)
    return replace(motion, seconds=time.perf_counter() - began)


def _read(series: Series) -> tuple[NDArray, ImageGrid, np.dtype]:
    """All frames, (T, X, Y, Z); their grid; and a type that holds the values of all."""
    first = series.frame(0)
    if first.ndim != 4 or len(first) > 1:
        raise PairError(
            f"{series.names[0]}: shape {tuple(first.shape[1:])} with {len(first)} channels; expected volumes of one "
            "channel. Slices, and motion that is not rigid, are for monai-nodeo sequence."
        )
    grid = ImageGrid(
        first.affine.numpy(), tuple(first.shape[1:]), int(first.meta["sform_code"]), int(first.meta["qform_code"])
    )
    frames, dtypes = np.empty((len(series.names), *grid.shape), np.float32), []
    for number, name in enumerate(series.names):
        frame = series.frame(number) if number else first
        frames[number] = _checked(name, frame, grid, series.names[0])
        dtypes.append(np.dtype(frame.meta["original_dtype"]))
    return frames, grid, np.result_type(*dtypes)


def _checked(name: str, frame: MetaTensor, grid: ImageGrid, other: str) -> NDArray:
    """The voxels of a frame of a grid."""
    if frame.shape[1:] != grid.shape or len(frame) > 1 or np.abs(frame.affine.numpy() - grid.affine).max() > _SAME:
        raise PairError(f"{name}: not on the grid of {other}; resample the frames to one grid first.")
    voxels: NDArray = frame[0].numpy()
    if voxels.min() == voxels.max():
        raise PairError(f"{name}: all voxels are {voxels.min():g}; leave this frame out.")
    return voxels
