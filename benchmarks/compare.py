# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Our presets, the published settings and other tools on the same pairs, in one run: ``make bench``.

The pairs are rows of a data list with labels, affinely aligned and on one grid (paths start at the list's folder).
Seconds are from images in memory to the displacement field, the median over the pairs. Every field is judged by the
same code: mean Dice over the labels of the fixed image, nearest neighbour; folded: cells of the grid in which any
forward or backward difference has no positive determinant. Of our flows a second table says how exact they are: error
of the solver and what the inverse leaves, the worst of the pairs, and how long the inverse takes by integration. Both
tables and a JSON with every pair are kept.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import nibabel as nib
import numpy as np
import torch

from monai_nodeo.data import load_pair
from monai_nodeo.files import ImageGrid, read_transform
from monai_nodeo.geometry.folds import folded_cells
from monai_nodeo.geometry.jacobian import jacobian_determinant
from monai_nodeo.geometry.sampling import warp
from monai_nodeo.metrics.fields import sd_log_jacobian
from monai_nodeo.metrics.labels import label_metrics
from monai_nodeo.registration import PairInferer, Registration, Settings
from monai_nodeo.registration.malloc import keep_freed_memory

OURS = {
    "monai_nodeo fast": "fast",
    "monai_nodeo": None,
    "monai_nodeo accurate": "accurate",
    "NODEO, published settings": "paper_lambda2.5",
}
PEERS = {
    "demons (SimpleITK)": "demons",
    "greedy (NCC)": "greedy",
    "ANTs SyN (MI)": "ants_mi",
    "ANTs SyN (CC)": "ants_cc",
    "FireANTs greedy": "fireants_greedy",
    "FireANTs SyN": "fireants_syn",
}


def stored_pairs(datalist: Path, crop: slice, folder: Path) -> list[dict[str, Path]]:
    """The rows as files of their own, a slice as a true 2D image, cropped along the last axis."""
    pairs = []
    for number, row in enumerate(json.loads(datalist.read_text(encoding="utf-8"))):
        pair = {}
        for key in ("fixed", "moving", "fixed_label", "moving_label"):
            image = nib.load(datalist.parent / row[key])
            image = image.slicer[:, :, crop] if crop != slice(None) else image
            voxels = np.asanyarray(image.dataobj).squeeze()
            # a true 2D image lies in the world's x-y plane
            affine = image.affine if voxels.ndim == 3 else np.diag([*image.header.get_zooms()[:2], 1, 1])
            pair[key] = folder / f"{number}_{key}.nii.gz"
            nib.save(nib.Nifti1Image(voxels, affine, dtype=voxels.dtype), pair[key])
        pairs.append(pair)
    return pairs


Found = tuple[np.ndarray, dict[str, float]]  # a field (D, *spatial) in voxels, and figures that it does not tell


def ours(preset: str | None, pairs: list[dict[str, Path]]) -> list[Found]:
    """Fields of a preset, their seconds and how exact their flows are."""
    dims = ImageGrid.from_file(pairs[0]["fixed"]).spatial_dims
    inferer = PairInferer(Settings.preset(preset, dims), handlers=())
    found = []
    with keep_freed_memory():
        for pair in pairs:
            (registration,) = inferer.register([load_pair(pair, dims)])
            found.append((registration.displacement.cpu().numpy(), of_flow(registration)))
    return found


def of_flow(registration: Registration) -> dict[str, float]:
    """Seconds of a registration, and its certificate as plain figures."""
    proof = registration.certificate
    started = time.perf_counter()
    registration.flow.inverse.displacement().cpu()
    return {
        "seconds": registration.seconds,
        "seconds_inverse": time.perf_counter() - started,
        "folded_cells": proof.folded_cells,
        "solver_error_voxels_mean": proof.solver_error.voxels_mean,
        "solver_error_voxels_max": proof.solver_error.voxels_max,
        "inverse_voxels_mean": proof.inverse.voxels_mean,
        "inverse_voxels_quantile": proof.inverse.voxels_quantile,
        "inverse_voxels_max": proof.inverse.voxels_max,
    }


def peer(python: str, method: str, pairs: list[dict[str, Path]], folder: Path) -> list[Found]:
    """Fields and seconds of another tool."""
    jobs = [
        {"fixed": str(pair["fixed"]), "moving": str(pair["moving"]), "field": str(folder / f"{method}_{i}.nii.gz")}
        for i, pair in enumerate(pairs)
    ]
    (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    script = Path(__file__).with_name("peers.py")
    done = subprocess.run([python, script, method, folder / "jobs.json"], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{method} failed:\n{done.stderr[-2000:]}")
    grids = [ImageGrid.from_file(pair["fixed"]) for pair in pairs]
    fields = [
        read_transform(job["field"]).displacement_on(job["field"], grid) for job, grid in zip(jobs, grids, strict=True)
    ]
    return [(field, {"seconds": s}) for field, s in zip(fields, json.loads(done.stdout), strict=True)]


def judged(field: np.ndarray, pair: dict[str, Path]) -> dict[str, Any]:
    """Figures of one field."""
    ddf = torch.from_numpy(np.ascontiguousarray(field, dtype=np.float32))[None]
    images = {key: nib.load(pair[key]) for key in ("fixed_label", "moving_label")}
    fixed, moving = (torch.from_numpy(np.asarray(i.dataobj, dtype=np.float32))[None, None] for i in images.values())
    spacing = [float(side) for side in images["fixed_label"].header.get_zooms()[: ddf.shape[1]]]
    labels = label_metrics(warp(moving, ddf, "nearest", "zeros")[0, 0], fixed[0, 0], spacing)
    return {
        "dice": labels["dice_mean"],
        "hd95_mm": labels["hd95_mm_mean"],
        "folding_percent": 100 * (jacobian_determinant(ddf) <= 0).float().mean().item(),
        "folded_cells_percent": 100 * folded_cells(ddf).float().mean().item(),
        "sd_log_jacobian": sd_log_jacobian(ddf).item(),
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| | Dice | HD95 mm | folding % | folded cells % | SDlogJ | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        mean = {key: statistics.fmean(pair[key] for pair in result["pairs"]) for key in result["pairs"][0]}
        lines.append(
            f"| {name} | {mean['dice']:.4f} | {mean['hd95_mm']:.2f} | {mean['folding_percent']:.4f} "
            f"| {mean['folded_cells_percent']:.4f} | {mean['sd_log_jacobian']:.3f} "
            f"| {statistics.median(pair['seconds'] for pair in result['pairs']):.2f} |"
        )
    return "\n".join(lines)


def table_of_flows(results: dict[str, dict[str, Any]]) -> str:
    """Markdown; rows of other tools are left out."""
    lines = [
        "| | folded cells | solver error, mean | max | inverse, mean | 99.9 % | max | seconds | of the registration |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        if "seconds_inverse" not in result["pairs"][0]:
            continue
        worst = {key: max(pair[key] for pair in result["pairs"]) for key in result["pairs"][0]}
        seconds = statistics.median(pair["seconds_inverse"] for pair in result["pairs"])
        share = statistics.median(pair["seconds_inverse"] / pair["seconds"] for pair in result["pairs"])
        lines.append(
            f"| {name} | {sum(pair['folded_cells'] for pair in result['pairs'])} "
            f"| {worst['solver_error_voxels_mean']:.4f} | {worst['solver_error_voxels_max']:.4f} "
            f"| {worst['inverse_voxels_mean']:.4f} | {worst['inverse_voxels_quantile']:.4f} "
            f"| {worst['inverse_voxels_max']:.4f} | {seconds:.2f} | {share:.0%} |"
        )
    return "\n".join(lines)


@click.command()
@click.argument("datalist", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--peers", "python", help="Python of the environment that has the other tools; none: ours alone.")
@click.option("--crop", type=int, nargs=2, help="First and last plane (exclusive) along the third axis.")
@click.option("--only", multiple=True, help="Names of the table's rows; may be repeated.")
@click.option("--skip", multiple=True, help="Rows to leave out; may be repeated.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="JSON to write; .md beside it.")
def main(
    datalist: Path, python: str | None, crop: tuple[int, int] | None, only: tuple, skip: tuple, output: Path
) -> None:
    """Compare registrations of the pairs in DATALIST; OMP_NUM_THREADS says how many threads each may use."""
    threads = os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = threads
    torch.set_num_threads(int(threads))
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pairs = stored_pairs(datalist, slice(*crop) if crop else slice(None), folder)
        runs: dict[str, Callable[[], list[Found]]] = {
            name: lambda preset=preset: ours(preset, pairs) for name, preset in OURS.items()
        }
        if python:
            runs |= {name: lambda method=method: peer(python, method, pairs, folder) for name, method in PEERS.items()}
        for name, run in runs.items():
            if name in skip or (only and name not in only):
                continue
            results[name] = {"pairs": [judged(f, p) | more for (f, more), p in zip(run(), pairs, strict=True)]}
            print(table({name: results[name]}).splitlines()[-1], file=sys.stderr, flush=True)
    machine = f"{platform.machine()}, {threads} of {os.cpu_count()} cores, torch {torch.__version__}"
    if torch.cuda.is_available():
        machine += f", {torch.cuda.get_device_name()} for monai_nodeo and FireANTs"
    output.write_text(
        json.dumps({"machine": machine, "pairs": len(pairs), "results": results}, indent=1) + "\n", encoding="utf-8"
    )
    shown = f"{len(pairs)} pairs, {machine}.\n\n{table(results)}\n"
    if any(name in OURS for name in results):
        shown += f"\nOur flows, errors in voxels:\n\n{table_of_flows(results)}\n"
    output.with_suffix(".md").write_text(shown, encoding="utf-8")
    print(shown)


if __name__ == "__main__":
    main()
