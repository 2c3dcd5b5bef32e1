# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Overlap against roughness: ours and other tools, each over its own regularisation.

    python benchmarks/front.py PAIRS.json --peers .venv-peers/bin/python --json benchmarks/front_2d.json

PAIRS.json is a list of "fixed", "moving", "fixed_label" and "moving_label", affinely aligned, of one grid. Ours is
steered to SDlogJ values (`sd_log_jacobian`); demons smooth the displacement by a Gaussian of some voxels, greedy the
velocity and the displacement. Every field is judged by SimpleITK and numpy: mean Dice over the labels of the fixed
image, the standard deviation and the .1 and 99.9 % quantiles of the logarithm of the Jacobian determinant (central
differences), Learn2Reg's SDlogJ, bending energy (mean of all squared second differences, per voxel) and folded
voxels. The JSON file holds the means over the pairs; rows of methods (`--methods`) that are not run again stay. All
files ``front_*.json`` beside it are plotted in ``docs/front.png``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from domains import dice, jacobian
from numpy.typing import NDArray

STRENGTHS: dict[str, list[Any]] = {
    "ours": [0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45],
    "demons": [4.0, 2.5, 1.5, 1.0, 0.7],
    "greedy": [[6.0, 3.0], [4.0, 1.5], [2.5, 1.0], [1.6, 0.7]],
}
Row = dict[str, str]


def plain(rows: list[Row], folder: Path) -> list[Row]:
    """The images as files of their true dimensions: a slice that is stored as a volume becomes a slice."""
    found: list[Row] = []
    for number, row in enumerate(rows):
        found.append({})
        for key, path in row.items():
            image = sitk.ReadImage(path)
            if image.GetDimension() == 3 and image.GetSize()[2] == 1:
                spacing = image.GetSpacing()[:2]
                image = sitk.GetImageFromArray(sitk.GetArrayFromImage(image)[0])
                image.SetSpacing(spacing)
            found[-1][key] = str(folder / f"{number}_{key}.mha")
            sitk.WriteImage(image, found[-1][key])
    return found


def judged(row: Row, field: sitk.Image) -> dict[str, float]:
    """Figures of an ITK displacement field on the fixed grid."""
    fixed, of_fixed, of_moving = (sitk.ReadImage(row[key]) for key in ("fixed", "fixed_label", "moving_label"))
    for labels in (of_fixed, of_moving):
        labels.CopyInformation(fixed)
    vectors = sitk.GetArrayFromImage(field).astype(float)
    way = sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64))
    determinant = jacobian(way, fixed)
    log = np.log(determinant.clip(1e-3, 1e3))
    low, high = np.quantile(log, [0.001, 0.999])
    return {
        "dice": dice(of_fixed, sitk.Resample(of_moving, of_fixed, way, sitk.sitkNearestNeighbor, 0)),
        "sd_log_jacobian": float(log.std()),
        "learn2reg_sd_log_jacobian": float(np.log((determinant + 3).clip(1e-9, 1e9)).std()),
        "log_jacobian_low": float(low),
        "log_jacobian_high": float(high),
        "bending_energy": bending_energy(vectors / np.array(fixed.GetSpacing())),
        "folded_percent": float(100 * (determinant <= 0).mean()),
    }


def bending_energy(displacement: NDArray) -> float:
    """Mean over the voxels of the squared second differences of all components, (*spatial, D) in voxels."""
    total = 0.0
    for component in np.moveaxis(displacement, -1, 0):
        for first in np.gradient(component):
            total += sum((second**2).mean() for second in np.gradient(first))
    return float(total)


def ours(rows: list[Row], strength: float) -> tuple[list[sitk.Image], list[float]]:
    """Fields and seconds."""
    from monai_nodeo.data import load_pair
    from monai_nodeo.registration import PairInferer, Settings

    fields, seconds = [], []
    for row in rows:
        pair = load_pair({key: row[key] for key in ("fixed", "moving")})
        settings = Settings.preset(spatial_dims=pair.spatial_dims, sd_log_jacobian=strength, initial_transform=None)
        began = time.perf_counter()
        (registration,) = PairInferer(settings, handlers=()).register([pair])
        seconds.append(time.perf_counter() - began)
        with tempfile.TemporaryDirectory() as folder:
            registration.save(folder)
            way = sitk.ReadTransform(f"{folder}/transform.h5")
        fixed = sitk.ReadImage(row["fixed"])
        frame = (fixed.GetSize(), fixed.GetOrigin(), fixed.GetSpacing(), fixed.GetDirection())
        fields.append(sitk.TransformToDisplacementField(way, sitk.sitkVectorFloat64, *frame))
    return fields, seconds


def peer(python: str, method: str, rows: list[Row], strength: Any) -> tuple[list[sitk.Image], list[float]]:
    """Fields and seconds of another tool."""
    with tempfile.TemporaryDirectory() as folder:
        jobs = [
            {"fixed": row["fixed"], "moving": row["moving"], "field": f"{folder}/{n}.mha", "smoothing": strength}
            for n, row in enumerate(rows)
        ]
        path = Path(folder) / "jobs.json"
        path.write_text(json.dumps(jobs), encoding="utf-8")
        command = [python, Path(__file__).with_name("peers.py"), method, path]
        threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | threads, check=True)
        return [sitk.ReadImage(job["field"]) for job in jobs], json.loads(done.stdout)


def plot(tables: list[Path], path: Path) -> None:
    """Dice against SDlogJ: a panel for each table, a line for each method."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(tables), figsize=(4.2 * len(tables), 3.2), layout="constrained", squeeze=False)
    for axes, table in zip(panels[0], tables, strict=True):
        found = json.loads(table.read_text(encoding="utf-8"))
        for method in STRENGTHS:
            points = sorted((row["sd_log_jacobian"], row["dice"]) for row in found if row["method"] == method)
            if points:
                axes.plot(*zip(*points, strict=True), "o-", label=method, markersize=4)
        pairs = found[0]["pairs"]
        axes.set(xlabel="SDlogJ", ylabel="Dice", title=f"{table.stem.removeprefix('front_').upper()}, {pairs} pairs")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run, print a line for each method and strength, write the means and the plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--methods", default="ours,demons,greedy")
    parser.add_argument("--peers", help="Python of the environment that has the other tools")
    parser.add_argument("--json", type=Path, default=Path(__file__).with_name("front_2d.json"))
    given = parser.parse_args()
    rows = json.loads(given.pairs.read_text(encoding="utf-8"))
    rows = [{key: str(given.pairs.parent / path) for key, path in row.items()} for row in rows]
    images = tempfile.TemporaryDirectory()
    rows = plain(rows, Path(images.name))
    wanted = given.methods.split(",")
    found = json.loads(given.json.read_text(encoding="utf-8")) if given.json.exists() else []
    found = [x for x in found if x["method"] not in wanted]
    for method in wanted:
        for strength in STRENGTHS[method]:
            made = ours(rows, strength) if method == "ours" else peer(given.peers, method, rows, strength)
            figures = [judged(row, field) for row, field in zip(rows, made[0], strict=True)]
            means = {name: round(statistics.fmean(x[name] for x in figures), 4) for name in figures[0]}
            seconds = round(statistics.median(made[1]), 3)
            found.append({"method": method, "strength": strength, "pairs": len(rows), **means, "seconds": seconds})
            print(json.dumps(found[-1]), flush=True)
            lines = ",\n".join(json.dumps(x) for x in found)
            given.json.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    plot(sorted(given.json.parent.glob("front_*.json")), Path(__file__).parents[1] / "docs" / "front.png")


if __name__ == "__main__":
    main()
