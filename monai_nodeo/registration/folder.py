# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The folder of a registration.

=======================================  ==========================================================================
``flow.safetensors``                     the flow, see :py:class:`monai_nodeo.flows.Flow`
``warped.nii.gz``                        the moving image on the fixed grid, ``warped_label.nii.gz`` its labels;
                                         further channels are ``warped_2.nii.gz``, ``warped_3.nii.gz``, ...
``transform.h5``                         the whole way from the fixed to the moving image: field, then affine start
``displacement.nii.gz``                  the same as one ITK displacement field
``jacobian.nii.gz``                      determinant of the Jacobian of the flow
``uncertainty.nii.gz``                   standard deviation of the displacement, mm, if it was asked for
``metrics.json``                         figures, certificate, settings, versions; written last: with it, all is there
``history.csv``                          every loss term at every iteration
=======================================  ==========================================================================
"""

from __future__ import annotations

import csv
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from os import PathLike
from os.path import expanduser
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from monai_nodeo.files import (
    ImageGrid,
    Transform,
    atomic_path,
    displacement_error,
    open_stored,
    write_displacement,
    write_image,
    write_labels,
    write_transform,
)
from monai_nodeo.flows import Flow
from monai_nodeo.geometry.jacobian import jacobian_determinant
from monai_nodeo.registration.machine import device_name, peak_memory_mb
from monai_nodeo.registration.malloc import give_back_kept_memory

__all__ = [
    "FIGURES",
    "FLOW",
    "HISTORY",
    "Contents",
    "read_figures",
    "read_folder",
    "read_uncertainty",
    "start_of",
    "write_folder",
    "write_history",
]

FIGURES, FLOW, HISTORY, FIELD = "metrics.json", "flow.safetensors", "history.csv", "displacement.nii.gz"
_TRANSFORM, _JACOBIAN, _UNCERTAINTY = "transform.h5", "jacobian.nii.gz", "uncertainty.nii.gz"
_PACKAGES = ("monai-nodeo", "monai", "torch", "torchdiffeq", "pytorch-ignite", "nibabel", "numpy")


@dataclass(frozen=True, eq=False)
class Contents:
    """What is in a result folder.

    Attributes:
        flow: the fitted flow.
        displacement: of the flow alone, (D, *spatial), voxels.
        transform: the whole way; None: without the files of fields.
        history: loss term -> its value at every iteration.
        figures: of ``metrics.json``.
        warped: the moving image on the fixed grid, (C, *spatial), and the type of its values; None without the image.
        label: its labels, (*spatial).
        uncertainty: of the displacement, (*spatial), mm.
    """

    flow: Flow
    displacement: Tensor
    transform: Transform | None
    history: Mapping[str, Tensor]
    figures: Mapping[str, Any]
    warped: tuple[Tensor, str] | None = None
    label: Tensor | None = None
    uncertainty: Tensor | None = None


def write_folder(path: str | PathLike[str], contents: Contents) -> dict[str, Any]:
    """Write a result folder.

    Args:
        path: made if it does not exist.
        contents: what to write.

    Returns:
        The figures as they are in ``metrics.json``.
    """
    folder = Path(expanduser(path)).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    grid, ddf = contents.flow.grid, contents.displacement
    earlier = [folder / name for name in (FIGURES, "warped_label.nii.gz", _UNCERTAINTY, _TRANSFORM, FIELD, _JACOBIAN)]
    for file in (*earlier, *folder.glob("warped_[0-9]*.nii.gz")):  # an earlier run may have had them
        file.unlink(missing_ok=True)
    give_back_kept_memory()  # that the figures took
    contents.flow.save(folder / FLOW)
    if contents.warped is not None:
        for number, channel in enumerate(contents.warped[0], start=1):
            name = "warped.nii.gz" if number == 1 else f"warped_{number}.nii.gz"
            write_image(folder / name, channel, grid, contents.warped[1])
    if contents.label is not None:
        write_labels(folder / "warped_label.nii.gz", contents.label, grid)
    proof = dict(contents.figures["certificate"])
    if contents.transform is not None:
        proof["file_error_voxels"] = _write_fields(folder, contents.transform, ddf, grid)
    if contents.uncertainty is not None:
        write_image(folder / _UNCERTAINTY, contents.uncertainty, grid)
    write_history(folder / HISTORY, contents.history)
    figures = {
        **contents.figures,
        "certificate": proof,
        "peak_memory_mb": peak_memory_mb(ddf.device),
        "device": device_name(ddf.device),
        "versions": {"python": platform.python_version(), **_versions()},
    }
    text = json.dumps(figures, indent=2)
    with atomic_path(folder / FIGURES) as partial:
        partial.write_text(text + "\n", encoding="utf-8")
    as_written: dict[str, Any] = json.loads(text)
    return as_written


def _write_fields(folder: Path, transform: Transform, ddf: Tensor, grid: ImageGrid) -> float:
    """Write transform, displacement and Jacobian; how far the displacement on the disk is off, in voxels."""
    write_transform(folder / _TRANSFORM, transform)
    whole = transform.displacement_on(str(folder / FIELD), grid)
    write_displacement(folder / FIELD, whole, grid)
    determinant = jacobian_determinant(ddf[None])[None]
    on_grid = F.pad(determinant, (0, 1) * grid.spatial_dims, mode="replicate")
    write_image(folder / _JACOBIAN, on_grid[0, 0], grid)
    return displacement_error(folder / FIELD, whole, grid)


@cache
def _versions() -> dict[str, str]:
    """Of the packages; each is a file to be searched for and parsed, some 50 ms in all."""
    return {name: version(name) for name in _PACKAGES}


def read_folder(path: str | PathLike[str]) -> tuple[Flow, dict[str, Tensor], dict[str, Any]]:
    """Flow, history and figures of a result folder.

    Raises:
        FileNotFoundError: when there is no such folder, or a file in it is missing.
        ValueError: when a file is damaged.
    """
    folder = Path(expanduser(path))
    figures = read_figures(folder)
    return Flow.load(folder / FLOW), _read_history(folder / HISTORY), figures


def read_uncertainty(path: str | PathLike[str], grid: ImageGrid) -> Tensor | None:
    """The uncertainty in a result folder, (*spatial), mm; None where there is none.

    Raises:
        ValueError: when the file is damaged, or on another grid.
    """
    file = Path(expanduser(path)) / _UNCERTAINTY
    if not file.exists():
        return None
    return torch.from_numpy(open_stored(file).load().astype(np.float32)).reshape(grid.spatial_shape)


def read_figures(folder: Path) -> dict[str, Any]:
    """metrics.json of a pair's folder.

    Raises:
        FileNotFoundError: when there is none.
        ValueError: when it is damaged, or of a sequence.
    """
    path = folder / FIGURES
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(figures, dict):
            raise ValueError("no table of figures")
        is_sequence = "frames" in figures
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{folder} holds no {FIGURES}, so no pair was finished there; register it first."
        ) from error
    except ValueError as error:  # neither text nor JSON
        raise ValueError(f"{path} is damaged ({error}); register the pair again.") from error
    if is_sequence:
        raise ValueError(
            f"{folder} is of a sequence, expected a pair; its curves are in report.html, volumes of labels in "
            "labels.csv, and the field of a frame, such as displacement/0001.nii.gz, is a transform for apply."
        )
    return figures


def start_of(figures: Mapping[str, Any]) -> Tensor | None:
    """The affine start in the figures, (4, 4) RAS mm, float64; None: there was none.

    Raises:
        TypeError, RuntimeError, ValueError: when it is no such matrix.
    """
    start = figures.get("initial_affine")
    return None if start is None else torch.tensor(start, dtype=torch.float64).view(4, 4)


def write_history(path: Path, history: Mapping[str, Tensor]) -> None:
    """Write every loss term at every iteration as a table."""
    columns: Sequence[Iterable[float]] = [values.tolist() for values in history.values()]
    with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["iteration", *history])
        writer.writerows([i, *values] for i, values in enumerate(zip(*columns, strict=True), start=1))


def _read_history(path: Path) -> dict[str, Tensor]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        names = [name for name in rows[0] if name != "iteration"] if rows else []
        return {name: torch.tensor([float(row[name]) for row in rows]) for name in names}
    except (ValueError, TypeError, csv.Error) as error:
        raise ValueError(f"{path} is damaged ({error}); register the pair again.") from error
