# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Our presets on a GPU: ``python benchmarks/gpu.py pairs.json``, with what CUDA graphs and Triton kernels bring.

The first pair of a data list with labels, from images on the device to the displacement field there: the median of five
runs after a first one, which is told apart: it builds what is built once. ``gpu_2d.json``
and ``gpu_3d.json`` beside this file are of the OASIS pairs (the latter without the published settings).
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import torch
from compare import OURS, stored_pairs
from monai.metrics import compute_dice

from monai_nodeo.data import Pair, load_pair
from monai_nodeo.geometry import _kernels as kernels
from monai_nodeo.geometry.sampling import warp
from monai_nodeo.registration import PairInferer, Settings

DEVICE = "cuda"
REPEATS = 5


@contextmanager
def plain_operations() -> Iterator[None]:
    """No Triton kernels."""
    usable = kernels._usable
    kernels._usable = lambda *_: False
    kernels._kernels.cache_clear()
    try:
        yield
    finally:
        kernels._usable = usable
        kernels._kernels.cache_clear()


def seconds(inferer: PairInferer, pair: Pair) -> list[float]:
    """Times of several runs after one that is not counted; each ends when the displacement is known to be finite."""
    return [inferer.register([pair], DEVICE)[0].seconds for _ in range(REPEATS + 1)][1:]


def mean_dice(ddf: torch.Tensor, fixed: torch.Tensor, moving: torch.Tensor) -> float:
    """Over the labels of the fixed image."""
    warped = warp(moving, ddf, "nearest", "zeros")
    labels = [label for label in fixed.unique() if label]
    masks = (torch.cat([image == label for label in labels], 1) for image in (warped, fixed))
    return compute_dice(*masks).nanmean().item()


def measured(preset: str | None, pair: Pair, labels: list[torch.Tensor]) -> dict[str, Any]:
    """Figures of a preset."""
    settings = Settings.preset(preset, pair.spatial_dims)
    inferer = PairInferer(settings, handlers=())
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    (first,) = inferer.register([pair], DEVICE)
    figures = {
        "dice": mean_dice(first.displacement[None], *labels),
        "folded_cells": first.certificate.folded_cells,
        "first_seconds": first.seconds,
        "seconds": seconds(inferer, pair),
        "peak_gb": (torch.cuda.max_memory_allocated() - before) / 1e9,
        "reserved_gb": torch.cuda.max_memory_reserved() / 1e9,
    }
    with plain_operations():
        figures["seconds_without_kernels"] = seconds(inferer, pair)
        without_graphs = PairInferer(settings.replace(cuda_graph=False), handlers=())
        figures["seconds_without_kernels_and_graphs"] = seconds(without_graphs, pair)
    return figures


@click.command()
@click.argument("datalist", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--crop", type=int, nargs=2, help="First and last plane (exclusive) along the third axis.")
@click.option("-o", "--output", default=Path(__file__).with_suffix(".json"), type=click.Path(path_type=Path))
def main(datalist: Path, crop: tuple[int, int] | None, output: Path) -> None:
    """Measure the presets on the first pair of DATALIST."""
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        pair = load_pair(stored_pairs(datalist, slice(*crop) if crop else slice(None), Path(temporary))[0])
        labels = [scan.label.as_tensor()[None].to(DEVICE) for scan in (pair.fixed, pair.moving)]
        for name, preset in OURS.items():
            results[name] = measured(preset, pair, labels)
            print(name, results[name], file=sys.stderr, flush=True)
    machine = f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    lines = [
        "| | Dice | folded cells | seconds | first run | plain operations | and no graphs | peak GB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, figures in results.items():
        keys = ("seconds", "seconds_without_kernels", "seconds_without_kernels_and_graphs")
        warm, plain, neither = (f"{statistics.median(figures[key]):.2f}" for key in keys)
        lines.append(
            f"| {name} | {figures['dice']:.4f} | {figures['folded_cells']} | {warm} | {figures['first_seconds']:.2f} "
            f"| {plain} | {neither} | {figures['peak_gb']:.2f} |"
        )
    size = "x".join(map(str, pair.fixed.image.shape[1:]))
    shown = f"{size} voxels, {machine}.\n\n" + "\n".join(lines) + "\n"
    output.write_text(
        json.dumps({"machine": machine, "size": size, "results": results}, indent=1) + "\n", encoding="utf-8"
    )
    output.with_suffix(".md").write_text(shown, encoding="utf-8")
    print(shown)


if __name__ == "__main__":
    main()
