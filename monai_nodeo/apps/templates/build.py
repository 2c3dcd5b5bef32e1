# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""A template: rounds in which all images are registered to it, and it becomes their mean in shape and intensity.

Each round is a cohort with a ledger of its own, and the template of the next round depends on its results alone: a run
that was killed goes on where it was.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monai_nodeo.apps.cohort.flows import Flows, Registrar
from monai_nodeo.apps.cohort.inputs import fingerprints
from monai_nodeo.apps.cohort.run import Engine, InThisProcess
from monai_nodeo.apps.cohort.storage import usable_folder
from monai_nodeo.apps.templates.average import Average, average, sharpened, sharpness
from monai_nodeo.apps.templates.member import Member, load_scan
from monai_nodeo.apps.templates.result import Template, write_channels
from monai_nodeo.apps.templates.shape import to_mean_shape
from monai_nodeo.data.image import as_image
from monai_nodeo.data.intensity import to_unit_range
from monai_nodeo.data.keys import START_KEY, images_of
from monai_nodeo.data.lists import ERROR, absolute
from monai_nodeo.data.pair import PairError, stored_grid
from monai_nodeo.files import ImageGrid, write_affine, write_labels
from monai_nodeo.flows import CloudModel, Flow, RungeKutta, VelocityField, VelocityModel
from monai_nodeo.registration import PairInferer, PairMap, Settings

__all__ = ["ROUNDS", "SHARPENING", "build_template"]

ROUNDS = 3
SHARPENING = 0.5

logger = logging.getLogger(__name__)

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class _Work:
    """What the rounds have in common.

    Attributes:
        folder: of the results.
        register: registers pairs.
    """

    folder: Path
    register: Registrar

    def registered(self, number: int, rows: Rows, settings: Settings, report: bool = False) -> Flows:
        """Run a round."""
        return self.register(self.round(number), rows, settings, report)

    def round(self, number: int) -> Path:
        """Folder of a round."""
        folder = self.folder / "rounds" / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def build_template(
    rows: Rows,
    output: str | Path,
    settings: Settings,
    rounds: int = ROUNDS,
    start: str | Sequence[str] | None = None,
    sharpening: float = SHARPENING,
    engine: Engine | None = None,
    batch: int = 1,
    device: str | None = None,
    report: bool = False,
) -> Template:
    """Build an unbiased template of a group of images.

    The first template is the mean of the images after an affine alignment to the one whose size is in the middle. In
    each round all images are registered to the template. The next one is their mean, taken to the mean shape: by the
    inverse of the mean stretch of the affines, and the flow of the mean velocity backwards. The order of the images
    has no influence. All rounds but the last do without the finest level, which a blurred mean has no use for.

    An image that cannot be read or registered is logged, and left out.

    Args:
        rows: as from :py:func:`monai_nodeo.data.lists.group`.
        output: folder of the results, see `apps.templates.result`; an earlier run in it is gone on with.
        settings: of the registrations.
        rounds: how often all images are registered to the template.
        start: template to start from, a path (of several channels, their paths), whose grid is taken.
        sharpening: how much of what a Gaussian of one voxel takes away is added, against the blur of the mean.
        engine: of the registrations; by default this process.
        batch: images optimised together.
        device: where to compute; by default a GPU if there is one.
        report: make the pages of the registrations of the last round.

    Returns:
        The template, which is also in the folder.

    Raises:
        PairError: when fewer than two images are left.
        StorageError: when the results cannot be written.
        ValueError: when the settings have a velocity that is not one of places, or need labels.
    """
    began = time.perf_counter()
    folder = usable_folder(Path(output))
    start = None if start is None else [os.path.abspath(os.path.expanduser(path)) for path in images_of(start)]
    velocity = PairInferer(settings, handlers=()).components.velocity
    _check(settings, velocity)
    smallest = velocity.min_size
    failures: dict[str, str] = {}
    group = _readable(absolute(rows), settings.spatial_dims, smallest, failures)
    work = _Work(folder, Registrar(engine or InThisProcess(), batch, device))
    reference = start or _of_middle_size(group, settings.spatial_dims)
    grid = stored_grid(as_image(images_of(reference)[0], "start", settings.spatial_dims, smallest))
    members = _aligned(work, group, reference, grid, settings, failures)
    still = PairMap.of(_still(grid), None)
    shape = still if start else to_mean_shape([m.flow for m in members], [m.start for m in members], grid)
    mean = average(members, shape)
    image = _given(start, settings.spatial_dims) if start else sharpened(mean.image, sharpening, grid.spacing)
    placed = settings.replace(initial_transform="none")  # but for those with a start of their own, which `_pairs` names
    table: list[dict[str, Any]] = []
    for number in range(1, rounds + 1):
        # those that failed before are tried again, from where the others are now
        members = [replace(m, start=m.start @ shape.before) for m in members]
        last = number == rounds
        logger.info("round %d of %d: %d images are registered to the template", number, rounds, len(members))
        pairs = _pairs(work, number, members, image, mean)
        flows = work.registered(number, pairs, placed if last else _coarse(placed), report and last)
        found = _moved(members, flows)
        _check_some_left(found, failures | flows.failures)
        shape = to_mean_shape([m.flow for m in found], [m.start for m in found], grid)
        mean, before = average(found, shape, with_labels=last), image
        image = sharpened(mean.image, sharpening, grid.spacing)
        table.append(
            {
                "round": number,
                "images": len(found),
                "similarity_loss": fmean(one.similarity_loss for one in flows.found.values()),
                "shape_change_mm": _length(shape),
                "intensity_change": float((image - before).square().mean().sqrt()),
                "sharpness": sharpness(mean.image[0], grid),
            }
        )
        changes = ", ".join(f"{name.replace('_', ' ')} {x:.4g}" for name, x in list(table[-1].items())[1:])
        logger.info("round %d of %d: %s", number, rounds, changes)
    failures |= flows.failures
    figures = {
        "images": [m.row["id"] for m in found],
        "left_out": [{"id": id, "reason": reason} for id, reason in failures.items()],
        "rounds": table,
        "sharpening": sharpening,
        "start": start,
        "settings": settings.to_dict(),
        "seconds_total": round(time.perf_counter() - began, 3),
    }
    template = Template(grid, replace(mean, image=image), table, failures, figures)
    template.save(folder)
    return template


def _check(settings: Settings, velocity: VelocityModel) -> None:
    if isinstance(velocity, CloudModel):
        raise ValueError(f"velocity {settings.velocity!r} is not one of places and has no mean; take another.")
    if settings.label_weight:
        raise ValueError(f"label_weight is {settings.label_weight:g}; labels take no part in a template, give 0.")


def _coarse(settings: Settings) -> Settings:
    """Without the finest level, if there are others."""
    if len(settings.iterations) == 1:
        return settings
    return settings.replace(
        shrink_factors=settings.shrink_factors[:-1], iterations=settings.iterations[:-1], dense_iterations=0
    )


def _readable(rows: Rows, dims: int, smallest: int, failures: dict[str, str]) -> list[Mapping[str, Any]]:
    """Those that can be read, in the order of what is in their files."""
    found = []
    for row in rows:
        try:
            if ERROR in row:
                raise row[ERROR]
            load_scan(row, dims, smallest)
            prints = [(key, print_ and print_["sha256"]) for key, print_ in sorted(fingerprints(row).items())]
            found.append((prints, row["id"], row))
        except ValueError as error:
            failures[row["id"]] = str(error)
            logger.error("%s is left out: %s", row["id"], error)
    _check_some_left(found, failures)
    return [row for *_, row in sorted(found, key=lambda one: one[:2])]


def _check_some_left(found: Sequence[Any], failures: Mapping[str, str]) -> None:
    if len(found) < 2:
        raise PairError(f"a template needs two images, and {len(found)} can be used; left out: {', '.join(failures)}.")


def _of_middle_size(rows: Rows, dims: int) -> Any:
    """The image whose sum of intensities is the median, as it is named in its row."""

    def size(row: Mapping[str, Any]) -> float:
        image = to_unit_range(as_image(images_of(row["moving"])[0], "moving", dims))
        return float(image.as_tensor().double().sum() * np.prod(stored_grid(image).spacing))

    sizes = [size(row) for row in rows]
    return rows[sorted(range(len(rows)), key=sizes.__getitem__)[(len(rows) - 1) // 2]]["moving"]


def _aligned(
    work: _Work, rows: Rows, reference: Any, grid: ImageGrid, settings: Settings, failures: dict[str, str]
) -> list[Member]:
    """Where the affine starts put the images on the reference, by a registration that is hardly begun."""
    still, nothing = _still(grid), torch.eye(4, dtype=torch.float64)
    if settings.initial_transform in (None, "none"):
        return [Member(row, still, nothing) for row in rows]
    short = settings.replace(
        shrink_factors=settings.shrink_factors[:1], iterations=(1,), dense_iterations=0, self_tuning=False
    )
    logger.info("affine start: %d images are aligned", len(rows))
    flows = work.registered(0, [{**_unlabelled(row), "fixed": reference} for row in rows], short)
    members = _moved([Member(row, still, nothing) for row in rows], flows)
    failures |= flows.failures
    _check_some_left(members, failures)
    return [replace(member, flow=still) for member in members]


def _pairs(work: _Work, number: int, members: Sequence[Member], image: Tensor, mean: Average) -> list[dict[str, Any]]:
    """The rows of a round, and the files that they name."""
    folder, grid = work.round(number), members[0].flow.grid
    fixed: dict[str, Any] = {"fixed": write_channels(folder, image, grid)}
    if mean.mask is not None:
        fixed["fixed_mask"] = str(folder / "mask.nii.gz")
        write_labels(fixed["fixed_mask"], mean.mask > 0.5, grid)
    (folder / "starts").mkdir(exist_ok=True)
    rows = []
    for member in members:
        row = {**_unlabelled(member.row), **fixed}
        if not torch.equal(member.start, torch.eye(4).double()):
            row[START_KEY] = str(folder / "starts" / f"{row['id']}.mat")
            write_affine(row[START_KEY], member.start.numpy(), len(grid.shape))
        rows.append(row)
    return rows


def _moved(members: Sequence[Member], flows: Flows) -> list[Member]:
    """The members with the ways that were found, without those that have none."""
    there = [(member, flows.found.get(member.row["id"])) for member in members]
    return [replace(member, flow=one.flow, start=one.start) for member, one in there if one is not None]


def _unlabelled(row: Mapping[str, Any]) -> dict[str, Any]:
    """What takes part in a registration."""
    return {key: row[key] for key in ("id", "moving", "moving_mask") if key in row}


def _given(start: Any, dims: int) -> Tensor:
    """A template to start from, (C, *spatial), in [0, 1]."""
    channels = [to_unit_range(as_image(path, "start", dims)).as_tensor() for path in images_of(start)]
    return torch.cat(channels)


def _still(grid: ImageGrid) -> Flow:
    """A flow that moves nothing."""
    return Flow(VelocityField(grid.spatial_dims, grid.spatial_shape), RungeKutta(), grid, grid)


def _length(shape: PairMap) -> float:
    """Root mean square of a displacement in mm."""
    ddf, grid = shape.ddf, shape.grid
    lengths = ddf * ddf.new_tensor(grid.spacing).view(-1, *[1] * grid.spatial_dims)
    return float(lengths.square().sum(0).mean().sqrt())
