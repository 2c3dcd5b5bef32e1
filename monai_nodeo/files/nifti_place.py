# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Where the voxels of a file lie: where ITK sees them, so that a transform of ours is right in every tool built on it.

A NIfTI header may hold two places, the sform and the qform, or none. Where they are one, the affine of nibabel is
taken, which has all digits of the header. Where ITK sees another place than nibabel, ITK's is taken and a warning names
both.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import product
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from nibabel.analyze import AnalyzeHeader
from nibabel.nifti1 import Nifti1Header
from nibabel.spatialimages import SpatialImage

from monai_nodeo.files.lps import itk_place

__all__ = ["ALIGNED", "nifti_place", "quiet_itk", "warn"]

logger = logging.getLogger(__name__)

ALIGNED = 2  # NIFTI_XFORM_ALIGNED_ANAT: the code for an affine of unknown origin
_MILLIMETRES = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # of NIfTI's codes: unknown, metre, millimetre, micrometre
_SAME = 0.01  # voxels: more than the single precision of a header explains
_BY_NIBABEL = "the place that nibabel gives it"
_ADVICE = "repair the header if that is wrong."


@np.errstate(all="ignore")  # a header of infinite numbers is refused by who needs them
def nifti_place(name: str, image: SpatialImage, file: Path | None = None) -> tuple[np.ndarray, int, int]:
    """Affine, sform code and qform code of an image of nibabel.

    Args:
        name: what a warning calls the image.
        image: the image.
        file: where it is stored; None for an image in memory, which lies where nibabel says.

    Returns:
        The affine in RAS mm, whatever unit the header has, and the codes to write with it.

    Raises:
        ValueError: when the header's unit is no length.
    """
    affine = np.asarray(image.affine, dtype=np.float64)
    header = image.header
    if not isinstance(header, AnalyzeHeader):
        return affine, ALIGNED, ALIGNED
    scale = np.array([*[_unit(header)] * 3, 1.0])[:, None]
    affine = scale * affine
    forms = [(scale * form if code else None, code) for form, code in _forms(header)]
    seen = None if file is None else _seen_by_itk(file, affine)
    if seen is not None and (apart := _apart(affine, seen, image.shape)) > _SAME:
        warn(f"{name}: {_two_places(seen, forms, image.shape)}, {apart:.3g} voxels from {_BY_NIBABEL}; {_ADVICE}")
        affine = seen
    codes = [0 if form is None or _apart(form, affine, image.shape) > _SAME else code for form, code in forms]
    known = codes[0] or codes[1] or ALIGNED
    return affine, codes[0] or known, codes[1] or known


@contextmanager
def quiet_itk() -> Iterator[None]:
    """ITK prints its warnings on the terminal, with its own source lines; what matters of them is said by us."""
    warned = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(warned)


@lru_cache(maxsize=1024)
def warn(message: str) -> None:
    """Log a warning, once: a file is opened several times on its way."""
    logger.warning("warning: %s", message)


def _unit(header: AnalyzeHeader) -> float:
    """Millimetres of the header's unit of length."""
    code = int(header["xyzt_units"]) % 8 if isinstance(header, Nifti1Header) else 2
    if code not in _MILLIMETRES:
        raise ValueError(f"the spatial unit in the header has the code {code}, expected 2 for mm; repair the header.")
    return _MILLIMETRES[code]


def _forms(header: AnalyzeHeader) -> list[tuple[np.ndarray, int]]:
    """The sform and the qform with their codes; a quaternion that is none has code 0."""
    if not isinstance(header, Nifti1Header):
        return [(np.eye(4), 0)] * 2
    try:
        qform = header.get_qform(), int(header["qform_code"])
    except ValueError:  # longer than 1
        qform = np.eye(4), 0
    return [(header.get_sform(), int(header["sform_code"])), qform]


def _seen_by_itk(file: Path, affine: np.ndarray) -> np.ndarray | None:
    """The affine in which ITK sees a file; None if it does not open it, or takes it to 2D with a loss."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        with quiet_itk():
            reader.ReadImageInformation()
    except RuntimeError:
        return None
    seen = itk_place(reader)
    if reader.GetDimension() > 2:
        return seen
    if np.abs(affine[2, :2]).max() > 0 or np.abs(affine[:2, 2]).max() > 0:  # a plane that only three axes hold
        return None
    seen[2] = affine[2]
    return seen


def _apart(one: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> float:
    """The largest distance of a corner of a grid under two affines, in voxels of the other one."""
    ends = [(0, size - 1) for size in (*shape, 1, 1)[:3]]
    corners = np.array([(*corner, 1) for corner in product(*ends)], dtype=np.float64)
    sides = np.linalg.norm(other[:3, :3], axis=0)
    return float(np.linalg.norm(corners @ (one - other).T, axis=1).max() / sides[sides > 0].min(initial=np.inf))


def _two_places(seen: np.ndarray, forms: list[tuple[np.ndarray | None, int]], shape: tuple[int, ...]) -> str:
    """What ITK goes by, and what the header holds."""
    (sform, sform_code), (qform, qform_code) = forms
    if not sform_code and not qform_code:
        return "the header holds no place (no sform and no qform with a code); it is taken as ITK takes it"
    by_qform = qform is not None and _apart(qform, seen, shape) <= _SAME
    used = "qform" if by_qform else "sform without shear and with the voxel size of pixdim"
    return f"its sform (code {sform_code}) and qform (code {qform_code}) differ; the {used} is used, as ITK does"
