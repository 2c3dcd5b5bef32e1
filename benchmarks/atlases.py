# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Labels from atlases: ten slices to twenty other subjects, fused in three ways, against the best single atlas.

    python benchmarks/atlases.py DATA [--images 20] [--preset fast]

DATA holds ``oasis2d``, slices with 24 labels. The first ten subjects are the atlases, the next twenty the images; the
weights of the fusion were chosen on ten later subjects with ten later atlases. Mean Dice, and how many voxels of each
confidence are right, kept in ``atlases.json`` beside this file. Processor seconds are of one image with all
atlases, in one thread if OMP_NUM_THREADS and NUMBA_NUM_THREADS are 1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from monai_nodeo import PairInferer, Settings
from monai_nodeo.apps.atlases.fusion import Fused, fuse, similarity_weights, staple, weighted_vote
from monai_nodeo.data import load_pair
from monai_nodeo.metrics.labels import label_metrics

ATLASES = 10
BINS = 5


def judge(fixed: Tensor, truth: Tensor, warped: Sequence[Tensor], labels: Sequence[Tensor], shares: Tensor) -> dict:
    """Dice of each atlas alone and of the fused labels, and how many voxels of each bin of confidence are right.

    Args:
        fixed: (1, *spatial).
        truth: its labels, (*spatial).
        warped: images of the atlases on its grid, (1, *spatial).
        labels: their labels by nearest neighbours, (*spatial).
        shares: (L, K, *spatial), of the L labels from 1 on, by linear interpolation.
    """
    spacing = (1.0,) * truth.ndim
    values = range(1, len(shares) + 1)
    one = torch.ones(len(labels), *[1] * truth.ndim)
    nearest = torch.stack(list(labels))
    fused = {
        "local": fuse(values, weighted_vote(lambda v: shares[v - 1], similarity_weights(fixed, warped, spacing))),
        "majority": fuse(values, weighted_vote(lambda v: (nearest == v).float(), one)),
        "majority, interpolated": fuse(values, weighted_vote(lambda v: shares[v - 1], one)),
        "staple": fuse(*staple(labels)),
    }
    dice = {name: label_metrics(found.labels, truth, spacing)["dice_mean"] for name, found in fused.items()}
    return {
        "single": [label_metrics(label, truth, spacing)["dice_mean"] for label in labels],
        "fused": dice,
        "confidence": _bins(fused["local"], truth),
    }


def _bins(fused: Fused, truth: Tensor) -> list[list[int]]:
    """Voxels inside the head in each bin of confidence, and how many of them are right."""
    inside = (truth > 0) | (fused.labels > 0)
    number = (fused.confidence[inside] * BINS).long().clamp(0, BINS - 1)
    right = (fused.labels == truth)[inside]
    return [[int((number == n).sum()), int(right[number == n].sum())] for n in range(BINS)]


def label_image(data: Path, image: str, atlases: Sequence[str], inferer: PairInferer) -> dict:
    """Register all atlases to an image, and judge them."""
    began = time.process_time()
    keys = {"image": "slice_norm.nii.gz", "label": "slice_seg24.nii.gz"}
    pairs = [
        load_pair(
            {
                "fixed": data / image / keys["image"],
                "moving": data / atlas / keys["image"],
                "fixed_label": data / image / keys["label"],
                "moving_label": data / atlas / keys["label"],
                "id": atlas,
            }
        )
        for atlas in atlases
    ]
    found = inferer.register(pairs)
    fixed, truth = pairs[0].fixed.image.as_tensor(), pairs[0].fixed.label[0].as_tensor()
    maps = [pair.moving.label for pair in pairs]
    count = int(max(label.max() for label in maps))
    shares = [
        [r.warp((label == value).float())[0].as_tensor() for r, label in zip(found, maps, strict=True)]
        for value in range(1, count + 1)
    ]
    row = judge(
        fixed,
        truth,
        [r.warped.as_tensor() for r in found],
        [r.warp(label, "nearest")[0].as_tensor() for r, label in zip(found, maps, strict=True)],
        torch.stack([torch.stack(share) for share in shares]),
    )
    return {"image": image, **row, "cpu_seconds": round(time.process_time() - began, 2)}


def summary(rows: Sequence[dict]) -> dict:
    """Means over the images; the best single atlas is the one with the best mean."""
    single = [statistics.fmean(of_atlas) for of_atlas in zip(*(row["single"] for row in rows), strict=True)]
    bins = [
        [sum(x) for x in zip(*pair, strict=True)] for pair in zip(*(row["confidence"] for row in rows), strict=True)
    ]
    return {
        "images": len(rows),
        "best single atlas": max(single),
        "mean single atlas": statistics.fmean(single),
        **{name: statistics.fmean(row["fused"][name] for row in rows) for name in rows[0]["fused"]},
        "right by confidence": [round(right / max(count, 1), 3) for count, right in bins],
        "voxels by confidence": [count for count, _ in bins],
        "cpu seconds an image": statistics.fmean(row["cpu_seconds"] for row in rows),
    }


def write(rows: Sequence[dict]) -> None:
    """Print the summary and keep all of it."""
    figures = {"summary": summary(rows), "rows": list(rows)}
    Path(__file__).with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    for name, value in figures["summary"].items():
        print(f"{name:<24} {value:.4f}" if isinstance(value, float) else f"{name:<24} {value}")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--preset")
    given = parser.parse_args()
    data = given.data / "oasis2d"
    subjects = sorted(folder.name for folder in data.iterdir())
    inferer = PairInferer(Settings.preset(given.preset, 2), handlers=())
    images = subjects[ATLASES : ATLASES + given.images]
    write([label_image(data, image, subjects[:ATLASES], inferer) for image in images])


if __name__ == "__main__":
    main()
