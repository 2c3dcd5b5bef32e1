# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Linear maps between two images, and the ways in which one can be changed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Poses", "generators", "joined"]

_LOG_SCALE = math.log(1.9)  # no axis is scaled by more


@dataclass
class Poses:
    """Linear maps, fixed -> moving place: ``y = matrix x + shift``.

    Attributes:
        matrix: (B, D, D).
        shift: (B, D).
    """

    matrix: Tensor
    shift: Tensor

    def __getitem__(self, index: Tensor | slice) -> Poses:
        return Poses(self.matrix[index], self.shift[index])

    def __len__(self) -> int:
        return len(self.matrix)

    def moved(self, change: Tensor, basis: Tensor) -> Poses:
        """A step (B, P + D) along generators (P, D, D) and the axes; no axis is scaled beyond the limit."""
        count = len(basis)
        matrix = self.matrix
        if count:
            turn = torch.einsum("bp,pij->bij", change[:, :count], basis)
            matrix = matrix @ torch.linalg.matrix_exp(turn)
            u, s, v = torch.linalg.svd(matrix)
            limit = math.exp(_LOG_SCALE)
            if count > matrix.shape[-1] * (matrix.shape[-1] - 1) // 2:
                matrix = u @ torch.diag_embed(s.clamp(1 / limit, limit)) @ v
        return Poses(matrix, self.shift + (self.matrix @ change[:, count:, None])[..., 0])

    def rigid(self) -> Tensor:
        """(B, D, D): the nearest rotations."""
        u, _, v = torch.linalg.svd(self.matrix)
        return u @ v


def joined(*poses: Poses) -> Poses:
    """One batch after the other."""
    return Poses(torch.cat([x.matrix for x in poses]), torch.cat([x.shift for x in poses]))


def generators(dims: int, kind: str) -> Tensor:
    """(P, D, D): of shifts none, of rotations the skew matrices, of similarities the scale too, of affines all."""
    units = torch.eye(dims * dims).view(-1, dims, dims)
    skew = [units[i * dims + j] - units[j * dims + i] for i in range(dims) for j in range(i)]
    sets = {
        "translation": [],
        "rigid": skew,
        "similarity": [*skew, torch.eye(dims)],
        "affine": list(units),
    }
    return torch.stack(sets[kind]) if sets[kind] else torch.zeros(0, dims, dims)
