# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The settings of a registration: plain values that JSON holds. Needs neither torch nor MONAI.

Here are their names and types; the default values are in ``bundle/configs/inference.json``.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Any, get_args, get_origin, get_type_hints

from monai_nodeo.registration.presets import preset_values

__all__ = ["TUNED", "Settings", "SettingsError"]


TUNED = ("similarity", "smoothness_weight")  # what self_tuning may change

# far beyond what is of use, and not yet so large that a machine runs out of memory
_LARGEST = {
    "iterations": 1_000_000,
    "dense_iterations": 1_000_000,
    "keyframes": 256,
    "bottleneck": 1024,
    "kernel_size": 1000,
    "kernel_window": 1001,
    "similarity_window": 1001,
}
_FEWEST_VOXELS = 4096  # of the largest level
_SHORTEST_SIDE = 16  # voxels, of the smallest one


class SettingsError(ValueError):
    """A setting that is none, or has a value that cannot be. The message names it and what is expected."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a registration depends on, besides its images. :py:meth:`preset` has values for all of it.

    The default values are in ``bundle/configs/inference.json``, those that differ for slices in ``inference_2d.json``.

    Attributes:
        spatial_dims: 2 for slices, 3 for volumes.
        channel_weights: how much each channel of the images counts, those of 0 not at all; None: all the same.
        initial_transform: affine start: "auto" for what the images say, "moments", "rigid", "affine", the path of a
            linear transform, or "none" or None to start from the headers; see :py:func:`monai_nodeo.data.find_start`.
        self_tuning: let the images of a pair say which similarity suits them, and whether more smoothness is needed;
            see `registration.choice`. Off where ``similarity`` or ``smoothness_weight`` are changed.
        mask_air: count only where the fixed image is above its minimum.
        shrink_factors: how much coarser the voxels of each level are, coarse to fine, as in ANTs.
        coarsest_side: voxels that the coarsest level may have along its longest axis. Larger images have coarser levels
            before it, of twice the factor and as many iterations each. None: no others.
        iterations: of the optimiser, one number a level.
        dense_iterations: more of them at the end, in which the images are compared where the finished flow takes each
            voxel; none where a point is in every voxel anyway, and for "nodeo".
        point_spacing: smallest distance of the points that are integrated, in (smallest) voxel sides.
        learning_rate: of Adam, in points of the cloud.
        amsgrad: variant of Adam.
        symmetric: no image is preferred: both are sampled half-way, and exchanged they give the inverse; see
            `registration.preparation.symmetric`.
        velocity: "lattice", "decoder" or "coordinates", parametrisations of a velocity of places, or "nodeo", the
            published network.
        keyframes: velocities at as many equally spaced times; 1: the same at all times.
        bottleneck: features of "decoder" and "nodeo".
        kernel: that smooths the velocity: "gaussian" or "averaging".
        kernel_size: standard deviation of the Gaussian, or side of the average, in points of the cloud.
        kernel_window: side of the window in which the Gaussian is taken; None: three standard deviations to each side.
        kernel_passes: how often it is applied; 0: not at all.
        solver: "scaling_and_squaring", "trapezoidal", or a method of torchdiffeq.
        num_steps: of the solver; scaling and squaring takes powers of two.
        adjoint: solve backwards for the gradient.
        similarity: "local_ncc", "local_correlation_ratio", "mind_ssc" or "mutual_information"; of images with channels
            perhaps one each, as in "local_ncc,mind_ssc".
        similarity_window: side of local windows, odd, in smallest voxel sides of a level.
        similarity_floor: share of each image's variance that is added to the variances in the windows of "local_ncc":
            where there is little but noise, less is asked.
        intensity: how intensities are compared beside it: after a "linear" fit, or as "mapped" by any function.
        intensity_weight: of that term.
        folding_weight: of the penalty on determinants below ``folding_margin``.
        folding_margin: see there.
        log_jacobian_weight: of the squared logarithm of the determinants.
        sd_log_jacobian: standard deviation of that logarithm to which its weight is steered, as far as the other
            weights let the flow go; None: the weight stays.
        smoothness_weight: of the roughness of the velocity.
        displacement_smoothness_weight: of the roughness of the displacement.
        magnitude_weight: of the length of the velocity.
        landmark_weight: of the squared distance of landmarks, in smallest voxel sides.
        label_weight: of one minus the Dice of the labels that both label maps have; 0: labels are for the figures.
        crop_air: leave out what is nothing but the minimum of both images around them.
        max_voxels: that are compared, at most; of larger images, larger voxels are. The flow warps the images as they
            were given. None: all of them.
        unfold: smooth the velocity where its flow folds between voxels.
        best_window: end a level with the best of its last iterations; None: with the last one.
        best_of: what "best" looks at: "loss", or "similarity_times_folding" as the code of NODEO.
        convergence_threshold: end a level when the slope of the loss promises less than this share of its fall; None:
            never.
        cuda_graph: on CUDA, record an iteration and replay it.
        seed: of the weights.

    Raises:
        SettingsError: names the setting.
    """

    spatial_dims: int
    channel_weights: tuple[float, ...] | None
    initial_transform: str | None
    self_tuning: bool
    mask_air: bool
    shrink_factors: tuple[float, ...]
    coarsest_side: int | None
    iterations: tuple[int, ...]
    dense_iterations: int
    point_spacing: float
    learning_rate: float
    amsgrad: bool
    symmetric: bool
    velocity: str
    keyframes: int
    bottleneck: int
    kernel: str
    kernel_size: float
    kernel_window: int | None
    kernel_passes: int
    solver: str
    num_steps: int
    adjoint: bool
    similarity: str
    similarity_window: int
    similarity_floor: float
    intensity: str
    intensity_weight: float
    folding_weight: float
    folding_margin: float
    log_jacobian_weight: float
    sd_log_jacobian: float | None
    smoothness_weight: float
    displacement_smoothness_weight: float
    magnitude_weight: float
    landmark_weight: float
    label_weight: float
    crop_air: bool
    max_voxels: int | None
    unfold: bool
    best_window: int | None
    best_of: str
    convergence_threshold: float | None
    cuda_graph: bool
    seed: int

    @classmethod
    def preset(cls, name: str | None = None, spatial_dims: int = 3, **changes: Any) -> Settings:
        """The settings of a preset.

        Args:
            name: "fast", "accurate", ...: a file in ``configs/``; None: the best balance that was measured.
            spatial_dims: 2 for slices, 3 for volumes.
            changes: settings that are to be others.

        Raises:
            SettingsError: when there is no such preset, or for a change that cannot be.

        Example:
            >>> Settings.preset("fast", spatial_dims=2, smoothness_weight=1.0).smoothness_weight
            1.0
        """
        try:
            values = {**preset_values(spatial_dims, name), "spatial_dims": spatial_dims}
        except ValueError as error:
            raise SettingsError(str(error)) from error
        return cls.from_dict(values).replace(**changes)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """The settings in a dict, as :py:meth:`to_dict` made it.

        Raises:
            SettingsError: when one is missing, or is none.
        """
        known = cls._known(values)
        missing = [field.name for field in dataclasses.fields(cls) if field.name not in known]
        if missing:
            raise SettingsError(f"settings lack {', '.join(missing)}; start from Settings.preset().")
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        return {
            field.name: list(value) if isinstance(value := getattr(self, field.name), tuple) else value
            for field in dataclasses.fields(self)
        }

    def replace(self, /, **changes: Any) -> Settings:
        """The same with some changes.

        Raises:
            SettingsError: for a change that cannot be.
        """
        known = self._known(changes)
        if not known.keys().isdisjoint(TUNED):
            known = {"self_tuning": False} | known
        return dataclasses.replace(self, **known)

    @classmethod
    def _known(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        names = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in names:
                nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
                hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
                raise SettingsError(f"unknown setting {name!r}{hint}; there are {', '.join(names)}.")
        return dict(values)

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            object.__setattr__(self, name, _checked(name, getattr(self, name), kind))
        if self.spatial_dims not in (2, 3):
            raise SettingsError(f"spatial_dims is {self.spatial_dims}, expected 2 for slices or 3 for volumes.")
        if self.channel_weights is not None and not sum(self.channel_weights):
            raise SettingsError(f"channel_weights are {list(self.channel_weights)}; one has to be above 0.")
        if abs(self.seed) >= 2**63:
            raise SettingsError(f"seed is {self.seed}, expected a number of at most 64 bits.")
        if self.max_voxels is not None and self.max_voxels < _FEWEST_VOXELS:
            raise SettingsError(f"max_voxels is {self.max_voxels}, expected {_FEWEST_VOXELS} at least, or null.")
        if self.coarsest_side is not None and self.coarsest_side < _SHORTEST_SIDE:
            raise SettingsError(f"coarsest_side is {self.coarsest_side}, expected {_SHORTEST_SIDE} at least, or null.")
        if len(self.iterations) != len(self.shrink_factors) or min(self.iterations, default=0) < 1:
            raise SettingsError(
                f"iterations {list(self.iterations)} and shrink_factors {list(self.shrink_factors)} need one number a "
                "level, iterations at least 1."
            )


def _checked(name: str, value: Any, kind: Any) -> Any:
    """The value in its type, without loss."""
    options = (kind,) if get_origin(kind) is tuple else get_args(kind) or (kind,)
    if value is None and type(None) in options:
        return None
    wanted = options[0]
    if get_origin(wanted) is tuple:
        if not isinstance(value, list | tuple) or not value:
            of = "channel" if name == "channel_weights" else "level"
            raise SettingsError(f"{name} is {value!r}, expected a list with a number for each {of}.")
        return tuple(_checked(name, item, get_args(wanted)[0]) for item in value)
    numeric = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if numeric and value > _LARGEST.get(name, math.inf):
        raise SettingsError(f"{name} is {value:.15g}, expected {_LARGEST[name]} at most.")
    if wanted is int and numeric and value == int(value):
        return int(value)
    if wanted is float and numeric and value >= 0:
        return float(value)
    if wanted is str and isinstance(value, PathLike):
        return fspath(value)
    if wanted in (bool, str) and isinstance(value, wanted):
        return value
    words = {int: "a whole number", float: "a number of 0 or more", bool: "true or false", str: "a word"}
    raise SettingsError(f"{name} is {value!r}, expected {words[wanted]}{' or null' if len(options) > 1 else ''}.")
