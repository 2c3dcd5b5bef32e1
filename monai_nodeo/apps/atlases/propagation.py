# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Labels of an image from atlases: each is registered to the image, brings its labels along, and they are fused."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from monai.utils import look_up_option
from torch import Tensor

from monai_nodeo.apps.atlases.fusion import Fused, Vote, fuse, similarity, similarity_weights, staple, weighted_vote
from monai_nodeo.apps.atlases.kept import Displacements
from monai_nodeo.apps.atlases.result import Propagation
from monai_nodeo.apps.cohort.flows import Registrar
from monai_nodeo.apps.cohort.run import Engine, InThisProcess
from monai_nodeo.apps.cohort.storage import usable_folder
from monai_nodeo.data.image import Image, as_image
from monai_nodeo.data.lists import ERROR, absolute, check_best
from monai_nodeo.data.load import load_label, load_pair
from monai_nodeo.data.pair import Pair, PairError, stored_grid
from monai_nodeo.metrics.labels import label_metrics
from monai_nodeo.registration import PairInferer, PairMap, Settings
from monai_nodeo.registration.machine import usable_device
from monai_nodeo.registration.refusal import UNDEFENDED

__all__ = ["FUSIONS", "propagate", "propagate_files"]

FUSIONS = ("local", "majority", "staple")
_LABEL = "moving_label"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class _Atlas:
    """An atlas, read whenever it is needed, so that no more than one is held beside a registration.

    Attributes:
        row: names it, and the "fixed" image, which was read.
        spatial_dims: 2 or 3.
        min_size: fewest voxels along an axis.
    """

    row: Mapping[str, Any]
    spatial_dims: int
    min_size: int

    def pair(self) -> Pair:
        """The fixed image and that of the atlas."""
        images = {key: value for key, value in self.row.items() if key != _LABEL}
        return load_pair(images, self.spatial_dims, self.min_size)

    def label(self, image: MetaTensor) -> MetaTensor:
        """The label map of its image."""
        return load_label(self.row[_LABEL], "label of the atlas", image)


@dataclass(frozen=True, eq=False)
class _Registered:
    """A registered atlas."""

    id: str
    map: PairMap
    label: MetaTensor
    warped: Tensor
    similarity: float


# For each atlas the way to it; or why there is none, which was told.
_Register = Callable[[Sequence[_Atlas]], Iterable[PairMap | str]]


def propagate(
    inferer: PairInferer,
    rows: Sequence[Mapping[str, Any]],
    fusion: str = "local",
    best: int | None = None,
    device: torch.device | str | None = None,
    label: Image | None = None,
) -> Propagation:
    """Label an image by atlases, registered one after the other in this process.

    An atlas that cannot be read or registered is logged, and left out.

    Args:
        inferer: registers the atlases.
        rows: as from :py:func:`monai_nodeo.data.lists.atlases_to_one`, paths or images in memory: "fixed", the same in
            all, "moving" and "moving_label".
        fusion: ``"local"``, votes weighted by how alike the images are around a voxel; ``"majority"``, one vote each;
            or ``"staple"``.
        best: how many atlases to take, those most similar after registration; by default all.
        device: where to compute; by default a GPU if there is one.
        label: true label map of the image, for figures.

    Raises:
        PairError: when the image cannot be read, or no atlas is left.
        ValueError: for another fusion, or when ``best`` is more than there are.
    """

    def register(atlases: Sequence[_Atlas]) -> Iterator[PairMap | str]:
        for atlas in atlases:
            try:
                (found,) = inferer.register([atlas.pair()], device)
            except Exception as error:  # whatever is wrong with this atlas, the others have their say
                yield _left_out(atlas.row, error)
            else:
                yield found.map if found.accepted else _left_out(atlas.row, PairError(UNDEFENDED))

    return _propagate(register, inferer, rows, fusion, best, label)


def propagate_files(
    rows: Sequence[Mapping[str, Any]],
    folder: str | PathLike[str],
    settings: Settings,
    fusion: str = "local",
    best: int | None = None,
    engine: Engine | None = None,
    batch: int = 1,
    device: str | None = None,
    label: Image | None = None,
) -> Propagation:
    """Label an image by atlases, as :py:func:`propagate` does, with registrations on an engine that are kept.

    Args:
        rows: see :py:func:`propagate`; paths alone.
        folder: of the registrations; those of an earlier call with these files and settings are taken.
        settings: of the registrations.
        fusion: see :py:func:`propagate`.
        best: see :py:func:`propagate`.
        engine: of the registrations; by default this process.
        batch: atlases optimised together as far as they are alike.
        device: see :py:func:`propagate`.
        label: see :py:func:`propagate`.

    Raises:
        PairError: see :py:func:`propagate`.
        StorageError: when the registrations cannot be written.
        ValueError: see :py:func:`propagate`.
    """
    place = usable_folder(Path(folder))
    displacements = Displacements(place)

    def register(atlases: Sequence[_Atlas]) -> Iterator[PairMap | str]:
        wanted = {atlas.row["id"] for atlas in atlases}
        pairs = absolute([{k: v for k, v in row.items() if k != _LABEL} for row in rows if row["id"] in wanted])
        flows = Registrar(engine or InThisProcess(), batch, device)(place, pairs, settings, derivatives=displacements)
        where = _device_here(device)
        for id in (pair["id"] for pair in pairs):
            if id in flows.failures:
                yield flows.failures[id]
            else:
                found = flows.found[id]
                yield PairMap.of(found.flow, found.start, displacements.read(id).to(where))

    return _propagate(register, PairInferer(settings, handlers=()), rows, fusion, best, label)


@torch.no_grad()
def _propagate(
    register: _Register,
    inferer: PairInferer,
    rows: Sequence[Mapping[str, Any]],
    fusion: str,
    best: int | None,
    label: Image | None,
) -> Propagation:
    """See `propagate`."""
    look_up_option(fusion, FUSIONS)
    check_best(best, rows)
    started = time.perf_counter()
    dims, smallest = inferer.settings.spatial_dims, inferer.components.velocity.min_size
    fixed = as_image(rows[0]["fixed"], "image", dims, smallest)
    grid = stored_grid(fixed, "image")
    truth = None if label is None else load_label(label, "label", fixed)
    failed: dict[str, str] = {}
    readable: list[_Atlas] = []
    for row in rows:
        try:
            if ERROR in row:
                raise row[ERROR]
            atlas = _Atlas({**row, "fixed": fixed}, dims, smallest)
            atlas.label(atlas.pair().moving.image)  # what is wrong with it is told before the work
            readable.append(atlas)
        except ValueError as error:
            failed[row["id"]] = _left_out(row, error)
    _check_some_left(readable, failed)
    atlases: list[_Registered] = []
    for atlas, way in zip(readable, register(readable), strict=True):
        if isinstance(way, str):
            failed[atlas.row["id"]] = way
        else:
            atlases.append(_registered(fixed.as_tensor(), atlas, way))
    _check_some_left(atlases, failed)
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


def _check_some_left(atlases: Sequence[Any], failed: Mapping[str, str]) -> None:
    if not atlases:
        raise PairError(f"no atlas is left; left out: {', '.join(failed)}.")


def _left_out(row: Mapping[str, Any], error: Exception) -> str:
    """Tell that an atlas is left out: the reason."""
    reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    logger.error("%s is left out: %s", row["id"], reason)
    return reason


def _device_here(device: str | None) -> torch.device:
    """That of the registrations, where it is not of other machines alone."""
    try:
        return usable_device(device)
    except ValueError:
        return torch.device("cpu")


def _registered(fixed: Tensor, atlas: _Atlas, way: PairMap) -> _Registered:
    """An atlas with its image on the fixed grid, and how alike they are."""
    image = atlas.pair().moving.image
    warped = way.warp(image).as_tensor().cpu()
    alike = similarity(fixed, warped)
    logger.info("%s: similarity %.3f (1 is best)", atlas.row["id"], alike)
    return _Registered(atlas.row["id"], way, atlas.label(image), warped, alike)


def _vote(
    fusion: str, fixed: Tensor, atlases: Sequence[_Registered], spacing: Sequence[float]
) -> tuple[list[int], Vote]:
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
