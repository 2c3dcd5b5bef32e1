# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The velocity network of NODEO."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from monai.networks.layers.factories import Act, Conv, Pool
from monai.utils import ensure_tuple_rep
from torch import Tensor, nn

from monai_nodeo.flows.velocity import CloudModel
from monai_nodeo.geometry.separable import apply_along_axes, upsampling_matrix
from monai_nodeo.geometry.smoothing import AveragingSmoothing, SeparableSmoothing

__all__ = ["NODEONet"]


class NODEONet(CloudModel):
    """The velocity network of NODEO (Wu et al., CVPR 2022, and the authors' code).

    The cloud is halved and taken through stride-2 convolutions to a bottleneck; a linear layer opens it to a coarse
    lattice, which is upsampled to the grid, by twos, and smoothed. The last layer's bias is a free lattice field, so
    the network is mostly a parametrisation of that lattice. Velocities belong to the voxels that the cloud started from
    (the published, Lagrangian form).

    Args:
        spatial_dims: 2 or 3.
        image_size: spatial shape of the images (one number: of all sides); any, odd sides too, each at least
            ``2 * downsample``. :py:meth:`fresh` makes a network for another shape.
        channels: channels of the convolutions.
        num_convolutions: how many stride-2 convolutions.
        bottleneck: features between the two linear layers.
        downsample: voxels per lattice node along each axis.
        smoothing: kernel applied to the velocity on the grid, fixed when the network is made; by default a moving
            average over 15 voxels. A kernel of 0 passes leaves the velocity as it is.
        scale: factor on the output. The authors' code takes one Euler step of length 0.001; over unit time that is
            this factor.
        spacing: distance of the points along each axis, see :py:meth:`VelocityModel.fresh`; the kernel is as long in mm
            along each of them.

    Raises:
        ValueError: when the image size does not fit ``spatial_dims`` or is too small.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        image_size: Sequence[int] | int = 32,
        channels: int = 32,
        num_convolutions: int = 5,
        bottleneck: int = 16,
        downsample: int = 4,
        smoothing: SeparableSmoothing | None = None,
        scale: float = 1e-3,
        spacing: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.min_size = 2 * downsample
        self.spatial_dims = spatial_dims
        if isinstance(image_size, Sequence) and len(image_size) != spatial_dims:
            raise ValueError(f"image_size {tuple(image_size)} does not have spatial_dims={spatial_dims} entries.")
        if min(num_convolutions, bottleneck, downsample) < 1:
            raise ValueError(
                "num_convolutions, bottleneck and downsample must be at least 1, "
                f"got {num_convolutions}, {bottleneck} and {downsample}."
            )
        self.image_size = tuple(int(n) for n in ensure_tuple_rep(image_size, spatial_dims))
        if min(self.image_size) < self.min_size:
            raise ValueError(
                f"image_size {self.image_size} is too small for downsample={downsample}: each side needs at least "
                f"{self.min_size} voxels; crop less, pad the images or lower downsample."
            )
        self.channels = channels
        self.num_convolutions = num_convolutions
        self.bottleneck = bottleneck
        self.downsample = downsample
        self.scale = scale

        self.halve = Pool[Pool.AVG, spatial_dims](kernel_size=2)
        conv = Conv[Conv.CONV, spatial_dims]
        encoder: list[nn.Module] = []
        sizes = [n // 2 for n in self.image_size]
        for i in range(num_convolutions):
            if i:
                encoder.append(Act[Act.RELU]())
            encoder.append(conv(channels if i else spatial_dims, channels, kernel_size=3, stride=2, padding=1))
            sizes = [math.ceil(n / 2) for n in sizes]
        self.encoder = nn.Sequential(*encoder)
        self.lattice_size = tuple(math.ceil(n / downsample) for n in self.image_size)
        self.decoder = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * math.prod(sizes), bottleneck),
            Act[Act.RELU](),
            nn.Linear(bottleneck, spatial_dims * math.prod(self.lattice_size)),
            nn.Unflatten(1, (spatial_dims, *self.lattice_size)),
        )
        self.smoothing = AveragingSmoothing(spatial_dims, 15) if smoothing is None else smoothing
        # Interpolation and smoothing are linear and separable: one matrix an axis takes the lattice to the smooth grid.
        for axis, kernel in enumerate(self.smoothing.matrices(self.image_size, spacing=spacing)):
            upsampling = upsampling_matrix(self.lattice_size[axis], self.image_size[axis])
            self.register_buffer(f"to_grid_{axis}", kernel @ upsampling)

    def forward(self, phi: Tensor, t: Tensor | None = None) -> Tensor:
        """See :py:meth:`VelocityModel.forward`; the published model does not depend on time.

        Raises:
            ValueError: when phi is not of the ``image_size`` that the network was made for.
        """
        if phi.shape[2:] != self.image_size:
            raise ValueError(f"phi {tuple(phi.shape)} is not of image_size {self.image_size}; make a fresh() network.")
        lattice = self.decoder(self.encoder(self.halve(phi))) * self.scale
        return apply_along_axes(lattice, [self.get_buffer(f"to_grid_{a}") for a in range(self.spatial_dims)])

    def options(self) -> dict[str, Any]:
        # without the kernel: it is in the matrices to the grid, which the state dict holds
        names = ("spatial_dims", "channels", "num_convolutions", "bottleneck", "downsample", "scale")
        return {"image_size": list(self.image_size), **{name: getattr(self, name) for name in names}}

    def fresh(self, image_size: Sequence[int], spacing: Sequence[float] | None = None) -> NODEONet:
        return NODEONet(
            self.spatial_dims,
            image_size,
            self.channels,
            self.num_convolutions,
            self.bottleneck,
            self.downsample,
            self.smoothing,
            self.scale,
            spacing,
        )
