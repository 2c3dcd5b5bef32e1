# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""All rotations and shifts of an image over another one, by Fourier transforms."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from monai_nodeo.data.pose.information import Level
from monai_nodeo.data.pose.poses import Poses, joined
from monai_nodeo.data.pose.views import NOISE, View, sampled

__all__ = ["rotations", "search"]

_TURNED = 1.2  # side of the lattice of a turned view, in longest sides of the view
_FREE = 0.6  # shifts that leave less than the rest of this share in overlap may wrap around
_LEAST = 0.2  # share of the largest overlap that counts as one


def rotations(dims: int, count: int) -> Tensor:
    """(count, D, D), spread evenly over all rotations, the identity first.

    In 3D super-Fibonacci spirals of quaternions (Alexa, CVPR 2022).
    """
    if dims == 2:
        angle = torch.arange(count, dtype=torch.float64) * (2 * math.pi / count)
        c, s = angle.cos(), angle.sin()
        return torch.stack([torch.stack([c, -s], -1), torch.stack([s, c], -1)], -2).float()
    i = torch.arange(count - 1, dtype=torch.float64) + 0.5
    phi, psi = math.sqrt(2), 1.533751168755204288118041
    inner, outer = (i / (count - 1)).sqrt(), (1 - i / (count - 1)).sqrt()
    a, b = 2 * math.pi * i / phi, 2 * math.pi * i / psi
    x, y, z, w = inner * a.sin(), inner * a.cos(), outer * b.sin(), outer * b.cos()
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    found = torch.stack([torch.stack(row, -1) for row in rows], -2)
    return torch.cat([torch.eye(3, dtype=torch.float64)[None], found]).float()


def search(level: Level, matrices: Tensor) -> Poses:
    """The best shift for each matrix, by masked correlation (Padfield, 2012) of values and edges.

    Args:
        level: views on cubic lattices of one spacing.
        matrices: (B, D, D), of one scale.
    """
    dims, fixed, moving = level.dims, level.fixed, level.moving
    axes = fixed.grid.affine[:, :-1].float()
    middle = moving.grid.affine[:, :-1] @ torch.tensor([(n - 1) / 2 for n in moving.grid.shape], dtype=torch.float64)
    middle = (middle + moving.grid.affine[:, -1]).float()
    # the turned moving view, sampled around its middle on a lattice with the axes of the fixed one
    side = math.ceil(_TURNED * max(moving.grid.shape) / float(torch.linalg.svdvals(matrices[0]).min()))
    offsets = (torch.cartesian_prod(*[torch.arange(side) - side // 2] * dims).float()) @ axes.T
    size = tuple(_fast(math.ceil(n + _FREE * side)) for n in fixed.grid.shape)
    features = _features(moving)
    still = _spectra(_features(fixed)[None], size)
    poses = []
    for part in matrices.split(16):
        seen, inside = sampled(features, moving.grid, offsets @ part.transpose(1, 2) + middle)
        seen[:, -1] *= inside
        turned = seen.view(len(part), -1, *(side,) * dims)
        at = _overlap_information(still, _spectra(turned, size), size).flatten(1).argmax(1)
        lag = torch.stack(torch.unravel_index(at, size), -1)
        bound = torch.tensor(fixed.grid.shape)
        lag = torch.where(lag >= bound, lag - torch.tensor(size), lag).float()
        # index i of the fixed lattice lies on index i - lag of the turned one, whose index side // 2 is the middle
        place = (lag + side // 2) @ axes.T + fixed.grid.affine[:, -1].float()
        poses.append(Poses(part, middle - (part @ place[..., None])[..., 0]))
    return joined(*poses)


def _features(view: View) -> Tensor:
    """(3, *shape): values, edges, weight."""
    edges = View(view.grid, view.gradient().square().sum(0).sqrt(), view.weight).standardised()
    return torch.stack([view.values, edges.values, view.weight])


def _fast(n: int) -> int:
    """The next product of 2, 3 and 5."""
    while True:
        rest = n
        for p in (2, 3, 5):
            while rest % p == 0:
                rest //= p
        if rest == 1:
            return n
        n += 1


def _spectra(features: Tensor, size: Sequence[int]) -> Tensor:
    """(3, B, C, *size): of features (B, C + 1, *shape), the last of which is the weight: weight, first, second powers.

    The weight comes once for each feature.
    """
    weight, values = features[:, -1:], features[:, :-1]
    stack = torch.stack([weight.expand_as(values), weight * values, weight * values**2])
    return torch.fft.rfftn(stack, s=tuple(size), dim=tuple(range(-len(size), 0)))


def _overlap_information(fixed: Tensor, moving: Tensor, size: Sequence[int]) -> Tensor:
    """(B, *size): information of the overlap at each lag, summed over features and points; 0 where too few overlap."""
    axes = tuple(range(-len(size), 0))

    def lags(a: Tensor, b: Tensor) -> Tensor:
        return torch.fft.irfftn(a * b.conj(), s=tuple(size), dim=axes)

    n = lags(fixed[0, :, :1], moving[0, :, :1])
    most = n.flatten(1).amax(1).view(-1, *[1] * (n.ndim - 1))
    enough = n > _LEAST * most
    n = n.clamp_min(1e-3)
    f, m = lags(fixed[1], moving[0]) / n, lags(fixed[0], moving[1]) / n
    ff = (lags(fixed[2], moving[0]) / n - f**2).clamp_min(0) + NOISE**2
    mm = (lags(fixed[0], moving[2]) / n - m**2).clamp_min(0) + NOISE**2
    fm = lags(fixed[1], moving[1]) / n - f * m
    rest = (1 - fm**2 / (ff * mm)).clamp_min(1e-3)
    return torch.where(enough, -0.5 * rest.log() * n / most, torch.zeros_like(rest)).sum(1)
