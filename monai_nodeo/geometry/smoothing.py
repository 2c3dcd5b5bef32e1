# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Smoothing layers: separable kernels with replicate borders."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from monai_nodeo.geometry.separable import apply_along_axes, kernel_matrix

__all__ = ["AveragingSmoothing", "GaussianSmoothing", "SeparableSmoothing", "odd_window"]


class SeparableSmoothing(nn.Module, ABC):
    """A smoothing kernel, the same along each axis, with replicate borders: a constant stays a constant.

    Args:
        spatial_dims: 2 or 3.
        passes: how often the kernel is applied; 0 leaves the input as it is.
    """

    def __init__(self, spatial_dims: int, passes: int = 1) -> None:
        super().__init__()
        if passes < 0:
            raise ValueError(f"passes must not be negative, got {passes}.")
        self.spatial_dims = spatial_dims
        self.passes = passes

    @abstractmethod
    def kernel(self, scale: float = 1.0) -> tuple[float, ...]:
        """Weights of the kernel along one axis, an odd number.

        Args:
            scale: factor on the size of the kernel, in (0, 1].
        """

    def matrices(
        self,
        spatial_shape: Sequence[int],
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
        spacing: Sequence[float] | None = None,
    ) -> list[Tensor]:
        """The smoothing as one (size, size) matrix per spatial axis.

        Args:
            spatial_shape: D sizes.
            dtype: type of the matrices.
            device: device of the matrices.
            spacing: D voxel sizes in any unit; the kernel's size counts along the axis of the smallest voxels and is
                the same length along the others. By default the voxels are cubes.

        Raises:
            ValueError: when the shape does not have ``spatial_dims`` axes.
        """
        if len(spatial_shape) != self.spatial_dims:
            raise ValueError(f"expected {self.spatial_dims} spatial axes, got shape {tuple(spatial_shape)}.")
        sides = (1.0,) * self.spatial_dims if spacing is None else tuple(spacing)
        return [
            kernel_matrix(self.kernel(min(sides) / side), n, self.passes, dtype, device)
            for n, side in zip(spatial_shape, sides, strict=True)
        ]

    def forward(self, x: Tensor) -> Tensor:
        """Smooth (B, C, *spatial); the shape is kept.

        Raises:
            ValueError: when ``x`` does not have ``spatial_dims`` spatial axes.
        """
        if x.ndim != self.spatial_dims + 2:
            raise ValueError(f"expected (B, C) and {self.spatial_dims} spatial axes, got shape {tuple(x.shape)}.")
        return apply_along_axes(x, self.matrices(x.shape[2:], x.dtype, x.device))


def odd_window(length: float) -> int:
    """The odd number of voxels nearest to a length in voxels, at least 1."""
    return 2 * max(0, round((length - 1) / 2)) + 1


def _check_window(window: int) -> None:
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window must be a positive odd number of voxels, got {window}.")


class AveragingSmoothing(SeparableSmoothing):
    """Moving average (the averaging kernel "AK" of Wu et al., CVPR 2022).

    Args:
        spatial_dims: 2 or 3.
        window: voxels along each axis, odd.
        passes: how often it is applied.

    Raises:
        ValueError: when the window is not a positive odd number.
    """

    def __init__(self, spatial_dims: int, window: int = 15, passes: int = 1) -> None:
        super().__init__(spatial_dims, passes)
        _check_window(window)
        self.window = window

    def kernel(self, scale: float = 1.0) -> tuple[float, ...]:
        return (1.0,) * odd_window(self.window * scale)


class GaussianSmoothing(SeparableSmoothing):
    """Gaussian kernel (the "GK" of Wu et al., CVPR 2022).

    Args:
        spatial_dims: 2 or 3.
        sigma: standard deviation in voxels.
        window: voxels along each axis, odd; default: three standard deviations to each side.
        passes: how often it is applied.

    Raises:
        ValueError: when ``sigma`` is not positive or the window is not a positive odd number.
    """

    def __init__(self, spatial_dims: int, sigma: float, window: int | None = None, passes: int = 1) -> None:
        super().__init__(spatial_dims, passes)
        if sigma <= 0:
            raise ValueError(f"sigma must be positive (voxels), got {sigma}.")
        self.sigma = sigma
        self.window = 2 * math.ceil(3 * sigma) + 1 if window is None else window
        _check_window(self.window)

    def kernel(self, scale: float = 1.0) -> tuple[float, ...]:
        reach = odd_window(self.window * scale) // 2
        return tuple(math.exp(-0.5 * (i / (self.sigma * scale)) ** 2) for i in range(-reach, reach + 1))
