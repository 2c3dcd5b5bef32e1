# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Transforms of OME-NGFF 0.6 (RFC-5): a Zarr group whose scene leads from the fixed to the moving coordinate system.

Coordinates are z, y, x in LPS mm. A field is a group within, its vectors along an axis of the type ``displacement``.
Fields have no rotation of their own, so for an oblique grid the points are turned to it first, and back afterwards.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from monai_nodeo.files.atomic import atomic_path
from monai_nodeo.files.grid import ImageGrid, PathLike, displacement_from_lps, displacement_to_lps
from monai_nodeo.files.lps import RAS_TO_LPS
from monai_nodeo.files.ome_zarr import UNITS, check_zarr_target, flattened, placed, zarr_or_error
from monai_nodeo.files.transform import Affine, Displacement, Transform

__all__ = ["read_scene", "write_scene"]

_FIELD = "coordinateTransformations/displacement"
_FLIP = np.diag([*np.diag(RAS_TO_LPS), 1.0])
_CHUNK = 64


def read_scene(path: PathLike) -> Transform:
    """The transform of a scene.

    Raises:
        MissingExtraError: without zarr.
        ValueError: when it holds none, several, or one of another kind.
    """
    zarr = zarr_or_error(path)
    try:
        root = zarr.open_group(os.fspath(path), mode="r")
        scene = dict(root.attrs)["ome"]["scene"]
        (whole,) = scene["coordinateTransformations"]
        systems = {system["name"]: system["axes"] for system in scene.get("coordinateSystems", [])}
        units = {axis.get("unit", "millimeter") for axes in systems.values() for axis in axes}
        (unit,) = units or {"millimeter"}
        steps = tuple(step for part in flattened([whole]) for step in _steps(path, root, part, UNITS[unit]))
    except Exception as error:  # whatever there is in a damaged group
        raise ValueError(
            f"{path}: no scene of OME-NGFF with one transform of linear steps and displacements, or a damaged one "
            f"({type(error).__name__}: {error})."
        ) from error
    return Transform(steps)


def write_scene(path: PathLike, transform: Transform, grid: ImageGrid | None) -> None:
    """Write a transform: up to the last displacement as one field, affines behind it as they are.

    Args:
        path: target, ``*.zarr``; an older group there is replaced.
        transform: points of the fixed image -> points of the moving one.
        grid: of the field; needed where there is one.

    Raises:
        MissingExtraError: without zarr.
    """
    zarr = zarr_or_error(path)
    check_zarr_target(path)
    dims = transform.world_dims
    fields = [number for number, step in enumerate(transform.steps) if isinstance(step, Displacement)]
    last = fields[-1] + 1 if fields else 0
    chain = []
    with atomic_path(path) as partial:
        root = zarr.open_group(str(partial), mode="w", zarr_format=3)
        if fields:
            assert grid is not None
            ddf = Transform(transform.steps[:last]).displacement_on(str(path), grid)
            chain += _write_field(root.create_group(_FIELD), Displacement(grid, ddf))
        for step in transform.steps[last:]:
            assert isinstance(step, Affine)
            chain.append(_affine(_FLIP @ step.matrix @ _FLIP, dims))
        axes = [{"name": name, "type": "space", "unit": "millimeter"} for name in "zyx"[-dims:]]
        ends = {"input": {"name": "fixed"}, "output": {"name": "moving"}}
        scene = {
            "coordinateSystems": [{"name": end["name"], "axes": axes} for end in ends.values()],
            "coordinateTransformations": [{"type": "sequence", **ends, "transformations": chain}],
        }
        root.attrs["ome"] = {"version": "0.6", "scene": scene}
        if Path(path).exists():
            shutil.rmtree(path)


def _affine(lps: np.ndarray, dims: int) -> dict[str, Any]:
    """A matrix of x, y, z as one of z, y, x."""
    linear, shift = lps[:dims, :dims][::-1, ::-1], lps[:dims, 3][::-1]
    return {"type": "affine", "affine": np.column_stack([linear, shift]).tolist()}


def _write_field(group: Any, field: Displacement) -> list[dict[str, Any]]:
    """Write a field; returns the steps that lead to its grid, through it, and back."""
    dims = field.world_dims
    lps = displacement_to_lps(np.asarray(field.ddf, np.float64), field.grid).reshape(*field.grid.shape, dims)
    frame = np.eye(4)
    frame[:3] = RAS_TO_LPS @ field.grid.affine[:3]
    spacing = np.linalg.norm(frame[:3, :3], axis=0)[:dims]
    frame[:dims, :dims] /= spacing
    translation = np.zeros(dims)
    if np.array_equal(frame[:dims, :dims], np.eye(dims)):
        translation, frame = frame[:dims, 3], np.eye(4)
    values = lps @ np.linalg.inv(frame[:dims, :dims]).T
    values = values.transpose(dims, *reversed(range(dims)))[::-1].astype(np.float32)  # (d, z, y, x), d: z, y, x
    names = "zyx"[-dims:]
    chunks = (dims, *(min(size, _CHUNK) for size in values.shape[1:]))
    group.create_array("0", data=np.ascontiguousarray(values), chunks=chunks, dimension_names=["d", *names])
    axes = [{"name": "d", "type": "displacement", "discrete": True}]
    axes += [{"name": name, "type": "space", "unit": "millimeter"} for name in names]
    place = {
        "type": "sequence",
        "input": {"path": "0"},
        "output": {"name": "physical"},
        "transformations": [
            {"type": "scale", "scale": [1.0, *spacing[::-1].tolist()]},
            {"type": "translation", "translation": [0.0, *translation[::-1].tolist()]},
        ],
    }
    image = {
        "coordinateSystems": [{"name": "physical", "axes": axes}],
        "datasets": [{"path": "0", "coordinateTransformations": [place]}],
    }
    group.attrs["ome"] = {"version": "0.6", "multiscales": [image]}
    through = {"type": "displacements", "path": _FIELD, "interpolation": "linear"}
    if np.array_equal(frame, np.eye(4)):
        return [through]
    return [_affine(np.linalg.inv(frame), dims), through, _affine(frame, dims)]


def _steps(path: PathLike, root: Any, part: dict[str, Any], unit: float) -> list[Affine | Displacement]:
    kind = part["type"]
    if kind == "displacements":
        return [_read_field(path, root[part["path"]], unit)]
    if kind in ("scale", "translation"):
        values = np.asarray(part[kind], np.float64)
        matrix = np.diag(values) if kind == "scale" else np.eye(len(values))
        rows = np.column_stack([matrix, values * (kind == "translation")])
    elif kind == "rotation":
        rows = np.column_stack([np.asarray(part[kind], np.float64), np.zeros(len(part[kind]))])
    elif kind == "affine":
        rows = np.asarray(part[kind], np.float64)
    else:
        raise ValueError(f"a {kind}")
    dims = len(rows)
    lps = np.eye(4)
    lps[:dims, :dims], lps[:dims, 3] = rows[::-1, dims - 1 :: -1], rows[::-1, dims] * unit
    return [Affine(_FLIP @ lps @ _FLIP, dims)]


def _read_field(path: PathLike, group: Any, unit: float) -> Displacement:
    image = dict(group.attrs)["ome"]["multiscales"][0]
    axes = image["coordinateSystems"][0]["axes"]
    kinds = [axis["type"] for axis in axes]
    dims = kinds.count("space")
    vector = kinds.index("displacement")
    dataset = image["datasets"][0]
    scale, translation = placed(dataset["coordinateTransformations"], len(axes))
    values = np.moveaxis(np.asarray(group[dataset["path"]][...], np.float64), vector, 0)
    if len(axes) != dims + 1 or len(values) != dims:
        raise ValueError(f"a field with axes {kinds}")
    lps = values[::-1].transpose(*reversed(range(1, dims + 1)), 0) * unit
    frame = np.eye(4)
    frame[range(dims), range(dims)] = np.delete(scale, vector)[::-1] * unit
    frame[:dims, 3] = np.delete(translation, vector)[::-1] * unit
    frame[:3] = RAS_TO_LPS @ frame[:3]
    grid = ImageGrid(frame, lps.shape[:dims])
    if not np.isfinite(lps).all():
        raise ValueError("NaN or infinite values")
    return Displacement(grid, displacement_from_lps(path, lps.reshape(*grid.spatial_shape, dims), grid))
