# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""One call that finds the motion of a series: one flow through all of its frames."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from monai.data import MetaTensor

from monai_nodeo.data.image import Image
from monai_nodeo.data.load import load_label
from monai_nodeo.data.pair import Pair, PairError, Scan, stored_grid
from monai_nodeo.data.placement import on_grid_of
from monai_nodeo.data.series import Series, open_series
from monai_nodeo.flows import EulerianVelocity, Flow, Periodic, RungeKutta
from monai_nodeo.geometry.cropping import Box, foreground_box
from monai_nodeo.registration.choice import Choice, choose
from monai_nodeo.registration.machine import usable_device
from monai_nodeo.registration.named_parts import make_loss, make_optimizer, make_solver, make_velocity
from monai_nodeo.registration.optimisation.fitting import Components, fit
from monai_nodeo.registration.optimisation.frames import Frames, write_frame
from monai_nodeo.registration.optimisation.handlers import ProgressBar
from monai_nodeo.registration.optimisation.trainer import DivergedError
from monai_nodeo.registration.preparation.prepared_pair import Prepared, grid_of_nodes, prepare
from monai_nodeo.registration.sequences.result import SequenceRegistration
from monai_nodeo.registration.settings import Settings, SettingsError

__all__ = ["register_sequence", "sequence_settings"]

_SMALLEST = 8  # voxels along an axis of a frame
_FEWEST_KEYFRAMES = 4  # of a motion that comes back
_MOST_KEYFRAMES = 8
_SPACING = 2.0  # least distance of the nodes, in smallest voxel sides
_KERNEL = 1.33  # in nodes
_LONGER = 2.0  # times the iterations of a pair
_FASTER = 2.0  # times its learning rate: a step of one keyframe moves less than one of a whole velocity
_CALMER = 0.25  # times that, where each frame is the fixed image in turn: the gradient turns with it
_FINE = 4  # steps of the finished flow from one keyframe to the next
_STEPS = 4.67  # weight of the smoothness of the way between many keyframes, in times that of a displacement


def register_sequence(
    images: Any,
    times: Any = None,
    settings: Settings | str | None = None,
    *,
    reference: int | str = 0,
    periodic: float | None = None,
    label: Image | None = None,
    device: torch.device | str | None = None,
    handlers: Sequence[Callable[[], Any]] = (ProgressBar,),
) -> SequenceRegistration:
    """Find one flow that takes the points of a reference frame through all frames of a series.

    Points of the reference frame are integrated to the time of a frame, which is sampled there and compared with the
    reference frame: forwards and backwards in time, a few frames in each iteration. For a mean shape each frame in turn
    is the one that the others are compared with. The frames are taken to lie in one space, each on a grid of its own;
    there is no affine start.

    Args:
        images: the frames: a 4D file, a folder, a table, or a sequence of images; see
            :py:func:`monai_nodeo.data.open_series`.
        times: of the frames, in any unit, regular or not; see there.
        settings: or the name of a preset, of a pair; see :py:func:`sequence_settings`.
        reference: number of the frame to which the others are carried, from 0 on; or "mean": a shape whose points lie
            at the mean of their places in the frames, so that no frame is preferred. Frame 0 then gives the grid.
        periodic: time after which the motion begins again (a heart beat, a breath), in the unit of the times; the flow
            then goes from the first time to one period later, where it meets the first frame again.
        label: label map of the reference frame (with "mean" of frame 0), on its grid, that is followed.
        device: where to compute; by default a GPU if there is one.
        handlers: factories of trainer handlers, called once a level.

    Raises:
        FileNotFoundError: when a file is missing.
        PairError: when something is wrong with a frame, a time or the label; the message names it.
        SettingsError: when something is wrong with the settings.

    Example:
        >>> sequence = register_sequence("cine.nii.gz", label="cine_label.nii.gz")
        >>> there = sequence.flow(points, 0.12, 0.47)
        >>> sequence.save("out")
    """
    started = time.perf_counter()
    series = open_series(images, times)
    base, in_turn = series.base(reference), reference == "mean"
    span = series.span(periodic)
    fixed = series.frame(base, min_size=_SMALLEST)
    if isinstance(settings, Settings):
        fixed = series.frame(base, settings.spatial_dims, _SMALLEST)
    else:
        settings = Settings.preset(settings, fixed.ndim - 1)
    followed = None if label is None else load_label(label, "labels", fixed)
    where = usable_device(device)
    if settings.symmetric:
        raise SettingsError("symmetric is for pairs; a sequence has a reference frame.")
    with TemporaryDirectory(prefix="monai_nodeo_") as temporary, torch.inference_mode(False), torch.enable_grad():
        laid = _lay_out(series, base, in_turn, span, settings, Path(temporary), where)
        choice = _choice(laid, settings)
        chosen = sequence_settings(
            settings if choice is None else choice.settings, len(series.times), periodic is not None, in_turn
        )
        components = _components(chosen, handlers, periodic is not None)
        frames = laid.frames.mapped("cropped", lambda pair: pair.cropped(laid.box))
        fitted = fit(frames, laid.prepared.spacing, chosen, components)
    grid = stored_grid(fixed, "frame")
    model = fitted.models[0].kept().requires_grad_(False)
    domain = grid_of_nodes(laid.prepared.matched.fixed, laid.box, fitted.level, grid)
    flow = Flow(model, components.finished, domain, grid, span=span)
    if not all(x.isfinite().all() for x in model.parameters()):
        raise DivergedError(len(fitted.history["loss"]))
    return SequenceRegistration(
        flow=flow,
        series=series,
        reference=reference,
        periodic=periodic,
        label=followed,
        history={name: values[:, 0] for name, values in fitted.history.items()},
        settings=chosen,
        choice=None if choice is None else choice.figures(),
        seconds=time.perf_counter() - started,
        interrupted=fitted.interrupted,
    )


def sequence_settings(settings: Settings, frames: int, periodic: bool = False, in_turn: bool = False) -> Settings:
    """The settings of a series, made of those of a pair.

    Two frames have those of a pair: one velocity for all times. Of many, the displacement to each frame is as smooth as
    a pair's, and the velocity is held from one keyframe to the next.

    Args:
        settings: of a pair.
        frames: of the series.
        periodic: the last keyframe is the first one again.
        in_turn: each frame is the fixed image in turn; the fine last level of a pair is for one fixed image.
    """
    if frames == 2 and not periodic:
        dense = 0 if in_turn else settings.dense_iterations
        return settings.replace(self_tuning=False, cuda_graph=False, dense_iterations=dense)
    keyframes = min(frames + periodic, _MOST_KEYFRAMES)
    if periodic:  # the last one is the first one again
        keyframes = max(keyframes, _FEWEST_KEYFRAMES)
    ways = keyframes - 1
    as_pair = 1 / ways**2
    return settings.replace(
        self_tuning=False,
        keyframes=keyframes,
        solver="midpoint" if settings.adjoint else "trapezoidal",
        num_steps=ways,
        point_spacing=max(settings.point_spacing, _SPACING),
        kernel_size=_KERNEL,
        learning_rate=_FASTER * (_CALMER if in_turn else 1) * settings.learning_rate,
        iterations=[math.ceil(_LONGER * n) for n in settings.iterations],
        dense_iterations=0,
        displacement_smoothness_weight=(1 - as_pair) * settings.smoothness_weight,
        smoothness_weight=(as_pair + _STEPS * (1 - 1 / ways)) * settings.smoothness_weight / ways**2,
        cuda_graph=False,
    )


@dataclass(frozen=True, eq=False)
class _Layout:
    """A series in files.

    Attributes:
        frames: on the grid of the base frame.
        box: outside which all frames are air.
        prepared: the base frame and the one that differs most from it.
    """

    frames: Frames
    box: Box
    prepared: Prepared


def _lay_out(
    series: Series,
    base: int,
    in_turn: bool,
    span: tuple[float, float],
    settings: Settings,
    folder: Path,
    device: torch.device,
) -> _Layout:
    """Bring every frame to the grid of the base frame, in a file."""
    loss, dims = make_loss(settings), settings.spatial_dims
    still = settings.replace(initial_transform="none", max_voxels=None)  # all frames on one grid
    at = dict(enumerate(series.times))
    moments = [(number, time) for number, time in at.items() if number != base]
    if span[1] > max(series.times):  # a period later the first frame is there again
        moments.append((min(at, key=lambda number: at[number]), span[1]))
    here = series.frame(base, dims, _SMALLEST)
    if float(here.min()) == float(here.max()):
        raise PairError(f"frame {series.names[base]} gives the grid and shows nothing; take another one as reference.")
    fixed = Scan(here)
    files: list[Path] = []
    boxes: list[Box] = []
    most, furthest = -1.0, None
    for position, (number, _) in enumerate(moments):
        frame = series.frame(number, dims, _SMALLEST)
        _check_frame(series.names[number], frame, here)
        prepared = prepare(Pair(fixed, Scan(frame)), still, loss)
        batch = prepared.batch(torch.device("cpu"))
        files.append(folder / "whole" / f"{position:04d}.npy")
        write_frame(files[-1], batch.moving)
        boxes.append(foreground_box(batch.fixed, batch.moving))
        apart = float((batch.moving - batch.fixed).abs().mean())
        if apart > most:
            most, furthest = apart, prepared
    assert furthest is not None
    parts = [(t - span[0]) / (span[1] - span[0]) for t in (at[base], *[t for _, t in moments])]
    whole: Box = tuple(slice(0, n) for n in batch.fixed.shape[2:])
    box = _around(boxes, batch.fixed.shape[2:]) if settings.crop_air else whole
    return _Layout(Frames(furthest.batch(device), files, parts, in_turn=in_turn), box, furthest)


def _check_frame(name: str, frame: MetaTensor, reference: MetaTensor) -> None:
    """Refuse a frame that cannot be compared with the reference frame, in the words of a series."""
    if len(frame) != len(reference):
        raise PairError(
            f"frame {name} has {len(frame)} channels and the reference frame has {len(reference)}; give frames of one "
            "kind."
        )
    seen = on_grid_of(reference, frame)
    if float(seen.min()) == float(seen.max()):
        raise PairError(
            f"frame {name} shows nothing on the grid of the reference frame; leave it out, or repair its header: "
            "frames lie in one space."
        )


def _around(boxes: Sequence[Box], size: Sequence[int]) -> Box:
    """The smallest box that holds all."""
    ends = [[part.indices(n)[:2] for part, n in zip(box, size, strict=True)] for box in boxes]
    return tuple(slice(min(a for a, _ in of_axis), max(b for _, b in of_axis)) for of_axis in zip(*ends, strict=True))


def _choice(laid: _Layout, settings: Settings) -> Choice | None:
    """Similarity and smoothness that suit the frame that differs most from the base frame."""
    if not settings.self_tuning:
        return None
    pair = laid.frames.reference.cropped(laid.box)
    return choose(pair, laid.prepared.spacing, settings, lambda s: _components(s, (), False))


def _components(settings: Settings, handlers: Sequence[Callable[[], Any]], periodic: bool) -> Components:
    velocity = make_velocity(settings)
    if periodic and isinstance(velocity, EulerianVelocity):
        inner = make_velocity(settings.replace(keyframes=settings.keyframes - 1))
        assert isinstance(inner, EulerianVelocity)
        velocity = EulerianVelocity(
            settings.spatial_dims, parametrisation=Periodic(inner.parametrisation), smoothing=inner.smoothing
        )
    finished = RungeKutta(_FINE)
    parts = (velocity, make_solver(settings), make_loss(settings), make_optimizer(settings))
    return Components(*parts, tuple(handlers), finished)
