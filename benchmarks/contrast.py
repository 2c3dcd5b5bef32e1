# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Images of different contrast: the moving image inverted and bent, against the same pairs in one contrast.

    python benchmarks/contrast.py pairs.json [--presets multimodal,mutual_information]

The moving image x in [0, 1] becomes (1 - x)^1.7, once everywhere and once within the head, where air stays black. The
pairs are rows of a data list with labels, as for compare.py. Prints mean Dice, kept in contrast.json beside this file.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path

import click
import nibabel as nib
import numpy as np
from compare import judged, ours, stored_pairs

GAMMA = 1.7
BRIGHTEST = 99.5  # percentile that becomes 1


def inverted(pair: dict[str, Path], everywhere: bool, folder: Path) -> dict[str, Path]:
    """The pair with the moving image in another contrast."""
    image = nib.load(pair["moving"])
    values = image.get_fdata(dtype=np.float32)
    other = (1 - (values / np.percentile(values, BRIGHTEST)).clip(0, 1)) ** GAMMA
    if not everywhere:
        other[values <= values.min()] = 0
    path = folder / f"{'all' if everywhere else 'head'}_{pair['moving'].name}"
    nib.save(nib.Nifti1Image(other, image.affine), path)
    return {**pair, "moving": path}


@click.command()
@click.argument("datalist", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--presets", default="multimodal", help="Of the inverted images, separated by commas.")
def main(datalist: Path, presets: str) -> None:
    """Register the pairs of DATALIST in one contrast by default, and in two by presets."""
    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pairs = stored_pairs(datalist, slice(None), folder)
        everywhere, head = ([inverted(pair, all_, folder) for pair in pairs] for all_ in (True, False))
        runs = {"one contrast, default": (None, pairs)}
        for preset in presets.split(","):
            runs |= {f"inverted, {preset}": (preset, everywhere), f"inverted head, {preset}": (preset, head)}
        for name, (preset, which) in runs.items():
            dice = [judged(field, pair)["dice"] for (field, _), pair in zip(ours(preset, which), which, strict=True)]
            found[name] = round(statistics.fmean(dice), 4)
            print(f"{name:36} {found[name]:.4f}", flush=True)
    Path(__file__).with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
