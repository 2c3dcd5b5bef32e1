# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Labels of an image from atlases: each is registered to the image, brings its labels along, and they are fused."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from os.path import expanduser
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from monai.utils import look_up_option
from torch import Tensor

from monai_nodeo.apps.atlases.fusion import Fused, Vote, fuse, similarity, similarity_weights, staple, weighted_vote
from monai_nodeo.data.image import Image, as_image
from monai_nodeo.data.lists import ERROR, check_best
from monai_nodeo.data.load import load_label, load_pair
from monai_nodeo.data.pair import Pair, PairError, stored_grid
from monai_nodeo.files import ImageGrid, atomic_path, write_image, write_labels
from monai_nodeo.metrics.labels import label_metrics
from monai_nodeo.registration import PairInferer, PairMap

__all__ = ["FUSIONS", "Propagation", "propagate"]

FUSIONS = ("local", "majority", "staple")
_PROBABILITIES = "probabilities"

logger = logging.getLogger(__name__)

_Loaded = tuple[Pair, MetaTensor]


@dataclass(frozen=True, eq=False)
class _Atlas:
    """A registered atlas."""

    id: str
    map: PairMap
    label: MetaTensor
    warped: Tensor
    similarity: float


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
        (folder / "metrics.json").unlink(missing_ok=True)
        write_labels(folder / "labels.nii.gz", self.fused.labels, self.grid)
        write_image(folder / "probability.nii.gz", self.fused.probability, self.grid)
        write_image(folder / "confidence.nii.gz", self.fused.confidence, self.grid)
        if each:
            (folder / _PROBABILITIES).mkdir(exist_ok=True)
            for value in self.values:
                write_image(folder / _PROBABILITIES / f"{value}.nii.gz", self.vote(value), self.grid)
        with atomic_path(folder / "metrics.json") as partial_file:
            partial_file.write_text(json.dumps(self.figures, indent=2) + "\n", encoding="utf-8")


@torch.no_grad()
def propagate(
    inferer: PairInferer,
    rows: Sequence[Mapping[str, Any]],
    fusion: str = "local",
    best: int | None = None,
    batch: int = 1,
    device: torch.device | str | None = None,
    label: Image | None = None,
) -> Propagation:
    """Label an image by atlases.

    An atlas that cannot be read or registered is logged, and left out.

    Args:
        inferer: registers the atlases.
        rows: as from :py:func:`monai_nodeo.data.lists.atlases_to_one`, paths or images in memory: "fixed", the same in
            all, "moving" and "moving_label".
        fusion: ``"local"``, votes weighted by how alike the images are around a voxel; ``"majority"``, one vote each;
            or ``"staple"``.
        best: how many atlases to take, those most similar after registration; by default all.
        batch: atlases optimised together as far as they are alike.
        device: where to compute; by default a GPU if there is one.
        label: true label map of the image, for figures.

    Raises:
        PairError: when the image cannot be read, or no atlas is left.
        ValueError: for another fusion, or when ``best`` is more than there are.
    """
    look_up_option(fusion, FUSIONS)
    check_best(best, rows)
    started = time.perf_counter()
    dims, smallest = inferer.settings.spatial_dims, inferer.components.velocity.min_size
    fixed = as_image(rows[0]["fixed"], "image", dims, smallest)
    grid = stored_grid(fixed, "image")
    truth = None if label is None else load_label(label, "label", fixed)
    failed: dict[str, str] = {}
    loaded: list[_Loaded] = []
    for row in rows:
        try:
            if ERROR in row:
                raise row[ERROR]
            images = {key: value for key, value in row.items() if key != "moving_label"}
            pair = load_pair({**images, "fixed": fixed}, dims, smallest)
            loaded.append((pair, load_label(row["moving_label"], "label of the atlas", pair.moving.image)))
        except ValueError as error:
            _leave_out(failed, row["id"], error)
    atlases: list[_Atlas] = []
    for first in range(0, len(loaded), batch):
        atlases += _registered(inferer, loaded[first : first + batch], device, failed)
    if not atlases:
        raise PairError(f"no atlas is left; left out: {', '.join(failed)}.")
    least = sorted((atlas.similarity for atlas in atlases), reverse=True)[:best][-1]
    chosen = [atlas for atlas in atlases if atlas.similarity >= least]
    values, vote = _vote(fusion, fixed.as_tensor(), chosen, grid.spacing)
    fused = fuse(values, vote)
    figures = {
        "image": str(rows[0]["fixed"]) if isinstance(rows[0]["fixed"], str | PathLike) else "",
        "fusion": fusion,
        "atlases": [
            *({"id": atlas.id, "similarity": atlas.similarity, "chosen": atlas in chosen} for atlas in atlases),
            *({"id": id, "chosen": False, "reason": reason} for id, reason in failed.items()),
        ],
        "labels": {str(value): _label_figures(fused, value, math.prod(grid.spacing)) for value in values},
        **({} if truth is None else label_metrics(fused.labels, truth, grid.spacing)),
        "settings": inferer.settings.to_dict(),
        "seconds_total": round(time.perf_counter() - started, 3),
    }
    return Propagation(grid, fused, values, vote, figures)


def _leave_out(failed: dict[str, str], id: str, error: Exception) -> None:
    failed[id] = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    logger.error("%s is left out: %s", id, failed[id])


def _registered(
    inferer: PairInferer, atlases: Sequence[_Loaded], device: torch.device | str | None, failed: dict[str, str]
) -> list[_Atlas]:
    """Those that could be registered, in their order."""
    try:
        found = inferer.register([pair for pair, _ in atlases], device)
    except Exception as error:  # whatever is wrong with this atlas, the others have their say
        if len(atlases) > 1:  # whose fault it is shows when each is alone
            return [one for atlas in atlases for one in _registered(inferer, [atlas], device, failed)]
        _leave_out(failed, atlases[0][0].id, error)
        return []
    registered = []
    for registration, (pair, label) in zip(found, atlases, strict=True):
        if not registration.accepted:
            _leave_out(failed, pair.id, PairError("no deformation can be defended: the images may not fit together."))
            continue
        warped = registration.warped.as_tensor().cpu()
        alike = similarity(pair.fixed.image.as_tensor(), warped)
        logger.info("%s: similarity %.3f (1 is best)", pair.id, alike)
        registered.append(_Atlas(pair.id, registration.map, label, warped, alike))
    return registered


def _vote(fusion: str, fixed: Tensor, atlases: Sequence[_Atlas], spacing: Sequence[float]) -> tuple[list[int], Vote]:
    """The labels that there are, without 0, and how probable each is where."""
    if fusion == "staple":
        return staple([atlas.map.warp(atlas.label, "nearest")[0].as_tensor().cpu() for atlas in atlases])
    weights = torch.ones(len(atlases), *[1] * len(spacing))
    if fusion == "local":
        weights = similarity_weights(fixed, [atlas.warped for atlas in atlases], spacing)
    values = sorted({int(value) for atlas in atlases for value in atlas.label.unique()} - {0})
    if not values:
        raise PairError("the label maps of the atlases hold nothing but 0; expected labels.")

    def share(value: int) -> Iterator[Tensor]:
        """As far as the linear interpolation of each map holds the label."""
        for atlas in atlases:
            mask = MetaTensor((atlas.label.as_tensor() == value).float(), affine=atlas.label.affine)
            yield atlas.map.warp(mask)[0].as_tensor().cpu()

    return values, weighted_vote(share, weights)


def _label_figures(fused: Fused, value: int, voxel: float) -> dict[str, float]:
    """Of a label: voxels, volume in mm^3 (of a slice, area in mm^2), mean probability and confidence in it."""
    there = fused.labels == value
    count = int(there.sum())
    means = {
        name: float(getattr(fused, name)[there].mean()) if count else 0.0 for name in ("probability", "confidence")
    }
    return {"voxels": count, "volume": count * voxel, **means}
