# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Pairs of other anatomies and contrasts, from their files, with no option: ours and other tools with their defaults.

    python benchmarks/domains.py DATA [--methods ours,ants,greedy,elastix,convexadam] [--only PREFIX,...]

DATA (or the environment variable DOMAINS) has a folder for each pair, with ``fixed`` and ``moving`` images, and labels
(``fixed_label``) or points (``fixed_points.csv``, LPS mm) of both. The kind of a pair is what its name begins with.
Every transform is judged by SimpleITK: mean Dice over the labels of the fixed image, distance of the points in mm
(pixels where a file has no voxel size), spread of the logarithm of the Jacobian determinant and share of folded voxels
of the whole way. Small images come first. Rows of a pair and a method that are there already are replaced in the JSON
file beside this script, the others are kept; the table is made of all of them.
"""

from __future__ import annotations

import argparse
import csv
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
from numpy.typing import NDArray

PEERS = ("ants", "greedy", "elastix", "convexadam")
FIGURES = ("dice_before", "dice", "tre_before", "tre", "sd_log_jacobian", "folded_percent", "seconds")


def part(folder: Path, stem: str) -> Path | None:
    """The file of a pair that has this name, whatever its ending."""
    return next((path for path in folder.iterdir() if path.name.split(".")[0] == stem), None)


def points(path: Path, dims: int) -> NDArray:
    """(N, D)."""
    with path.open(newline="") as file:
        return np.array([[float(row[axis]) for axis in "xyz"[:dims]] for row in csv.DictReader(file)])


def dice(fixed: sitk.Image, warped: sitk.Image) -> float:
    """Mean over the labels of the fixed image."""
    a, b = (sitk.GetArrayFromImage(image) for image in (fixed, warped))
    each = [2 * ((a == k) & (b == k)).sum() / ((a == k).sum() + (b == k).sum()) for k in np.unique(a) if k]
    return float(np.mean(each))


def jacobian(way: sitk.Transform, fixed: sitk.Image) -> NDArray:
    """Determinant by central differences, voxels of the fixed grid."""
    dims = fixed.GetDimension()
    frame = (fixed.GetSize(), fixed.GetOrigin(), fixed.GetSpacing(), fixed.GetDirection())
    field = sitk.GetArrayFromImage(sitk.TransformToDisplacementField(way, sitk.sitkVectorFloat64, *frame))
    axes = np.array(fixed.GetDirection()).reshape(dims, dims) * np.array(fixed.GetSpacing())
    voxels = (field @ np.linalg.inv(axes).T).transpose(*reversed(range(dims)), dims)
    rows = [np.stack(np.gradient(voxels[..., component]), -1) for component in range(dims)]
    return np.linalg.det(np.stack(rows, -2) + np.eye(dims))


def judged(folder: Path, way: sitk.Transform) -> dict[str, float]:
    """Figures of a transform, fixed point -> moving point."""
    fixed, moving = (sitk.ReadImage(str(part(folder, key))) for key in ("fixed", "moving"))
    dims = fixed.GetDimension()
    still = sitk.Transform(dims, sitk.sitkIdentity)
    found = {}
    labels = [part(folder, f"{key}_label") for key in ("fixed", "moving")]
    if all(labels):
        of_fixed, of_moving = (sitk.ReadImage(str(path)) for path in labels)
        of_fixed.CopyInformation(fixed)
        of_moving.CopyInformation(moving)
        for name, transform in (("dice_before", still), ("dice", way)):
            warped = sitk.Resample(of_moving, of_fixed, transform, sitk.sitkNearestNeighbor, 0)
            found[name] = dice(of_fixed, warped)
    tables = [part(folder, f"{key}_points") for key in ("fixed", "moving")]
    if all(tables):
        here, there = (points(path, dims) for path in tables if path)
        for name, transform in (("tre_before", still), ("tre", way)):
            moved = np.array([transform.TransformPoint(point) for point in here.tolist()])
            found[name] = float(np.linalg.norm(moved - there, axis=1).mean())
    determinant = jacobian(way, fixed)
    found["sd_log_jacobian"] = float(np.log(determinant.clip(1e-3, 1e3)).std())
    found["folded_percent"] = float(100 * (determinant <= 0).mean())
    return found


def ours(folder: Path, out: Path, changes: dict[str, Any]) -> tuple[sitk.Transform, dict[str, Any]]:
    """The transform as it is written, and what it says of itself."""
    from monai_nodeo.data import load_pair
    from monai_nodeo.registration import PairInferer, Settings

    began = time.perf_counter()
    pair = load_pair({"fixed": part(folder, "fixed"), "moving": part(folder, "moving")})
    settings = Settings.preset(changes.get("preset"), pair.spatial_dims)
    settings = settings.replace(**{name: value for name, value in changes.items() if name != "preset"})
    (registration,) = PairInferer(settings, handlers=()).register([pair])
    seconds = time.perf_counter() - began
    figures = registration.save(out)
    said = {name: figures[name] for name in ("start", "choice", "accepted") if name in figures}
    return sitk.ReadTransform(str(out / "transform.h5")), {"seconds": seconds, **said}


def peer(python: str, method: str, folder: Path, out: Path) -> tuple[sitk.Transform, dict[str, Any]]:
    """The displacement field of another tool, and its seconds."""
    job = {"fixed": str(part(folder, "fixed")), "moving": str(part(folder, "moving")), "field": str(out / "field.mha")}
    (out / "jobs.json").write_text(json.dumps([job]), encoding="utf-8")
    command = [python, Path(__file__).with_name("peers.py"), f"{method}_whole", out / "jobs.json"]
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | threads)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["failed"])[-1][:200])
    field = sitk.ReadImage(job["field"], sitk.sitkVectorFloat64)
    return sitk.DisplacementFieldTransform(field), {"seconds": json.loads(done.stdout)[0]}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: means of each kind and method."""
    lines = ["| kind | method | pairs | " + " | ".join(FIGURES) + " |", "|---" * (3 + len(FIGURES)) + "|"]
    for kind, method in sorted({(row["kind"], row["method"]) for row in rows}):
        own = [row for row in rows if (row["kind"], row["method"]) == (kind, method)]
        done = [row for row in own if "error" not in row]
        cells = []
        for name in FIGURES:
            values = [row[name] for row in done if name in row]
            cells.append(f"{statistics.fmean(values):.3f}" if values else "")
        refused = f" of {len(own)}" if len(done) < len(own) else ""
        lines.append(f"| {kind} | {method} | {len(done)}{refused} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run, print a line for each pair and the table, write the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?", default=os.environ.get("DOMAINS"), help="or DOMAINS is set")
    parser.add_argument("--methods", default="ours")
    parser.add_argument("--only", default="", help="what the names of the pairs begin with")
    parser.add_argument("--peers", help="Python of the environment that has the other tools")
    parser.add_argument("--set", dest="changes", type=json.loads, default={}, help="settings of ours, as JSON")
    parser.add_argument("--name", default="ours", help="what ours is called in the table")
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    given = parser.parse_args()
    if given.data is None:
        parser.error("give the folder of the pairs, or set DOMAINS.")
    methods = given.methods.split(",")
    if set(methods) & set(PEERS) and not given.peers:
        parser.error("other tools need --peers.")
    folders = [path for path in Path(given.data).iterdir() if path.is_dir() and part(path, "fixed")]
    folders = [path for path in folders if path.name.startswith(tuple(given.only.split(",")))]
    folders.sort(key=lambda path: (sitk.ReadImage(str(part(path, "fixed"))).GetNumberOfPixels(), path.name))
    rows = json.loads(given.json.read_text(encoding="utf-8")) if given.json.exists() else []
    for folder in folders:
        for method in methods:
            row = {"pair": folder.name, "kind": folder.name.split("_")[0]}
            row["method"] = given.name if method == "ours" else method
            with tempfile.TemporaryDirectory() as temporary:
                out = Path(temporary)
                run = (folder, out, given.changes) if method == "ours" else (given.peers, method, folder, out)
                try:
                    way, said = (ours if method == "ours" else peer)(*run)
                    row |= judged(folder, way) | said
                except (ValueError, RuntimeError) as error:  # refused
                    row["error"] = str(error)[:200]
            row = {name: round(x, 4) if isinstance(x, float) else x for name, x in row.items()}
            print(json.dumps(row), flush=True)
            same = [x for x in rows if (x["pair"], x["method"]) == (row["pair"], row["method"])]
            rows = [x for x in rows if x not in same] + [row]
            rows.sort(key=lambda x: (x["pair"], x["method"]))
            given.json.write_text("[\n" + ",\n".join(json.dumps(x) for x in rows) + "\n]\n")
    print(table(rows))


if __name__ == "__main__":
    main()
