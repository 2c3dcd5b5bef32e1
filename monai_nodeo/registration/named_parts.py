# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""What settings name, as objects: velocity, solver, loss, optimiser. Each can be replaced by one of your own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from monai.losses import GlobalMutualInformationLoss
from torch import Tensor, nn

from monai_nodeo.flows import (
    Coordinates,
    Decoder,
    EulerianVelocity,
    Lattice,
    NODEONet,
    ODESolver,
    Parametrisation,
    ScalingAndSquaring,
    Solver,
    TrapezoidalRule,
    VelocityModel,
)
from monai_nodeo.flows.solvers.torchdiffeq_solver import METHODS
from monai_nodeo.geometry.smoothing import AveragingSmoothing, GaussianSmoothing, SeparableSmoothing
from monai_nodeo.losses import (
    ChannelLoss,
    FoldingLoss,
    IntensityLoss,
    LocalCorrelationRatioLoss,
    LocalNCCLoss,
    LogJacobianBound,
    LogJacobianLoss,
    MappedIntensityLoss,
    MINDSSCLoss,
    RegistrationLoss,
    SmoothnessLoss,
    TemperedLoss,
    VelocityMagnitudeLoss,
)
from monai_nodeo.registration.settings import Settings, SettingsError

__all__ = ["make_loss", "make_optimizer", "make_score", "make_solver", "make_velocity", "similarities"]

_Option = TypeVar("_Option")

_UNEXPLAINED = 0.11**2  # of intensities in [0, 1]; above it they are not those of one contrast

_VELOCITIES: dict[str, Callable[[Settings, SeparableSmoothing], VelocityModel]] = {
    "lattice": lambda s, kernel: _eulerian(s, kernel, Lattice((8,) * s.spatial_dims, s.keyframes)),
    "decoder": lambda s, kernel: _eulerian(s, kernel, Decoder((8,) * s.spatial_dims, s.keyframes, s.bottleneck)),
    "coordinates": lambda s, kernel: _eulerian(s, kernel, Coordinates((8,) * s.spatial_dims, s.keyframes)),
    "nodeo": lambda s, kernel: NODEONet(s.spatial_dims, bottleneck=s.bottleneck, smoothing=kernel),
}
_KERNELS: dict[str, Callable[[Settings], SeparableSmoothing]] = {
    "gaussian": lambda s: GaussianSmoothing(s.spatial_dims, s.kernel_size, s.kernel_window, s.kernel_passes),
    "averaging": lambda s: AveragingSmoothing(s.spatial_dims, int(s.kernel_size), s.kernel_passes),
}
_SIMILARITIES: dict[str, Callable[[Settings], nn.Module]] = {
    "local_ncc": lambda s: LocalNCCLoss(s.spatial_dims, s.similarity_window, eps=s.similarity_floor),
    "local_correlation_ratio": lambda s: LocalCorrelationRatioLoss(s.spatial_dims, s.similarity_window),
    "mind_ssc": lambda s: MINDSSCLoss(s.spatial_dims, radius=1, dilation=2),
    "mutual_information": lambda s: GlobalMutualInformationLoss(num_bins=32),
}
_SOLVERS: dict[str, Callable[[Settings], Solver]] = {
    "scaling_and_squaring": lambda s: _scaling_and_squaring(s),
    "trapezoidal": lambda s: _trapezoidal(s),
    **dict.fromkeys(METHODS, lambda s: ODESolver(s.solver, s.num_steps, s.adjoint)),
}
_OTHER_THAN_INTENSITY = ("mind_ssc", "mutual_information")  # their presets have no intensity term
_INTENSITIES: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: TemperedLoss(IntensityLoss(), _UNEXPLAINED),
    "mapped": MappedIntensityLoss,
}


def _total_loss(terms: Mapping[str, Tensor]) -> Tensor:
    return terms["loss"]


def _similarity_times_folding(terms: Mapping[str, Tensor]) -> Tensor:
    return terms["similarity"] * terms.get("folding", 1)


# functions with a name, so that an inferer can be sent to another process
_SCORES = {"loss": _total_loss, "similarity_times_folding": _similarity_times_folding}


def make_velocity(settings: Settings) -> VelocityModel:
    """The velocity model whose options are used at every level.

    Raises:
        SettingsError: for an unknown velocity or kernel.
    """
    kernel = _chosen(settings, "kernel", _KERNELS)(settings)
    return _chosen(settings, "velocity", _VELOCITIES)(settings, kernel)


def make_solver(settings: Settings) -> Solver:
    """The solver of the optimisation.

    Raises:
        ValueError: for an unknown solver, or a number of steps that it cannot take.
    """
    return _chosen(settings, "solver", _SOLVERS)(settings)


def make_loss(settings: Settings) -> RegistrationLoss:
    """The objective: a similarity, and terms by the names of the settings' weights.

    Raises:
        SettingsError: for an unknown similarity, or way to compare intensities.
    """
    return RegistrationLoss(
        _similarity(settings),
        image_terms={"intensity": (settings.intensity_weight, _intensity(settings))},
        ddf_terms={
            "folding": (settings.folding_weight, FoldingLoss(settings.folding_margin)),
            "log_jacobian": _log_jacobian(settings),
            "displacement_smoothness": (settings.displacement_smoothness_weight, SmoothnessLoss()),
        },
        velocity_terms={
            "smoothness": (settings.smoothness_weight, SmoothnessLoss()),
            "magnitude": (settings.magnitude_weight, VelocityMagnitudeLoss()),
        },
        landmark_weight=settings.landmark_weight,
        label_weight=settings.label_weight,
    )


def _log_jacobian(settings: Settings) -> tuple[float, LogJacobianLoss]:
    if settings.sd_log_jacobian is None:
        return settings.log_jacobian_weight, LogJacobianLoss()
    return 1.0, LogJacobianBound(settings.sd_log_jacobian)


def _similarity(settings: Settings) -> nn.Module:
    names, weights = similarities(settings), settings.channel_weights
    losses = [_chosen(settings, "similarity", _SIMILARITIES, name)(settings) for name in names]
    return losses[0] if weights is None and len(losses) == 1 else ChannelLoss(losses, weights or (1.0,) * len(losses))


def _intensity(settings: Settings) -> nn.Module:
    """Of all channels; where they have several similarities, of those whose similarity goes by intensities."""
    names, make = similarities(settings), _chosen(settings, "intensity", _INTENSITIES)
    weights = settings.channel_weights or (1.0,) * len(names)
    if len(names) == 1:
        return make()
    if len(set(names)) > 1:
        counts = [weight * (name not in _OTHER_THAN_INTENSITY) for weight, name in zip(weights, names, strict=True)]
        weights = tuple(counts) if sum(counts) else weights
    return ChannelLoss([make() for _ in names], weights)


def similarities(settings: Settings) -> list[str]:
    """The name for each channel; one where no number of channels is known.

    Raises:
        SettingsError: when there are not as many names as weights.
    """
    names, weights = settings.similarity.split(","), settings.channel_weights
    if weights is not None and len(names) == 1:
        return names * len(weights)
    if weights is not None and len(names) != len(weights):
        raise SettingsError(
            f"similarity {settings.similarity!r} names {len(names)} and channel_weights {list(weights)} are "
            f"{len(weights)}; give one for each channel."
        )
    return names


def make_optimizer(settings: Settings) -> Callable[[Any], torch.optim.Optimizer]:
    """Parameters -> optimiser of a level."""
    return partial(torch.optim.Adam, lr=settings.learning_rate, amsgrad=settings.amsgrad, fused=True)


def make_score(settings: Settings) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """Loss terms -> what the best iteration has least of.

    Raises:
        SettingsError: for an unknown score.
    """
    return _chosen(settings, "best_of", _SCORES)


def _chosen(settings: Settings, name: str, options: Mapping[str, _Option], value: str | None = None) -> _Option:
    """What a setting names; ``value`` where it is one of several."""
    value = getattr(settings, name) if value is None else value
    if value not in options:
        raise SettingsError(f"{name} is {value!r}, expected one of {', '.join(options)}.")
    return options[value]


def _eulerian(settings: Settings, kernel: SeparableSmoothing, parametrisation: Parametrisation) -> EulerianVelocity:
    return EulerianVelocity(settings.spatial_dims, parametrisation=parametrisation, smoothing=kernel)


def _scaling_and_squaring(settings: Settings) -> ScalingAndSquaring:
    squarings = settings.num_steps.bit_length() - 1
    if settings.num_steps != 2**squarings or settings.adjoint or settings.keyframes > 1:
        raise SettingsError(
            f"solver {settings.solver!r} takes num_steps 1, 2, 4, ..., one keyframe and no adjoint, got "
            f"{settings.num_steps}, {settings.keyframes} and {settings.adjoint}; take midpoint or rk4 for others."
        )
    return ScalingAndSquaring(squarings)


def _trapezoidal(settings: Settings) -> TrapezoidalRule:
    if settings.adjoint:
        raise SettingsError("solver 'trapezoidal' takes no adjoint; take midpoint or rk4 for it.")
    return TrapezoidalRule(settings.num_steps)
