# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The folder of a registration.

=======================================  ==========================================================================
``flow.safetensors``                     the flow, see :py:class:`monai_nodeo.flows.Flow`
``warped.nii.gz``                        the moving image on the fixed grid, ``warped_label.nii.gz`` its labels
``transform.h5``                         the whole way from the fixed to the moving image: field, then affine start
``displacement.nii.gz``                  the same as one ITK displacement field
``jacobian.nii.gz``                      determinant of the Jacobian of the flow
``metrics.json``                         figures, certificate, settings, versions; written last: with it, all is there
``history.csv``                          every loss term at every iteration
=======================================  ==========================================================================
"""

from __future__ import annotations

import csv
import json
import logging
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from monai_nodeo.data.keys import PATH_KEYS
from monai_nodeo.data.load import load_pair
from monai_nodeo.data.pair import PairError
from monai_nodeo.data.placement import physical_map
from monai_nodeo.files import (
    Affine,
    Transform,
    atomic_path,
    read_displacement,
    write_image,
    write_labels,
    write_transform,
)
from monai_nodeo.flows import Flow
from monai_nodeo.geometry.jacobian import jacobian_determinant
from monai_nodeo.metrics.certificate import Certificate
from monai_nodeo.metrics.pairs import device_name, peak_memory_mb
from monai_nodeo.registration.settings import Settings

if TYPE_CHECKING:
    from monai_nodeo.registration.result import Registration

__all__ = ["FIGURES", "FLOW", "HISTORY", "load", "read_figures", "save", "transform_of"]

FIGURES, FLOW, HISTORY = "metrics.json", "flow.safetensors", "history.csv"
_PACKAGES = ("monai-nodeo", "monai", "torch", "torchdiffeq", "pytorch-ignite", "nibabel", "numpy")

logger = logging.getLogger(__name__)


def transform_of(registration: Registration) -> Transform:
    """The whole way from the fixed to the moving image: the field, then the affine start."""
    grid, pair = registration.flow.grid, registration.pair
    start = registration.start
    if pair is not None:  # slices of different planes are put on one another
        start = physical_map(pair.fixed.image, pair.moving.image, start)
    return Transform.of_registration(
        registration.displacement.cpu().numpy(), grid, None if start is None else start.numpy()
    )


def save(
    registration: Registration, path: str | PathLike[str], id: str = "", seconds_total: float | None = None
) -> dict[str, Any]:
    """See :py:meth:`Registration.save`."""
    folder = Path(path).expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    pair, grid, ddf = registration.pair, registration.flow.grid, registration.displacement
    for name in (FIGURES, "warped_label.nii.gz"):  # an earlier run may have had labels
        (folder / name).unlink(missing_ok=True)
    registration.flow.save(folder / FLOW)
    if pair is not None:
        dtype = pair.moving.image.meta.get("original_dtype", "float32")
        write_image(folder / "warped.nii.gz", registration.warp(pair.moving.image)[0].as_tensor(), grid, dtype)
        if pair.moving.label is not None:
            label = registration.warp(pair.moving.label, mode="nearest")
            write_labels(folder / "warped_label.nii.gz", label[0].as_tensor(), grid)
    transform = registration.transform
    for name in ("transform.h5", "displacement.nii.gz"):
        write_transform(folder / name, transform)
    determinant = jacobian_determinant(ddf[None])[None]
    on_grid = F.pad(determinant, (0, 1) * grid.spatial_dims, mode="replicate")
    write_image(folder / "jacobian.nii.gz", on_grid[0, 0], grid)
    _write_history(folder / HISTORY, registration.history)
    proven = replace(registration.certificate, file_error_voxels=_file_error(registration, folder))
    figures = {
        "id": id or (pair.id if pair is not None else "") or folder.name,
        **dict(pair.sources if pair is not None else ()),
        **registration.figures(),
        "certificate": proven.to_dict(),
        "seconds_total": None if seconds_total is None else round(seconds_total, 3),
        "peak_memory_mb": peak_memory_mb(ddf.device),
        "device": device_name(ddf.device),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
    }
    with atomic_path(folder / FIGURES) as partial:
        partial.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


def load(path: str | PathLike[str], with_pair: bool) -> dict[str, Any]:
    """Arguments of a :py:class:`Registration`, see :py:meth:`Registration.load`."""
    folder = Path(path).expanduser()
    figures = read_figures(folder)
    flow = Flow.load(folder / FLOW)
    start = figures.get("initial_affine")
    pair = None
    if with_pair:
        row = {key: figures[key] for key in PATH_KEYS if key in figures}
        try:
            pair = load_pair({"id": figures["id"], **row}, flow.grid.spatial_dims, min_size=1)
        except PairError as error:
            logger.warning("%s: without its images: %s", folder, error)
    return {
        "flow": flow,
        "start": None if start is None else torch.tensor(start, dtype=torch.float64),
        "displacement": flow.displacement(),
        "history": _read_history(folder / HISTORY),
        "settings": Settings.from_dict(figures["settings"]),
        "certificate": Certificate.from_dict(figures["certificate"]),
        "similarity": (figures["before"]["similarity"], figures["after"]["similarity"]),
        "seconds": figures["seconds_optimisation"],
        "interrupted": figures["interrupted_level"],
        "pair": pair,
    }


def read_figures(folder: Path) -> dict[str, Any]:
    """metrics.json of a pair's folder.

    Raises:
        FileNotFoundError: when there is none.
        ValueError: when it is damaged.
    """
    path = folder / FIGURES
    try:
        figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{folder} holds no {FIGURES}, so no pair was finished there; register it first."
        ) from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}); register the pair again.") from error
    return figures


def _file_error(registration: Registration, folder: Path) -> float:
    """Largest difference in voxels between the displacement on disk and the way of the flow."""
    stored, _ = read_displacement(folder / "displacement.nii.gz")
    transform = registration.transform
    if all(isinstance(step, Affine) for step in transform.steps[1:]) and len(transform.steps) == 1:
        return float(np.abs(stored - transform.steps[0].ddf).max())  # type: ignore[union-attr]
    whole = transform.displacement_on("displacement.nii.gz", registration.flow.grid)
    return float(np.abs(stored - whole).max())


def _write_history(path: Path, history: Mapping[str, Tensor]) -> None:
    columns: Sequence[Iterable[float]] = [values.tolist() for values in history.values()]
    with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["iteration", *history])
        writer.writerows([i, *values] for i, values in enumerate(zip(*columns, strict=True), start=1))


def _read_history(path: Path) -> dict[str, Tensor]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name != "iteration"] if rows else []
    return {name: torch.tensor([float(row[name]) for row in rows]) for name in names}
