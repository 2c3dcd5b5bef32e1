# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Time and memory of ``monai-nodeo register`` and ``sequence`` for what is large: whole process, all but the report.

    python benchmarks/large.py DATA --cases 256x256x256,512x512x300,10000x10000,144x144x9x100 --output large.json

DATA holds ``oasis3d/SUBJECT/aligned_norm.nii.gz`` with ``aligned_seg35.nii.gz``, ``domains/histo_ratkidney`` and
``domains/cine3d_hfi05``.

- A volume is made of two real heads: the box around the brains (136x168x156 voxels of 1 mm) is interpolated linearly to
  the size, and noise of 1.5 % of the range is added to each voxel. So there is hardly any air, and the smallest voxels
  are as noisy as those of a scanner. Labels go the same way by nearest neighbours: mean Dice.
- A section is a real one of a kidney, interpolated to the size, with noise; the moving one is the same, moved by a
  smooth known field of up to 1 % of the side: distance of 5,000 points in the tissue from where they should be, pixels.
- A series is the middle of a real heart in thick slices, interpolated to the size in the plane, that a smooth known
  field of up to 6 % of the side moves there and back, with noise: distance of the tissue of ten frames from
  where it was in the first one, voxels.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import nibabel as nib
import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates, zoom

from monai_nodeo import Flow

_BOX = (slice(12, 148), slice(12, 180), slice(40, 196))
_ROWS = 500  # that are made at a time


def make_volumes(data: Path, shape: tuple[int, ...], folder: Path) -> None:
    """Two heads, and their labels."""
    rng = np.random.default_rng(0)
    for name, subject in (("fixed", "0001"), ("moving", "0002")):
        given = {kind: nib.load(data / "oasis3d" / subject / f"aligned_{kind}.nii.gz") for kind in ("norm", "seg35")}
        small = np.asarray(given["norm"].dataobj, np.float32)[_BOX]
        factors = [n / m for n, m in zip(shape, small.shape, strict=True)]
        affine = given["norm"].affine @ np.diag(
            [*[(m - 1) / (n - 1) for n, m in zip(shape, small.shape, strict=True)], 1.0]
        )
        large = zoom(small * (1000 / small.max()), factors, order=1)
        large += (large > 0) * rng.normal(0, 15, shape).astype(np.float32)
        nib.save(nib.Nifti1Image(large.clip(0).astype(np.int16), affine), folder / f"{name}.nii.gz")
        labels = np.asarray(given["seg35"].dataobj).astype(np.uint8)[_BOX]
        nib.save(nib.Nifti1Image(zoom(labels, factors, order=0), affine), folder / f"{name}_label.nii.gz")


def make_sections(data: Path, shape: tuple[int, ...], folder: Path) -> None:
    """A section and the same moved, and points in both."""
    rng = np.random.default_rng(0)
    picture = Image.open(data / "domains" / "histo_ratkidney" / "fixed.png").convert("L")
    image = np.asarray(picture.resize(shape[::-1], Image.Resampling.BICUBIC), np.float32)
    coarse = np.stack([gaussian_filter(rng.normal(size=(64, 64)), 5) for _ in shape])
    coarse *= 0.01 * min(shape) / np.linalg.norm(coarse, axis=0).max()

    def field(points: np.ndarray) -> np.ndarray:
        places = points * (63 / (np.array(shape) - 1)).reshape(2, *[1] * (points.ndim - 1))
        return np.stack([map_coordinates(c, places, order=3, mode="nearest") for c in coarse])

    fixed = np.empty(shape, np.float32)
    for start in range(0, shape[0], _ROWS):
        places = np.stack(np.mgrid[start : min(start + _ROWS, shape[0]), : shape[1]]).astype(np.float32)
        fixed[start : start + _ROWS] = map_coordinates(image, places + field(places), order=1, mode="nearest")
    tissue = np.argwhere(image[::20, ::20] < np.median(image) - 10) * 20.0
    points = tissue[rng.choice(len(tissue), 5000)].T
    np.save(folder / "points.npy", np.stack([points, points + field(points)]))
    for name, values in (("fixed", fixed), ("moving", image)):
        noisy = (values + rng.normal(0, 3, shape).astype(np.float32)).clip(0, 255).astype(np.uint8)
        nib.save(nib.Nifti1Image(noisy[..., None], np.diag([0.001, 0.001, 0.001, 1])), folder / f"{name}.nii.gz")


def make_series(data: Path, shape: tuple[int, ...], folder: Path) -> None:
    """Frames of a heart, and where the tissue of each was in the first one."""
    rng = np.random.default_rng(0)
    heart = np.asarray(nib.load(data / "domains" / "cine3d_hfi05" / "fixed.nii.gz").dataobj, np.float32)
    middle = heart[64:192, 64:192]
    image = zoom(middle, [n / m for n, m in zip(shape, middle.shape, strict=False)], order=1)
    field = np.stack([gaussian_filter(rng.normal(size=image.shape), [0.1 * n for n in image.shape]) for _ in range(2)])
    field *= 0.06 * shape[0] / np.linalg.norm(field, axis=0).max()
    strengths = np.sin(np.pi * np.arange(shape[3]) / (shape[3] - 1)) ** 2
    places = np.stack(np.mgrid[tuple(slice(n) for n in image.shape)]).astype(np.float32)
    frames = np.empty(shape, np.int16)
    for number, strength in enumerate(strengths):
        moved = places.copy()
        moved[:2] += strength * field
        seen = map_coordinates(image, moved, order=1, mode="nearest")
        frames[..., number] = seen + rng.normal(0, 0.01 * np.ptp(image), image.shape)
    series = nib.Nifti1Image(frames, np.diag([1.0, 1.0, 8.0, 1.0]))
    series.header.set_xyzt_units("mm", "sec")
    nib.save(series, folder / "series.nii.gz")
    np.savez(folder / "motion.npz", field=field, strengths=strengths, tissue=image > 0.1 * image.max())


def measured(folder: Path, words: list[str]) -> dict[str, float]:
    """Seconds, CPU seconds and peak memory of a command."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "monai_nodeo", *words], cwd=folder)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"the registration ended with status {os.waitstatus_to_exitcode(status)}.")
    peak = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_gb": round(peak / 1e9, 2),
    }


def mean_dice(folder: Path) -> float:
    """Of the labels that both have, as ``apply`` moves them."""
    words = ["-i", "moving_label.nii.gz", "-r", "fixed.nii.gz", "-t", "out", "-o", "moved.nii.gz", "-n", "nearest"]
    subprocess.run([sys.executable, "-m", "monai_nodeo", "apply", *words], cwd=folder, check=True)
    here, there, found = (
        np.asarray(nib.load(folder / f"{name}.nii.gz").dataobj, np.uint8)
        for name in ("fixed_label", "moving_label", "moved")
    )
    both = np.bincount(here[here == found], minlength=256)
    sizes = np.bincount(here.ravel(), minlength=256) + np.bincount(found.ravel(), minlength=256)
    known = np.intersect1d(np.unique(here), np.unique(there))
    return float(np.mean(2 * both[known[known > 0]] / sizes[known[known > 0]]))


def judged_series(folder: Path) -> dict[str, Any]:
    """How well a series went."""
    known, flow = np.load(folder / "motion.npz"), Flow.load(folder / "out" / "flow.safetensors")
    frames = json.loads((folder / "out" / "metrics.json").read_text(encoding="utf-8"))["frames"]
    errors, motion = [], []
    for number in range(0, len(known["strengths"]), len(known["strengths"]) // 10):
        back = flow.displacement(None, frames[number]["time"], frames[0]["time"]).numpy()
        back[:2] -= known["strengths"][number] * known["field"]
        errors.append(np.linalg.norm(back, axis=0)[known["tissue"]].mean())
        motion.append(known["strengths"][number] * np.linalg.norm(known["field"], axis=0)[known["tissue"]].mean())
    return {"motion": float(np.mean(motion)), "error": float(np.mean(errors)), "error_max": float(np.max(errors))}


def judged(folder: Path) -> dict[str, Any]:
    """How well a pair went."""
    figures = json.loads((folder / "out" / "metrics.json").read_text(encoding="utf-8"))
    found = {name: figures[name] for name in ("sd_log_jacobian", "folded_cells", "seconds_optimisation")}
    if (folder / "fixed_label.nii.gz").exists():
        return {**found, "dice": mean_dice(folder)}
    points, there = np.load(folder / "points.npy")
    field = np.asarray(nib.load(folder / "out" / "displacement.nii.gz").dataobj)[:, :, 0, 0]
    way = np.stack([map_coordinates(field[..., c], points, order=1) for c in range(2)]) / -0.001  # LPS mm
    before, after = (np.linalg.norm(points + w - there, axis=0) for w in (0, way))
    return {**found, "tre_before": float(before.mean()), "tre": float(after.mean()), "tre_max": float(after.max())}


@click.command()
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option("--cases", default="256x256x256", help="Sizes, with commas.")
@click.option("--preset", "presets", multiple=True, default=("default", "fast"), show_default=True)
@click.option("--memory", help="Passed on to register.")
@click.option("--output", type=click.Path(path_type=Path), help="Figures as JSON.")
def main(data: Path, cases: str, presets: tuple[str, ...], memory: str | None, output: Path | None) -> None:
    """Measure, print a line each."""
    rows = []
    for case in cases.split(","):
        shape = tuple(int(n) for n in case.split("x"))
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            {2: make_sections, 3: make_volumes, 4: make_series}[len(shape)](data, shape, folder)
            for preset in presets:
                words = ["-o", "out", "--quiet", "--no-report"] + ([] if preset == "default" else ["--preset", preset])
                if len(shape) == 4:
                    command, judge = ["sequence", "series.nii.gz", *words], judged_series
                else:
                    command = ["register", "fixed.nii.gz", "moving.nii.gz", *words]
                    command, judge = command + (["--memory", memory] if memory else []), judged
                row = {"size": case, "preset": preset, **measured(folder, command), **judge(folder)}
                rows.append(row)
                print(json.dumps(row), flush=True)
                if output:
                    output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
