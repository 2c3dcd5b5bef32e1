# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""A velocity that belongs to places: v(x, t), sampled where the cloud is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from monai_nodeo.flows.parametrisations import Lattice, Parametrisation
from monai_nodeo.flows.velocity import NodeVelocity, VelocityField, VelocityModel
from monai_nodeo.geometry.coordinates import voxels_per_unit
from monai_nodeo.geometry.resizing import resize
from monai_nodeo.geometry.separable import apply_along_axes
from monai_nodeo.geometry.smoothing import GaussianSmoothing, SeparableSmoothing

__all__ = ["EulerianVelocity"]

# What was measured to be best for a cloud with a point every 1.5 voxels in 3D, and in every voxel in 2D.
_SIGMA = {2: 2.0, 3: 1.33}


class EulerianVelocity(VelocityModel):
    """A smooth velocity field in space, the same for every point that comes by.

    ``v = base + K p``: ``p`` are the images of a parametrisation on the grid of the cloud, in steps of its points,
    ``K`` a smoothing kernel, so that the optimiser's steps are smooth (a Sobolev gradient), and ``base`` the velocity
    of the coarser level that :py:meth:`finer` starts from. Several keyframes are interpolated linearly in time.
    The flow of a smooth field is a diffeomorphism; several solver steps follow it.

    Args:
        spatial_dims: 2 or 3.
        image_size: spatial shape of the cloud (one number: of all sides).
        parametrisation: its options are used; by default :py:class:`Lattice` with one keyframe.
        smoothing: kernel, sized in points of the cloud; by default a Gaussian of 1.33 in 3D, of two in 2D.
        spacing: distance of the points along each axis, see :py:meth:`VelocityModel.fresh`.
    """

    min_size = 4

    def __init__(
        self,
        spatial_dims: int = 3,
        image_size: Sequence[int] | int = 8,
        parametrisation: Parametrisation | None = None,
        smoothing: SeparableSmoothing | None = None,
        spacing: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims
        self.image_size = (image_size,) * spatial_dims if isinstance(image_size, int) else tuple(image_size)
        if len(self.image_size) != spatial_dims:
            raise ValueError(f"image_size {self.image_size} does not have spatial_dims={spatial_dims} entries.")
        self.parametrisation = (parametrisation or Lattice()).fresh(self.image_size)
        self.smoothing = smoothing or GaussianSmoothing(spatial_dims, _SIGMA[spatial_dims])
        sides = spacing or (1.0,) * spatial_dims
        for axis, kernel in enumerate(self.smoothing.matrices(self.image_size, spacing=sides)):
            self.register_buffer(f"kernel_{axis}", kernel, persistent=False)
        # A step of the optimiser is as long in mm along every axis: one point where the points are closest.
        steps = torch.tensor([min(sides) / side for side in sides]).view(1, -1, *[1] * spatial_dims)
        scale = voxels_per_unit(self.image_size, torch.float32, torch.device("cpu"))
        self.register_buffer("scale", torch.where(scale > 0, steps / scale.clamp(min=0.5), 0), persistent=False)
        keyframes = self.parametrisation.keyframes
        self.register_buffer("base", torch.zeros(keyframes, spatial_dims, *self.image_size))

    def forward(self, phi: Tensor, t: Tensor | None = None) -> Tensor:
        """See :py:meth:`VelocityModel.forward`."""
        return self.together([self])(phi, t)

    @staticmethod
    def together(models: Sequence[EulerianVelocity]) -> NodeVelocity:
        """See :py:meth:`VelocityModel.together`."""
        first = models[0]
        kernels = [first.get_buffer(f"kernel_{axis}") for axis in range(first.spatial_dims)]
        steps = _joined([model.parametrisation() for model in models])
        bases = _joined([model.get_buffer("base") for model in models])
        images = bases + apply_along_axes(steps, kernels) * first.get_buffer("scale")
        # those of a model follow each other
        return NodeVelocity(images.unflatten(0, (len(models), -1)).unbind(1))

    def kept(self) -> VelocityField:
        """The velocity at the nodes."""
        return VelocityField.of(torch.cat(self.together([self]).keyframes))

    def fresh(self, image_size: Sequence[int], spacing: Sequence[float] | None = None) -> EulerianVelocity:
        return EulerianVelocity(self.spatial_dims, image_size, self.parametrisation, self.smoothing, spacing)

    @torch.no_grad()
    def finer(self, image_size: Sequence[int], spacing: Sequence[float] | None = None) -> EulerianVelocity:
        """See :py:meth:`VelocityModel.finer`."""
        model = self.fresh(image_size, spacing)
        model.base = resize(self.kept().images.detach(), image_size)  # d phi / dt does not depend on the grid
        return model


def _joined(batches: Sequence[Tensor]) -> Tensor:
    """The batches as one, without a copy of a single one."""
    return batches[0] if len(batches) == 1 else torch.cat(list(batches))
