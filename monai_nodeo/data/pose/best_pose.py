# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The simplest linear map that explains two images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from monai_nodeo.data.pose.information import Level
from monai_nodeo.data.pose.optimisation import climb
from monai_nodeo.data.pose.poses import Poses, joined
from monai_nodeo.data.pose.rotations import rotations, search
from monai_nodeo.data.pose.views import sampled

__all__ = ["Found", "best_pose"]

_KEPT = 1.4  # the headers are kept unless another pose has so many times their information
_SIMPLER = 1.1  # the same of a simpler kind of pose
_DEFENDED = 1.3  # times the information of the best pose elsewhere
_CHANCE = 0.08  # information that is reached by chance
_APART = 0.12  # of the foreground's side: a pose elsewhere
_TURNS = {2: 24, 3: 120}
_ROTATIONS = {2: 36, 3: 240}
_SCALES = (1.0, 0.8, 1.25)
_CLIMBERS = {2: 24, 3: 24}


@dataclass(frozen=True)
class Found:
    """The pose that was chosen.

    Attributes:
        pose: one.
        kind: its kind, "headers" for where it came from.
        evidence: kind -> information; "other": of the best pose elsewhere that is known.
        defended: whether it is well ahead of that one.
    """

    pose: Poses
    kind: str
    evidence: dict[str, float]
    defended: bool


def best_pose(levels: Sequence[Level], headers: Poses, kinds: Sequence[str]) -> Found:
    """The simplest pose that explains two images.

    Args:
        levels: coarse, middle, fine.
        headers: the pose that the headers say.
        kinds: what may be chosen, of "headers", "translation", "rigid", "affine", simple to complex.
    """
    coarse, middle, fine = levels
    centres = Poses(headers.matrix, torch.zeros_like(headers.shift))
    near, value = climb(coarse, climb(coarse, joined(headers, centres), "rigid", 8)[0], "affine", 6)
    if "headers" in kinds:
        best = near[value.argmax()[None]]
        (known,), (other,) = middle.evaluate(headers), middle.evaluate(_elsewhere(coarse, best))
        if float(known) > max(_DEFENDED * float(other), _CHANCE):
            reached = climb(middle, best, "affine", 8)[1]
            if float(known) * _KEPT >= float(reached):
                evidence = {"headers": float(known), "affine": float(reached), "other": float(other)}
                return Found(headers, "headers", evidence, True)
    ranked = _unlike(middle, climb(middle, _unlike(coarse, joined(near, _searched(coarse)), 4), "affine", 10)[0], 2)
    best = ranked[:1]
    poses = {
        "headers": headers,
        "translation": _refined(levels, best, headers.matrix, "translation"),
        "rigid": _refined(levels, best, best.rigid(), "rigid"),
        "affine": _refined(levels, best, best.matrix, "affine"),
        "other": climb(fine, ranked[1:] if len(ranked) > 1 else _elsewhere(coarse, best), "affine", 3)[0],
    }
    evidence = {kind: float(fine.evaluate(pose)[0]) for kind, pose in poses.items()}
    most = max(evidence[kind] for kind in kinds)
    enough = [kind for kind in kinds if evidence[kind] * (_KEPT if kind == "headers" else _SIMPLER) >= most]
    # a pose that was not climbed to beats all that were: they followed noise
    defended = max(evidence["rigid"], evidence["affine"]) > max(_DEFENDED * evidence["other"], _CHANCE)
    kind = enough[0] if defended or not evidence["headers"] else kinds[0]
    return Found(poses[kind], kind, evidence, defended)


def _refined(levels: Sequence[Level], pose: Poses, matrix: Tensor, kind: str) -> Poses:
    """The best pose of a kind near another one, from the given matrix on."""
    start = Poses(matrix, _centre_kept(levels[1], pose, matrix))
    return climb(levels[2], climb(levels[1], start, kind, 10)[0], kind, 5)[0]


def _elsewhere(level: Level, pose: Poses) -> Poses:
    """The best of the poses that are turned away from one around the middle of the fixed view."""
    turns = rotations(level.dims, _TURNS[level.dims])
    trace = torch.diagonal(turns, dim1=1, dim2=2).sum(-1)
    cosine = (trace - (level.dims - 2)) / 2
    away = turns[cosine < math.cos(0.5)]
    turned = Poses(pose.matrix @ away, pose.shift.expand(len(away), -1))
    turned = turned[level.evaluate(turned)[0].topk(4).indices]
    climbed, value = climb(level, turned, "rigid", 3)
    back = _distance(level, climbed, pose) < _APART
    return climbed[torch.where(back, -1, value).argmax()[None]] if not bool(back.all()) else turned[:1]


def _searched(level: Level) -> Poses:
    """Poses of all rotations and some scales, the best first."""
    dims = level.dims
    poses = joined(*[search(level, scale * rotations(dims, _ROTATIONS[dims])) for scale in _SCALES])
    value = torch.cat([level.evaluate(poses[i : i + 64])[0] for i in range(0, len(poses), 64)])
    poses = poses[value.topk(_CLIMBERS[dims]).indices]
    poses, _ = climb(level, poses, "similarity", 8)
    return climb(level, _unlike(level, poses, 8), "affine", 6)[0]


def _unlike(level: Level, poses: Poses, count: int) -> Poses:
    """Of poses that lie near one another the one with the most information; the best first, ``count`` at most."""
    (value,) = level.evaluate(poses)
    kept: list[int] = []
    for i in value.argsort(descending=True).tolist():
        if all(float(_distance(level, poses[i : i + 1], poses[k : k + 1])) > _APART for k in kept):
            kept.append(i)
        if len(kept) == count:
            break
    return poses[torch.tensor(kept)]


def _distance(level: Level, poses: Poses, other: Poses) -> Tensor:
    """(B,): root mean square of the distance of where points of the fixed view are taken."""
    points = level.points[:: max(1, len(level.points) // 200)]
    here, there = (points @ x.matrix.transpose(1, 2) + x.shift[:, None] for x in (poses, other))
    return (here - there).square().sum(-1).mean(-1).sqrt()


def _centre_kept(level: Level, pose: Poses, matrix: Tensor) -> Tensor:
    """Shift with which another matrix takes the middle of what overlaps to the same place."""
    places = level.points @ pose.matrix[0].T + pose.shift[0]
    _, inside = sampled(level.moving.weight[None], level.moving.grid, places[None])
    weight = inside[0] * level.fixed.weight.reshape(-1)
    centre = (weight @ level.points) / weight.sum().clamp_min(1e-6)
    return pose.shift + (pose.matrix - matrix) @ centre
