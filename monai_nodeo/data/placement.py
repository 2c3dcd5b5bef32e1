# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Where the voxels of one image lie in another: by the affines of both, an affine start, and a displacement.

Whatever is sampled of a moving image is sampled here, from its own voxels and with one interpolation. Masks that the
images give are made in `data.masks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from monai.data import MetaTensor
from monai.data.utils import to_affine_nd
from monai.utils import MetaKeys, SpaceKeys, look_up_option
from torch import Tensor

from monai_nodeo.data.pair import PairError, source_name
from monai_nodeo.files import background
from monai_nodeo.geometry.sampling import sample_voxels

__all__ = [
    "SAME_GRID_VOXELS",
    "affine_3d",
    "check_plane",
    "in_plane",
    "in_view",
    "on_grid_of",
    "physical_map",
    "same_grid",
    "started",
    "to_voxels",
    "voxel_map",
    "voxel_sides",
    "world_corners",
]

# Far below what interpolation can show, far above what storing an affine in float32 or as a quaternion loses.
SAME_GRID_VOXELS = 0.01
_SAME_PLANE = torch.cos(torch.deg2rad(torch.tensor(1.0))).item()
_SLAB_VOXELS = 2**20  # positions that are held at a time


def on_grid_of(
    fixed: MetaTensor,
    moving: MetaTensor,
    initial_affine: Tensor | None = None,
    ddf: Tensor | None = None,
    mode: str = "bilinear",
) -> MetaTensor:
    """A moving image on the fixed grid, interpolated once from its own voxels.

    Args:
        fixed: image (C, *spatial), whose grid is meant; a slice may be (C, X, Y, 1).
        moving: image or labels, (C, *its own spatial); a slice likewise.
        initial_affine: (4, 4), RAS mm, fixed physical point -> moving physical point.
        ddf: displacement in voxels of the fixed grid, (D, *spatial), tensor axis order.
        mode: ``"bilinear"`` for images (linear in 3D too), ``"nearest"`` for labels.

    Returns:
        (C, *spatial), float32, on the device of the ddf if there is one, with the fixed affine in RAS mm and otherwise
        the meta of the moving image. Outside the moving field of view, which ends half a voxel beyond the last voxel as
        ITK's does, each channel of an image is its :py:func:`monai_nodeo.files.background` and labels are 0. Without a
        ddf, voxels of one grid stay as they are.

    Raises:
        ValueError: for another mode.
    """
    look_up_option(mode, ("bilinear", "nearest"))
    fixed, moving = in_plane(fixed), in_plane(moving)
    mapped = voxel_map(fixed, moving, initial_affine)
    shape = tuple(fixed.shape[1:])
    values = moving.as_tensor().to(ddf.device if ddf is not None else None, torch.float32)
    if ddf is not None or not same_grid(fixed, moving, mapped):
        values = torch.cat([_sampled(x, mapped, shape, ddf, mode, _outside(x, mode)) for x in values.split(1)])
    meta = {name: value for name, value in moving.meta.items() if name not in (MetaKeys.AFFINE, MetaKeys.SPACE)}
    return MetaTensor(values, affine=affine_3d(fixed), meta=meta)


def in_plane(image: MetaTensor) -> MetaTensor:
    """A slice (C, X, Y, 1) as (C, X, Y), in its place; any other image as it is."""
    if image.ndim != 4 or image.shape[-1] != 1:
        return image
    meta = {name: value for name, value in image.meta.items() if name != MetaKeys.AFFINE}
    return MetaTensor(image.as_tensor()[..., 0], affine=image.affine.clone(), meta=meta)


def voxel_sides(affine: Tensor, spatial_dims: int) -> tuple[float, ...]:
    """Size of a voxel along each axis of a grid in mm, D numbers.

    Args:
        affine: (4, 4) or (3, 3), voxel -> RAS mm.
        spatial_dims: D axes that the grid has.
    """
    return tuple(torch.linalg.vector_norm(affine[:-1, :spatial_dims].double(), dim=0).tolist())


def voxel_map(fixed: MetaTensor, moving: MetaTensor, initial_affine: Tensor | None = None) -> Tensor:
    """Fixed voxel -> moving voxel by the affines; for slices after projection onto the moving plane.

    Args:
        fixed: image (C, *spatial).
        moving: image (C, *its own spatial).
        initial_affine: (4, 4), RAS mm, fixed physical point -> moving physical point.

    Returns:
        (D + 1, D + 1), float64.

    Raises:
        PairError: when the images differ in dimension, or two slices lie in planes of different orientation.
    """
    if fixed.ndim != moving.ndim:
        raise PairError(
            f"{source_name('moving', moving)}: shape {tuple(moving.shape[1:])} and the shape {tuple(fixed.shape[1:])} "
            f"of {source_name('fixed', fixed)} differ in dimension; give two volumes or two slices."
        )
    dims = fixed.ndim - 1
    source, target = affine_3d(moving), started(fixed, initial_affine)
    if dims == 2:
        check_plane(fixed, moving, target, source)
    relative = target[:3, [*range(dims), 3]].clone()
    relative[:, -1] -= source[:3, 3]
    mapped = torch.eye(dims + 1, dtype=torch.float64)
    mapped[:dims] = torch.linalg.pinv(source[:3, :dims]) @ relative
    return mapped


def physical_map(fixed: MetaTensor, moving: MetaTensor, initial_affine: Tensor | None = None) -> Tensor:
    """Fixed physical point -> moving physical point, as `voxel_map` has it: for a file that stands alone.

    For volumes it is the affine start. Slices of different levels are matched in their plane, and here the fixed plane
    is put on the moving one.

    Args:
        fixed: image (C, *spatial).
        moving: image (C, *its own spatial).
        initial_affine: (4, 4), RAS mm, fixed physical point -> moving physical point.

    Returns:
        (4, 4), RAS mm, float64.
    """
    dims, source, target = fixed.ndim - 1, affine_3d(moving), affine_3d(fixed)
    if dims == 3:
        return torch.eye(4, dtype=torch.float64) if initial_affine is None else initial_affine.to(target)
    mapped = voxel_map(fixed, moving, initial_affine)
    through = torch.eye(4, dtype=torch.float64)
    through[:2, :2], through[:2, 3] = mapped[:2, :2], mapped[:2, 2]
    # a step along the one normal becomes a step of the same length, to the same side, along the other
    through[2, 2] = (target[:3, 2].norm() / source[:3, 2].norm()).copysign(target[:3, 2] @ source[:3, 2])
    return source @ through @ torch.linalg.inv(target)


def to_voxels(points: Tensor, image: MetaTensor) -> Tensor:
    """Points (N, 3) in RAS mm as voxel positions (N, D) of an image (C, *spatial); those of a slice by projection."""
    affine, dims = affine_3d(image), image.ndim - 1
    return (points - affine[:3, 3]) @ torch.linalg.pinv(affine[:3, :dims]).T


def affine_3d(image: MetaTensor) -> Tensor:
    """(4, 4), voxel -> RAS mm, float64 on the CPU; also of an image whose meta says LPS, and of any slice.

    MONAI's SqueezeDim makes the affine of a slice 3 x 3, without the third coordinate. The file's affine has it.
    """
    affine = torch.as_tensor(image.affine).to("cpu", torch.float64)
    if affine.shape == (3, 3):
        stored = torch.as_tensor(image.meta.get(MetaKeys.ORIGINAL_AFFINE, torch.eye(4))).to("cpu", torch.float64)
        if stored.shape == (4, 4) and torch.equal(stored[[0, 1, 3]][:, [0, 1, 3]], affine):
            affine = stored
    affine = torch.as_tensor(to_affine_nd(3, affine))
    if image.meta.get(MetaKeys.SPACE) == SpaceKeys.LPS:
        affine = torch.tensor([-1.0, -1, 1, 1], dtype=affine.dtype)[:, None] * affine
    return affine


def world_corners(affine: Tensor, shape: tuple[int, ...], margin: float = 0.0) -> Tensor:
    """(3, 2^D) corners of a grid in RAS mm: the outermost voxel centres, or ``margin`` voxels outside them."""
    corners = torch.tensor(list(product(*[(-margin, n - 1 + margin) for n in shape])), dtype=affine.dtype)
    return affine[:3, : len(shape)] @ corners.T + affine[:3, 3:]


def started(fixed: MetaTensor, initial_affine: Tensor | None) -> Tensor:
    """(4, 4), RAS mm, float64: fixed voxel -> moving physical point, by the affine start if there is one."""
    affine = affine_3d(fixed)
    return affine if initial_affine is None else initial_affine.to(affine) @ affine


def same_grid(fixed: MetaTensor, moving: MetaTensor, mapped: Tensor) -> bool:
    """Whether no voxel would move by a `voxel_map`: a corner moves furthest."""
    shape = tuple(fixed.shape[1:])
    corners = torch.tensor(list(product(*[(0, n - 1) for n in shape], (1,))), dtype=mapped.dtype).T
    return moving.shape[1:] == fixed.shape[1:] and float((mapped @ corners - corners).abs().max()) < SAME_GRID_VOXELS


def check_plane(fixed: MetaTensor, moving: MetaTensor, target: Tensor, source: Tensor) -> None:
    """Refuse slices that do not lie in parallel planes.

    Args:
        fixed: image (C, X, Y).
        moving: same.
        target: (4, 4), voxel of the fixed one -> RAS mm.
        source: the same of the moving one.

    Raises:
        PairError: names the images.
    """
    normals = []
    for affine in (target, source):
        normal = torch.linalg.cross(affine[:3, 0], affine[:3, 1])
        normals.append(normal / torch.linalg.vector_norm(normal))
    # A slice seen from its other side lies in the same plane.
    if abs(float(normals[0] @ normals[1])) < _SAME_PLANE:
        raise PairError(
            f"{source_name('moving', moving)}: its plane (normal {_rounded(normals[1])}) is not parallel to that of "
            f"{source_name('fixed', fixed)} (normal {_rounded(normals[0])}); give slices of one orientation."
        )


def _rounded(vector: Tensor) -> list[float]:
    return [round(value, 2) for value in vector.tolist()]


def _outside(channel: Tensor, mode: str) -> float:
    """Each channel (1, *spatial) has its own background, also where 0 is not, as in CT; labels have 0."""
    return background(channel[0].detach().cpu().numpy()) if mode == "bilinear" else 0.0


def _sampled(
    image: Tensor, mapped: Tensor, shape: tuple[int, ...], ddf: Tensor | None, mode: str, outside: float
) -> Tensor:
    """(C, *its spatial) -> (C, *shape), at ``mapped(x + ddf(x))``, slab by slab."""
    matrix, offset = mapped[:-1, :-1].to(image), mapped[:-1, -1].to(image)
    axes = [torch.arange(n, dtype=image.dtype, device=image.device) for n in shape]
    out = image.new_empty((image.shape[0], *shape))
    rows = max(1, _SLAB_VOXELS * shape[0] // out[0].numel())
    for start in range(0, shape[0], rows):
        slab = slice(start, start + rows)
        places = torch.stack(torch.meshgrid(axes[0][slab], *axes[1:], indexing="ij"))
        if ddf is not None:
            places = places + ddf[:, slab].to(places)
        positions = torch.einsum("ij,j...->i...", matrix, places) + offset.view(-1, *[1] * len(shape))
        out[:, slab] = sample_voxels(image[None], positions[None], mode, outside)[0]
    return out


def in_view(mapped: Tensor, fixed_shape: Sequence[int], moving_shape: Sequence[int]) -> Tensor:
    """Which voxel centres of the fixed grid lie inside a voxel of the moving image, (*spatial), bool."""
    inside = torch.ones(tuple(fixed_shape), dtype=torch.bool)
    planes = torch.stack(torch.meshgrid(*map(torch.arange, fixed_shape[1:]), indexing="ij")).to(mapped.dtype)
    for row, size in zip(mapped[:-1], moving_shape, strict=True):
        first = row[-1] + torch.tensordot(row[1:-1], planes, dims=1)
        for number, plane in enumerate(inside):  # positions of all voxels would take eight times the image
            position = first + row[0] * number
            plane &= (position >= -0.5) & (position <= size - 0.5)
    return inside
