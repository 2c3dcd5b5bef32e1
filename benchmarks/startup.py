# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""What the commands take for small images, beside the time of ``import torch, monai``.

    python benchmarks/startup.py [--rounds 5]

Every command runs once in each round, in a process of its own with one thread, on a pair of slices of 256x256 that is
made here; some are served, too, by `monai-nodeo serve`. The table has medians of the seconds and of the CPU seconds,
and of their ratios to those of the import in the same round. The CPU seconds of a served command are those of
who asked alone. The last line is what a pair of a list takes, after the first, beside its optimisation.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
SERVED = ("register", "info", "invert FILE", "invert FOLDER", "apply FILE", "apply FOLDER")
COHORT = [*PROGRAM, "cohort", "pairs.json", "--no-report", "--quiet", "-o"]
PAIRS = 6


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


def seconds(words: list[str], folder: Path, environment: dict[str, str]) -> tuple[float, float]:
    """Wall clock and CPU of a process."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, *words], cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(words)} ended with status {os.waitstatus_to_exitcode(status)}.")
    return time.perf_counter() - began, used.ru_utime + used.ru_stime


@contextmanager
def serving(folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """Beside a server."""
    words = [sys.executable, *PROGRAM, "serve"]
    with subprocess.Popen(words, cwd=folder, env=environment, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        server.stdout.readline()
        try:
            yield
        finally:
            server.terminate()


def beside_optimisation(folder: Path, environment: dict[str, str]) -> float:
    """Seconds of a pair of a list, after the first, beside its optimisation."""
    pairs = [{"fixed": "fixed.nii.gz", "moving": "moving.nii.gz", "id": f"pair{i}"} for i in range(PAIRS)]
    (folder / "pairs.json").write_text(json.dumps(pairs), encoding="utf-8")
    seconds([*COHORT, "cohort"], folder, environment)
    written = sorted(path.stat().st_mtime for path in folder.glob("cohort/pair*/metrics.json"))
    figures = [json.loads(path.read_bytes()) for path in folder.glob("cohort/pair*/metrics.json")]
    return (written[-1] - written[0]) / (PAIRS - 1) - median(x["seconds_optimisation"] for x in figures)


def main() -> None:
    """Run the rounds, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_pair(folder)
        served = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "XDG_RUNTIME_DIR": name}
        alone = served | {"MONAI_NODEO_SERVER": "off"}
        with serving(folder, served):
            runs = {name: (words, alone) for name, words in COMMANDS.items()}
            runs |= {f"{name}, served": (COMMANDS[name], served) for name in SERVED}
            for words, environment in runs.values():  # files are read, kernels are compiled once
                seconds(words, folder, environment)
            found = [{name: seconds(words, folder, env) for name, (words, env) in runs.items()} for _ in range(rounds)]
        beside = beside_optimisation(folder, alone)
    print("| | seconds | of the import | CPU seconds | of the import |\n|---|---|---|---|---|")
    for name in runs:
        cells = []
        for kind in (0, 1):
            cells.append(median(times[name][kind] for times in found))
            cells.append(median(times[name][kind] / times[IMPORT][kind] for times in found))
        print(f"| {name} | {' | '.join(f'{x:.2f}' for x in cells)} |")
    share = beside / median(times[IMPORT][0] for times in found)
    print(f"A pair of a list after the first: {beside:.2f} seconds beside its optimisation, {share:.2f} of the import.")


if __name__ == "__main__":
    main()
