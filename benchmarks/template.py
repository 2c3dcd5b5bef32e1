# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""A template of slices beside that of antspyx' ``build_template``, one after the other.

    python benchmarks/template.py DATA --peers .venv-peers/bin/python [--images 20] [--first 0] [--preset fast]

DATA holds ``oasis2d``, slices with 24 labels. Both sides may use two cores and see the images alone; theirs has its
defaults. Kept in ``template.json`` beside this file:

- ``seconds``, ``cpu_seconds``: from the images to the template, without imports, of the clock and of the processor,
  which does not mind other work on the machine;
- ``sharpness``: mean length of the gradient per mm inside the head, intensities in [0, 1] from their percentile .5 to
  99.5; of ours also without sharpening;
- ``dice``: of the labels of all pairs of images on the template, nearest neighbours, after each image was registered to
  it with the defaults of either side.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CORES = 2


@contextmanager
def measured(job: dict[str, Any]) -> Iterator[None]:
    """Write the seconds of a block, of the clock and of the processor."""
    began, spent = time.perf_counter(), time.process_time()
    yield
    figures = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - spent}
    Path(job["figures"]).write_text(json.dumps({k: round(v, 1) for k, v in figures.items()}), encoding="utf-8")


def ants_build(job: dict[str, Any]) -> None:
    """Build a template, in the environment of the peers."""
    import ants

    images = [ants.image_read(path) for path in job["images"]]
    with measured(job):
        template = ants.build_template(image_list=images)
    template.to_file(job["template"])


def our_build(job: dict[str, Any]) -> None:
    """The same by this package, from files to files."""
    from monai_nodeo import Settings
    from monai_nodeo.apps import build_template
    from monai_nodeo.data.lists import group

    with measured(job):
        build_template(group(job["images"]), job["output"], Settings.preset(job["preset"], 2), batch=10, device="cpu")


def ants_warp(job: dict[str, Any]) -> None:
    """Register images to a template, and write their labels on it."""
    import ants

    fixed = ants.image_read(job["template"])
    for image, label, warped in zip(job["images"], job["labels"], job["warped"], strict=True):
        found = ants.registration(fixed, ants.image_read(image), type_of_transform="SyN")
        moved = ants.apply_transforms(
            fixed, ants.image_read(label), found["fwdtransforms"], interpolator="nearestNeighbor"
        )
        np.save(warped, moved.numpy())


def our_warp(job: dict[str, Any]) -> None:
    """The same by this package."""
    from monai_nodeo import PairInferer, Settings
    from monai_nodeo.data import load_pair

    inferer = PairInferer(Settings.preset(None, 2), handlers=())
    for image, label, warped in zip(job["images"], job["labels"], job["warped"], strict=True):
        (found,) = inferer.register([load_pair({"fixed": job["template"], "moving": image})], "cpu")
        np.save(warped, found.warp(label, "nearest")[0].numpy())


def asked(python: str, step: str, folder: Path, **job: Any) -> dict[str, Any]:
    """Run a step of this script by a Python of some environment; what it measured."""
    file, figures = folder / f"{step}.json", folder / f"{step}_figures.json"
    file.write_text(json.dumps({**job, "figures": str(figures)}), encoding="utf-8")
    environment = os.environ | {"ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": str(CORES)}
    words = [python, __file__, "--step", step, str(file)]
    subprocess.run(words, env=environment, check=True, stdout=subprocess.DEVNULL)
    found: dict[str, Any] = json.loads(figures.read_text(encoding="utf-8")) if figures.is_file() else {}
    print(step, found, flush=True)
    return found


def pair_dice(maps: Sequence[NDArray]) -> float:
    """Mean over all pairs of label maps of the mean Dice of the labels that either has."""
    values = range(1, int(max(label.max() for label in maps)) + 1)
    counts = np.array([[np.count_nonzero(label == v) for v in values] for label in maps])
    means = []
    for i, j in combinations(range(len(maps)), 2):
        both = np.bincount(maps[i][maps[i] == maps[j]].astype(int).ravel(), minlength=len(values) + 1)[1:]
        total = counts[i] + counts[j]
        means.append(np.mean(2 * both[total > 0] / total[total > 0]))
    return float(np.mean(means))


def sharpness_of(path: Path) -> float:
    """See `monai_nodeo.apps.templates.average.sharpness`."""
    from monai_nodeo.apps.templates.average import sharpness
    from monai_nodeo.data import as_image
    from monai_nodeo.data.intensity import to_unit_range
    from monai_nodeo.files import ImageGrid

    return sharpness(to_unit_range(as_image(path)).as_tensor()[0], ImageGrid.from_file(path))


def flat(source: Path, target: Path) -> str:
    """A slice as a true 2D image, which both sides read alike."""
    import nibabel as nib

    stored = nib.Nifti1Image.from_filename(source)
    nib.save(nib.Nifti1Image(np.asarray(stored.dataobj).squeeze().astype(np.float32), np.eye(4)), target)
    return str(target)


def compare(data: Path, peers: str, first: int, count: int, preset: str, folder: Path) -> dict[str, Any]:
    """Both templates, and their figures."""
    subjects = sorted(path for path in (data / "oasis2d").iterdir())[first : first + count]
    names = {"images": "slice_norm.nii.gz", "labels": "slice_seg24.nii.gz"}
    files = {
        key: [flat(subject / name, folder / f"{key}_{subject.name}.nii.gz") for subject in subjects]
        for key, name in names.items()
    }
    ours = asked(
        sys.executable, "our_build", folder, output=str(folder / "ours"), preset=preset, images=files["images"]
    )
    ants = asked(peers, "ants_build", folder, template=str(folder / "ants.nii.gz"), images=files["images"])
    rounds = (folder / "ours" / "convergence.csv").read_text(encoding="utf-8").splitlines()
    ours["sharpness without sharpening"] = float(rounds[-1].split(",")[-1])
    for row, template in ((ours, folder / "ours" / "template.nii.gz"), (ants, folder / "ants.nii.gz")):
        row["sharpness"] = sharpness_of(template)
        for python, step in ((sys.executable, "our_warp"), (peers, "ants_warp")):
            warped = [str(folder / f"{step}_{n}.npy") for n in range(count)]
            asked(python, step, folder, template=str(template), warped=warped, **files)
            row[f"dice by {step.partition('_')[0]}"] = pair_dice([np.load(path) for path in warped])
            print(template.name, row, flush=True)
    return {"images": count, "first": first, "preset": preset, "ours": ours, "ants": ants, "convergence": rounds}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--peers", default=sys.executable)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        steps = {step.__name__: step for step in (ants_build, our_build, ants_warp, our_warp)}
        steps[given.step[0]](json.loads(Path(given.step[1]).read_text(encoding="utf-8")))
        return
    with tempfile.TemporaryDirectory() as folder:
        figures = compare(given.data, given.peers, given.first, given.images, given.preset, Path(folder))
    text = json.dumps(figures, indent=1)
    Path(__file__).with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
