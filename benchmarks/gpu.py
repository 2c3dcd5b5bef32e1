# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Our presets on a GPU: ``python benchmarks/gpu.py pairs.json``, with what CUDA graphs and Triton kernels bring.

The first pair of a data list with labels, from images on the device to the displacement field there. Times are between
CUDA events, the median of five after a first run, which is told apart: it builds what is built once. ``gpu_2d.json``
and ``gpu_3d.json`` beside this file are of the OASIS pairs (the latter without the published settings).
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import nibabel as nib
import numpy as np
import torch
from compare import OURS, stored_pairs
from monai.bundle import ConfigParser
from monai.metrics import compute_dice

from monai_nodeo.data.pair import INPUT_KEYS
from monai_nodeo.files import ImageGrid
from monai_nodeo.geometry import windows
from monai_nodeo.geometry.sampling import warp
from monai_nodeo.losses import local_correlation, regularity
from monai_nodeo.metrics.fields import folded_cell_count
from monai_nodeo.registration.inferer import PAIR_EXTRAS, prepare_pair
from monai_nodeo.resources import config_files

REPEATS = 5


@contextmanager
def plain_operations() -> Iterator[None]:
    """No Triton kernels."""
    modules = (windows, local_correlation, regularity)
    used = [module.kernels_for for module in modules]
    for module in modules:
        module.kernels_for = lambda *_: None
    try:
        yield
    finally:
        for module, kernels_for in zip(modules, used, strict=True):
            module.kernels_for = kernels_for


def parsed(preset: str | None, dims: int) -> ConfigParser:
    """The bundle's config with a preset."""
    parser = ConfigParser()
    parser.read_config([str(file) for file in config_files(dims, preset)])
    parser["quiet"] = True
    return parser


def milliseconds(run: Any) -> list[float]:
    """Times of several runs."""
    times = []
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return times


def mean_dice(ddf: torch.Tensor, fixed: torch.Tensor, moving: torch.Tensor) -> float:
    """Over the labels of the fixed image."""
    warped = warp(moving, ddf, "nearest", "zeros")
    labels = [label for label in fixed.unique() if label]
    masks = (torch.cat([image == label for label in labels], 1) for image in (warped, fixed))
    return compute_dice(*masks).nanmean().item()


def measured(preset: str | None, batch: dict[str, Any], dims: int, labels: list[torch.Tensor]) -> dict[str, Any]:
    """Figures of a preset."""
    inputs = {key: batch[key][None] for key in (*INPUT_KEYS, *PAIR_EXTRAS) if key in batch}
    fixed, _, moving, more = prepare_pair(inputs, torch.device("cuda"))
    inferer, network = (parsed(preset, dims).get_parsed_content(id) for id in ("inferer", "network_def"))
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()

    def run() -> torch.Tensor:
        return inferer(fixed, network, *moving, **more)

    started = time.perf_counter()
    ddf = run()
    torch.cuda.synchronize()
    first = time.perf_counter() - started
    times = milliseconds(run)
    figures = {
        "dice": mean_dice(ddf, *labels),
        "folded_cells": int(folded_cell_count(ddf).sum()),
        "seconds": [ms / 1e3 for ms in times],
        "first_seconds": first,
        "peak_gb": (torch.cuda.max_memory_allocated() - before) / 1e9,
        "reserved_gb": torch.cuda.max_memory_reserved() / 1e9,
    }
    with plain_operations():
        run()
        figures["seconds_without_kernels"] = [ms / 1e3 for ms in milliseconds(run)]
        inferer.cuda_graph = False
        run()
        figures["seconds_without_kernels_and_graphs"] = [ms / 1e3 for ms in milliseconds(run)]
    return figures


@click.command()
@click.argument("datalist", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--crop", type=int, nargs=2, help="First and last plane (exclusive) along the third axis.")
@click.option("-o", "--output", default=Path(__file__).with_suffix(".json"), type=click.Path(path_type=Path))
def main(datalist: Path, crop: tuple[int, int] | None, output: Path) -> None:
    """Measure the presets on the first pair of DATALIST."""
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        pair = stored_pairs(datalist, slice(*crop) if crop else slice(None), Path(temporary))[0]
        dims = ImageGrid.from_file(pair["fixed"]).spatial_dims
        images = [np.asarray(nib.load(pair[key]).dataobj, dtype=np.float32) for key in ("fixed_label", "moving_label")]
        labels = [torch.from_numpy(image)[None, None].cuda() for image in images]
        batch = parsed(None, dims).get_parsed_content("preprocessing")({key: str(path) for key, path in pair.items()})
        for name, preset in OURS.items():
            results[name] = measured(preset, batch, dims, labels)
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
    size = "x".join(map(str, images[0].shape))
    shown = f"{size} voxels, {machine}.\n\n" + "\n".join(lines) + "\n"
    output.write_text(
        json.dumps({"machine": machine, "size": size, "results": results}, indent=1) + "\n", encoding="utf-8"
    )
    output.with_suffix(".md").write_text(shown, encoding="utf-8")
    print(shown)


if __name__ == "__main__":
    main()
