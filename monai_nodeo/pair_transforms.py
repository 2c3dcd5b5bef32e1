# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""From a data-list row to tensors on one grid: `LoadPaird` reads and checks files, `MatchGridd` resamples moving.

Every problem of the input is a `PairError` that names the file, what was found and what to do, raised before anything
is optimised.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from itertools import product
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import to_affine_nd
from monai.networks.layers import AffineTransform
from monai.transforms import Transform
from monai.utils import ImageMetaKey, MetaKeys, SpaceKeys
from nibabel.spatialimages import SpatialImage
from torch import Tensor

from monai_nodeo.transform_io import ImageGrid

__all__ = [
    "IMAGE_KEYS",
    "LABEL_KEYS",
    "LoadPairD",
    "LoadPairDict",
    "LoadPaird",
    "MatchGridD",
    "MatchGridDict",
    "MatchGridd",
    "PairError",
    "root_cause",
]

IMAGE_KEYS = ("fixed", "moving")
LABEL_KEYS = ("fixed_label", "moving_label")

# Far below what interpolation can show, far above what storing an affine in float32 or as a quaternion loses.
_SAME_GRID_VOXELS = 0.01
_SINGULAR = 1e-6  # determinant of the axes' unit vectors
_SAME_PLANE = np.cos(np.radians(1.0))
_SMALL_OVERLAP = 0.25
_FLOAT32_EXACT = 2**24  # whole numbers below it survive float32
_LABEL_ROUNDING = 1e-4

logger = logging.getLogger(__name__)


class PairError(ValueError):
    """A pair that cannot be registered. The message names the file, what was found and what to do."""


def root_cause(error: BaseException) -> BaseException:
    """The error that a transform raised, without the RuntimeErrors that MONAI's ``Compose`` wraps around it.

    Args:
        error: what a call of a (nested) ``Compose`` raised.

    Example:
        >>> from monai.transforms import Compose
        >>> try:
        ...     Compose([LoadPaird()])({"fixed": "a.nii.gz"})
        ... except RuntimeError as error:
        ...     print(root_cause(error))
        moving: no path was given; give one as "moving".
    """
    while isinstance(error, RuntimeError) and str(error).startswith("applying transform") and error.__cause__:
        error = error.__cause__
    return error


class LoadPaird(Transform):
    """Replace the paths of a row by images, after checking them.

    "fixed" and "moving" must be there; "fixed_label" and "moving_label" come together or not at all. Other keys pass.
    Each becomes a MetaTensor, float32, (1, *spatial) with D spatial axes; a slice may be stored as (X, Y, 1) or (X, Y).
    Its ``affine`` stays 4 x 4, voxel -> RAS mm, and its meta holds, for a writer, "original_affine" (4, 4),
    "spatial_shape" (the shape in the file, with the third axis of a slice if it is stored) and "filename_or_obj".

    Args:
        spatial_dims: D, 3 for volumes, 2 for slices.
        min_size: fewest voxels along an axis.

    Raises:
        PairError: when a file is missing, damaged, no single-channel image of D axes, too small, constant or not finite
            or has a singular affine; or labels are not whole numbers or not on the grid of their image.
    """

    def __init__(self, spatial_dims: int = 3, min_size: int = 8) -> None:
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims is {spatial_dims!r}, expected 2 or 3.")
        self.spatial_dims = spatial_dims
        self.min_size = min_size

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Load one row.

        Args:
            data: paths under "fixed", "moving" and perhaps "fixed_label", "moving_label".

        Returns:
            A new dict with MetaTensors in their place.
        """
        row = {key: value for key, value in data.items() if key not in LABEL_KEYS or value is not None}
        _check_keys(row)
        for key in (*IMAGE_KEYS, *LABEL_KEYS):
            if key in row:
                row[key] = self._load(key, row[key])
        _check_writable_grid(data["fixed"])
        for key in IMAGE_KEYS:
            _check_contrast(key, row[key])
        for image_key, label_key in zip(IMAGE_KEYS, LABEL_KEYS, strict=True):
            if label_key in row:
                _check_label_grid(label_key, row[label_key], row[image_key])
                row[label_key] = _whole_numbers(label_key, row[label_key])
        return row

    def _load(self, key: str, path: Any) -> MetaTensor:
        name = f"{key} {path}"
        image = _open(name, path)
        shape = tuple(int(size) for size in image.shape)
        stored = shape[:3] if set(shape[3:]) <= {1} else shape  # time or vector axes of length 1 hold nothing
        _check_shape(name, stored, self.spatial_dims)
        spatial = stored[: self.spatial_dims]
        if min(spatial) < self.min_size:
            raise PairError(
                f"{name}: {min(spatial)} voxels along an axis of {spatial}, expected at least {self.min_size}; "
                "crop less or resample to smaller voxels."
            )
        affine = np.asarray(image.affine, dtype=np.float64)
        _check_affine(name, affine)
        # The same keys as MONAI's own readers, so that its other transforms find what they expect.
        meta = {
            ImageMetaKey.FILENAME_OR_OBJ: fspath(path),
            MetaKeys.ORIGINAL_AFFINE: affine.copy(),
            MetaKeys.SPATIAL_SHAPE: np.asarray(stored),
            MetaKeys.ORIGINAL_CHANNEL_DIM: float("nan"),
            MetaKeys.SPACE: SpaceKeys.RAS,
        }
        voxels = torch.from_numpy(_read_voxels(name, image)).reshape(1, *spatial)
        return MetaTensor(voxels, affine=torch.from_numpy(affine), meta=meta)


class MatchGridd(Transform):
    """Resample "moving" (linear) and "moving_label" (nearest) onto the grid of "fixed" by their affines.

    An image whose grid agrees to a hundredth of a voxel keeps its voxels untouched. Outside the moving field of view an
    image holds its minimum and labels hold 0. The result carries the fixed affine; "original_affine" and the other meta
    stay those of the moving file.

    Two slices are matched in their plane: the position along its normal is ignored, since slices of different levels
    may be registered.

    Raises:
        PairError: when the fields of view do not overlap, or two slices lie in planes of different orientation.
    """

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Match one pair.

        Args:
            data: MetaTensors "fixed" (C, *spatial), "moving" (C, *its own spatial) and perhaps "moving_label".

        Returns:
            A new dict, all of it on the fixed grid.
        """
        pair = dict(data)
        fixed, moving = pair["fixed"], pair["moving"]
        voxel_map = _voxel_map(fixed, moving)
        shape = tuple(fixed.shape[1:])
        same = moving.shape[1:] == fixed.shape[1:] and _largest_shift(voxel_map, shape) < _SAME_GRID_VOXELS
        if not same:
            _check_overlap(fixed, moving, voxel_map)
        for key, mode in (("moving", "bilinear"), ("moving_label", "nearest")):
            if key in pair:
                values = pair[key].as_tensor() if same else _resample(pair[key].as_tensor(), voxel_map, shape, mode)
                meta = {name: value for name, value in pair[key].meta.items() if name != MetaKeys.AFFINE}
                pair[key] = MetaTensor(values, affine=fixed.affine.clone(), meta=meta)
        return pair


LoadPairD = LoadPairDict = LoadPaird
MatchGridD = MatchGridDict = MatchGridd


def _check_keys(row: Mapping[str, Any]) -> None:
    for key in IMAGE_KEYS:
        if row.get(key) is None or row[key] == "":
            raise PairError(f'{key}: no path was given; give one as "{key}".')
    given = [key for key in LABEL_KEYS if key in row]
    if len(given) == 1:
        (missing,) = set(LABEL_KEYS) - set(given)
        raise PairError(
            f"{given[0]} {row[given[0]]}: labels came without {missing}; give both label maps, or none to do without."
        )


def _check_writable_grid(path: PathLike) -> None:
    """The results are written on the fixed grid: better to know now whether it can be."""
    try:
        ImageGrid.from_file(path)
    except ValueError as error:
        raise PairError(f"fixed {error}") from error


def _open(name: str, path: Any) -> SpatialImage:
    """Header and lazy voxels.

    By nibabel itself: MONAI's reader puts the qform in place of an sform that disagrees with the header's voxel size,
    and the affine here would not be the one that nibabel, and with it our writer, reads from the same file.
    """
    if not isinstance(path, str | PathLike):
        raise PairError(f"{name}: a {type(path).__name__} is not a path; give the path of a NIfTI file.")
    file = Path(path).expanduser()
    if not file.exists():
        raise PairError(f"{name}: there is no such file; check the path (relative paths start at {Path.cwd()}).")
    if not file.is_file():
        raise PairError(f"{name}: not a file; give the path of a NIfTI file (.nii or .nii.gz).")
    if file.stat().st_size == 0:
        raise PairError(f"{name}: the file is empty; copy or download it again.")
    try:
        image = nib.load(file)
    except Exception as error:  # nibabel, gzip and the disk raise too many kinds to list
        raise PairError(
            f"{name}: not an image that nibabel reads, or a damaged one ({error}); expected NIfTI (.nii or .nii.gz)."
        ) from error
    if not isinstance(image, SpatialImage) or image.affine is None:
        raise PairError(f"{name}: a {type(image).__name__} has no voxel grid; expected NIfTI (.nii or .nii.gz).")
    return image


def _check_shape(name: str, shape: tuple[int, ...], spatial_dims: int) -> None:
    if len(shape) > 3:
        raise PairError(
            f"{name}: shape {shape} is {len(shape)}D, a series or a vector image; expected one single-channel image, "
            "extract one volume or component first."
        )
    if len(shape) < 2 or min(shape) < 1:
        raise PairError(f"{name}: shape {shape} is no image; expected (X, Y, Z), or (X, Y) or (X, Y, 1) for a slice.")
    is_slice = len(shape) == 2 or 1 in shape
    if spatial_dims == 3 and is_slice:
        raise PairError(
            f"{name}: shape {shape} is a slice, but spatial_dims=3 registers volumes; "
            "give a volume, or for slices lay inference_2d.json over inference.json (spatial_dims=2)."
        )
    if spatial_dims == 2 and not is_slice:
        raise PairError(
            f"{name}: shape {shape} is a volume, but spatial_dims=2 registers slices; "
            "give a slice, or for volumes use inference.json without inference_2d.json (spatial_dims=3)."
        )
    if spatial_dims == 2 and shape[2:] not in ((), (1,)):
        raise PairError(
            f"{name}: a slice of shape {shape}; expected (X, Y) or (X, Y, 1), move the thin axis to the end."
        )


def _check_affine(name: str, affine: np.ndarray) -> None:
    axes = affine[:3, :3]
    lengths = np.linalg.norm(axes, axis=0)
    usable = affine.shape == (4, 4) and np.isfinite(affine).all() and lengths.min() > 0
    if not usable or abs(np.linalg.det(axes / lengths)) < _SINGULAR:
        raise PairError(
            f"{name}: the affine {affine.tolist()} is singular or not finite and gives the voxels no place in space; "
            "repair the header's sform or qform."
        )


def _read_voxels(name: str, image: SpatialImage) -> np.ndarray:
    """Scaled voxels as a contiguous float32 array, all of them finite."""
    dtype = image.get_data_dtype()
    if dtype.names or np.issubdtype(dtype, np.complexfloating):
        kind = "RGB" if dtype.names else "complex"
        raise PairError(
            f"{name}: the voxels are {kind} ({dtype}); expected one real number each, extract a channel first."
        )
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # too large for float32: infinite, and found below
            voxels = np.ascontiguousarray(np.asanyarray(image.dataobj), dtype=np.float32)
    except Exception as error:  # as in _open
        raise PairError(
            f"{name}: the voxels cannot be read, the file is truncated or damaged ({error}); copy or download it again."
        ) from error
    bad = int(voxels.size - np.count_nonzero(np.isfinite(voxels)))
    if bad:
        raise PairError(
            f"{name}: {bad} of {voxels.size} voxels are NaN or infinite in float32; replace them, for example by 0."
        )
    return voxels


def _check_contrast(key: str, image: MetaTensor) -> None:
    low = float(image.min())
    if low == float(image.max()):
        raise PairError(
            f"{_name(key, image)}: every voxel is {low:g}, so there is nothing to register; give another image."
        )


def _check_label_grid(key: str, label: MetaTensor, image: MetaTensor) -> None:
    """Labels belong to their image voxel by voxel: unlike a pair, they are never resampled to fit."""
    name, image_name = _name(key, label), image.meta[ImageMetaKey.FILENAME_OR_OBJ]
    advice = "resample the labels to the image's grid (nearest neighbour)."
    if label.shape != image.shape:
        raise PairError(
            f"{name}: shape {tuple(label.shape[1:])} differs from {tuple(image.shape[1:])} of its image {image_name}; "
            f"{advice}"
        )
    spacing = torch.linalg.vector_norm(image.affine[:3, : image.ndim - 1], dim=0)
    shift = _world_corners(label.affine, label.shape[1:]) - _world_corners(image.affine, image.shape[1:])
    apart = float(torch.linalg.vector_norm(shift, dim=0).max())
    if apart > _SAME_GRID_VOXELS * float(spacing.min()):
        raise PairError(
            f"{name}: its affine puts a corner {apart:.3g} mm from that of its image {image_name}; {advice}"
        )


def _whole_numbers(key: str, label: MetaTensor) -> Tensor:
    rounded = torch.round(label)
    fractions = int(((label - rounded).abs() > _LABEL_ROUNDING).sum())
    if fractions:
        raise PairError(
            f"{_name(key, label)}: {fractions} voxels are no whole numbers; expected a label map, perhaps this is the "
            "image or labels that were resampled linearly."
        )
    largest = float(rounded.abs().max())
    if largest >= _FLOAT32_EXACT:
        raise PairError(f"{_name(key, label)}: label {largest:.0f} is not below {_FLOAT32_EXACT}; renumber the labels.")
    return rounded


def _name(key: str, image: MetaTensor) -> str:
    return f"{key} {image.meta.get(ImageMetaKey.FILENAME_OR_OBJ, '')}".strip()


def _affine(image: MetaTensor) -> Tensor:
    return torch.as_tensor(to_affine_nd(3, image.affine)).to("cpu", torch.float64)


def _world_corners(affine: Tensor, shape: tuple[int, ...], margin: float = 0.0) -> Tensor:
    """(3, 2^D) corners of a grid in RAS mm: the outermost voxel centres, or ``margin`` voxels outside them."""
    corners = torch.tensor(list(product(*[(-margin, n - 1 + margin) for n in shape])), dtype=affine.dtype)
    return affine[:3, : len(shape)] @ corners.T + affine[:3, 3:]


def _voxel_map(fixed: MetaTensor, moving: MetaTensor) -> Tensor:
    """(D + 1, D + 1), fixed voxel -> moving voxel by the affines; for slices after projection onto the moving plane."""
    if fixed.ndim != moving.ndim:
        raise PairError(
            f"{_name('moving', moving)}: shape {tuple(moving.shape[1:])} and the shape {tuple(fixed.shape[1:])} of "
            f"{_name('fixed', fixed)} differ in dimension; give two volumes or two slices."
        )
    dims = fixed.ndim - 1
    source, target = _affine(moving), _affine(fixed)
    if dims == 2:
        _check_plane(fixed, moving)
    relative = target[:3, [*range(dims), 3]].clone()
    relative[:, -1] -= source[:3, 3]
    voxel_map = torch.eye(dims + 1, dtype=torch.float64)
    voxel_map[:dims] = torch.linalg.pinv(source[:3, :dims]) @ relative
    return voxel_map


def _check_plane(fixed: MetaTensor, moving: MetaTensor) -> None:
    normals = []
    for image in (fixed, moving):
        affine = _affine(image)
        normal = torch.linalg.cross(affine[:3, 0], affine[:3, 1])
        normals.append(normal / torch.linalg.vector_norm(normal))
    # A slice seen from its other side lies in the same plane.
    if abs(float(normals[0] @ normals[1])) < _SAME_PLANE:
        raise PairError(
            f"{_name('moving', moving)}: its plane (normal {_rounded(normals[1])}) is not parallel to that of "
            f"{_name('fixed', fixed)} (normal {_rounded(normals[0])}); give slices of one orientation."
        )


def _rounded(vector: Tensor) -> list[float]:
    return [round(value, 2) for value in vector.tolist()]


def _largest_shift(voxel_map: Tensor, shape: tuple[int, ...]) -> float:
    """How far, in voxels along an axis, the map moves a corner of a grid; no other voxel is moved further."""
    corners = torch.tensor(list(product(*[(0, n - 1) for n in shape], (1,))), dtype=voxel_map.dtype).T
    return float((voxel_map @ corners - corners).abs().max())


def _check_overlap(fixed: MetaTensor, moving: MetaTensor, voxel_map: Tensor) -> None:
    share = _overlap(voxel_map, tuple(fixed.shape[1:]), tuple(moving.shape[1:]))
    names = f"{_name('fixed', fixed)} ({_extent(fixed)}) and {_name('moving', moving)} ({_extent(moving)})"
    if share == 0:
        raise PairError(
            f"{names} do not overlap: no voxel of the fixed grid lies inside the moving image; "
            "align them first, or repair the affine in one header."
        )
    if share < _SMALL_OVERLAP:
        logger.warning("%s: the moving image covers %.1f %% of the fixed grid.", names, 100 * share)


def _overlap(voxel_map: Tensor, fixed_shape: tuple[int, ...], moving_shape: tuple[int, ...]) -> float:
    """Share of the fixed voxel centres that lie inside a voxel of the moving image."""
    inside = torch.ones(fixed_shape, dtype=torch.bool)
    for row, size in zip(voxel_map[:-1], moving_shape, strict=True):
        position = row[-1]
        for axis, n in enumerate(fixed_shape):
            along = torch.arange(n, dtype=row.dtype).view(
                [-1 if axis == other else 1 for other in range(len(fixed_shape))]
            )
            position = position + row[axis] * along
        inside &= (position >= -0.5) & (position <= size - 0.5)
    return int(inside.count_nonzero()) / inside.numel()


def _extent(image: MetaTensor) -> str:
    corners = _world_corners(_affine(image), tuple(image.shape[1:]), margin=0.5)
    ranges = zip("xyz", corners.amin(1).tolist(), corners.amax(1).tolist(), strict=True)
    return ", ".join(f"{axis} {low:.1f} to {high:.1f}" for axis, low, high in ranges) + " mm RAS"


def _resample(image: Tensor, voxel_map: Tensor, shape: tuple[int, ...], mode: str) -> Tensor:
    """(C, *its spatial) -> (C, *shape), float32.

    The layer inside MONAI's ResampleToMatch. The transform around it takes the upper left 2 x 2 block for a slice's
    affine, singular for a coronal one, and ignores differences up to 1e-3 in the matrix: a quarter of a voxel in 256.
    """
    # Padding is with 0. An image's own minimum is its background, also where 0 is not, as in CT.
    background = image.min() if mode == "bilinear" else image.new_zeros(())
    layer = AffineTransform(mode=mode, padding_mode="zeros", align_corners=False)
    values = (image.double() - background).unsqueeze(0)
    resampled = layer(values, theta=voxel_map.to(values), spatial_size=shape)[0] + background
    return resampled.to(torch.float32)
