# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Labels that atlases gave, and their files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from os import PathLike
from os.path import expanduser
from pathlib import Path
from typing import Any

from monai_nodeo.apps.atlases.fusion import Fused, Vote
from monai_nodeo.files import ImageGrid, atomic_path, write_image, write_labels

__all__ = ["Propagation"]

_PROBABILITIES = "probabilities"


@dataclass(frozen=True, eq=False)
class Propagation:
    """What atlases say of an image.

    Attributes:
        grid: of the image.
        fused: labels, probability and confidence, each (*spatial).
        values: labels that there are, without 0.
        vote: label -> its probability, (*spatial).
        figures: as ``metrics.json`` has them.
    """

    grid: ImageGrid
    fused: Fused
    values: list[int]
    vote: Vote
    figures: dict[str, Any]

    @property
    def failures(self) -> list[dict[str, str]]:
        """The "id" and the "reason" of each atlas that was left out because something is wrong with it."""
        return [atlas for atlas in self.figures["atlases"] if "reason" in atlas]

    def save(self, path: str | PathLike[str], each: bool = False) -> None:
        """Write ``labels.nii.gz``, ``probability.nii.gz``, ``confidence.nii.gz`` and, last, ``metrics.json``.

        Args:
            path: folder, made if it does not exist.
            each: write the probability of each label too, ``probabilities/LABEL.nii.gz``.
        """
        folder = Path(expanduser(path)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        for file in (folder / "metrics.json", *folder.glob(f"{_PROBABILITIES}/*.nii.gz")):  # of an earlier run
            file.unlink(missing_ok=True)
        write_labels(folder / "labels.nii.gz", self.fused.labels, self.grid)
        write_image(folder / "probability.nii.gz", self.fused.probability, self.grid)
        write_image(folder / "confidence.nii.gz", self.fused.confidence, self.grid)
        if each:
            (folder / _PROBABILITIES).mkdir(exist_ok=True)
            for value in self.values:
                write_image(folder / _PROBABILITIES / f"{value}.nii.gz", self.vote(value), self.grid)
        with atomic_path(folder / "metrics.json") as partial_file:
            partial_file.write_text(json.dumps(self.figures, indent=2) + "\n", encoding="utf-8")
