# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""What the commands take for small images, beside the time of ``import torch, monai``.

    python benchmarks/startup.py [--rounds 5]

Every command runs once in each round, in a process of its own with one thread, on a pair of slices of 256x256 that is
made here. The table has medians of the seconds and of the CPU seconds, and their ratios to those of the import.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

IMPORT = "import torch, monai"
PROGRAM = ["-m", "monai_nodeo"]
APPLY = [*PROGRAM, "apply", "-i", "moving.nii.gz", "-r", "fixed.nii.gz", "-o", "moved.nii.gz", "-t"]
REGISTER = [*PROGRAM, "register", "-f", "fixed.nii.gz", "-m", "moving.nii.gz", "-o", "out", "--no-report", "--quiet"]
COMMANDS = {
    IMPORT: ["-c", IMPORT],
    "import torch": ["-c", "import torch"],
    "register": REGISTER,
    "info": [*PROGRAM, "info", "out/transform.h5"],
    "invert FILE": [*PROGRAM, "invert", "-t", "out/transform.h5", "-o", "inverse.h5"],
    "invert FOLDER": [*PROGRAM, "invert", "-t", "out", "-o", "inverse.h5"],
    "apply FILE": [*APPLY, "out/transform.h5"],
    "apply FOLDER": [*APPLY, "out"],
    "register --help": [*PROGRAM, "register", "--help"],
}


def make_pair(folder: Path) -> None:
    """Two smooth random slices, one the other one deformed by up to six voxels."""
    rng = np.random.default_rng(0)
    grid = np.mgrid[:256, :256]
    texture = gaussian_filter(rng.normal(size=(256, 256)), 6)
    inside = ((grid - 128) ** 2).sum(0) < 100**2
    fixed = (texture / texture.std() + 2) * inside
    field = gaussian_filter(rng.normal(size=(2, 256, 256)), (0, 20, 20))
    moving = map_coordinates(fixed, grid + field * 6 / np.abs(field).max(), order=1)
    for name, image in {"fixed": fixed, "moving": moving}.items():
        nib.save(nib.Nifti1Image((100 * image).astype(np.int16), np.eye(4)), folder / f"{name}.nii.gz")


def seconds(words: list[str], folder: Path) -> tuple[float, float]:
    """Wall clock and CPU of a process."""
    threads = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *words], cwd=folder, env=os.environ | threads, stdout=subprocess.DEVNULL
    )
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(words)} ended with status {os.waitstatus_to_exitcode(status)}.")
    return time.perf_counter() - began, used.ru_utime + used.ru_stime


def main() -> None:
    """Run the rounds, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        make_pair(Path(folder))
        for words in COMMANDS.values():  # files are read, kernels are compiled once
            seconds(words, Path(folder))
        for _ in range(rounds):
            for name, words in COMMANDS.items():
                found[name].append(seconds(words, Path(folder)))
    medians = {name: [median(x) for x in zip(*runs, strict=True)] for name, runs in found.items()}
    print("| | seconds | of the import | CPU seconds | of the import |\n|---|---|---|---|---|")
    for name, (wall, cpu) in medians.items():
        shares = [x / own for x, own in zip((wall, cpu), medians[IMPORT], strict=True)]
        print(f"| {name} | {wall:.2f} | {shares[0]:.2f} | {cpu:.2f} | {shares[1]:.2f} |")


if __name__ == "__main__":
    main()
