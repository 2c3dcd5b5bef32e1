# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""One pair of heads on grids of every kind: ``python benchmarks/geometry.py DATA [--register]``.

DATA holds ``oasis3d/{0001,0002}`` with ``norm``, ``seg35`` (scanner space, 256^3, not aligned) and the same as
``aligned_*``. Dice is the mean over 35 labels of the fixed image; the labels keep their own voxels in every variant and
are brought together by the transform as it would be written, through ITK, so that only the transform is judged. Without
``--register`` the affine start alone is judged, which takes a minute; with it, it is followed by the registration. Kept
in geometry.json beside this file.
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
from nibabel.processing import resample_from_to
from scipy.spatial.transform import Rotation

from monai_nodeo.data import find_start, load_pair
from monai_nodeo.files import Affine, ImageGrid, Transform, open_stored
from monai_nodeo.files.resampling import resample
from monai_nodeo.metrics.labels import label_metrics
from monai_nodeo.registration import PairInferer, Settings

Image = nib.Nifti1Image


class Pair(NamedTuple):
    """Images and labels; labels lie in the same world as their image, perhaps on a grid of their own."""

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


def averaged(image: Image) -> Image:
    """In slices of 4 mm, each the mean of four, as a scanner makes them."""
    values = image.get_fdata(dtype=np.float32)
    means = values.reshape(*values.shape[:2], -1, 4).mean(-1)
    return Image(means, image.affine @ nib.affines.from_matvec(np.diag([1.0, 1.0, 4.0]), [0, 0, 1.5]))


def thinned(image: Image) -> Image:
    """In steps of 4 mm, by taking every fourth slice, as resampling without smoothing makes them."""
    values = image.get_fdata(dtype=np.float32)
    return Image(values[:, :, 1::4], image.affine @ nib.affines.from_matvec(np.diag([1.0, 1.0, 4.0]), [0, 0, 1]))


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


def dice_of(pair: Pair, paths: dict[str, str], transform: Transform) -> float:
    """Mean Dice of the labels when those of the moving image go through a transform."""
    warped = resample(
        open_stored(paths["moving_label"]), ImageGrid.from_file(paths["fixed_label"]), transform, "nearest"
    )
    images = (torch.from_numpy(np.asarray(x, dtype=np.float32))[None] for x in (warped, pair.fixed_label.dataobj))
    return label_metrics(*images, nib.affines.voxel_sizes(pair.fixed_label.affine).tolist())["dice_mean"]


def judged(pair: Pair, start: str | None, register: bool) -> dict[str, float]:
    """Dice and seconds of one pair."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {key: str(Path(folder) / f"{key}.nii.gz") for key in pair._fields}
        for key, path in paths.items():
            nib.save(getattr(pair, key), path)
        loaded = load_pair({key: paths[key] for key in ("fixed", "moving")})
        began = time.perf_counter()
        affine = find_start(loaded, start).affine
        seconds = {"seconds_start": time.perf_counter() - began}
        affine = torch.eye(4, dtype=torch.float64) if affine is None else affine
        dice = {"dice_start": dice_of(pair, paths, Transform((Affine(affine.numpy()),)))}
        if register:
            inferer = PairInferer(Settings.preset(initial_transform=start), handlers=())
            began = time.perf_counter()
            (registration,) = inferer.register([loaded])
            seconds["seconds"] = time.perf_counter() - began
            dice["dice"] = dice_of(pair, paths, registration.transform)
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
        "moving in slices of 4 mm, averaged": (scanner._replace(moving=averaged(scanner.moving)), "affine"),
        "moving in slices of 4 mm, every fourth": (scanner._replace(moving=thinned(scanner.moving)), "affine"),
        "fixed in slices of 4 mm, averaged": (scanner._replace(fixed=averaged(scanner.fixed)), "affine"),
        "fixed in slices of 4 mm, every fourth": (scanner._replace(fixed=thinned(scanner.fixed)), "affine"),
        "fixed stored in LPS": (flipped(scanner), "affine"),
        "moving turned by 20 degrees": (rotated(scanner), "affine"),
    }
    results = {}
    for name, (pair, start) in cases.items():
        results[name] = judged(pair, start, options.register)
        print(f"{name:38}", *(f"{key} {value:8.4f}" for key, value in results[name].items()), flush=True)
    Path(__file__).with_suffix(".json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
