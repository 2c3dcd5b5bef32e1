# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""OME-Zarr images: OME-NGFF 0.4 and 0.5 are read, 0.5 is written.

An image is a group of arrays with the axes t, c, z, y, x, of which the first array is the finest. Scale and translation
place it, there is no rotation. Its axes grow to the left, the back and the head (LPS), as ITK and ngff-zarr have it, or
the way that their ``orientation`` says (RFC-4). What is written is turned to LPS first, voxel by voxel, which moves
nothing in space.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from monai_nodeo.extras import extra
from monai_nodeo.files.atomic import atomic_path, check_folder
from monai_nodeo.files.lps import RAS_TO_LPS

__all__ = [
    "UNITS",
    "ZarrImage",
    "check_zarr_target",
    "flattened",
    "is_zarr",
    "is_zarr_target",
    "open_zarr",
    "placed",
    "write_zarr",
    "zarr_or_error",
]

_MARKS = ("zarr.json", ".zgroup", ".zattrs", ".zarray")
_VERSIONS = ("0.4", "0.5")
UNITS = {"meter": 1e3, "centimeter": 10.0, "millimeter": 1.0, "micrometer": 1e-3, "nanometer": 1e-6, "angstrom": 1e-7}
_TOWARD = {  # axis and sign in LPS
    "right-to-left": (0, 1),
    "left-to-right": (0, -1),
    "anterior-to-posterior": (1, 1),
    "posterior-to-anterior": (1, -1),
    "inferior-to-superior": (2, 1),
    "superior-to-inferior": (2, -1),
}
_SPACE, _FURTHER = ("x", "y", "z"), ("t", "c")
_CHUNK = 128
_OBLIQUE = 0.01  # voxels at the far end of the image


@dataclass(frozen=True, eq=False)
class ZarrImage:
    """What a group holds.

    Args:
        affine: (4, 4), voxel indices -> RAS mm.
        sizes: (X, Y), (X, Y, Z), or with time (X, Y, Z, T), or with channels (X, Y, Z, T, C).
        dtype: of the values.
        load: reads the array of these sizes.
        flat: whether it has two axes of space only.
    """

    affine: np.ndarray
    sizes: tuple[int, ...]
    dtype: np.dtype
    load: Callable[[], np.ndarray]
    flat: bool


def is_zarr(folder: Path) -> bool:
    """Whether a folder holds a Zarr group or array."""
    return any((folder / mark).is_file() for mark in _MARKS)


def is_zarr_target(path: str | os.PathLike[str]) -> bool:
    """Whether a name means a Zarr group."""
    return os.fspath(path).rstrip("/").endswith(".zarr")


def check_zarr_target(path: str | os.PathLike[str]) -> None:
    """Refuse a target before there is something to write.

    Raises:
        FileNotFoundError: when its folder does not exist.
        MissingExtraError: without zarr.
        FileExistsError: when something else than a Zarr group is there.
    """
    zarr_or_error(path)
    check_folder(path)
    if Path(path).exists() and not is_zarr(Path(path)):
        raise FileExistsError(f"{path}: is there, and no Zarr group that could be replaced; give another name.")


def open_zarr(folder: Path) -> ZarrImage:
    """The finest array of an OME-Zarr image.

    Raises:
        MissingExtraError: without zarr.
        ValueError: when it is none, or one of another version; the message does not name the file.
    """
    zarr = zarr_or_error(folder)
    try:
        group = zarr.open_group(str(folder), mode="r")
        attributes = dict(group.attrs)
        scope = attributes.get("ome", attributes)
        image = scope["multiscales"][0]
        version = str(scope.get("version") or image.get("version"))
        axes, dataset = image.get("axes"), image["datasets"][0]
        array = group[dataset["path"]]
        steps = [*dataset.get("coordinateTransformations", []), *image.get("coordinateTransformations", [])]
    except Exception as error:  # whatever there is in a damaged group
        raise ValueError(
            f"no OME-Zarr image, or a damaged one ({type(error).__name__}: {error}); give the folder whose attributes "
            "have multiscales"
        ) from error
    if version not in _VERSIONS:
        raise ValueError(f"OME-Zarr of version {version}, expected {' or '.join(_VERSIONS)}; convert it with ngff-zarr")
    names = [str(axis["name"]) for axis in axes]
    space = [name for name in _SPACE if name in names]
    others = sorted(set(names) - {*_SPACE, *_FURTHER})
    if others or len(space) < 2 or len(names) != array.ndim:
        raise ValueError(f"axes {', '.join(names)} of an array with {array.ndim}, expected t, c, z, y, x")
    scale, translation = placed(steps, len(names))
    lps = np.eye(4)
    taken = []
    for column, name in enumerate(space):
        axis = axes[names.index(name)]
        unit = str(axis.get("unit", "millimeter"))
        if unit not in UNITS:
            raise ValueError(f"the axis {name} is in {unit}, expected {', '.join(UNITS)}")
        toward = (axis.get("orientation") or {}).get("value")
        row, sign = _TOWARD.get(toward, (column, 1)) if toward else (column, 1)
        if toward and toward not in _TOWARD:
            raise ValueError(f"the axis {name} goes {toward}, expected {', '.join(_TOWARD)}")
        taken.append(row)
        place = names.index(name)
        lps[:3, column] = 0
        lps[row, column] = sign * scale[place] * UNITS[unit]
        lps[row, 3] = sign * translation[place] * UNITS[unit]
    if len(set(taken)) < len(taken) or (len(space) == 2 and 2 in taken):
        raise ValueError("its axes do not span the space of the image; repair their orientation")
    affine = lps
    affine[:3] = RAS_TO_LPS @ affine[:3]
    order = [names.index(name) for name in (*space, *_FURTHER) if name in names]
    sizes = [array.shape[place] for place in order]
    if len(order) > len(space):  # time and channels stand behind three axes of space
        further = [array.shape[names.index("t")] if "t" in names else 1]
        further += [array.shape[names.index("c")]] if "c" in names else []
        sizes = [*sizes[: len(space)], *[1] * (3 - len(space)), *further]
    return ZarrImage(
        affine,
        tuple(int(size) for size in sizes),
        np.dtype(array.dtype),
        lambda: np.asarray(array[...]).transpose(order),
        len(space) == 2,
    )


def write_zarr(path: str | os.PathLike[str], values: np.ndarray, affine: np.ndarray, spatial_axes: int) -> None:
    """Write an image as a group with one array.

    Args:
        path: target, ``*.zarr``; an older group there is replaced.
        values: (X, Y, Z), (X, Y), or (X, Y, Z, T) and (X, Y, Z, T, C) with axes of time and channels.
        affine: (4, 4), voxel indices -> RAS mm.
        spatial_axes: 3, or 2 for (X, Y).

    Raises:
        MissingExtraError: without zarr.
        ValueError: when the axes are oblique.
    """
    zarr = zarr_or_error(path)
    check_zarr_target(path)
    turned, scale, translation = _to_lps(path, values, affine, spatial_axes)
    further = turned.ndim - spatial_axes
    turned = turned.transpose(*range(spatial_axes, turned.ndim), *reversed(range(spatial_axes)))
    names = [*_FURTHER[:further], *reversed(_SPACE[:spatial_axes])]
    kinds = {"t": "time", "c": "channel"}
    axes = [
        {"name": name, "type": kinds[name]}
        if name in kinds
        else {
            "name": name,
            "type": "space",
            "unit": "millimeter",
            "orientation": {"type": "anatomical", "value": _direction(_SPACE.index(name))},
        }
        for name in names
    ]
    place = [
        {"type": "scale", "scale": [1.0] * further + scale[::-1].tolist()},
        {"type": "translation", "translation": [0.0] * further + translation[::-1].tolist()},
    ]
    image: dict[str, Any] = {"name": Path(path).stem, "axes": axes}
    image["datasets"] = [{"path": "0", "coordinateTransformations": place}]
    with atomic_path(path) as partial:
        group = zarr.open_group(str(partial), mode="w", zarr_format=3)
        chunks = (*[1] * further, *(min(size, _CHUNK) for size in turned.shape[further:]))
        group.create_array("0", data=np.ascontiguousarray(turned), chunks=chunks, dimension_names=names)
        group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}
        if Path(path).exists():
            shutil.rmtree(path)


def zarr_or_error(path: str | os.PathLike[str]) -> Any:
    """The library.

    Raises:
        MissingExtraError: names the extra that has it.
    """
    with extra("zarr", f"OME-Zarr files such as {path}"):
        import zarr
    return zarr


def flattened(steps: list[Any]) -> list[Any]:
    """Coordinate transformations without the sequences that they may stand in."""
    flat = []
    for step in steps:
        flat += flattened(step["transformations"]) if step.get("type") == "sequence" else [step]
    return [step for step in flat if step.get("type") != "identity"]


def placed(steps: list[Any], axes: int) -> tuple[np.ndarray, np.ndarray]:
    """Scale and translation of all steps together."""
    scale, translation = np.ones(axes), np.zeros(axes)
    for step in flattened(steps):
        kind = step.get("type")
        if kind == "scale" and "scale" in step:
            scale, translation = scale * step["scale"], translation * step["scale"]
        elif kind == "translation" and "translation" in step:
            translation = translation + step["translation"]
        else:
            raise ValueError(f"it is placed by a {kind}, expected scale and translation")
    return scale, translation


def _to_lps(
    path: str | os.PathLike[str], values: np.ndarray, affine: np.ndarray, axes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image turned until its axes are those of LPS, with its scale and translation."""
    lps = (RAS_TO_LPS @ affine[:3])[:axes]
    steps, origin = lps[:, :axes], lps[:, 3]
    scale = np.linalg.norm(steps, axis=0)
    cosines = steps / scale
    straight = np.rint(cosines)
    off = np.linalg.norm((cosines - straight) * scale * (np.array(values.shape[:axes]) - 1), axis=0) / scale
    if (np.abs(straight).sum(0) != 1).any() or off.max() > _OBLIQUE:
        raise ValueError(
            f"{path}: the axes of the image are oblique, and OME-Zarr has no rotation; give a reference whose axes are "
            "those of the body, or write .nii.gz."
        )
    order = np.abs(straight).argmax(1)  # the axis of the array along each axis of LPS
    turned = values.transpose(*order, *range(axes, values.ndim))
    for axis, source in enumerate(order):
        if straight[axis, source] < 0:
            origin = origin + steps[:, source] * (values.shape[source] - 1)
            turned = np.flip(turned, axis)
    return turned, scale[order], origin


def _direction(axis: int) -> str:
    return next(name for name, toward in _TOWARD.items() if toward == (axis, 1))
