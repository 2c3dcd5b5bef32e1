# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Similarity and strength of the smoothness that suit a pair, by what its images say; see docs/decisions/choice.md."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from monai_nodeo.flows import VelocityBatch
from monai_nodeo.geometry.coordinates import identity_grid, lengths, phi_to_ddf
from monai_nodeo.geometry.sampling import warp
from monai_nodeo.geometry.smoothing import GaussianSmoothing
from monai_nodeo.registration.optimisation.fitting import Components, fit
from monai_nodeo.registration.optimisation.levels import Level, PairBatch, make_levels
from monai_nodeo.registration.presets import preset_values
from monai_nodeo.registration.settings import Settings

__all__ = ["Choice", "choose", "coarse_level", "information"]

_POINTS = {2: 48, 3: 24}  # along an axis, on average, of what is looked at
_FACTOR = 4.0  # voxels of what is tried, in smallest voxel sides
_ONE_CONTRAST = 0.7  # agreement from which on the settings' own similarity is taken
_OTHER_CONTRAST = "mind_ssc"  # preset whose differences from the default are taken below
_STRENGTHS = (1.0, 3.0, 10.0)  # of the smoothness, in times the weight
_CONSISTENT = 0.6  # voxels between where one starts and where one comes back to, times the strength
_HOPELESS = 3.0  # the same, whatever the strength
_NOISY, _STIFFER = 0.8, 4  # the strength is at least the noise over the first, to the power of the second
_STIFFEST = 4.0  # strength that noise leads to at most
_WINDOW = 1.5  # standard deviation of the windows, voxels
_NOISE = 0.05  # standard deviation that is taken for noise, as a share of the image's
_FOREGROUND = 0.05  # of the range, above the minimum


@dataclass(frozen=True)
class Choice:
    """What was chosen for a pair, and why.

    Attributes:
        settings: to register it with.
        agreement: of the signs of the local correlations, in [-1, 1]: 1 for one contrast, -1 for an inverted one, near
            0 where each place has a relation of its own, or none; the smallest of several channels.
        strengths: factors on the smoothness weight that were tried, weak to strong; the first or last one is taken, or
            one between the last two.
        disagreement: of the coarse registrations there and back with each of them, in voxels of 4 smallest sides: the
            median distance in the foreground between a point and where it comes back to.
        noise: of the first of them, that distance as a share of the length of what no affine map explains of the
            displacement: of the medians or of the roots of mean squares, whichever is less. A few gross errors make the
            second large, motion in a few places the first.
    """

    settings: Settings
    agreement: float
    strengths: tuple[float, ...]
    disagreement: tuple[float, ...]
    noise: float

    @property
    def hopeless(self) -> bool:
        """Whether the way back contradicts the way there, however smooth they are."""
        return self.disagreement[-1] > _HOPELESS

    def figures(self) -> dict[str, Any]:
        """As JSON holds them."""
        return {
            "similarity": self.settings.similarity,
            "smoothness_weight": self.settings.smoothness_weight,
            "agreement": self.agreement,
            "strengths": list(self.strengths),
            "disagreement_voxels": list(self.disagreement),
            "noise": self.noise,
        }


def choose(
    pair: PairBatch, spacing: tuple[float, ...], settings: Settings, components: Callable[[Settings], Components]
) -> Choice:
    """Settings for a pair that has its start.

    The similarity is that of the settings where one image is locally a rising function of the other, and of the preset
    ``mind_ssc`` where it is not, for each channel. Then the pair is registered both ways on a coarse grid, with more
    smoothness as long as the way back contradicts the way there by more than the strength allows: what the images do
    not say is left to the regulariser. The strength that just suffices is taken, by interpolation. Images of one
    contrast get more where the noise is about as large as the deformation. Where the settings bound the change of
    volume, that is the strength.

    Args:
        pair: a batch of one.
        spacing: voxel size along each axis, mm.
        settings: to begin with.
        components: what settings name.
    """
    seen = pair.at(coarse_level(pair, spacing))
    channels = zip(seen.fixed.split(1, 1), seen.moving.split(1, 1), strict=True)
    agreements = [information(replace(seen, fixed=fixed, moving=moving))[1] for fixed, moving in channels]
    other = [agreement < _ONE_CONTRAST for agreement in agreements]
    if all(other):
        settings = settings.replace(**_differences(settings.spatial_dims))
    elif any(other):
        names = [_OTHER_CONTRAST if is_other else settings.similarity for is_other in other]
        settings = settings.replace(similarity=",".join(names))
    found: list[_ThereAndBack] = []
    for strength in _STRENGTHS:
        tried = _with_strength(settings, strength)
        found.append(_there_and_back(pair, spacing, tried, components(tried)))
        if found[-1].disagreement <= _CONSISTENT * strength or settings.sd_log_jacobian is not None:
            break
    disagreement, noise = tuple(x.disagreement for x in found), found[0].noise
    strength = _sufficient(disagreement)
    if not any(other) and settings.sd_log_jacobian is None:
        strength = max(strength, min((noise / _NOISY) ** _STIFFER, _STIFFEST))
    return Choice(_with_strength(settings, strength), min(agreements), _STRENGTHS[: len(found)], disagreement, noise)


def coarse_level(pair: PairBatch, spacing: tuple[float, ...]) -> Level:
    """The grid on which a pair is looked at: of about as many points, whatever the images' size."""
    sides = [n * side for n, side in zip(pair.fixed.shape[2:], spacing, strict=True)]
    side = math.prod(sides) ** (1 / len(sides)) / _POINTS[len(sides)]
    return make_levels(pair.fixed.shape[2:], spacing, (max(1.0, side / min(spacing)),))[0]


def information(pair: PairBatch) -> tuple[float, float]:
    """What one image of a batch of one says about the other, and the agreement of the signs; see :py:class:`Choice`.

    In each Gaussian window both are taken as jointly normal with a correlation r: ``-log(1 - r^2) / 2`` nats, the mean
    over the voxels that count and the channels, 0 where none does. The agreement is the mean sign of r, weighted by the
    information.
    """
    smooth = GaussianSmoothing(pair.fixed.ndim - 2, _WINDOW)
    counts = torch.ones_like(pair.fixed[:, :1])
    for mask in (pair.fixed_mask, pair.moving_mask):
        counts = counts if mask is None else counts * mask
    weight = smooth(counts)

    def mean(x: Tensor) -> Tensor:
        return smooth(x * counts) / weight.clamp_min(1e-3)

    f, m = pair.fixed, pair.moving
    f_mean, m_mean = mean(f), mean(m)
    ff = (mean(f * f) - f_mean**2).clamp_min(0) + _NOISE**2 * f.var()
    mm = (mean(m * m) - m_mean**2).clamp_min(0) + _NOISE**2 * m.var()
    fm = mean(f * m) - f_mean * m_mean
    rest = (1 - fm**2 / (ff * mm).clamp_min(1e-20)).clamp(1e-4, 1)
    nats = -0.5 * rest.log() * weight
    total = nats.sum()
    agreement = (nats * fm.sign()).sum() / total.clamp_min(1e-9)
    return float(total / (weight.sum().clamp_min(1e-9) * f.shape[1])), float(agreement)


def _with_strength(settings: Settings, strength: float) -> Settings:
    return settings if strength == 1 else settings.replace(smoothness_weight=strength * settings.smoothness_weight)


def _sufficient(disagreement: Sequence[float]) -> float:
    """The least strength that allows what is found with it, between the last two on logarithmic scales."""
    excess = [
        math.log(max(found, 1e-6) / (_CONSISTENT * strength))
        for found, strength in zip(disagreement, _STRENGTHS, strict=False)
    ]
    last = _STRENGTHS[len(excess) - 1]
    if len(excess) == 1 or excess[-1] >= 0:
        return last
    weaker = _STRENGTHS[len(excess) - 2]
    return weaker * (last / weaker) ** (excess[-2] / (excess[-2] - excess[-1]))


def _differences(spatial_dims: int) -> dict[str, Any]:
    """Of the settings for other contrasts from the default ones."""
    default, other = (preset_values(spatial_dims, preset) for preset in (None, _OTHER_CONTRAST))
    return {name: value for name, value in other.items() if value != default[name]}


class _ThereAndBack(NamedTuple):
    """Coarse registrations both ways; see :py:class:`Choice`."""

    disagreement: float
    noise: float


def _there_and_back(
    pair: PairBatch, spacing: tuple[float, ...], settings: Settings, components: Components
) -> _ThereAndBack:
    coarse = settings.replace(shrink_factors=[_FACTOR], iterations=[-(-settings.iterations[0] // 2)], cuda_graph=False)
    fitted = fit(pair.both_ways(), spacing, coarse, components)
    nodes = identity_grid(fitted.level.cloud_size, pair.fixed.device).expand(2, *[-1] * (pair.fixed.ndim - 1))
    phi = components.solver(VelocityBatch(fitted.models).velocity(), nodes, (0.0, 1.0))[-1]
    there, back = phi_to_ddf(phi, nodes).detach().split(1)
    seen = pair.at(fitted.level)
    brightest = torch.maximum(seen.fixed - seen.fixed.amin(), seen.moving - seen.moving.amin()).amax(1, keepdim=True)
    inside = (brightest > _FOREGROUND)[0, 0]
    if not bool(inside.any()):
        return _ThereAndBack(0.0, 0.0)
    ways = [(there, back), (back, there)] if settings.symmetric else [(there, back)]
    # in double precision and rounded, or the last digits would be those of the memory's alignment, and the weight's too
    away = torch.cat([lengths(one + warp(other, one), 1)[0, inside] for one, other in ways]).double()
    bent = lengths(_without_affine(there[0, :, inside].T.double(), inside.nonzero().double()), 1)
    noise = min(float(size(away) / size(bent).clamp_min(1e-6)) for size in (torch.median, _root_mean_square))
    return _ThereAndBack(float(away.median()), round(noise, 4))


def _root_mean_square(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()


def _without_affine(values: Tensor, points: Tensor) -> Tensor:
    """What no affine function of points (N, D) explains of values (N, D)."""
    affine = torch.cat([points, torch.ones_like(points[:, :1])], 1)
    return values - affine @ torch.linalg.lstsq(affine, values).solution
