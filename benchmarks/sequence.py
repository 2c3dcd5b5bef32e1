# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""One flow through a series beside the registration of each frame: real images that a known flow moves, and real pairs.

    python benchmarks/sequence.py DATA [--only NAME,...]

DATA (or the environment variable DOMAINS) has the folders of ``benchmarks/domains.py``. An image is moved by the flow
of three smooth random velocities whose strengths change with time, and some noise is added; the frames are at
irregular times. Both sides have their default settings and know neither the flow nor the label.

- ``error``, ``error_pairs``: mean distance in voxels of the tissue from its true place, over all frames but the first,
  of the series and of a registration of each frame to the first;
- ``error_left_out``: the same of the series at times in the middle between frames, which it never saw;
- ``error_mean``, ``error_left_out_mean``, ``seconds_mean``: the same of the series with the mean shape as reference;
- ``mean_displacement``: distance between the points of the mean shape and the mean of their places in the frames;
- ``shape``, ``shape_reversed``: between the ways of tissue from the mean shape to the first frame and from the true
  mean shape, and from that of the series in reverse, with the last frame as the first one;
- ``path_voxels``: largest distance between the ways t0 -> t1 -> t2 and t0 -> t2 of tissue, at times of no frame;
- ``seconds``, ``seconds_pairs``: of the processor, start and settings included, so that other work does not count;
- ``memory_mb_2``, ``memory_mb_30``: most memory of a process that registers so many frames;
- ``dice``, ``dice_mean``, ``dice_pair``: of a label carried between the two frames of a real pair; ``tre``,
  ``tre_mean``, ``tre_pair``: mean distance in mm of landmarks.

Rows go into the JSON file beside this script, by name; the others are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

from monai_nodeo.files import read_points
from monai_nodeo.flows.field_inversion import invert
from monai_nodeo.registration import Settings, register, register_sequence
from monai_nodeo.registration.machine import peak_memory_mb

# name -> folder, part of the image, frames, how far the tissue goes
MOVED: dict[str, tuple[str, tuple[slice, ...], int, float]] = {
    "heart_8": ("cine2d_n02", (slice(64, 192),) * 2, 8, 8.0),
    "heart_30": ("cine2d_hyp37", (slice(64, 192),) * 2, 30, 8.0),
    "hippocampus_8": ("hippocampus_004_165", (), 8, 4.0),
    "liver_8": ("liver4dmr_19_cyc_1_6", (slice(0, 166, 2), slice(0, 196, 2), slice(None)), 8, 8.0),
}
PAIRS = ("cine2d_hfi05", "cine2d_hyp01", "cine2d_hyp37", "cine2d_n02", "cine2d_n05")
BREATHS = tuple(f"liver4dmr_{name}" for name in ("18_cyc_1_10", "19_cyc_1_6", "23_cyc_1_4", "26_cyc_1_6"))
STEP = 0.02  # of the true flow
NOISE = 0.01  # of the range of an image
MARGIN = 8  # voxels at the border that are not judged
SIDES = {"2D": (256, 256), "3D": (96, 96, 96)}  # of the images whose memory is measured


def image_of(folder: Path, stem: str = "fixed") -> NDArray:
    """An image of a pair, (X, Y) or (X, Y, Z)."""
    path = next(path for path in folder.iterdir() if path.name.split(".")[0] == stem)
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path))).T.astype(np.float32)


class Motion:
    """A known flow of a space of voxels, from time 0 to 1."""

    def __init__(self, shape: tuple[int, ...], far: float, seed: int = 3) -> None:
        random = np.random.default_rng(seed)
        self.fields = []
        for _ in range(3):
            field = [gaussian_filter(random.standard_normal(shape), [max(3, 0.12 * n) for n in shape]) for _ in shape]
            self.fields.append(np.stack(field) / np.abs(field).max())
        self.far = far

    def velocity(self, points: NDArray, t: float) -> NDArray:
        strengths = (np.pi * np.sin(2 * np.pi * t), 0.8 * np.cos(3 * np.pi * t + 1), 0.6)
        field = self.far * sum(s * w for s, w in zip(strengths, self.fields, strict=True))
        return np.stack([map_coordinates(c, points, order=1, mode="nearest") for c in field])

    def carry(self, points: NDArray, t0: float, t1: float) -> NDArray:
        """The midpoint rule."""
        steps = max(1, int(np.ceil(abs(t1 - t0) / STEP)))
        step = (t1 - t0) / steps
        for number in range(steps):
            t = t0 + number * step
            half_way = points + step / 2 * self.velocity(points, t)
            points = points + step * self.velocity(half_way, t + step / 2)
        return points


def moved(folder: Path, part: tuple[slice, ...], frames: int, far: float) -> dict[str, Any]:
    """The row of an image that is moved."""
    image = image_of(folder)[part]
    motion, random = Motion(image.shape, far), np.random.default_rng(1)
    times = np.sort([0, 1, *random.uniform(0, 1, frames - 2)])
    left_out = ((times[1:] + times[:-1]) / 2)[:: max(1, frames // 4)]
    grid = np.stack(np.meshgrid(*[np.arange(n, dtype=float) for n in image.shape], indexing="ij"))
    series = []
    for t in times:
        seen = map_coordinates(image, motion.carry(grid, t, 0.0), order=1, mode="nearest")
        series.append((seen + NOISE * np.ptp(image) * random.standard_normal(seen.shape)).astype(np.float32))
    tissue = gaussian_filter((image > 0.08 * image.max()).astype(float), 2) > 0.5
    inside = np.zeros_like(tissue)
    inside[tuple(slice(MARGIN, n - MARGIN) for n in image.shape)] = True
    tissue &= inside

    def error(ddf: torch.Tensor, t: float) -> float:
        apart = (grid + ddf.numpy() - motion.carry(grid, 0.0, t))[:, tissue]
        return float(np.linalg.norm(apart, axis=0).mean())

    def distance(ddf: torch.Tensor) -> float:
        return float(ddf.norm(dim=0)[torch.from_numpy(tissue)].mean())

    began = time.process_time()
    sequence = register_sequence(series, times.tolist(), handlers=())
    seconds = time.process_time() - began
    began = time.process_time()
    mean = register_sequence(series, times.tolist(), reference="mean", handlers=())
    seconds_mean = time.process_time() - began
    reversed_mean = register_sequence(series[::-1], (-times[::-1]).tolist(), reference="mean", handlers=())
    true_places = sum(motion.carry(grid, 0.0, t) for t in times) / frames
    from_true_shape = invert(torch.from_numpy(true_places - grid)).ddf
    balance = sum(mean.displacement(number) for number in range(frames)) / frames
    flow, errors_pairs, seconds_pairs = sequence.flow, [], 0.0
    for frame, t in zip(series[1:], times[1:], strict=True):
        began = time.process_time()
        found = register(series[0], frame, handlers=())
        seconds_pairs += time.process_time() - began
        errors_pairs.append(error(found.ddf, t))
    still = [error(torch.zeros(grid.shape), t) for t in times[1:]]
    errors, errors_mean = ([error(f.displacement(None, 0.0, t), t) for t in times[1:]] for f in (flow, mean.flow))
    left, left_mean = ([error(f.displacement(None, 0.0, t), t) for t in left_out] for f in (flow, mean.flow))
    points = torch.from_numpy(np.pad(grid[:, tissue].T, ((0, 0), (0, 3 - image.ndim))))
    apart = []
    for t1, t2 in pairwise([*random.uniform(0, 1, 4).tolist()]):
        there = [flow(flow(points, 0.1, t1), t1, t2), flow(points, 0.1, t2)]
        apart.append(float((there[0] - there[1]).norm(dim=1).max()))
    return {
        "frames": frames,
        "motion": np.mean(still),
        "error": np.mean(errors),
        "error_pairs": np.mean(errors_pairs),
        "error_mean": np.mean(errors_mean),
        "error_left_out": np.mean(left),
        "error_left_out_mean": np.mean(left_mean),
        "mean_displacement": distance(balance),
        "shape": distance(mean.displacement(0) - from_true_shape),
        "shape_reversed": distance(mean.displacement(0) - reversed_mean.displacement(frames - 1)),
        "path_voxels": max(apart),
        "seconds": seconds,
        "seconds_mean": seconds_mean,
        "seconds_pairs": seconds_pairs,
        "keyframes": sequence.settings.keyframes,
    }


def carried(folder: Path) -> dict[str, Any]:
    """The row of a real pair."""
    fixed, moving = (image_of(folder, stem) for stem in ("fixed", "moving"))
    here, there = (image_of(folder, f"{stem}_label") for stem in ("fixed", "moving"))
    series = [register_sequence([fixed, moving], reference=which, handlers=()) for which in (0, "mean")]
    ways = [*[found.flow.displacement() for found in series], register(fixed, moving, handlers=()).ddf]
    grid = np.stack(np.meshgrid(*[np.arange(n, dtype=float) for n in fixed.shape], indexing="ij"))
    dice = []
    for way in ways:
        warped = map_coordinates(there, grid + way.numpy(), order=0, mode="nearest") > 0
        dice.append(2 * (warped & (here > 0)).sum() / (warped.sum() + (here > 0).sum()))
    return {"frames": 2, "dice": dice[0], "dice_mean": dice[1], "dice_pair": dice[2]}


def landmarks(folder: Path) -> dict[str, Any]:
    """The row of a real pair with landmarks."""
    paths = [str(folder / f"{stem}.nii.gz") for stem in ("fixed", "moving")]
    here, there = (torch.from_numpy(read_points(folder / f"{stem}_points.csv").ras) for stem in ("fixed", "moving"))
    before = (there - here).norm(dim=1).mean()
    ways = [register_sequence(paths, reference=which, handlers=()).flow(here) for which in (0, "mean")]
    ways.append(register(*paths, handlers=()).points(here))
    tre, tre_mean, tre_pair = (float((way - there).norm(dim=1).mean()) for way in ways)
    return {"frames": 2, "motion_mm": float(before), "tre": tre, "tre_mean": tre_mean, "tre_pair": tre_pair}


def memory(kind: str) -> dict[str, Any]:
    """The row of the memory of short optimisations, each in a process of its own."""
    row = {}
    for frames in (2, 30):
        command = [sys.executable, __file__, "--process", kind, str(frames)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        row[f"memory_mb_{frames}"] = float(done.stdout.split()[-1])
    return row


def process(kind: str, frames: int) -> None:
    """Register frames of noise for a few iterations, and print the most memory that it took, MB."""
    import tempfile

    with tempfile.TemporaryDirectory() as temporary:
        paths = []
        for number in range(frames):
            noise = gaussian_filter(np.random.default_rng(number).standard_normal(SIDES[kind]), 4)
            paths.append(f"{temporary}/{number:02d}.nii.gz")
            image = sitk.GetImageFromArray((1000 * noise).astype(np.float32))
            sitk.WriteImage(image, paths[-1])
        settings = Settings.preset(spatial_dims=len(SIDES[kind]), self_tuning=False)
        short = settings.replace(iterations=[2] * len(settings.iterations))
        register_sequence(paths, settings=short, handlers=())
    print(peak_memory_mb(torch.device("cpu")))


def main() -> None:
    """Run, print and write a row for each case."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?", default=os.environ.get("DOMAINS"), help="or DOMAINS is set")
    parser.add_argument("--only", default="", help="what the names of the rows begin with")
    parser.add_argument("--process", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.process:
        process(given.process[0], int(given.process[1]))
        return
    if given.data is None:
        parser.error("give the folder of the images, or set DOMAINS.")
    data, target = Path(given.data), Path(__file__).with_suffix(".json")
    rows = json.loads(target.read_text(encoding="utf-8")) if target.exists() else {}
    cases = {name: (moved, data / case[0], *case[1:]) for name, case in MOVED.items()}
    cases |= {f"pair_{name}": (carried, data / name) for name in PAIRS}
    cases |= {f"pair_{name}": (landmarks, data / name) for name in BREATHS}
    cases |= {f"memory_{kind}": (memory, kind) for kind in SIDES}
    for name, (function, *arguments) in cases.items():
        if name.startswith(tuple(given.only.split(","))):
            row = function(*arguments)
            rows[name] = {key: round(x, 4) if isinstance(x, float) else x for key, x in row.items()}
            print(name, json.dumps(rows[name]), flush=True)
            text = ",\n".join(f"{json.dumps(key)}: {json.dumps(rows[key])}" for key in sorted(rows))
            target.write_text("{\n" + text + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
