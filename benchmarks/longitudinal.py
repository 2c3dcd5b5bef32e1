# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""How well changes of volume of a known size are measured: real brains that an exact flow shrinks.

    python benchmarks/longitudinal.py DATA [--only PREFIX,...] [--subjects 20]

DATA holds ``oasis2d`` and ``oasis3d``. The velocity is the gradient of a potential whose Laplacian is the rate of
each structure (ventricles grow by 10 %, hippocampi shrink by 4 %, deep grey matter by 2 %, the rest of the brain by
1 %), so that its flow changes volumes at these rates; how much exactly is integrated over the labels of the first
visit. Half of the flow backwards makes the first visit of an image, half of it forwards the second one, each by one
cubic interpolation and with noise of its own of 2 % of the range; they lie 1.5 degrees and up to 1 voxel from one
another.

Rows: ``2D`` and ``3D``, the default settings; ``..._symmetric``, with that setting; ``..._still``, symmetric without
any change of volume, where all that is found is error. For each structure: ``true`` and ``found`` change, per cent of
its volume, ``bias``, the mean of their difference, and ``spread``, its standard deviation over the subjects;
``warping``: the bias of volumes by warped labels; ``covered``: share of subjects whose error is at most two standard
deviations of four more registrations (2D). ``per_brain`` is the bias in per cent of the brain's volume. Rows go into
the JSON file beside this script, by name; the others are kept.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray
from scipy.fft import dctn, idctn
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

from monai_nodeo.apps.volumes import ALL, label_volumes
from monai_nodeo.data.pair import Pair, Scan
from monai_nodeo.geometry.jacobian import cell_volumes
from monai_nodeo.registration import PairInferer, Settings

STRUCTURES = ("ventricles", "hippocampi", "deep grey matter", "the rest")
RATES = (0.10, -0.04, -0.02, -0.01)
MEMBERS = {  # labels of the first three structures
    2: ((3, 4, 9, 16, 17), (11, 22), (5, 6, 7, 8, 18, 19, 20, 21)),
    3: ((3, 4, 11, 12, 22, 23), (14, 30), (7, 8, 9, 10, 26, 27, 28, 29)),
}
FILES = {2: ("oasis2d", "slice_norm", "slice_seg24"), 3: ("oasis3d", "aligned_norm", "aligned_seg35")}
NOISE = 0.02  # of the range
STEPS = 4  # of the midpoint rule
MARGIN = 12  # voxels around the brain
SAMPLES = 4  # more registrations, for standard deviations


def structures(labels: NDArray) -> NDArray:
    """Numbers of `STRUCTURES` from 1 on, 0 outside."""
    found = np.where(labels > 0, len(STRUCTURES), 0)
    for number, members in enumerate(MEMBERS[labels.ndim], 1):
        found[np.isin(labels, members)] = number
    return found


def velocity(parts: NDArray) -> NDArray:
    """A field (D, *spatial), voxels, whose divergence is the rate of each structure; the air takes what is lost."""
    rate = np.array([0, *np.log1p(RATES)])[parts]
    rate[parts == 0] = -rate.sum() / (parts == 0).sum()
    rate = gaussian_filter(rate, 1.0, mode="reflect")
    axes = [2 * np.cos(np.pi * np.arange(n) / n) - 2 for n in parts.shape]
    eigenvalues = sum(np.meshgrid(*axes, indexing="ij"))
    eigenvalues.flat[0] = 1
    spectrum = dctn(rate - rate.mean(), norm="ortho") / eigenvalues
    return np.stack(np.gradient(idctn(spectrum, norm="ortho")))


def carried(points: NDArray, field: NDArray, time: float) -> NDArray:
    """Where points (D, *any) in voxels are after a time, by the midpoint rule."""
    step = time / STEPS

    def at(places: NDArray) -> NDArray:
        return np.stack([map_coordinates(part, places, order=1, mode="nearest") for part in field])

    for _ in range(STEPS if time else 0):
        points = points + step * at(points + step / 2 * at(points))
    return points


def visits(image: NDArray, parts: NDArray, still: bool, seed: int) -> tuple[Pair, dict[Any, float], MetaTensor]:
    """Two visits, the true change of each structure and of all, per cent, and the structures of the first visit."""
    random, dims = np.random.default_rng(seed), image.ndim
    field = 0 * velocity(parts) if still else velocity(parts)
    voxels = np.stack(np.meshgrid(*[np.arange(n, dtype=float) for n in image.shape], indexing="ij"))
    middle = (np.array(image.shape) - 1.0).reshape(-1, *[1] * dims) / 2
    turn = np.deg2rad(1.5) / 2 * np.array([0, 0, 1.0] if dims == 2 else [0.5, -0.7, 0.5])
    shift = random.uniform(-0.5, 0.5, dims).reshape(middle.shape)

    def placed(points: NDArray, side: int) -> NDArray:
        matrix = Rotation.from_rotvec(side * turn).as_matrix()[:dims, :dims]
        return np.einsum("ij,j...->i...", matrix, points - middle) + middle + side * shift

    first, second = (carried(placed(voxels, side), field, -side / 2) for side in (-1, 1))
    scans = []
    for places in (first, second):
        seen = map_coordinates(image, places, order=3, mode="nearest").clip(0)
        inside = map_coordinates((image > 0).astype(float), places, order=1) > 0.5
        seen = np.where(inside, seen + NOISE * np.ptp(image) * random.standard_normal(seen.shape), 0).clip(0)
        scans.append(Scan(MetaTensor(torch.from_numpy(seen).float()[None], affine=torch.eye(4, dtype=torch.float64))))
    label = map_coordinates(parts, first, order=0, mode="nearest")
    corners = np.stack(np.meshgrid(*[np.arange(n + 1) - 0.5 for n in image.shape], indexing="ij"))
    moved = carried(placed(corners, -1), field, 1.0)  # turns change no volume
    sizes = cell_volumes(torch.from_numpy(moved - corners)[None])[0].numpy()
    true: dict[Any, float] = {k: 100 * (sizes[label == k].mean() - 1) for k in np.unique(label) if k}
    true[ALL] = 100 * (sizes[label > 0].mean() - 1)
    there = MetaTensor(torch.from_numpy(label).float()[None], affine=torch.eye(4, dtype=torch.float64))
    return Pair(scans[0], scans[1], id=str(seed)), true, there


def row(data: Path, dims: int, subjects: int, count: int = 0, **changes: Any) -> dict[str, Any]:
    """What is found in the subjects, and how far it is from what is true."""
    folder, *names = FILES[dims]
    still = changes.pop("still", False)
    inferer = PairInferer(Settings.preset(spatial_dims=dims, **changes), handlers=())
    found: dict[Any, list[tuple[float, ...]]] = {}
    seconds = []
    for seed, place in enumerate(sorted((data / folder).iterdir())[:subjects]):
        image, labels = (np.squeeze(np.asarray(nib.load(place / f"{name}.nii.gz").dataobj)) for name in names)
        held = np.argwhere(labels > 0)
        box = tuple(slice(max(0, a - MARGIN), b + MARGIN + 1) for a, b in zip(held.min(0), held.max(0), strict=True))
        pair, true, label = visits(image[box].astype(float), structures(labels[box]), still, seed)
        began = time.process_time()
        registration = inferer.register([pair], "cpu")[0]
        seconds.append(time.process_time() - began)
        samples = inferer.samples(registration, count, "cpu") if count else []
        items = label_volumes(registration, label, samples, warped=True)
        brain = items[-1].fixed
        for item in items:
            error, warping = item.change - true[item.label], (item.warped_change or 0) - true[item.label]
            covered = np.nan if item.deviation is None else float(abs(error) <= 2 * item.deviation)
            of_brain = error * item.fixed / brain
            found.setdefault(item.label, []).append((true[item.label], item.change, error, warping, of_brain, covered))
    table: dict[str, Any] = {"subjects": len(seconds), "seconds": round(float(np.mean(seconds)), 2)}
    for label, values in found.items():
        true_, change, error, warping, of_brain, covered = np.array(values).T
        figures = {
            "true": true_.mean(),
            "found": change.mean(),
            "bias": error.mean(),
            "spread": error.std(),
            "warping": warping.mean(),
            "per_brain": of_brain.mean(),
            "covered": covered.mean(),
        }
        name = "whole brain" if label == ALL else STRUCTURES[int(label) - 1]
        table[name] = {key: round(float(x), 3) for key, x in figures.items() if np.isfinite(x)}
    return table


def main() -> None:
    """Run, print and write a row for each case."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="with oasis2d and oasis3d")
    parser.add_argument("--only", default="", help="what the names of the rows begin with")
    parser.add_argument("--subjects", type=int, default=20, help="slices; of the volumes there are two")
    given = parser.parse_args()
    target = Path(__file__).with_suffix(".json")
    rows = json.loads(target.read_text(encoding="utf-8")) if target.exists() else {}
    kinds: dict[str, dict[str, Any]] = {
        "": {},
        "_symmetric": {"symmetric": True},
        "_still": {"symmetric": True, "still": True},
    }
    for dims in (2, 3):
        for kind, changes in kinds.items():
            name = f"{dims}D{kind}"
            if not name.startswith(tuple(given.only.split(","))):
                continue
            count = SAMPLES if dims == 2 and kind else 0
            rows[name] = row(given.data, dims, given.subjects if dims == 2 else 2, count, **changes)
            print(name, json.dumps(rows[name]), flush=True)
            text = ",\n".join(f"{json.dumps(key)}: {json.dumps(rows[key])}" for key in sorted(rows))
            target.write_text("{\n" + text + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
