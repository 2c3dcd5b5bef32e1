# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Smoothing layers: separable kernels applied as one small matrix per axis.

A matrix holds the kernel, its border rule and any number of passes at once, so the cost does not depend on the window
or the number of passes, and the gradient is the transposed matrix.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "AveragingSmoothing",
    "GaussianSmoothing",
    "SeparableSmoothing",
    "apply_along_axes",
    "interpolation_matrix",
    "kernel_matrix",
    "odd_window",
    "resampling_matrix",
    "upsampling_matrix",
]


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is kept must be of use to a later training
def kernel_matrix(
    kernel: tuple[float, ...],
    size: int,
    passes: int = 1,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> Tensor:
    """Matrix of a centred one-dimensional kernel on an axis, whose outermost voxels go on: a constant stays a constant.

    Args:
        kernel: odd number of weights; they are scaled to sum to one.
        size: voxels along the axis.
        passes: how often the kernel is applied.
        dtype: type of the matrix (it is worked out in float64).
        device: device of the matrix.

    Returns:
        (size, size), rows sum to one. It is kept for later callers: do not change it in place.

    Raises:
        ValueError: when the kernel has no centre or the passes are negative.
    """
    if len(kernel) % 2 == 0 or passes < 0:
        raise ValueError(f"expected an odd number of weights and 0 or more passes, got {len(kernel)} and {passes}.")
    reach = len(kernel) // 2
    rows = torch.arange(size).unsqueeze(1)
    columns = rows + torch.arange(-reach, reach + 1)
    weights = torch.tensor(kernel, dtype=torch.float64).expand(size, -1)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    matrix.scatter_add_(1, columns.clamp(0, size - 1), weights)
    matrix /= matrix.sum(1, keepdim=True)
    return torch.linalg.matrix_power(matrix, passes).to(device=device, dtype=dtype)


def interpolation_matrix(nodes: int, size: int) -> Tensor:
    """Matrix of linear interpolation from a lattice to an axis, as ``F.interpolate(align_corners=False)``.

    Args:
        nodes: lattice nodes along the axis.
        size: voxels along the axis.

    Returns:
        (size, nodes), float32, rows sum to one.
    """
    return F.interpolate(torch.eye(nodes).unsqueeze(0), size=size, mode="linear", align_corners=False)[0].t()


def resampling_matrix(size: int, new_size: int) -> Tensor:
    """Matrix that takes an axis to another number of voxels over the same extent, first centre to first, last to last.

    Going to fewer voxels, the axis is smoothed before by a Gaussian of half a new voxel.

    Args:
        size: voxels along the axis.
        new_size: new number of voxels, at least 2 if ``size`` is.

    Returns:
        (new_size, size), float32, rows sum to one.
    """
    matrix = F.interpolate(torch.eye(size).unsqueeze(0), size=new_size, mode="linear", align_corners=True)[0].t()
    if new_size >= size:
        return matrix.contiguous()
    sigma = 0.5 * (size - 1) / max(new_size - 1, 1)
    reach = math.ceil(3 * sigma)
    kernel = tuple(math.exp(-0.5 * (i / sigma) ** 2) for i in range(-reach, reach + 1))
    return matrix @ kernel_matrix(kernel, size)


def upsampling_matrix(nodes: int, size: int) -> Tensor:
    """Matrix that takes a lattice to an axis by doubling it as often as it fits, each time with linear interpolation.

    The result is smoother than a single interpolation, whose kinks at the nodes fold more easily.

    Args:
        nodes: lattice nodes along the axis.
        size: voxels along the axis.

    Returns:
        (size, nodes), float32, rows sum to one.
    """
    matrix = torch.eye(nodes)
    while 2 * matrix.shape[0] <= size:
        matrix = interpolation_matrix(matrix.shape[0], 2 * matrix.shape[0]) @ matrix
    return interpolation_matrix(matrix.shape[0], size) @ matrix


def apply_along_axes(x: Tensor, matrices: Sequence[Tensor | None]) -> Tensor:
    """Multiply each spatial axis by its matrix.

    Args:
        x: (B, C, *spatial).
        matrices: one (new size, size) per spatial axis, ``None`` for an axis to leave alone.

    Returns:
        (B, C, *new spatial).
    """
    for axis in reversed(range(len(matrices))):
        matrix = matrices[axis]
        if matrix is None:
            continue
        before, after = x.shape[: 2 + axis], x.shape[3 + axis :]
        # One large product for the last axis, one per leading index for the others: no transposed copies.
        if after:
            x = torch.matmul(matrix, x.reshape(math.prod(before), x.shape[2 + axis], math.prod(after)))
        else:
            x = torch.matmul(x.reshape(-1, x.shape[-1]), matrix.t())
        x = x.view(*before, matrix.shape[0], *after)
    return x


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
