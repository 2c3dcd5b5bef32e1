# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Linear maps between two coarse images: how well they explain the pair, and the search for better ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Found", "Grid", "Level", "Poses", "View", "best_pose"]

_WINDOW = 1.5  # standard deviation of the windows of the local correlation, in grid points
_NOISE = 0.05  # standard deviation that is taken for noise, as a share of the image's
_TURNED = 1.2  # side of the lattice of a turned view, in longest sides of the view
_FREE = 0.6  # shifts that leave less than the rest of this share in overlap may wrap around
_KEPT = 1.4  # the headers are kept unless another pose has so many times their information
_SIMPLER = 1.1  # the same of a simpler kind of pose
_DEFENDED = 1.3  # times the information of the best pose elsewhere
_CHANCE = 0.08  # information that is reached by chance
_APART = 0.12  # of the foreground's side: a pose elsewhere
_TURNS = {2: 24, 3: 120}
_ROTATIONS = {2: 36, 3: 240}
_SCALES = (1.0, 0.8, 1.25)
_CLIMBERS = {2: 24, 3: 24}
_LEAST = 0.2  # share of the largest overlap that counts as one
_LOG_SCALE = math.log(1.9)  # no axis is scaled by more


@dataclass(frozen=True)
class Grid:
    """A lattice of points.

    Attributes:
        affine: index -> place, (D, D + 1), float64.
        shape: D sizes.
    """

    affine: Tensor
    shape: tuple[int, ...]

    @classmethod
    def around(cls, steps: Tensor, extent: Tensor) -> Grid:
        """With a point in the middle of its place 0: steps (D, D) as columns, extents in steps."""
        shape = tuple(max(2, math.ceil(float(x)) + 1) for x in extent)
        middle = (torch.tensor(shape, dtype=torch.float64) - 1) / 2
        return cls(torch.cat([steps, -(steps @ middle)[:, None]], 1), shape)

    def place(self, index: Tensor) -> Tensor:
        """(D,) of an index (D,)."""
        return self.affine[:, :-1] @ index + self.affine[:, -1]

    def points(self) -> Tensor:
        """(N, D), float32, the last axis fastest."""
        index = torch.cartesian_prod(*[torch.arange(n, dtype=torch.float64) for n in self.shape])
        return (index @ self.affine[:, :-1].T + self.affine[:, -1]).float()


@dataclass(frozen=True)
class View:
    """What is seen of an image on a lattice.

    Attributes:
        grid: its lattice.
        values: (*shape), standard deviation 1 where it counts.
        weight: (*shape), in [0, 1]: how much a point counts.
    """

    grid: Grid
    values: Tensor
    weight: Tensor

    def pooled(self, spacing: float) -> View:
        """Means of blocks of points, as large as fit into the spacing."""
        dims = self.values.ndim
        own = torch.linalg.vector_norm(self.grid.affine[:, :-1], dim=0).tolist()
        blocks = [max(1, min(int(spacing / s + 0.01), n)) for s, n in zip(own, self.values.shape, strict=True)]
        if max(blocks) == 1:
            return View(self.grid, self.values, self.weight.contiguous())
        pool = F.avg_pool2d if dims == 2 else F.avg_pool3d
        everywhere = self.weight.stride() == (0,) * dims
        values = pool((self.values if everywhere else self.values * self.weight)[None, None], blocks)[0, 0]
        weight = torch.ones_like(values) if everywhere else pool(self.weight[None, None], blocks)[0, 0]
        step = torch.tensor(blocks, dtype=torch.float64)
        affine = torch.cat([self.grid.affine[:, :-1] * step, self.grid.place((step - 1) / 2)[:, None]], 1)
        return View(Grid(affine, tuple(values.shape)), values / weight.clamp_min(1e-6), weight)

    def on(self, grid: Grid) -> View:
        """The same on another lattice, of the mean spacing of its points."""
        pooled = self.pooled(float(torch.linalg.vector_norm(grid.affine[:, :-1], dim=0).min()))
        stack = torch.stack([pooled.values * pooled.weight, pooled.weight])
        sampled, inside = _sampled(stack, pooled.grid, grid.points()[None], self.grid)
        values, weight = sampled[0].view(2, *grid.shape)
        return View(grid, values / weight.clamp_min(1e-6), weight * inside[0].view(grid.shape)).standardised()

    def standardised(self) -> View:
        total = self.weight.sum().clamp_min(1e-6)
        mean = (self.values * self.weight).sum() / total
        centred = self.values - mean
        deviation = ((centred**2 * self.weight).sum() / total).sqrt()
        return View(self.grid, centred / deviation.clamp_min(1e-12), self.weight)

    def gradient(self) -> Tensor:
        """(D, *shape), by place."""
        padded = F.pad(self.values[None, None], [1, 1] * self.values.ndim, mode="replicate")[0, 0]
        steps = []
        for axis in range(self.values.ndim):
            inner = tuple(slice(None) if a == axis else slice(1, -1) for a in range(self.values.ndim))
            x = padded[inner]
            n = self.values.shape[axis]
            steps.append((x.narrow(axis, 2, n) - x.narrow(axis, 0, n)) / 2)
        by_index = torch.stack(steps)
        back = torch.linalg.inv(self.grid.affine[:, :-1]).float()
        return torch.einsum("i...,ij->j...", by_index, back)


def _sampled(values: Tensor, grid: Grid, points: Tensor, frame: Grid | None = None) -> tuple[Tensor, Tensor]:
    """Values (C, *shape) at places (B, N, D): (B, C, N), and what counts, (B, N): 1 inside, 0 half a step outside.

    ``frame`` is the lattice whose border counts, when it is another one.
    """
    dims = len(grid.shape)
    outer = frame or grid
    back = torch.linalg.inv(outer.affine[:, :-1]).float()
    index = (points - outer.affine[:, -1].float()) @ back.T
    last = index.new_tensor([n - 1.0 for n in outer.shape])
    inside = (0.5 + torch.minimum(index, last - index)).clamp(0, 1).amin(-1)
    if frame is not None:
        back = torch.linalg.inv(grid.affine[:, :-1]).float()
        index = (points - grid.affine[:, -1].float()) @ back.T
    size = index.new_tensor([max(n - 1.0, 1.0) for n in grid.shape])
    where = (2 * index / size - 1).flip(-1)
    where = where.view(len(points), *[1] * (dims - 1), -1, dims)
    out = F.grid_sample(
        values.expand(len(points), *values.shape), where, mode="bilinear", padding_mode="border", align_corners=True
    )
    return out.view(len(points), len(values), -1), inside


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


class Level:
    """Two views, and the information that one has about the other.

    In each Gaussian window both are taken as jointly normal, which is any linear relation of the window: the
    information is ``-log(1 - r^2) / 2`` for a correlation r. Points outside the other view have none.
    """

    def __init__(self, fixed: View, moving: View) -> None:
        self.fixed, self.moving = fixed, moving
        self.points = fixed.grid.points()
        self.dims = len(fixed.grid.shape)
        self._stack = torch.cat([moving.values[None], moving.weight[None], moving.gradient()])
        reach = math.ceil(3 * _WINDOW)
        kernel = [math.exp(-0.5 * (i / _WINDOW) ** 2) for i in range(-reach, reach + 1)]
        total = sum(kernel)
        self._bands = [_band([k / total for k in kernel], n) for n in fixed.grid.shape]

    def _windows(self, x: Tensor) -> Tensor:
        """Window means of (B, C, N), where points outside count as 0."""
        shaped = x.view(*x.shape[:2], *self.fixed.grid.shape)
        for axis, band in enumerate(self._bands):
            shaped = torch.matmul(shaped.transpose(2 + axis, -1), band).transpose(2 + axis, -1)
        return shaped.reshape(x.shape)

    def evaluate(self, poses: Poses, basis: Tensor | None = None) -> tuple[Tensor, ...]:
        """The information (B,); with a basis its gradient (B, P + D) and its curvature (B, P + D, P + D) too."""
        places = self.points @ poses.matrix.transpose(1, 2) + poses.shift[:, None]
        stack = self._stack if basis is not None else self._stack[:2]
        sampled, inside = _sampled(stack, self.moving.grid, places)
        m = sampled[:, 0]
        f = self.fixed.values.reshape(1, -1).expand_as(m)
        w = self.fixed.weight.reshape(1, -1) * inside * sampled[:, 1]
        means = self._windows(torch.stack([w, w * f, w * m, w * f * f, w * m * m, w * f * m], 1))
        weight = means[:, 0]
        f_mean, m_mean, ff, mm, fm = (means[:, 1:] / weight[:, None].clamp_min(1e-3)).unbind(1)
        ff = (ff - f_mean**2).clamp_min(0) + _NOISE**2
        mm = (mm - m_mean**2).clamp_min(0) + _NOISE**2
        fm = fm - f_mean * m_mean
        rest = (1 - fm**2 / (ff * mm)).clamp_min(1e-4)
        size = torch.linalg.det(poses.matrix).abs().sqrt() / self.fixed.weight.sum()
        information = (-0.5 * weight * rest.log()).sum(-1) * size
        if basis is None:
            return (information,)
        a, b = fm / (ff * mm * rest), -0.5 * fm**2 / (ff * mm * rest) / mm
        back = self._windows(torch.stack([a, a * f_mean, b, b * m_mean, 1 / (mm * rest)], 1))
        slope = w * (back[:, 0] * f - back[:, 1] + 2 * (back[:, 2] * m - back[:, 3]))
        along = sampled[:, 2:].transpose(1, 2) @ poses.matrix  # gradient by fixed place, (B, N, D)
        ways = torch.cat(
            [torch.einsum("pij,nj->npi", basis, self.points), torch.eye(self.dims).expand(len(self.points), -1, -1)], 1
        )
        jacobian = torch.einsum("bnd,npd->bnp", along, ways)
        gradient = torch.einsum("bn,bnp->bp", slope, jacobian) * size[:, None]
        curvature = torch.einsum("bnp,bnq->bpq", jacobian * (w * back[:, 4] * size[:, None])[..., None], jacobian)
        return information, gradient, curvature

    def climb(self, poses: Poses, kind: str, steps: int) -> tuple[Poses, Tensor]:
        """Levenberg and Marquardt's steps to more information; never to less."""
        basis = generators(self.dims, kind)
        value, gradient, curvature = self.evaluate(poses, basis)
        damping = torch.full_like(value, 0.1)
        for _ in range(steps):
            diagonal = torch.diagonal(curvature, dim1=1, dim2=2)
            floor = 1e-3 * diagonal.mean(-1, keepdim=True) + 1e-9
            damped = curvature + torch.diag_embed(damping[:, None] * diagonal + floor)
            change = torch.linalg.solve(damped, gradient)
            length = change.abs().amax(-1, keepdim=True)
            change = change * (0.3 / length.clamp_min(0.3))
            tried = poses.moved(change, basis)
            new = self.evaluate(tried, basis)
            better = new[0] > value
            poses = Poses(
                torch.where(better[:, None, None], tried.matrix, poses.matrix),
                torch.where(better[:, None], tried.shift, poses.shift),
            )
            gain = torch.where(better, new[0] - value, torch.zeros_like(value))
            value = torch.where(better, new[0], value)
            gradient = torch.where(better[:, None], new[1], gradient)
            curvature = torch.where(better[:, None, None], new[2], curvature)
            damping = torch.where(better, damping / 3, damping * 6).clamp(1e-4, 1e5)
            if not bool(((gain > 1e-4 * value) | (~better & (damping < 1e3))).any()):
                break
        return poses, value


def _band(kernel: Sequence[float], size: int) -> Tensor:
    """(size, size): the kernel along an axis beyond whose ends there is 0."""
    reach = len(kernel) // 2
    away = torch.arange(size)[:, None] - torch.arange(size)[None] + reach
    inside = (away >= 0) & (away < len(kernel))
    return torch.where(inside, torch.tensor(kernel)[away.clamp(0, len(kernel) - 1)], 0.0)


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
        sampled, inside = _sampled(features, moving.grid, offsets @ part.transpose(1, 2) + middle)
        sampled[:, -1] *= inside
        turned = sampled.view(len(part), -1, *(side,) * dims)
        at = _overlap_information(still, _spectra(turned, size), size).flatten(1).argmax(1)
        lag = torch.stack(torch.unravel_index(at, size), -1)
        bound = torch.tensor(fixed.grid.shape)
        lag = torch.where(lag >= bound, lag - torch.tensor(size), lag).float()
        # index i of the fixed lattice lies on index i - lag of the turned one, whose index side // 2 is the middle
        place = (lag + side // 2) @ axes.T + fixed.grid.affine[:, -1].float()
        poses.append(Poses(part, middle - (part @ place[..., None])[..., 0]))
    return joined(*poses)


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
    near, value = coarse.climb(coarse.climb(joined(headers, centres), "rigid", 8)[0], "affine", 6)
    if "headers" in kinds:
        best = near[value.argmax()[None]]
        (known,), (other,) = middle.evaluate(headers), middle.evaluate(_elsewhere(coarse, best))
        if float(known) > max(_DEFENDED * float(other), _CHANCE):
            reached = middle.climb(best, "affine", 8)[1]
            if float(known) * _KEPT >= float(reached):
                evidence = {"headers": float(known), "affine": float(reached), "other": float(other)}
                return Found(headers, "headers", evidence, True)
    ranked = _unlike(middle, middle.climb(_unlike(coarse, joined(near, _searched(coarse)), 4), "affine", 10)[0], 2)
    best = ranked[:1]
    poses = {
        "headers": headers,
        "translation": _refined(levels, best, headers.matrix, "translation"),
        "rigid": _refined(levels, best, best.rigid(), "rigid"),
        "affine": _refined(levels, best, best.matrix, "affine"),
        "other": fine.climb(ranked[1:] if len(ranked) > 1 else _elsewhere(coarse, best), "affine", 3)[0],
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
    return levels[2].climb(levels[1].climb(start, kind, 10)[0], kind, 5)[0]


def _elsewhere(level: Level, pose: Poses) -> Poses:
    """The best of the poses that are turned away from one around the middle of the fixed view."""
    turns = rotations(level.dims, _TURNS[level.dims])
    trace = torch.diagonal(turns, dim1=1, dim2=2).sum(-1)
    cosine = (trace - (level.dims - 2)) / 2
    away = turns[cosine < math.cos(0.5)]
    turned = Poses(pose.matrix @ away, pose.shift.expand(len(away), -1))
    turned = turned[level.evaluate(turned)[0].topk(4).indices]
    climbed, value = level.climb(turned, "rigid", 3)
    back = _distance(level, climbed, pose) < _APART
    return climbed[torch.where(back, -1, value).argmax()[None]] if not bool(back.all()) else turned[:1]


def _searched(level: Level) -> Poses:
    """Poses of all rotations and some scales, the best first."""
    dims = level.dims
    poses = joined(*[search(level, scale * rotations(dims, _ROTATIONS[dims])) for scale in _SCALES])
    value = torch.cat([level.evaluate(poses[i : i + 64])[0] for i in range(0, len(poses), 64)])
    poses = poses[value.topk(_CLIMBERS[dims]).indices]
    poses, _ = level.climb(poses, "similarity", 8)
    return level.climb(_unlike(level, poses, 8), "affine", 6)[0]


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
    _, inside = _sampled(level.moving.weight[None], level.moving.grid, places[None])
    weight = inside[0] * level.fixed.weight.reshape(-1)
    centre = (weight @ level.points) / weight.sum().clamp_min(1e-6)
    return pose.shift + (pose.matrix - matrix) @ centre


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
    ff = (lags(fixed[2], moving[0]) / n - f**2).clamp_min(0) + _NOISE**2
    mm = (lags(fixed[0], moving[2]) / n - m**2).clamp_min(0) + _NOISE**2
    fm = lags(fixed[1], moving[1]) / n - f * m
    rest = (1 - fm**2 / (ff * mm)).clamp_min(1e-3)
    return torch.where(enough, -0.5 * rest.log() * n / most, torch.zeros_like(rest)).sum(1)
