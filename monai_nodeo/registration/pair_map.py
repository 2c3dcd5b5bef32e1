# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The whole way between two images: a flow and an affine, in either direction."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from monai_nodeo.files import ImageGrid, Transform
from monai_nodeo.flows import Flow

if TYPE_CHECKING:  # points and transforms do without MONAI, which takes seconds to import
    from monai.data import MetaTensor

    from monai_nodeo.data.image import Image

__all__ = ["PairMap"]


@dataclass(frozen=True, eq=False)
class PairMap:
    """Takes points of one image to the other, and brings the other image on to the grid of the one.

    Attributes:
        flow: from the fixed image towards the moving one, or its inverse.
        grid: of the image whose points are taken.
        before: affine that points go through before the flow, (4, 4) RAS mm.
        after: affine that they go through after it.
    """

    flow: Flow
    grid: ImageGrid
    before: Tensor
    after: Tensor

    @classmethod
    def of(cls, flow: Flow, start: Tensor | None, displacement: Tensor | None = None) -> PairMap:
        """From the fixed to the moving image: the flow, then the start.

        Args:
            flow: from the fixed image.
            start: (4, 4) RAS mm; None: points are there.
            displacement: ``flow.displacement()``, where it is known already.
        """
        nothing = torch.eye(4, dtype=torch.float64)
        found = cls(flow, flow.grid, nothing, nothing if start is None else start.double().cpu())
        if displacement is not None:
            vars(found)["flow_displacement"] = displacement
        return found

    def inverse(self, grid: ImageGrid) -> PairMap:
        """The way back, from the other image, whose grid is given."""
        return PairMap(self.flow.inverse, grid, torch.linalg.inv(self.after), torch.linalg.inv(self.before))

    def points(self, points: Tensor, t0: float = 0.0, t1: float = 1.0) -> Tensor:
        """Where points (N, 3) RAS mm are taken.

        Args:
            points: of the one image.
            t0: time of the flow at which they are there; after 0, the affine before the flow is left out.
            t1: time of the arrival; before 1, the affine after the flow is left out.
        """
        there = self.flow(_moved(points, self.before) if t0 == 0 else points, t0, t1)
        return _moved(there, self.after) if t1 == 1 else there

    @cached_property
    def flow_displacement(self) -> Tensor:
        """What the flow does to the grid, in its voxels, (D, *spatial)."""
        return self.flow.displacement(self.grid, affine=self._started)

    @property
    def ddf(self) -> Tensor:
        """The whole way in voxels of the grid, (D, *spatial): what MONAI's ``Warp`` needs of an image on that grid."""
        return self._with_affines(self.flow_displacement)

    @property
    def transform(self) -> Transform:
        """The whole way for files, ITK, ANTs and Slicer: the field of the flow on the grid, then an affine."""
        field = self.flow_displacement.cpu().numpy()
        return Transform.of_registration(field, self.grid, (self.after @ self.before).numpy())

    def on(self, grid: ImageGrid, t0: float = 0.0, t1: float = 1.0) -> PairMap:
        """The same map for another grid, or a part of its way; see :py:meth:`points` for times."""
        nothing = torch.eye(4, dtype=torch.float64)
        part = PairMap(self.flow, grid, self.before if t0 == 0 else nothing, self.after if t1 == 1 else nothing)
        if (t0, t1) != (0, 1):
            vars(part)["flow_displacement"] = self.flow.displacement(grid, t0, t1, part._started)
        return part

    def _with_affines(self, way: Tensor) -> Tensor:
        if torch.equal(self.before @ self.after, torch.eye(4, dtype=torch.float64)):
            return way
        from monai_nodeo.data.placement import voxel_map

        mapped = voxel_map(self._reference, self._reference, self.after @ self.before).to(way)
        axes = [torch.arange(n, dtype=way.dtype, device=way.device) for n in way.shape[1:]]
        voxels = torch.stack(torch.meshgrid(*axes, indexing="ij"))
        there = torch.einsum("ij,j...->i...", mapped[:-1, :-1], voxels + way)
        return there + mapped[:-1, -1].view(-1, *[1] * len(axes)) - voxels

    def warp(self, image: Image | MetaTensor, mode: str = "bilinear", key: str = "image") -> MetaTensor:
        """The other image on the grid of the one, interpolated once from its own voxels.

        Args:
            image: see :py:func:`monai_nodeo.data.as_image`; labels too.
            mode: ``"bilinear"`` for images (linear in 3D too), ``"nearest"`` for labels.
            key: what errors call it.

        Returns:
            (C, *spatial), float32, or for ``"nearest"`` the type of the values if the image is a tensor.
        """
        from monai.data import MetaTensor

        from monai_nodeo.data.image import as_image
        from monai_nodeo.data.placement import on_grid_of

        given = image if isinstance(image, MetaTensor) else as_image(image, key, self.grid.spatial_dims)
        warped = on_grid_of(self._reference, given, self.after @ self.before, self.flow_displacement, mode)
        return warped.to(given.dtype) if mode == "nearest" else warped

    @property
    def _started(self) -> np.ndarray:
        """(4, 4), voxel of the grid -> RAS mm where the flow begins."""
        started: np.ndarray = self.before.numpy() @ self.grid.affine
        return started

    @property
    def _reference(self) -> MetaTensor:
        from monai.data import MetaTensor

        nothing = torch.zeros(1).expand(1, *self.grid.spatial_shape)
        return MetaTensor(nothing, affine=torch.from_numpy(self.grid.affine.copy()))


def _moved(points: Tensor, affine: Tensor) -> Tensor:
    matrix = affine.to(points)
    return points @ matrix[:3, :3].T + matrix[:3, 3]
