# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The start of a registration on pairs whose affine is known.

    python benchmarks/start.py DATA [KIND ...] [--cases 26] [--half tuning|report]

DATA holds ``oasis2d``, ``oasis3d`` and ``domains``. The moving image of a case is the fixed one, turned by up to 180
degrees about a random axis, scaled by .7 to 1.4, with other intensities and noise, cropped to a share of its view along
one axis, and with a header that is shifted by up to half the view. Settings were chosen on the even cases. The table
and the JSON file beside this script hold the share of cases that end within two voxels, that say that no start is
defended, and that are wrong without a word.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor
from scipy import ndimage

from monai_nodeo.data import Pair, Scan, find_start, load_pair
from monai_nodeo.data.placement import affine_3d

KINDS = {
    "oasis slice": "oasis2d/{}/slice_norm.nii.gz",
    "cine": "domains/cine2d_{}/fixed.png",
    "kidney": "domains/histo_{}/fixed.png",
    "oasis": "oasis3d/{}/aligned_norm.nii.gz",
    "hippocampus": "domains/hippocampus_{}/fixed.nii.gz",
    "mouse skull": "domains/mouseskull_{}/fixed.nii.gz",
    "liver": "domains/liver4dmr_{}/fixed.nii.gz",
}
LIMIT = 2.0  # voxels of the fixed image


def turn(rng: np.random.Generator, dims: int, angle: float) -> np.ndarray:
    """A rotation about a random axis."""
    if dims == 2:
        angle *= rng.choice([-1, 1])
        return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    axis = rng.normal(size=3)
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross


def case(image: MetaTensor, seed: int) -> tuple[Pair, np.ndarray, dict[str, float]]:
    """A pair, its true map (4, 4), fixed -> moving point in RAS mm, and what was drawn."""
    rng = np.random.default_rng(seed)
    values, dims = image.as_tensor()[0].numpy(), image.ndim - 1
    if dims == 2:  # whatever plane it was cut from
        image = MetaTensor(image.as_tensor(), affine=torch.diag(torch.tensor([*image.pixdim.tolist()[:2], 1.0, 1.0])))
    affine = affine_3d(image).numpy()
    axes, shape = affine[:dims, :dims], np.array(values.shape)
    drawn = {
        "angle": float(rng.uniform(0, 180)),
        "scale": float(np.exp(rng.uniform(math.log(0.7), math.log(1.4)))),
        "kept": float(rng.choice([1.0, rng.uniform(0.4, 1)])),
        "shift": float(rng.uniform(0, 0.5)),
    }
    linear = turn(rng, dims, math.radians(drawn["angle"])) * drawn["scale"]
    back = np.linalg.inv(axes) @ np.linalg.inv(linear) @ axes  # moving voxel -> fixed voxel, around the middle
    middle = (shape - 1) / 2
    low, high = np.percentile(values, (0.5, 99.5))
    scaled = ((values - low) / max(high - low, 1e-9)).clip(0, 1)
    scaled = scaled ** rng.uniform(0.6, 1.6) if rng.random() < 0.7 else 1 - scaled
    moved = ndimage.affine_transform(scaled, back, middle - back @ middle, order=1, mode="constant", cval=scaled.min())
    moved += rng.normal(0, 0.02, moved.shape)
    axis, first = int(rng.integers(dims)), 0
    count = max(8, round(drawn["kept"] * shape[axis]))
    if count < shape[axis]:
        first = int(rng.integers(shape[axis] - count + 1))
        moved = moved.take(range(first, first + count), axis)
    way = rng.normal(size=dims)
    header = drawn["shift"] * (np.abs(axes) @ shape) * way / np.abs(way).max()
    origin = np.zeros(dims)
    origin[axis] = first
    placed = affine.copy()
    placed[:dims, 3] += axes @ origin + header
    truth = np.eye(4)
    truth[:dims, :dims] = linear
    centre = axes @ middle + affine[:dims, 3]
    truth[:dims, 3] = centre + header - linear @ centre
    moving = MetaTensor(torch.from_numpy(moved.astype(np.float32))[None], affine=torch.from_numpy(placed))
    return Pair(Scan(image), Scan(moving)), truth, drawn


def error(pair: Pair, found: np.ndarray, truth: np.ndarray) -> float:
    """Mean over the inside of the fixed image, in its voxels."""
    image, dims = pair.fixed.image, pair.spatial_dims
    values = image.as_tensor()[0].numpy()
    index = np.argwhere(np.abs(values - np.median(values)) > 0.2 * np.ptp(values))[::37]
    points = index @ affine_3d(image).numpy()[:3, :dims].T + affine_3d(image).numpy()[:3, 3]
    away = points @ (found - truth)[:3, :3].T + (found - truth)[:3, 3]
    voxel = float(torch.linalg.vector_norm(affine_3d(image)[:3, :dims], dim=0).prod()) ** (1 / dims)
    return float(np.linalg.norm(away, axis=1).mean()) / voxel


def run(data: Path, kind: str, cases: int, half: int | None) -> list[dict]:
    """The cases of a kind, over all its images in turn."""
    images = sorted(data.glob(KINDS[kind].format("*")))
    rows = []
    for number in range(cases):
        if half is not None and number % 2 != half:
            continue
        path = images[number % len(images)]
        pair, truth, drawn = case(load_pair({"fixed": path, "moving": path}).fixed.image, number)
        began = time.process_time()
        start = find_start(pair, "auto")
        seconds = time.process_time() - began
        found = np.eye(4) if start.affine is None else start.affine.numpy()
        row = {"kind": kind, "number": number, **drawn, "start": start.kind, "defended": start.defended}
        row |= {"error": error(pair, found, truth), "before": error(pair, np.eye(4), truth), "seconds": seconds}
        rows.append({name: round(x, 3) if isinstance(x, float) else x for name, x in row.items()})
        print(rows[-1], start.evidence, flush=True)
    return rows


def main() -> None:
    """Run the cases, print the table, write the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("kinds", nargs="*", default=list(KINDS))
    parser.add_argument("--cases", type=int, default=40, help="of a kind")
    parser.add_argument("--half", choices=["tuning", "report"])
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    given = parser.parse_args()
    half = {None: None, "tuning": 0, "report": 1}[given.half]
    rows = [row for kind in given.kinds for row in run(given.data, kind, given.cases, half)]
    print(f"| kind | cases | within {LIMIT:g} voxels | refused | wrong, unsaid | seconds |\n|---|---|---|---|---|---|")
    for kind in (*given.kinds, "all"):
        own = [row for row in rows if kind in (row["kind"], "all")]
        right = [row for row in own if row["error"] < LIMIT]
        refused = [row for row in own if row not in right and not row["defended"]]
        wrong = len(own) - len(right) - len(refused)
        seconds = np.median([row["seconds"] for row in own])
        print(f"| {kind} | {len(own)} | {len(right)} | {len(refused)} | {wrong} | {seconds:.2f} |")
    given.json.write_text(json.dumps(rows, indent=0) + "\n")


if __name__ == "__main__":
    main()
