# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Peak memory of ``monai-nodeo register``, whole process and files written, beside the model that ``--memory`` uses.

    python benchmarks/memory.py --sizes 192,256

Each preset registers two smooth images without air in a process of its own, with ``--memory``, with which nothing that
was freed is kept, and with few iterations, which take the memory that many take. Bytes per voxel are what a process
holds more than one that registers a very small pair. Ends with status 1 where the model is off by more than 15 %.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter

from monai_nodeo.registration.needed_memory import needed_memory
from monai_nodeo.registration.settings import Settings

PRESETS = {"fast": ["--preset", "fast"], "default": []}
FEW = {"iterations": [2, 2, 2], "dense_iterations": 2}
SMALLEST = 32
ALLOWED = 0.15


def make_pair(folder: Path, side: int) -> None:
    """Two smooth images of a cube that differ a little, 16 bits."""
    rng = np.random.default_rng(0)
    coarse = [gaussian_filter(rng.random((side // 4,) * 3, dtype=np.float32), 1) for _ in range(2)]
    for name, image in {"fixed": coarse[0], "moving": 0.8 * coarse[0] + 0.2 * coarse[1]}.items():
        fine = image.repeat(4, 0).repeat(4, 1).repeat(4, 2) * 4000
        nib.save(nib.Nifti1Image(fine.astype(np.int16), np.eye(4)), folder / f"{name}.nii")


def peak(folder: Path, words: list[str]) -> int:
    """Bytes that a registration holds at most."""
    changes = [word for name, value in FEW.items() for word in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "monai_nodeo", "register", "-f", "fixed.nii", "-m", "moving.nii", "-o", "out"]
    process = subprocess.Popen([*command, "--no-report", "--quiet", "--memory", "1TB", *words, *changes], cwd=folder)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"the registration ended with status {os.waitstatus_to_exitcode(status)}.")
    return used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@click.command()
@click.option("--sizes", default="192,256", help="Sides of the cubes.")
def main(sizes: str) -> None:
    """Measure, print the table."""
    print("| preset | size | peak GB | bytes per voxel | model | off by |\n|---|---|---|---|---|---|")
    worst = 0.0
    for preset, words in PRESETS.items():
        settings = Settings.preset(None if preset == "default" else preset)
        before = 0
        for side in (SMALLEST, *(int(size) for size in sizes.split(","))):
            with tempfile.TemporaryDirectory() as folder:
                make_pair(Path(folder), side)
                if not before:  # kernels are compiled once
                    peak(Path(folder), words)
                found = peak(Path(folder), words)
            if not before:
                before = found
                continue
            each, model = (found - before) / side**3, needed_memory(settings, (side,) * 3) / side**3
            off = model / each - 1
            worst = max(worst, abs(off))
            row = f"| {preset} | {side}^3 | {found / 1e9:.2f} | {each:.0f} | {model:.0f} | {off:+.0%} |"
            print(row, flush=True)
    sys.exit(worst > ALLOWED)


if __name__ == "__main__":
    main()
