# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Transform files of ITK: written as HDF5, and looked through before ITK reads them.

ITK does not count: with too few parameters it reads what lies behind them in memory, and the process may end. It also
ends with infinite parameters and with a composite of 2D and 3D transforms, and of several transforms that are no
composite it takes the first.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import SimpleITK as sitk
from isal import isal_zlib

from monai_nodeo.files.atomic import atomic_path
from monai_nodeo.files.grid import PathLike, itk_geometry
from monai_nodeo.files.hdf5 import check_sizes
from monai_nodeo.files.transform import Affine, Displacement, Transform

__all__ = ["read_itk_transform", "write_itk_composite"]

_HDF5 = (".h5", ".hdf5")
_OTHERS = "matrices of FSL and greedy are others, see  monai-nodeo convert --from"
_CHUNK = 2**16  # numbers that are compressed together
_KIND = re.compile(r"[A-Z]\w+_(?:double|float)_\d_\d")
_PARAMETERS = {
    **dict.fromkeys(["Euler3DTransform", "VersorRigid3DTransform"], 6),
    **dict.fromkeys(["VersorTransform", "Euler2DTransform", "Rigid2DTransform"], 3),
    **dict.fromkeys(["CenteredEuler3DTransform", "ScaleVersor3DTransform"], 9),
    **dict.fromkeys(["Similarity3DTransform", "QuaternionRigidTransform"], 7),
    **dict.fromkeys(["Rigid3DTransform", "ComposeScaleSkewVersor3DTransform"], 12),
    "ScaleSkewVersor3DTransform": 15,
    "Similarity2DTransform": 4,
    "CenteredRigid2DTransform": 5,
    "CenteredSimilarity2DTransform": 6,
}
_BY_AXES = {  # in D dimensions
    **dict.fromkeys(["AffineTransform", "MatrixOffsetTransformBase", "ScalableAffineTransform"], lambda d: d * d + d),
    **dict.fromkeys(["TranslationTransform", "ScaleTransform", "ScaleLogarithmicTransform"], lambda d: d),
    "FixedCenterOfRotationAffineTransform": lambda d: d * d + d,
    "CenteredAffineTransform": lambda d: d * d + 2 * d,
}


def read_itk_transform(file: Path) -> sitk.Transform:
    """A transform of ITK, of one dimension.

    Args:
        file: text, MATLAB's version 4 or HDF5, as the name says.

    Raises:
        ValueError: when ITK does not read it, or would read another one; the message does not name the file.
    """
    read = _in_hdf5 if file.name.lower().endswith(_HDF5) else _in_matlab if file.suffix.lower() == ".mat" else _in_text
    try:
        found = list(read(file))
    except Exception as error:  # whatever there is in a damaged file
        raise ValueError(f"no transform of ITK, or a damaged one ({type(error).__name__}); {_OTHERS}") from error
    kinds = [kind for kind, _ in found]
    if len({axes for kind in kinds for axes in kind.split("_")[-2:]}) > 1:
        raise ValueError(f"{' and '.join(kinds)} in one file; expected transforms of one dimension")
    if len(kinds) > 1 and not kinds[0].startswith("Composite"):
        raise ValueError(f"{len(kinds)} transforms that are no composite, of which ITK takes the first; split the file")
    for kind, parameters in found:
        expected = _count(kind)
        if parameters is None or expected is None:
            continue
        if len(parameters) != expected:
            raise ValueError(f"no transform of ITK: {kind} with {len(parameters)} parameters, expected {expected}")
        if not np.isfinite(parameters).all():
            raise ValueError(f"no transform of ITK: {kind} with parameters that are no finite numbers")
    try:
        return sitk.ReadTransform(file)
    except (RuntimeError, ValueError) as error:  # ValueError: the reason itself is no text in UTF-8
        reason = (str(error).strip().splitlines() or [""])[-1].strip()
        raise ValueError(f"no transform of ITK ({reason}); {_OTHERS}") from error


def write_itk_composite(path: PathLike, transform: Transform) -> None:
    """Write a composite of ITK as HDF5.

    It has the groups that ITK writes, without its times, so that the same transform gives the same bytes. Fields are
    compressed and in single precision, as in a displacement file; ITK would store doubles as they are.
    """
    steps = transform.steps[::-1]  # ITK lets the step that was added last act first
    dims = transform.world_dims
    with atomic_path(path) as partial, h5py.File(partial, "w") as file:
        _put_texts(file, "ITKVersion", sitk.Version.ITKVersionString())
        _put_texts(file, "HDFVersion", h5py.version.hdf5_version)
        for number, step in enumerate([None, *steps]):
            group = file.create_group(f"TransformGroup/{number}")
            if step is None:
                _put_texts(group, "TransformType", f"CompositeTransform_double_{dims}_{dims}")
                continue
            kind = "AffineTransform" if isinstance(step, Affine) else "DisplacementFieldTransform"
            _put_texts(group, "TransformType", f"{kind}_double_{dims}_{dims}")
            if isinstance(step, Affine):
                group["TransformFixedParameters"] = np.array(step.itk.GetFixedParameters())
                group["TransformParameters"] = np.array(step.itk.GetParameters())
            else:
                _put_field(group, step)


def _count(kind: str) -> int | None:
    """Parameters of a kind of transform, None if that depends on more."""
    name, _, axes = kind.split("_")[:3]
    return _BY_AXES[name](int(axes)) if name in _BY_AXES else _PARAMETERS.get(name)


def _in_text(file: Path) -> Iterator[tuple[str, np.ndarray | None]]:
    """Kinds and parameters; None where none are given, or they are not looked at."""
    kind, parameters = "", None
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = (part.strip() for part in line.partition(":"))
        if name == "Transform":
            if kind:
                yield kind, parameters
            kind, parameters = (value if _KIND.fullmatch(value) else ""), None
        elif name == "Parameters":
            parameters = np.array(value.split(), np.float64)
    if kind:
        yield kind, parameters


def _in_matlab(file: Path) -> Iterator[tuple[str, np.ndarray | None]]:
    data, place = file.read_bytes(), 0
    while place < len(data):
        kind, rows, columns, _, length = struct.unpack_from("<5i", data, place)
        name = data[place + 20 : place + 20 + length].rstrip(b"\0").decode("ascii")
        dtype = np.dtype({0: "<f8", 10: "<f4"}[kind])
        if min(rows, columns, length) < 0:
            raise ValueError("no matrix")
        start = place + 20 + length
        place = start + rows * columns * dtype.itemsize
        if place > len(data):  # ITK would ask for all the memory that a damaged size says
            raise ValueError("a matrix ends behind the file")
        if _KIND.fullmatch(name):
            yield name, np.frombuffer(data[start:place], dtype, rows * columns)


def _in_hdf5(file: Path) -> Iterator[tuple[str, np.ndarray | None]]:
    with h5py.File(file) as content:
        groups = content["TransformGroup"]
        check_sizes(groups)
        for name in sorted(groups, key=int):
            kind = str(groups[name]["TransformType"].asstr()[0])
            if _KIND.fullmatch(kind):
                linear = _count(kind) is not None and "TransformParameters" in groups[name]
                yield kind, groups[name]["TransformParameters"][()].ravel() if linear else None


def _put_texts(group: h5py.Group, name: str, text: str) -> None:
    group.create_dataset(name, data=np.array([text], dtype=object), dtype=h5py.string_dtype("ascii"))


def _put_field(group: h5py.Group, step: Displacement) -> None:
    geometry = itk_geometry(step.grid)
    group["TransformFixedParameters"] = np.concatenate([step.grid.shape, *geometry.values()], dtype=np.float64)
    values = step.itk_vectors(np.float32).ravel()
    size = min(_CHUNK, len(values))
    data = group.create_dataset(
        "TransformParameters", values.shape, "<f4", chunks=(size,), compression="gzip", compression_opts=1, shuffle=True
    )
    for start in range(0, len(values), size):  # compressed as HDF5 would do it, in a quarter of its time
        chunk = np.zeros(size, "<f4")
        part = values[start : start + size]
        chunk[: len(part)] = part
        shuffled = np.ascontiguousarray(chunk.view(np.uint8).reshape(size, -1).T)
        data.id.write_direct_chunk((start,), isal_zlib.compress(shuffled, 1))
