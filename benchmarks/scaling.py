# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Time and memory against the size of the images, and one iteration's profile: ``make bench-scaling``.

Each size runs in a process of its own, on noise that was blurred: what is in the images does not change the work. Bytes
per voxel are the growth of the process over its size before the registration.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import torch
from monai.bundle import ConfigParser
from torch.profiler import ProfilerActivity, profile

from monai_nodeo.geometry.resizing import resize
from monai_nodeo.resources import config_files

SIZES = (64, 96, 128, 160, 192, 256)
PRESETS = ("fast", "default")
STEPS = (1, 2, 4, 8)
STEPS_ON = [128, 128, 128]
UNIT = 1 if platform.system() == "Darwin" else 1024  # of ru_maxrss


def pair_of(size: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Two smooth images (1, 1, *size) that differ a little."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 1, 1, *[max(4, n // 8) for n in size], generator=generator)
    return resize(coarse[0], size), resize(0.8 * coarse[0] + 0.2 * coarse[1], size)


def inferer_of(preset: str | None, **settings: Any) -> tuple[Any, Any]:
    """The inferer and the network of a preset."""
    parser = ConfigParser()
    parser.read_config([str(file) for file in config_files(3, preset)])
    parser["quiet"] = True
    for id, value in settings.items():
        parser[id] = value
    return parser.get_parsed_content("inferer"), parser.get_parsed_content("network_def")


def measure(preset: str, size: list[int], **settings: Any) -> dict[str, Any]:
    """Seconds and memory of one registration in this process."""
    fixed, moving = pair_of(tuple(size))
    inferer, network = inferer_of(None if preset == "default" else preset, **settings)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT
    started = time.perf_counter()
    inferer(fixed, network, moving)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT
    return {
        "preset": preset,
        "size": size,
        "steps": inferer.solver.num_steps,
        "gradient": "adjoint" if inferer.solver.adjoint else "direct",
        "seconds": round(seconds, 2),
        "peak_gb": round(peak / 1e9, 3),
        "bytes_per_voxel": round((peak - before) / fixed.numel()),
    }


def iteration_profile(size: tuple[int, ...]) -> str:
    """Where the time of an iteration at full resolution goes."""
    fixed, moving = pair_of(size)
    settings = {"shrink_factors": [1], "unfold": False}
    inferer, network = inferer_of(None, iterations=[2], **settings)
    inferer(fixed, network, moving)
    inferer, network = inferer_of(None, iterations=[5], **settings)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        inferer(fixed, network, moving)
    rows = sorted(profiler.key_averages(), key=lambda row: -row.self_cpu_time_total)[:12]
    total = sum(row.self_cpu_time_total for row in profiler.key_averages())
    lines = ["| operation | ms an iteration | share |", "|---|---|---|"]
    lines += [f"| {r.key} | {r.self_cpu_time_total / 5e3:.0f} | {r.self_cpu_time_total / total:.0%} |" for r in rows]
    # What an iteration has to move at least: the images and positions, each read and written once on the way there and
    # once on the way back, in float32.
    voxels = fixed.numel()
    least = 2 * 2 * (2 + 3) * 4 * voxels
    lines.append(f"\nAn iteration takes {total / 5e6:.2f} s of CPU time and has to move at least {least / 1e9:.2f} GB.")
    return "\n".join(lines)


@click.command()
@click.option("--one", hidden=True, help="What a single measurement is of, as JSON.")
@click.option("--sizes", default=",".join(map(str, SIZES)), help="Sides of the cubes.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="JSON to write; .md beside it.")
def main(one: str | None, sizes: str, output: Path | None) -> None:
    """Measure cubes of several sizes, numbers of solver steps, and profile an iteration on 160 x 192 x 144 voxels."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    if one:
        print(json.dumps(measure(**json.loads(one))))
        return
    shapes = [[int(side)] * 3 for side in sizes.split(",")] + [[160, 192, 224]]
    wanted: list[dict[str, Any]] = [{"preset": preset, "size": size} for preset in PRESETS for size in shapes]
    wanted += [
        {"preset": "default", "size": STEPS_ON, "solver::num_steps": steps, "solver::adjoint": adjoint}
        for adjoint in (False, True)
        for steps in STEPS
    ]
    rows = []
    for settings in wanted:
        command = [sys.executable, __file__, "--one", json.dumps(settings)]
        rows.append(json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout))
        print(rows[-1], file=sys.stderr, flush=True)
    lines = [
        "| preset | size | steps | gradient | seconds | peak GB | bytes per voxel |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        size = "x".join(map(str, row["size"]))
        lines.append(
            f"| {row['preset']} | {size} | {row['steps']} | {row['gradient']} | {row['seconds']} | {row['peak_gb']} "
            f"| {row['bytes_per_voxel']} |"
        )
    machine = f"{platform.machine()}, {torch.get_num_threads()} of {os.cpu_count()} cores, torch {torch.__version__}"
    shown = f"{machine}\n\n" + "\n".join(lines) + "\n\n" + iteration_profile((160, 192, 144)) + "\n"
    print(shown)
    if output:
        output.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n", encoding="utf-8")
        output.with_suffix(".md").write_text(shown, encoding="utf-8")


if __name__ == "__main__":
    main()
