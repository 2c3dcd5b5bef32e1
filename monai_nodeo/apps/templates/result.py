# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""A template, and the folder that it is written to.

=======================================  ==========================================================================
``template.nii.gz``                      the template, in [0, 1]; further channels ``template_2.nii.gz``, ...
``labels.nii.gz``                        the most probable label of each voxel, if there are label maps
``probability.nii.gz``                   how much of the images has it there
``mask.nii.gz``                          where most of the masks count, if there are masks
``convergence.csv``, ``.png``            a row a round
``metrics.json``                         which images were left out and why, settings; written last
``rounds/``                              the registrations; not needed any more when all is done
=======================================  ==========================================================================
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from monai_nodeo.apps.templates.average import Average
from monai_nodeo.files import ImageGrid, atomic_path, write_image, write_labels
from monai_nodeo.report.plots import plot_history

__all__ = ["Template", "write_channels"]


@dataclass(frozen=True, eq=False)
class Template:
    """The mean image of a group.

    Attributes:
        grid: of the template.
        mean: image, mask and labels; the image is sharpened.
        rounds: of each round the figures of ``convergence.csv``.
        failures: id -> why an image is not in the template.
        figures: as ``metrics.json`` has them.
    """

    grid: ImageGrid
    mean: Average
    rounds: Sequence[Mapping[str, Any]]
    failures: Mapping[str, str]
    figures: Mapping[str, Any]

    def save(self, folder: Path) -> None:
        """Write the files; see the top of this module."""
        for name in ("metrics.json", "labels.nii.gz", "probability.nii.gz", "mask.nii.gz"):  # of an earlier run
            (folder / name).unlink(missing_ok=True)
        write_channels(folder, self.mean.image, self.grid)
        labels = self.mean.labels
        if labels is not None:
            write_labels(folder / "labels.nii.gz", labels.labels, self.grid)
            write_image(folder / "probability.nii.gz", labels.probability, self.grid)
        if self.mean.mask is not None:
            write_labels(folder / "mask.nii.gz", self.mean.mask > 0.5, self.grid)
        with (
            atomic_path(folder / "convergence.csv") as partial,
            partial.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, list(self.rounds[0]))
            writer.writeheader()
            writer.writerows(self.rounds)
        curves = {
            name: [row[name] for row in self.rounds] for name in self.rounds[0] if name not in ("round", "images")
        }
        with atomic_path(folder / "convergence.png") as partial:
            plot_history(curves, "round").savefig(partial)
        with atomic_path(folder / "metrics.json") as partial:
            partial.write_text(json.dumps(self.figures, indent=2) + "\n", encoding="utf-8")


def write_channels(folder: Path, image: Tensor, grid: ImageGrid) -> list[str]:
    """Write a file for each channel of a template (C, *spatial), and tell their paths."""
    names = ["template.nii.gz", *(f"template_{number}.nii.gz" for number in range(2, len(image) + 1))]
    for name, channel in zip(names, image, strict=True):
        write_image(folder / name, channel, grid)
    return [str(folder / name) for name in names]
