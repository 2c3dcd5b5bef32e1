# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Images, weights and fields for losses, and the gradient of one."""

from collections.abc import Callable

import torch
from torch import Tensor

from monai_nodeo.geometry.jacobian import jacobian_determinant


def images(shape: tuple[int, ...], batch: int = 1, channels: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two correlated noisy images, float64."""
    generator = torch.Generator().manual_seed(seed)
    pred, noise = torch.rand(2, batch, channels, *shape, generator=generator, dtype=torch.float64)
    return pred, pred * 0.7 + noise


def random_weight(shape: tuple[int, ...], batch: int = 1) -> Tensor:
    """Some voxels do not count, the others more or less, float64."""
    weight = torch.rand(batch, 1, *shape, dtype=torch.float64)
    return torch.where(weight < 0.3, 0, weight)


def folded_field(shape: tuple[int, ...], batch: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    """A rough field with folds, (B, D, *shape)."""
    ddf = torch.randn(batch, len(shape), *shape, dtype=dtype)
    determinant = jacobian_determinant(ddf)
    assert determinant.min() < 0 < determinant.max()
    return ddf


def linear_field(matrix: Tensor, shape: tuple[int, ...]) -> Tensor:
    """ddf(x) = matrix @ x, (1, D, *shape)."""
    voxels = torch.stack(torch.meshgrid(*[torch.arange(n, dtype=matrix.dtype) for n in shape], indexing="ij"))
    return torch.einsum("ij,j...->i...", matrix, voxels)[None]


def gradient(loss: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.detach().clone().requires_grad_()
    (loss(x) * 3).backward()  # a factor: the incoming gradient must not be taken for one
    return x.grad
