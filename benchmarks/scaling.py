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
from pathlib import Path
from typing import Any

import click
import torch
from torch.profiler import ProfilerActivity, profile

from monai_nodeo.data import Pair, load_pair
from monai_nodeo.geometry.resizing import resize
from monai_nodeo.registration import PairInferer, Settings
from monai_nodeo.registration.optimisation.fitting import fit
from monai_nodeo.registration.preparation.prepared_pair import prepare

SIZES = (64, 96, 128, 160, 192, 256)
PRESETS = ("fast", "default")
STEPS = (1, 2, 4, 8)
STEPS_ON = [128, 128, 128]
HEAD, CROPPED_HEAD = [160, 192, 224], [160, 192, 144]
SOLVERS = (("scaling_and_squaring", False), ("euler", False), ("euler", True))  # and whether by the adjoint
ITERATIONS = 5  # that are profiled
UNIT = 1 if platform.system() == "Darwin" else 1024  # of ru_maxrss


def pair_of(size: tuple[int, ...]) -> Pair:
    """Two smooth images that differ a little."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 1, 1, *[max(4, n // 8) for n in size], generator=generator)
    fixed, moving = (resize(x, size)[0] for x in (coarse[0], 0.8 * coarse[0] + 0.2 * coarse[1]))
    return load_pair({"fixed": fixed, "moving": moving})


def inferer_of(preset: str | None, **changes: Any) -> PairInferer:
    """The inferer of a preset."""
    return PairInferer(Settings.preset(preset, **changes), handlers=())


def measure(preset: str, size: list[int], **changes: Any) -> dict[str, Any]:
    """Seconds and memory of one registration in this process."""
    pair = pair_of(tuple(size))
    inferer = inferer_of(None if preset == "default" else preset, **changes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT
    (registration,) = inferer.register([pair], "cpu")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT
    return {
        "preset": preset,
        "size": size,
        "solver": inferer.settings.solver,
        "steps": inferer.settings.num_steps,
        "gradient": "adjoint" if inferer.settings.adjoint else "direct",
        "seconds": round(registration.seconds, 2),
        "peak_gb": round(peak / 1e9, 3),
        "bytes_per_voxel": round((peak - before) / registration.displacement[0].numel()),
    }


def iteration_profile(size: tuple[int, ...]) -> str:
    """Where the time of an iteration at full resolution goes."""
    inferer = inferer_of(None, shrink_factors=[1], iterations=[ITERATIONS])
    settings, components = inferer.settings, inferer.components
    prepared = prepare(pair_of(size), settings, components.loss)
    batch = prepared.batch(torch.device("cpu"))
    fit(batch, prepared.spacing, settings.replace(iterations=[2]), components)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        fit(batch, prepared.spacing, settings, components)
    rows = sorted(profiler.key_averages(), key=lambda row: -row.self_cpu_time_total)[:12]
    total = sum(row.self_cpu_time_total for row in profiler.key_averages())
    lines = ["| operation | ms an iteration | share |", "|---|---|---|"]
    lines += [
        f"| {r.key} | {r.self_cpu_time_total / ITERATIONS / 1e3:.0f} | {r.self_cpu_time_total / total:.0%} |"
        for r in rows
    ]
    # What an iteration has to move at least: the images and positions, each read and written once on the way there and
    # once on the way back, in float32.
    least = 2 * 2 * (2 + 3) * 4 * batch.fixed.numel()
    seconds = total / ITERATIONS / 1e6
    lines.append(f"\nAn iteration takes {seconds:.2f} s of CPU time and has to move at least {least / 1e9:.2f} GB.")
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
    shapes = [[int(side)] * 3 for side in sizes.split(",")] + [HEAD]
    wanted: list[dict[str, Any]] = [{"preset": preset, "size": size} for preset in PRESETS for size in shapes]
    wanted += [
        {"preset": "default", "size": STEPS_ON, "solver": solver, "num_steps": steps, "adjoint": adjoint}
        for solver, adjoint in SOLVERS
        for steps in STEPS
    ]
    rows = []
    for settings in wanted:
        command = [sys.executable, __file__, "--one", json.dumps(settings)]
        rows.append(json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout))
        print(rows[-1], file=sys.stderr, flush=True)
    lines = [
        "| preset | size | solver | steps | gradient | seconds | peak GB | bytes per voxel |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        size = "x".join(map(str, row["size"]))
        lines.append(
            f"| {row['preset']} | {size} | {row['solver']} | {row['steps']} | {row['gradient']} | {row['seconds']} "
            f"| {row['peak_gb']} | {row['bytes_per_voxel']} |"
        )
    machine = f"{platform.machine()}, {torch.get_num_threads()} of {os.cpu_count()} cores, torch {torch.__version__}"
    shown = f"{machine}\n\n" + "\n".join(lines) + "\n\n" + iteration_profile(tuple(CROPPED_HEAD)) + "\n"
    print(shown)
    if output:
        output.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n", encoding="utf-8")
        output.with_suffix(".md").write_text(shown, encoding="utf-8")


if __name__ == "__main__":
    main()
