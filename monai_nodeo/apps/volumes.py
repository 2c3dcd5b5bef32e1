# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Change of volume of labelled structures between two images: the integral of the Jacobian determinant over each.

The flow is evaluated at the corners of the voxels, and what is added up are the volumes of the displaced voxels. So the
sum over a structure is the volume within its displaced surface, whatever happens inside (Freeborough and Fox, IEEE TMI
1997, for the idea of the shifted boundary).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from monai_nodeo.data.image import Image
from monai_nodeo.data.load import load_label
from monai_nodeo.files import ImageGrid
from monai_nodeo.geometry.jacobian import cell_volumes
from monai_nodeo.registration.pair_map import PairMap
from monai_nodeo.registration.result import Registration

__all__ = ["ALL", "LabelVolume", "label_volumes"]

ALL = "all"  # labels together


@dataclass(frozen=True)
class LabelVolume:
    """A structure in both images.

    Attributes:
        label: its number in the label map, or `ALL`.
        fixed: its volume in the fixed image: mm^3, of a slice the area in mm^2.
        moving: the same in the moving image, by the integral of the Jacobian determinant.
        warped: the same, by the label warped onto the moving grid; None: not asked for.
        deviation: standard deviation of ``change`` in other registrations of the pair; None: there are none.
    """

    label: int | str
    fixed: float
    moving: float
    warped: float | None = None
    deviation: float | None = None

    @property
    def change(self) -> float:
        """From the fixed to the moving image, per cent of the fixed volume."""
        return 100 * (self.moving / self.fixed - 1)

    @property
    def warped_change(self) -> float | None:
        """The same by warping."""
        return None if self.warped is None else 100 * (self.warped / self.fixed - 1)


def label_volumes(
    registration: Registration, labels: Image | MetaTensor, samples: Sequence[PairMap] = (), warped: bool = False
) -> list[LabelVolume]:
    """The volume of each label, and of all together, before and after.

    Args:
        registration: of two images; best one with the setting ``symmetric``.
        labels: label map of the fixed image, on its grid, see :py:func:`monai_nodeo.data.as_image`.
        samples: other registrations of the pair, see :py:meth:`PairInferer.samples`, for the uncertainty.
        warped: work out the volumes by warping, too; needs the pair.

    Returns:
        An item for each label above 0, and the last one for all of them.

    Raises:
        PairError: when it is no label map, or on another grid.
        ValueError: when no voxel has a label.

    Example:
        >>> registration = register("fixed.nii.gz", "moving.nii.gz", Settings.preset(symmetric=True))
        >>> changes = {item.label: item.change for item in label_volumes(registration, "fixed_labels.nii.gz")}
        >>> print(f"the structure with label 1: {changes[1]:.2f} %")
    """
    grid = registration.flow.grid
    nothing = torch.zeros(1).expand(1, *grid.spatial_shape)
    label = load_label(labels, "labels", MetaTensor(nothing, affine=torch.from_numpy(grid.affine.copy())))
    values, numbers = label[0].as_tensor().cpu().unique(return_inverse=True)
    if not bool((values > 0).any()):
        raise ValueError("no voxel of the label map has a label above 0.")
    scale = 1.0 if registration.start is None else abs(float(torch.linalg.det(registration.start[:3, :3])))
    voxel = float(np.prod(grid.spacing))
    before = torch.bincount(numbers.flatten()).double()

    def after(way: PairMap) -> Tensor:
        sizes = cell_volumes(way.on(_corners(grid)).ddf[None])[0].cpu().double()
        return scale * torch.bincount(numbers.flatten(), weights=sizes.flatten())

    found = [after(way) for way in (PairMap.of(registration.flow, None), *samples)]
    parts: dict[int | str, Tensor] = {int(v): values == v for v in values if v > 0}
    items = []
    for name, index in {**parts, ALL: values > 0}.items():
        here, there, *others = (float(x[index].sum()) for x in (before, *found))
        spread = float(np.std([100 * x / here for x in others])) if others else None
        items.append(LabelVolume(name, voxel * here, voxel * there, None, spread))
    return _with_warped(registration, label, items) if warped else items


def _with_warped(registration: Registration, label: MetaTensor, items: Sequence[LabelVolume]) -> list[LabelVolume]:
    back = registration.inverse
    voxel = float(np.prod(back.grid.spacing))
    found = []
    for item in items:
        inside = label.as_tensor() > 0 if item.label == ALL else label.as_tensor() == item.label
        there = back.warp(MetaTensor(inside.float(), affine=label.affine))
        found.append(replace(item, warped=voxel * float(there.double().sum())))
    return found


def _corners(grid: ImageGrid) -> ImageGrid:
    """Grid of the corners of the voxels."""
    affine = grid.affine.copy()
    affine[:3, 3] -= affine[:3, : grid.spatial_dims].sum(1) / 2
    sizes = [n + 1 for n in grid.spatial_shape]
    return replace(grid, affine=affine, shape=(*sizes, *grid.shape[len(sizes) :]))
