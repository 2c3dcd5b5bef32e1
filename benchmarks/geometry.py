# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""One pair of heads on grids of every kind: ``python benchmarks/geometry.py DATA [--register]``.

DATA holds ``oasis3d/{0001,0002}`` with ``norm``, ``seg35`` (scanner space, 256^3, not aligned) and the same as
``aligned_*``. Dice is the mean over 35 labels of the fixed image; the moving labels keep their own voxels in every
variant, so that only the transform is judged. Without ``--register`` the affine start alone is judged, which takes a
minute; with it, it is followed by the registration as `RegisterPaird` does it. Kept in geometry.json beside this file.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import ScaleIntensityRangePercentilesd
from nibabel.processing import resample_from_to
from scipy.spatial.transform import Rotation

from monai_nodeo.alignment import AlignPaird
from monai_nodeo.evaluation import label_metrics
from monai_nodeo.image_geometry import on_grid_of
from monai_nodeo.pair_transforms import LoadPaird
from monai_nodeo.transforms import RegisterPaird, WarpWithDDF

Image = nib.Nifti1Image


class Pair(NamedTuple):
    """Images and labels; the moving labels lie in the same world as the moving image, on a grid of their own."""

    fixed: Image
    moving: Image
    fixed_label: Image
    moving_label: Image


def read(folder: Path, prefix: str = "") -> Pair:
    """The pair as it is stored."""
    return Pair(
        *(Image.from_filename(folder / s / f"{prefix}norm.nii.gz") for s in ("0001", "0002")),
        *(Image.from_filename(folder / s / f"{prefix}seg35.nii.gz") for s in ("0001", "0002")),
    )


def thick(pair: Pair) -> Pair:
    """The moving image in slices of 4 mm, each the mean of four."""
    values = pair.moving.get_fdata(dtype=np.float32)
    means = values.reshape(*values.shape[:2], -1, 4).mean(-1)
    affine = pair.moving.affine @ nib.affines.from_matvec(np.diag([1, 1, 4]), [0, 0, 1.5])
    return pair._replace(moving=Image(means, affine))


def flipped(pair: Pair) -> Pair:
    """The fixed image and its labels stored in LPS order."""
    images = []
    for image in (pair.fixed, pair.fixed_label):
        order = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt("LPS"))
        images.append(image.as_reoriented(order))
    return pair._replace(fixed=images[0], fixed_label=images[1])


def rotated(pair: Pair) -> Pair:
    """The moving head turned by 20 degrees about an oblique axis, resampled to its old grid."""
    turn = Rotation.from_rotvec(np.radians(20) * np.array([1, 2, 2]) / 3).as_matrix()
    turned = [
        Image(np.asanyarray(image.dataobj), nib.affines.from_matvec(turn, [10, -5, 8]) @ image.affine)
        for image in (pair.moving, pair.moving_label)
    ]
    return pair._replace(moving=resample_from_to(turned[0], pair.moving, order=1), moving_label=turned[1])


def labels_of(image: Image) -> MetaTensor:
    """The labels, (1, *spatial)."""
    values = torch.from_numpy(np.asanyarray(image.dataobj).astype(np.float32))[None]
    return MetaTensor(values, affine=torch.from_numpy(image.affine))


def judged(pair: Pair, start: str | None, register: bool) -> dict[str, float]:
    """Dice and seconds of one pair."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for key in ("fixed", "moving"):
            paths[key] = str(Path(folder) / f"{key}.nii.gz")
            nib.save(getattr(pair, key), paths[key])
        scale = ScaleIntensityRangePercentilesd(["fixed", "moving"], 0.5, 99.5, 0, 1, clip=True)
        row = scale(LoadPaird(3)(paths))
    began = time.perf_counter()
    row = AlignPaird(start)(row)
    seconds = {"seconds_start": time.perf_counter() - began}
    fixed, own = labels_of(pair.fixed_label), labels_of(pair.moving_label)
    spacing = nib.affines.voxel_sizes(pair.fixed.affine).tolist()
    moved = on_grid_of(fixed, own, row.get("initial_affine"), mode="nearest")
    dice = {"dice_start": label_metrics(moved, fixed, spacing)["dice_mean"]}
    if register:
        began = time.perf_counter()
        found = RegisterPaird(3, initial_transform=start)(row)
        seconds["seconds"] = time.perf_counter() - began
        warped = WarpWithDDF("nearest")(own, found["ddf"], found.get("initial_affine"))
        dice["dice"] = label_metrics(warped, fixed, spacing)["dice_mean"]
    return {name: round(value, 4) for name, value in {**dice, **seconds}.items()}


def main() -> None:
    """Judge every variant and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--register", action="store_true")
    options = parser.parse_args()
    folder = options.data / "oasis3d"
    scanner = read(folder)
    cases = {
        "aligned by the data set": (read(folder, "aligned_"), None),
        "scanner space": (scanner, "affine"),
        "moving in slices of 4 mm": (thick(scanner), "affine"),
        "fixed stored in LPS": (flipped(scanner), "affine"),
        "moving turned by 20 degrees": (rotated(scanner), "affine"),
    }
    results = {}
    for name, (pair, start) in cases.items():
        results[name] = judged(pair, start, options.register)
        print(f"{name:30}", *(f"{key} {value:8.4f}" for key, value in results[name].items()), flush=True)
    Path(__file__).with_suffix(".json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
