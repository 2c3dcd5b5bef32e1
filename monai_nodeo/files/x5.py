# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""X5, the draft of BIDS for transforms (BEP014), as nitransforms 25.1 reads and writes it: HDF5, RAS mm.

A file holds a list of transforms, and nothing says that they follow each other. So one transform is written, an affine
or all steps as one field, and files with one are read.
"""

from __future__ import annotations

import json

import h5py
import numpy as np

from monai_nodeo.files.atomic import atomic_path
from monai_nodeo.files.foreign_fields import displacement_from_ras
from monai_nodeo.files.grid import ImageGrid, PathLike, displacement_to_lps
from monai_nodeo.files.hdf5 import check_sizes
from monai_nodeo.files.lps import RAS_TO_LPS
from monai_nodeo.files.transform import Affine, Displacement

__all__ = ["read_x5", "write_x5"]

_LINEAR, _FIELD = "linear", "nonlinear"
_PLACES, _DISPLACEMENTS = "deformations", "displacements"


def read_x5(path: PathLike) -> Affine | Displacement:
    """The transform of an X5 file.

    Raises:
        ValueError: when it is no such file, or holds several transforms or one of another kind.
    """
    try:
        with h5py.File(path) as file:
            format, count = file.attrs["Format"], len(file["TransformGroup"])
            group = file["TransformGroup/0"]
            check_sizes(group)
            kind, number = str(group.attrs["Type"]), int(group.attrs.get("ArrayLength", 1))
            values = "" if kind == _LINEAR else str(group.attrs.get("Representation"))
            array = np.asarray(group["Transform"][()], np.float64)
            domain = group.get("Domain")
            place = None if domain is None else (domain["Mapping"][()], tuple(map(int, domain["Size"][()])))
    except Exception as error:  # whatever there is in a damaged file
        raise ValueError(
            f"{path}: no transform in the format X5, or a damaged one ({type(error).__name__})."
        ) from error
    if format != "X5" or count != 1 or number != 1:
        raise ValueError(f"{path}: {count} x {number} transforms of the format {format}, expected one of X5.")
    if kind == _LINEAR:
        try:
            return Affine(array)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    if kind != _FIELD or values not in (_PLACES, _DISPLACEMENTS) or place is None:
        raise ValueError(f"{path}: a transform {kind} {values}, expected an affine or a field on a grid.")
    affine, shape = place
    if len(shape) != 3 or array.shape != (*shape, 3) or np.shape(affine) != (4, 4):
        raise ValueError(
            f"{path}: a field of shape {array.shape} on a grid {shape}, expected (X, Y, Z, 3) on (X, Y, Z)."
        )
    try:
        grid = ImageGrid(np.asarray(affine, np.float64), shape)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return displacement_from_ras(path, array, grid, places=values == _PLACES)


def write_x5(path: PathLike, step: Affine | Displacement) -> None:
    """Write one transform.

    Raises:
        ValueError: for a transform of 2D images; X5 is of volumes.
    """
    if step.world_dims != 3:
        raise ValueError(f"{path}: X5 is of volumes, and the transform is of {step.world_dims}D points; write a .h5.")
    with atomic_path(path) as partial, h5py.File(partial, "w") as file:
        file.attrs["Format"], file.attrs["Version"] = "X5", np.uint16(1)
        group = file.create_group("TransformGroup/0")
        group.attrs["ArrayLength"] = 1
        group.attrs["Metadata"] = json.dumps({"WrittenBy": "monai_nodeo"})
        group["DimensionKinds"] = np.array([*["space"] * 3, "vector"], "S")
        if isinstance(step, Affine):
            kinds = {"Type": _LINEAR, "SubType": "affine", "Representation": "matrix"}
            group["Transform"] = step.matrix
        else:
            kinds = {"Type": _FIELD, "SubType": "densefield", "Representation": _DISPLACEMENTS}
            lps = displacement_to_lps(np.asarray(step.ddf, np.float64), step.grid).reshape(*step.grid.shape, 3)
            field = (lps @ RAS_TO_LPS).astype(np.float32)
            group.create_dataset("Transform", data=field, compression="gzip", compression_opts=1, shuffle=True)
            domain = group.create_group("Domain")
            domain.attrs["Coordinates"] = "cartesian"
            domain["Grid"], domain["Size"], domain["Mapping"] = np.uint8(1), step.grid.shape, step.grid.affine
        group.attrs.update(kinds)
