# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The result of a series: its flow, and the folder that it is written to.

=======================================  ==========================================================================
``flow.safetensors``                     the flow, see :py:class:`monai_nodeo.flows.Flow`, in the times of the frames
``corrected.nii.gz``                     every frame carried to the reference, 4D
``mean.nii.gz``                          the mean of these; only where the reference is the mean shape
``displacement/0000.nii.gz``, ...        for each frame an ITK displacement field, reference point -> point in the frame
``frames.csv``                           name, time, similarity before and after, folds and displacement of each frame
``labels.csv``                           size and mean principal strains of each label at the time of each frame
``points.csv``                           where points are at the time of each frame, and how far they have come
``history.csv``                          every loss term at every iteration
``metrics.json``                         figures and settings; written last: with it, all is there
=======================================  ==========================================================================
"""

from __future__ import annotations

import csv
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from os import PathLike
from os.path import expanduser
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor
from torch.nn import functional as F

from monai_nodeo.data.placement import on_grid_of
from monai_nodeo.data.series import Series
from monai_nodeo.files import Points, atomic_path, save_nifti, warn_off_slice, write_displacement, write_image
from monai_nodeo.files.lps import RAS_TO_LPS
from monai_nodeo.flows import Flow
from monai_nodeo.geometry.jacobian import jacobian_determinant
from monai_nodeo.geometry.sampling import compose
from monai_nodeo.registration.folder import FIGURES, FLOW, HISTORY, write_history
from monai_nodeo.registration.machine import device_name, peak_memory_mb
from monai_nodeo.registration.named_parts import make_loss
from monai_nodeo.registration.sequences.mean_shape import from_mean_shape
from monai_nodeo.registration.settings import Settings

__all__ = ["SequenceRegistration"]


@dataclass(frozen=True, eq=False)
class SequenceRegistration:
    """The motion of a series.

    Attributes:
        flow: takes points, RAS mm, from any time to any other, ``flow(points, t0, t1)``.
        series: the frames and their times.
        reference: number of the frame to which the others are carried; "mean": the mean shape, on the grid of frame 0.
        periodic: time after which the motion begins again, or None.
        label: label map of the base frame, (1, *spatial), or None.
        history: "level" and loss term -> its value at every iteration, (iterations,), the means over the frames seen.
        settings: what it was made with.
        choice: see :py:class:`monai_nodeo.registration.Registration`.
        seconds: time of all, from the files to the flow.
        interrupted: the first level that was ended early, or None.
    """

    flow: Flow
    series: Series
    reference: int | str
    periodic: float | None
    label: MetaTensor | None
    history: dict[str, Tensor]
    settings: Settings
    choice: dict[str, Any] | None
    seconds: float
    interrupted: int | None = None

    @property
    def times(self) -> tuple[float, ...]:
        """Of the frames."""
        return self.series.times

    def frame(self, number: int) -> MetaTensor:
        """A frame as it is, (C, *spatial)."""
        return self.series.frame(number, self.settings.spatial_dims)

    @property
    def base(self) -> int:
        """The frame whose grid it is, and which labels and points are of: the reference frame, or frame 0."""
        return self.series.base(self.reference)

    @cached_property
    def image(self) -> MetaTensor:
        """The image of the reference, (C, *spatial): the frame, or the mean of all frames on the mean shape."""
        frame = self.frame(self.base)
        if self.reference != "mean":
            return frame
        numbers = range(len(self.times))
        total = sum((self.corrected(number).as_tensor().cpu().double() for number in numbers), torch.zeros(()))
        return MetaTensor((total / len(numbers)).float(), meta=frame.meta)

    def displacement(self, number: int) -> Tensor:
        """How far the voxels of the reference are taken to a frame, (D, *spatial), voxels."""
        there = self._displacement_of_base(number)
        return there if self.reference != "mean" else compose(there[None], self._from_mean_shape[None])[0]

    def corrected(self, number: int) -> MetaTensor:
        """A frame carried to the reference, (C, *spatial)."""
        return on_grid_of(self.frame(self.base), self.frame(number), None, self.displacement(number))

    def points(self, points: Tensor, t: float) -> Tensor:
        """Where points of the base frame, (N, 3) RAS mm, are at a time."""
        return self.flow(points, self.times[self.base], t)

    def _displacement_of_base(self, number: int) -> Tensor:
        return self.flow.displacement(None, self.times[self.base], self.times[number])

    @cached_property
    def _from_mean_shape(self) -> Tensor:
        """To the base frame."""
        return from_mean_shape(self.flow, self.times[self.base], self.times)

    def label_sizes(self, displacement: Tensor) -> dict[int, float]:
        """Size of each label after a displacement of the base frame: mm^3, of a slice mm^2.

        It is the integral of the Jacobian determinant over the label, so that it does not jump from voxel to voxel.

        Raises:
            ValueError: without a label map.
        """
        if self.label is None:
            raise ValueError("there is no label map; give one of the reference frame.")
        determinant = _determinant(displacement)
        voxel = float(np.prod(self.flow.grid.spacing))
        ids = self.label[0].as_tensor().to(determinant.device)
        return {int(k): float(determinant[ids == k].double().sum()) * voxel for k in ids.unique().tolist() if k}

    def label_strains(self, displacement: Tensor) -> dict[int, tuple[float, float]]:
        """The largest and the least principal strain of each label after a displacement of the base frame, means.

        Those of Green and Lagrange, ``(F^T F - I) / 2`` for the gradient F of the map in mm: above 0 where tissue
        becomes longer.

        Raises:
            ValueError: without a label map.
        """
        if self.label is None:
            raise ValueError("there is no label map; give one of the reference frame.")
        dims, sides = len(displacement), displacement.new_tensor(self.flow.grid.spacing)
        ids = self.label[0].as_tensor().to(displacement.device)
        ends = [(0, 0) * (dims - 1 - axis) + (0, 1) for axis in range(dims)]
        steps = [
            F.pad(displacement.diff(dim=1 + axis)[None], end + (0, 0) * axis, mode="constant")[0][:, ids > 0]
            for axis, end in enumerate(ends)
        ]
        gradient = torch.stack(steps).permute(2, 1, 0) * sides.view(-1, 1) / sides + torch.eye(dims).to(sides)
        strain = torch.linalg.eigvalsh((gradient.mT @ gradient - torch.eye(dims).to(sides)) / 2)
        inside = ids[ids > 0]
        means = {int(k): strain[inside == k].mean(0) for k in inside.unique().tolist()}
        return {k: (float(mean[-1]), float(mean[0])) for k, mean in means.items()}

    def save(self, path: str | PathLike[str], points: Points | None = None) -> dict[str, Any]:
        """Write the result folder; see the top of this module for its files.

        Args:
            path: folder, made if it does not exist.
            points: of the base frame, that are followed.

        Returns:
            The figures, as they are in ``metrics.json``.
        """
        folder = Path(expanduser(path)).absolute()
        (folder / "displacement").mkdir(parents=True, exist_ok=True)
        earlier = [folder / name for name in (FIGURES, "mean.nii.gz", "labels.csv", "points.csv", "report.html")]
        for file in (*earlier, *folder.glob("displacement/[0-9]*.nii.gz")):  # an earlier run may have had them
            file.unlink(missing_ok=True)
        self.flow.save(folder / FLOW)
        frames, labels = self._write_frames(folder)
        if self.reference == "mean":
            write_image(folder / "mean.nii.gz", self.image[0].as_tensor().cpu().numpy(), self.flow.grid)
        _write_table(folder / "frames.csv", frames)
        if labels:
            _write_table(folder / "labels.csv", labels)
        followed = [] if points is None else self._followed(points)
        if followed:
            _write_table(folder / "points.csv", followed)
        write_history(folder / HISTORY, self.history)
        figures = {
            "frames": frames,
            "labels": labels,
            "points": _mean_paths(followed),
            "reference": self.reference,
            "periodic": self.periodic,
            "span": list(self.flow.span),
            "keyframes": self.settings.keyframes,
            "choice": self.choice,
            "iterations": len(self.history["level"]),
            "interrupted_level": self.interrupted,
            "seconds": round(self.seconds, 3),
            "settings": self.settings.to_dict(),
            "peak_memory_mb": peak_memory_mb(self.flow.device),
            "device": device_name(self.flow.device),
            "versions": {"python": platform.python_version(), "monai-nodeo": version("monai-nodeo")},
        }
        with atomic_path(folder / FIGURES) as partial:
            partial.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        return figures

    def _write_frames(self, folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Frame by frame, the earliest first: the fields and the corrected frames; their rows and those of labels."""
        grid, fixed = self.flow.grid, self.image
        order = sorted(range(len(self.times)), key=lambda number: self.times[number])
        similarity = make_loss(self.settings).similarity
        rows, labels = [], []
        with TemporaryDirectory(dir=folder) as temporary:  # not in memory, which does not hold all frames
            shape = (*grid.shape, *[1] * (3 - len(grid.shape)), len(order))
            corrected = np.lib.format.open_memmap(Path(temporary) / "corrected.npy", "w+", np.float32, shape)
            for place, number in enumerate(order):
                ddf = self.displacement(number)
                write_displacement(folder / "displacement" / f"{number:04d}.nii.gz", ddf, grid)
                frame = self.frame(number)
                before, after = (on_grid_of(fixed, frame, None, way) for way in (torch.zeros_like(ddf), ddf))
                corrected[..., place] = after[0].as_tensor().cpu().numpy().reshape(shape[:3])
                losses = [float(similarity(*_unit(image, fixed.to(ddf.device)))) for image in (before, after)]
                millimetres = ddf * ddf.new_tensor(grid.spacing).view(-1, *[1] * grid.spatial_dims)
                rows.append(
                    {
                        "frame": number,
                        "name": self.series.names[number],
                        "time": self.times[number],
                        "similarity_before": losses[0],
                        "similarity_after": losses[1],
                        "displacement_mm_mean": float(millimetres.norm(dim=0).mean()),
                        "folded_share": float((_determinant(ddf) <= 0).float().mean()),
                    }
                )
                labels += self._label_rows(number)
            ordered = [self.times[number] for number in order]
            step = (ordered[-1] - ordered[0]) / (len(ordered) - 1)
            save_nifti(folder / "corrected.nii.gz", corrected, grid, steps=((step,), self.series.unit))
            del corrected
        return rows, labels

    def _label_rows(self, number: int) -> list[dict[str, Any]]:
        """A row for each label, at the time of a frame."""
        if self.label is None:
            return []
        ddf, unit = self._displacement_of_base(number), "volume_mm3" if self.flow.grid.spatial_dims == 3 else "area_mm2"
        strains = self.label_strains(ddf)
        return [
            {
                "time": self.times[number],
                "label": k,
                unit: size,
                "strain_largest": strains[k][0],
                "strain_least": strains[k][1],
            }
            for k, size in self.label_sizes(ddf).items()
        ]

    def _followed(self, points: Points) -> list[dict[str, Any]]:
        """A row for each time and point, LPS mm; the path is that through the times of the frames."""
        warn_off_slice(points.path, points.ras, self.flow.grid.affine, self.flow.grid.shape)
        here = torch.from_numpy(points.ras)
        rows, path, before = [], torch.zeros(len(here)), None
        for t in sorted(self.times):
            there = self.points(here, t)
            path = path if before is None else path + (there - before).norm(dim=1)
            before = there
            for number, (place, length) in enumerate(
                zip((there.numpy() @ RAS_TO_LPS).tolist(), path.tolist(), strict=True)
            ):
                rows.append({"time": t, "point": number, **dict(zip("xyz", place, strict=True)), "path_mm": length})
        return rows

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.flow.grid.spatial_shape))
        times = f"time {self.flow.span[0]:g} to {self.flow.span[1]:g}"
        return f"<SequenceRegistration: {len(self.times)} frames of {shape}, {times}, {self.seconds:.1f} s>"


def _determinant(ddf: Tensor) -> Tensor:
    """Of the Jacobian in each voxel, (*spatial)."""
    inside = jacobian_determinant(ddf[None])[None]
    return F.pad(inside, (0, 1) * len(ddf), mode="replicate")[0, 0]


def _unit(image: MetaTensor, fixed: MetaTensor) -> tuple[Tensor, Tensor]:
    """Two images with values in [0, 1], as a batch of one."""
    plain = [x.as_tensor()[None] for x in (image, fixed)]
    low, high = plain[1].min(), plain[1].max()
    first, second = ((x - low) / (high - low) for x in plain)
    return first, second


def _mean_paths(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """The mean length of the paths of points at each time."""
    times = sorted({row["time"] for row in rows})
    return [{"time": t, "path_mm": fmean(row["path_mm"] for row in rows if row["time"] == t)} for t in times]


def _write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(_rounded(row) for row in rows)


def _rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: f"{x:.8g}" if isinstance(x, float) else x for name, x in row.items()}
