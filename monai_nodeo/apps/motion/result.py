# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The motion in a series, and the folder that it is written to.

==========================  =====================================================================================
``corrected.nii.gz``        the series without its motion, 4D, of the input's type of values
``mean.nii.gz``             the mean of its frames
``motion.tsv``              shifts, rotations and framewise displacement of each frame, in the words of BIDS
``motion.json``             what the columns are, and figures; written last: with it, all is there
``transforms/0000.tfm``...  for each frame a transform of ITK: point of the reference -> its place in the frame
==========================  =====================================================================================
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from os import PathLike
from os.path import expanduser
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from monai_nodeo.apps.motion.rigid import resample_rigid
from monai_nodeo.data.series import Series
from monai_nodeo.files import ImageGrid, atomic_path, background, save_nifti, write_affine, write_image

__all__ = ["Motion"]

_HEAD = 50.0  # mm, the radius on which Power measures rotations
_TABLE, _FIGURES = "motion.tsv", "motion.json"
_FRAMEWISE = "framewise_displacement"
_COLUMNS = {
    **{
        f"trans_{axis}": {"Description": f"shift of the head to the {side}, of the middle of the grid", "Units": "mm"}
        for axis, side in zip("xyz", ("right", "front", "top"), strict=True)
    },
    **{
        f"rot_{axis}": {
            "Description": f"rotation around axis {axis} of the scanner (RAS) through the middle of the grid, "
            "by the right-hand rule; x first, then y, then z",
            "Units": "rad",
        }
        for axis in "xyz"
    },
    _FRAMEWISE: {
        "Description": "sum of what the shifts and, on a sphere of 50 mm, the rotations have changed by "
        "since the frame before (Power et al. 2012)",
        "Units": "mm",
    },
}


@dataclass(frozen=True, eq=False)
class Motion:
    """The rigid motion in a series of volumes.

    Attributes:
        series: names and times of the frames.
        frames: the volumes as they came, (T, X, Y, Z), float32.
        grid: of all of them.
        dtype: type of the values as they were stored.
        poses: (T, 4, 4), RAS mm: point of the reference -> its place in the frame.
        reference: number of the frame in whose place the others are put, or "mean".
        seconds: time of all, from the files to the poses.
    """

    series: Series
    frames: NDArray
    grid: ImageGrid
    dtype: np.dtype
    poses: NDArray
    reference: int | str
    seconds: float

    @property
    def parameters(self) -> NDArray:
        """How the head has moved since the reference, (T, 6): shift along x, y, z (RAS) in mm and rotation around them.

        Rotations are radians, by the right-hand rule, around the middle of the grid; x first, then y, then z.
        """
        turns = Rotation.from_matrix(self.poses[:, :3, :3])
        middle = self.grid.affine[:3] @ [*((n - 1) / 2 for n in self.grid.shape), 1]
        shifts = self.poses[:, :3, :3] @ middle + self.poses[:, :3, 3] - middle
        return np.column_stack([shifts, turns.as_euler("xyz")])

    @property
    def framewise_displacement(self) -> NDArray:
        """How far the head has gone since the frame before, (T,), mm; NaN for the first frame.

        The sum of the absolute changes of the parameters, with rotations as ways on a sphere of 50 mm (Power et al.,
        NeuroImage 2012).
        """
        changes = np.abs(np.diff(self.parameters, axis=0)) * [*[1.0] * 3, *[_HEAD] * 3]
        return np.array([np.nan, *changes.sum(1)])

    def corrected(self, number: int) -> NDArray:
        """A frame in the place of the reference, (X, Y, Z), float32; outside, its background."""
        frame = self.frames[number]
        return resample_rigid(frame, self.grid.affine, self.poses[number], background(frame))[0]

    def mean(self) -> NDArray:
        """Of the corrected frames, each where it is known, (X, Y, Z), float32."""
        total, count = np.zeros(self.grid.shape), np.zeros(self.grid.shape)
        outside = float(np.mean([background(frame) for frame in self.frames]))
        for frame, pose in zip(self.frames, self.poses, strict=True):
            values, known = resample_rigid(frame, self.grid.affine, pose, 0.0)
            total += values
            count += known
        return np.where(count > 0, total / np.maximum(count, 1), outside).astype(np.float32)

    def save(self, path: str | PathLike[str]) -> dict[str, Any]:
        """Write the result folder; see the top of this module for its files.

        Args:
            path: folder, made if it does not exist.

        Returns:
            The figures, as they are in ``motion.json``.
        """
        folder = Path(expanduser(path)).absolute()
        (folder / "transforms").mkdir(parents=True, exist_ok=True)
        for file in (folder / _FIGURES, *folder.glob("transforms/[0-9]*.tfm")):  # of an earlier run
            file.unlink(missing_ok=True)
        whole = self.dtype.kind in "iu" and self.dtype.itemsize <= 4
        corrected = np.empty((*self.grid.shape, len(self.frames)), self.dtype if whole else np.float32)
        for number, pose in enumerate(self.poses):
            values = self.corrected(number)
            corrected[..., number] = np.rint(values) if whole else values
            write_affine(folder / "transforms" / f"{number:04d}.tfm", pose)
        times = self.series.times
        step = (max(times) - min(times)) / (len(times) - 1)
        save_nifti(folder / "corrected.nii.gz", corrected, self.grid, steps=((step,), self.series.unit))
        write_image(folder / "mean.nii.gz", self.mean(), self.grid)
        self._write_table(folder / _TABLE)
        figures = {
            **_COLUMNS,
            "frames": len(self.frames),
            "reference": self.reference,
            f"{_FRAMEWISE}_mean": float(np.nanmean(self.framewise_displacement)),
            f"{_FRAMEWISE}_max": float(np.nanmax(self.framewise_displacement)),
            "seconds": round(self.seconds, 3),
        }
        with atomic_path(folder / _FIGURES) as partial:
            partial.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        return figures

    def _write_table(self, path: Path) -> None:
        rows = np.column_stack([self.parameters, self.framewise_displacement]).tolist()
        with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter="\t", lineterminator="\n")
            writer.writerow(_COLUMNS)
            writer.writerows(["n/a" if np.isnan(x) else f"{x:.7f}" for x in row] for row in rows)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.grid.shape))
        far = float(np.nanmax(self.framewise_displacement))
        return f"<Motion: {len(self.frames)} frames of {shape}, at most {far:.2f} mm a frame, {self.seconds:.1f} s>"
