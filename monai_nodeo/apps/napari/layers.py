# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Layers of napari as images, labels and points, and a registration as layers. Needs no Qt, and not even napari.

The axes of napari are those of numpy, [z, y, x] or [y, x]. Its world coordinates, read from the last one to the first,
are taken as LPS mm: an array of SimpleITK with the spacing and origin of its image lies where ITK has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from threading import Event
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from torch import Tensor

from monai_nodeo.data.image import as_image
from monai_nodeo.data.pair import PairError
from monai_nodeo.files.lps import RAS_TO_LPS
from monai_nodeo.registration import Registration, Settings, register

__all__ = ["CancelledError", "Steps", "image_of", "inputs_of", "points_of", "register_layers", "warped_layers"]

Layer = Any  # of napari: Image, Labels or Points
LayerData = tuple[Any, dict[str, Any], str]
_ALONE = ("label", "landmarks")  # of the moving image without those of the fixed one: taken along


class CancelledError(Exception):
    """The user has ended the registration."""


class Steps:
    """Handler of the trainers of a registration: how far it is, and its end when the user wants no more.

    Attributes:
        share: of the work that is done, in [0, 1]; may be read by any thread.
    """

    def __init__(self) -> None:
        self.share = 0.0
        self._cancelled = Event()

    def cancel(self) -> None:
        """End the registration after its current iteration, with a `CancelledError`."""
        self._cancelled.set()

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def _start(self, engine: Engine) -> None:
        self._before, self._work = self.share, self._left(engine)

    def __call__(self, engine: Engine) -> None:
        if self._cancelled.is_set():
            raise CancelledError("cancelled")
        self.share = 1 - (1 - self._before) * self._left(engine) / self._work

    def _left(self, engine: Engine) -> float:
        """Iterations that are left, finer ones counted as what they cost."""
        state = engine.state
        return state.epoch_length - state.iteration + float(getattr(state, "iterations_ahead", 0))


def register_layers(
    layers: Mapping[str, Layer | None],
    preset: str | None = None,
    handlers: Sequence[Callable[[], Any]] = (),
    **changes: Any,
) -> Registration:
    """Register the images of two layers, see :py:func:`monai_nodeo.register`.

    Args:
        layers: "fixed" and "moving"; perhaps "fixed_label", "moving_label", "fixed_landmarks", "moving_landmarks".
        preset: its name; None: the default.
        handlers: factories of trainer handlers.
        changes: settings other than the preset's.

    Raises:
        ValueError: when a layer is no image, or anything is wrong with the pair; the message names the layer.
    """
    inputs = inputs_of(layers)
    settings = Settings.preset(preset, inputs["fixed"].ndim - 1, **changes)
    return register(**inputs, settings=settings, handlers=handlers)


def inputs_of(layers: Mapping[str, Layer | None]) -> dict[str, Any]:
    """The images and points of layers as :py:func:`monai_nodeo.register` takes them.

    Labels and points of the moving image alone say nothing about the registration and are left out.
    """
    given = {key: layer for key, layer in layers.items() if layer is not None}
    for key in ("fixed", "moving"):
        if key not in given:
            raise PairError(f"{key}: no layer is chosen; add an image and choose it.")
    if given["fixed"] is given["moving"]:
        raise PairError(f"moving {given['moving'].name}: the same layer as the fixed one; choose another.")
    for what in _ALONE:
        if f"fixed_{what}" not in given:
            given.pop(f"moving_{what}", None)
    return {key: points_of(x) if key.endswith("landmarks") else image_of(x, key) for key, x in given.items()}


def image_of(layer: Layer, key: str = "image") -> MetaTensor:
    """The image of a layer, or its labels.

    Args:
        layer: Image, grey or RGB, or Labels, of 2 or 3 axes.
        key: what errors call it; with "label" in it, the values are ids.

    Returns:
        (C, X, Y, Z) or (C, X, Y), see :py:func:`monai_nodeo.data.as_image`.

    Raises:
        ValueError: when the layer has other axes, or its values are no image.
    """
    _check_axes(layer)
    voxels = _voxels(layer) if getattr(layer, "rgb", False) else _voxels(layer)[..., None]
    values = torch.from_numpy(np.ascontiguousarray(voxels.T, voxels.dtype.newbyteorder("=")))
    image = MetaTensor(values, affine=torch.from_numpy(_place(layer)), meta={"filename_or_obj": layer.name})
    return as_image(image, f"{key} {layer.name}", labels="label" in key)


def points_of(layer: Layer) -> Tensor:
    """Points of a layer, (N, 3) RAS mm; those of 2 axes lie in the plane z = 0.

    Raises:
        ValueError: when the layer has neither 2 nor 3 axes.
    """
    _check_axes(layer)
    world = np.array([layer.data_to_world(point) for point in layer.data], np.float64).reshape(-1, layer.ndim)
    return torch.from_numpy(np.pad(world[:, ::-1], ((0, 0), (0, 3 - layer.ndim))) @ RAS_TO_LPS)


def warped_layers(
    registration: Registration, layers: Mapping[str, Layer | None], share: float = 1.0
) -> list[LayerData]:
    """What belongs to the moving image, on its way to the fixed one.

    Args:
        registration: of these layers.
        layers: see `register_layers`.
        share: of the way of the flow; 0: where the affine start puts it, 1: on the fixed image.

    Returns:
        "warped", and if there are any, "warped labels" and "warped points", as napari adds layers, in the
        place of the fixed one and with the registration in their metadata.
    """
    fixed, moving = layers["fixed"], layers["moving"]
    assert fixed is not None
    assert moving is not None
    place = {"affine": _world_affine(fixed), "units": fixed.units, "metadata": {"registration": registration}}
    look = {"rgb": moving.rgb}
    if not moving.rgb:
        look |= {"colormap": moving.colormap, "contrast_limits": moving.contrast_limits}
    image = _array(registration.at(1 - share), fixed, _voxels(moving).dtype)
    found: list[LayerData] = [(image, {"name": "warped", **place, **look}, "image")]
    if (label := layers.get("moving_label")) is not None:
        there = registration.at(1 - share, image_of(label, "moving_label"), "nearest")
        found.append((_array(there, fixed, np.dtype(np.int32)), {"name": "warped labels", **place}, "labels"))
    if (points := layers.get("moving_landmarks")) is not None:
        ras = registration.inverse.points(points_of(points), 0.0, share).numpy()
        index = (np.pad(ras, ((0, 0), (0, 1)), constant_values=1) @ np.linalg.inv(_place(fixed)).T)[:, : fixed.ndim]
        found.append((index[:, ::-1], {"name": "warped points", "size": points.size, **place}, "points"))
    return found


def _check_axes(layer: Layer) -> None:
    if layer.ndim not in (2, 3):
        raise PairError(
            f"{layer.name}: {layer.ndim} axes; expected (z, y, x) or (y, x), take one volume or channel of it."
        )


def _voxels(layer: Layer) -> np.ndarray:
    """The finest level of a layer."""
    return np.asarray(layer.data[0] if layer.multiscale else layer.data)


def _world_affine(layer: Layer) -> np.ndarray:
    """(n + 1, n + 1), index -> world, both in napari's order of axes: scale, rotation, shear and affine together."""
    count = layer.ndim
    affine = np.eye(count + 1)
    affine[:count, count] = layer.data_to_world(np.zeros(count))
    for axis, unit in enumerate(np.eye(count)):
        affine[:count, axis] = layer.data_to_world(unit) - affine[:count, count]
    return affine


def _place(layer: Layer) -> np.ndarray:
    """(4, 4), voxel (x, y, z) -> RAS mm."""
    count, world = layer.ndim, _world_affine(layer)
    affine = np.eye(4)
    affine[:count, :count] = world[count - 1 :: -1, count - 1 :: -1]
    affine[:count, 3] = world[count - 1 :: -1, count]
    affine[:3] = RAS_TO_LPS @ affine[:3]
    return affine


def _array(image: MetaTensor, fixed: Layer, dtype: np.dtype) -> np.ndarray:
    """(C, *spatial) on the grid of the fixed layer as napari shows it, in a type of values."""
    voxels = image.as_tensor().cpu().numpy().T
    shape = _voxels(fixed).shape[: fixed.ndim]
    voxels = voxels.reshape(*shape, voxels.shape[-1]) if voxels.shape[-1] > 1 else voxels.reshape(shape)
    if dtype.kind not in "iu":
        return voxels
    limits = np.iinfo(dtype)
    return np.rint(voxels).clip(limits.min, limits.max).astype(dtype)
