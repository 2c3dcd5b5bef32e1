# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Motion correction of heads whose motion is known, beside SimpleITK.

    python benchmarks/motion.py DATA [--only NAME,...]

DATA (or the environment variable MONAI_NODEO_DATA) has the folder ``oasis3d``. A head of 1 mm is blurred to the voxels
of a functional scan, moved rigidly by a random walk, sampled by cubic B-splines, and noise is added, Rician and of 2 %
of the largest value. Frames are compared with the first one, so that the choice of the reference does not count:

- ``mm``: largest error of the place of the middle of the grid, over the frames;
- ``degrees``: largest error of the rotation;
- ``seconds``: of the processor, for all frames, by one thread; without writing files;
- ``mean``: the default; ``first``: with ``reference=0``; ``itk``: SimpleITK, each frame to the first, three levels, by
  correlation at all voxels and linear interpolation.

Rows go into the JSON file beside this script, by name; the others are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy.ndimage import affine_transform, gaussian_filter, spline_filter
from scipy.spatial.transform import Rotation

from monai_nodeo.apps import correct_motion
from monai_nodeo.files import Affine, ImageGrid, itk_geometry

# name -> head, voxels (mm), largest shift (mm) and rotation (degrees) from the first frame along an axis
CASES: dict[str, tuple[str, tuple[float, float, float], float, float]] = {
    "head1_2mm": ("0001", (2.0, 2.0, 2.0), 3.0, 3.0),
    "head1_2.5mm": ("0001", (2.5, 2.5, 2.5), 3.0, 3.0),
    "head1_thick": ("0001", (3.0, 3.6, 3.0), 3.0, 3.0),  # its second axis is from top to bottom
    "head2_2.5mm": ("0002", (2.5, 2.5, 2.5), 3.0, 3.0),
    "head2_still": ("0002", (2.5, 2.5, 2.5), 0.3, 0.3),
    "head2_far": ("0002", (3.0, 3.0, 3.0), 15.0, 12.0),
}
FRAMES = 20
NOISE = 0.02  # of the largest value
MARGIN = 10.0  # mm around the head
SIDES: dict[str, int | str] = {"mean": "mean", "first": 0}


def walk(shift: float, turn: float, seed: int) -> NDArray:
    """(FRAMES, 6), mm and radians; the first row is 0."""
    steps = np.cumsum(np.random.default_rng(seed).standard_normal((FRAMES, 6)), axis=0)
    steps -= steps[0]
    moved: NDArray = steps / np.abs(steps).max(0) * [*[shift] * 3, *[np.radians(turn)] * 3]
    return moved


def pose_of(parameters: NDArray, middle: NDArray) -> NDArray:
    """(4, 4): point of the first frame -> its place."""
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("xyz", parameters[3:]).as_matrix()
    pose[:3, 3] = middle + parameters[:3] - pose[:3, :3] @ middle
    return pose


def scan(path: Path, spacing: tuple[float, ...], shift: float, turn: float) -> tuple[nib.Nifti1Image, NDArray]:
    """A series of int16, and its true poses, (FRAMES, 4, 4)."""
    head = nib.Nifti1Image.from_filename(path)
    values = np.asarray(head.dataobj, np.float32)
    values = 1000 * values / values.max()
    size = np.linalg.norm(head.affine[:3, :3], axis=0)
    inside = np.argwhere(values > 0)
    low, high = inside.min(0), inside.max(0)
    shape = np.ceil(((high - low) * size + 2 * MARGIN) / spacing).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = head.affine[:3, :3] / size * spacing
    middle = head.affine[:3, :3] @ ((low + high) / 2) + head.affine[:3, 3]
    affine[:3, 3] = middle - affine[:3, :3] @ ((shape - 1) / 2)
    begin = np.maximum(low - 5, 0)
    values = values[tuple(slice(a, b + 6) for a, b in zip(begin, high, strict=True))]
    source = head.affine.copy()
    source[:3, 3] += source[:3, :3] @ begin
    blurred = gaussian_filter(values, np.array(spacing) / size / 2.355)  # as wide as a voxel at half its height
    splines = spline_filter(blurred, output=np.float32)
    poses = np.array([pose_of(row, middle) for row in walk(shift, turn, seed=int(path.parent.name))])
    random = np.random.default_rng(5)
    frames = np.empty((*shape, FRAMES), np.int16)
    for number, pose in enumerate(poses):
        way = np.linalg.inv(source) @ np.linalg.inv(pose) @ affine
        seen = affine_transform(splines, way[:3, :3], way[:3, 3], tuple(shape), order=3, prefilter=False)
        noise = 1000 * NOISE * random.standard_normal((2, *shape))
        frames[..., number] = np.rint(np.hypot(seen + noise[0], noise[1]))
    return nib.Nifti1Image(frames, affine), poses


def errors(poses: NDArray, true: NDArray, middle: NDArray) -> tuple[float, float]:
    """The largest, in mm and degrees, of what lies between the first frame and each other."""
    apart = [
        np.linalg.inv(there @ np.linalg.inv(true[0])) @ pose @ np.linalg.inv(poses[0])
        for pose, there in zip(poses, true, strict=True)
    ]
    turns = Rotation.from_matrix(np.stack(apart)[:, :3, :3]).magnitude()
    shifts = [np.linalg.norm(pose[:3, :3] @ middle + pose[:3, 3] - middle) for pose in apart]
    return float(max(shifts)), float(np.degrees(turns.max()))


def by_simpleitk(series: nib.Nifti1Image) -> NDArray:
    """Poses, (T, 4, 4)."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    frames = np.moveaxis(np.asarray(series.dataobj, np.float32), -1, 0)
    images = [sitk.GetImageFromArray(frame.T) for frame in frames]
    for image in images:
        for name, value in itk_geometry(ImageGrid(series.affine, frames.shape[1:])).items():
            getattr(image, f"Set{name}")(value)
    poses = [np.eye(4)]
    for image in images[1:]:
        method = sitk.ImageRegistrationMethod()
        method.SetMetricAsCorrelation()
        method.SetInterpolator(sitk.sitkLinear)
        method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-4, 200)
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetShrinkFactorsPerLevel([4, 2, 1])
        method.SetSmoothingSigmasPerLevel([2, 1, 0])
        start = sitk.CenteredTransformInitializer(
            images[0], image, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.GEOMETRY
        )
        method.SetInitialTransform(start, inPlace=True)
        method.Execute(images[0], image)
        poses.append(Affine.from_itk(start).matrix)
    return np.stack(poses)


def row_of(path: Path, spacing: tuple[float, ...], shift: float, turn: float) -> dict[str, Any]:
    """The row of a case."""
    series, true = scan(path, spacing, shift, turn)
    middle = (series.affine @ [*((n - 1) / 2 for n in series.shape[:3]), 1])[:3]
    row: dict[str, Any] = {"shape": list(series.shape)}
    for side in ("mean", "first", "itk"):
        began = time.process_time()
        poses = by_simpleitk(series) if side == "itk" else correct_motion(series, SIDES[side]).poses
        row[f"seconds_{side}"] = round(time.process_time() - began, 2)
        row[f"mm_{side}"], row[f"degrees_{side}"] = (round(x, 4) for x in errors(poses, true, middle))
    return row


def main() -> None:
    """Run, print and write a row for each case."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", nargs="?", default=os.environ.get("MONAI_NODEO_DATA"), help="or the variable is set")
    parser.add_argument("--only", default="", help="what the names of the rows begin with")
    given = parser.parse_args()
    if given.data is None:
        parser.error("give the folder of the OASIS data, or set MONAI_NODEO_DATA.")
    target = Path(__file__).with_suffix(".json")
    rows = json.loads(target.read_text(encoding="utf-8")) if target.exists() else {}
    for name, (head, *case) in CASES.items():
        if name.startswith(tuple(given.only.split(","))):
            rows[name] = row_of(Path(given.data) / "oasis3d" / head / "norm.nii.gz", *case)
            print(name, json.dumps(rows[name]), flush=True)
            text = ",\n".join(f"{json.dumps(key)}: {json.dumps(rows[key])}" for key in sorted(rows))
            target.write_text("{\n" + text + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
