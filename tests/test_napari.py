# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Layers and registrations without napari, then the widget in a real viewer, where there are napari and a display."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from grids import interior
from synthetic import deformed_pair

from monai_nodeo.apps.napari.layers import (
    CancelledError,
    Steps,
    image_of,
    points_of,
    register_layers,
    warped_layers,
)
from monai_nodeo.data import PairError, as_image
from monai_nodeo.files import write_transform

SHAPES = {2: (40, 44), 3: (20, 24, 22)}
QUICK = {"self_tuning": False, "initial_transform": None, "shrink_factors": (2, 1), "iterations": (20, 5)}
SECONDS = 120  # of a test with a viewer, before it is given up


def itk_image(array: np.ndarray, seed: int = 0) -> sitk.Image:
    """An oblique image of an array [z, y, x] or [y, x]."""
    image = sitk.GetImageFromArray(array)
    turn = sitk.Euler3DTransform((0, 0, 0), 0.2, -0.1, 0.3) if array.ndim == 3 else sitk.Euler2DTransform((0, 0), 0.3)
    image.SetDirection(turn.GetMatrix())
    image.SetSpacing((1.2, 0.9, 2.0)[: array.ndim])
    image.SetOrigin((10.0 + seed, -20.0, 5.0)[: array.ndim])
    return image


def layer_of(image: sitk.Image, **attributes: Any) -> SimpleNamespace:
    """What the plugin reads of a layer of napari that shows an image where ITK has it."""
    dims = image.GetDimension()
    read = {
        "name": "layer",
        "data": sitk.GetArrayFromImage(image),
        "ndim": dims,
        "rgb": False,
        "multiscale": False,
        "size": 5,
        "units": ("mm",) * dims,
        "colormap": "gray",
        "contrast_limits": (0, 1),
        "data_to_world": lambda i: image.TransformContinuousIndexToPhysicalPoint([float(x) for x in i][::-1])[::-1],
    }
    return SimpleNamespace(**{**read, **attributes})


def pair_of_layers(dims: int) -> tuple[dict[str, SimpleNamespace], dict[str, sitk.Image]]:
    """Images, labels and the same three points of both; the moving space is another one."""
    fixed, moving, ddf = deformed_pair(SHAPES[dims])
    images = {"fixed": itk_image(fixed[0].numpy()), "moving": itk_image(moving[0].numpy(), seed=1)}
    layers = {side: layer_of(image) for side, image in images.items()}
    for side, image in images.items():
        labels = (sitk.GetArrayFromImage(image) > 0.5).astype(np.uint8)
        layers[f"{side}_label"] = layer_of(image, data=labels)
    points = np.array([[8.0, 9.0, 7.0], [12.0, 10.0, 12.0], [10.0, 14.0, 9.0]])[:, :dims]
    there = points + [ddf[(slice(None), *map(int, point))].numpy() for point in points]
    layers["fixed_landmarks"] = layer_of(images["fixed"], data=points)
    layers["moving_landmarks"] = layer_of(images["moving"], data=there)
    return layers, images


@pytest.mark.parametrize("dims", [2, 3])
def test_layer_is_the_image_that_itk_has(dims):
    image = itk_image(np.random.default_rng(0).random(SHAPES[dims], np.float32))
    layer = layer_of(image, data=sitk.GetArrayFromImage(image).astype(">f4"))  # as files of other machines are
    found, expected = image_of(layer), as_image(image)
    assert torch.equal(found.as_tensor(), expected.as_tensor())
    torch.testing.assert_close(found.affine, expected.affine)
    index = np.array([[3.0, 2.0, 1.0], [0.5, 4.0, 6.0]])[:, :dims]
    lps = [image.TransformContinuousIndexToPhysicalPoint(point[::-1].tolist()) for point in index]
    expected_points = np.pad(lps, ((0, 0), (0, 3 - dims))) * [-1, -1, 1]
    np.testing.assert_allclose(points_of(layer_of(image, data=index)), expected_points)


def test_colours_and_levels():
    colours = np.random.default_rng(0).integers(0, 255, (9, 11, 3), np.uint8)
    layer = layer_of(itk_image(colours[..., 0]), data=[colours, colours[::2, ::2]], rgb=True, multiscale=True)
    np.testing.assert_array_equal(image_of(layer), colours.transpose(2, 1, 0))


@pytest.mark.parametrize("dims", [2, 3])
def test_pair_of_layers(dims, tmp_path):
    """Registered as the images would be, and shown where ITK, given the transform, puts what is moved."""
    layers, images = pair_of_layers(dims)
    steps = Steps()
    registration = register_layers(layers, None, [lambda: steps], label_weight=1.0, **QUICK)
    assert steps.share == pytest.approx(1)
    assert registration.pair.fixed.landmarks.shape == (3, 3)

    warped, labels, points = warped_layers(registration, layers)
    fixed, before, after = (x.astype(float) for x in (layers["fixed"].data, layers["moving"].data, warped[0]))
    assert abs(interior(after - fixed)).mean() < 0.5 * abs(interior(before - fixed)).mean()
    write_transform(tmp_path / "transform.h5", registration.transform)
    transform = sitk.ReadTransform(tmp_path / "transform.h5")
    if dims == 3:
        by_itk = sitk.GetArrayFromImage(sitk.Resample(images["moving"], images["fixed"], transform, sitk.sitkLinear))
        np.testing.assert_allclose(interior(warped[0], 3), interior(by_itk, 3), atol=1e-3)
    assert warped[1]["metadata"]["registration"] is registration
    corner = np.array(fixed.shape) - 1.0
    shown = warped[1]["affine"] @ [*corner, 1]
    np.testing.assert_allclose(shown[:dims], layers["fixed"].data_to_world(corner))
    assert labels[0].dtype.kind == "i"
    np.testing.assert_array_equal(labels[0], registration.warp(registration.pair.moving.label, "nearest")[0].numpy().T)
    np.testing.assert_allclose(points[0], layers["fixed_landmarks"].data, atol=0.5)

    started = warped_layers(registration, layers, share=0.0)
    assert abs(started[0][0] - after).max() > 0.1
    np.testing.assert_array_equal(started[0][0], registration.at(1.0)[0].numpy().T)


def test_cancel():
    steps = Steps()
    steps.cancel()
    with pytest.raises(CancelledError):
        register_layers(pair_of_layers(2)[0], "fast", [lambda: steps], **QUICK)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"moving": None}, "moving: no layer is chosen"),
        ({"moving": layer_of(itk_image(np.zeros((4, 5, 6), np.float32)), name="film", ndim=4)}, "film: 4 axes"),
        ({"fixed": layer_of(itk_image(np.ones((40, 44), np.float32)), name="flat")}, "flat"),
        (dict.fromkeys(("fixed", "moving"), layer_of(itk_image(np.ones((40, 44), np.float32)))), "the same layer"),
        ({"moving_label": None}, "fixed_label"),
        ({"moving_landmarks": layer_of(itk_image(np.ones((4, 4), np.float32)), data=np.zeros((1, 2)))}, "points"),
    ],
)
def test_errors_name_the_layer(changes, said):
    with pytest.raises(PairError, match=said):
        register_layers(pair_of_layers(2)[0] | changes)


@pytest.fixture
def viewer() -> Iterator[Any]:
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        pytest.skip("there is no display; run this file under xvfb-run")
    napari = pytest.importorskip("napari", reason="napari is not installed: pip install 'monai-nodeo[napari]'")
    viewer = napari.Viewer(show=True)
    yield viewer
    viewer.close()
    from qtpy.QtCore import QThreadPool

    wait(lambda: not QThreadPool.globalInstance().activeThreadCount())


def wait(condition: Callable[[], bool]) -> None:
    from qtpy.QtWidgets import QApplication

    until = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < until
        QApplication.processEvents()
        time.sleep(0.01)


def view_of(viewer: Any, *layers: Any) -> np.ndarray:
    """What is seen of some layers, (height, width)."""
    for layer in viewer.layers:
        layer.visible = layer in layers
    return viewer.screenshot(canvas_only=True, flash=False)[..., :3].astype(float).mean(-1)


@pytest.mark.filterwarnings("ignore")  # of napari and what it draws with
def test_widget_in_a_viewer(viewer):
    """What a user does: layers, the plugin, landmarks, the button, the slider; and what is seen."""
    from napari.utils.notifications import notification_manager

    layers, images = pair_of_layers(2)
    place = {side: {"scale": x.GetSpacing()[::-1], "translate": x.GetOrigin()[::-1]} for side, x in images.items()}
    for side in images:
        viewer.add_image(layers[side].data, name=side, contrast_limits=(0, 1), **place[side])
        viewer.add_labels(layers[f"{side}_label"].data, name=f"{side} labels", **place[side])
        viewer.add_points(layers[f"{side}_landmarks"].data, name=f"{side} points", **place[side])
    _, widget = viewer.window.add_plugin_dock_widget("monai-nodeo", "Register two images")
    for key, choice in widget.choices.items():
        choice.value = viewer.layers[key.replace("_label", " labels").replace("_landmarks", " points")]

    def register(preset: str) -> None:
        widget.preset.value = preset
        widget.start.native.click()
        assert not widget.start.enabled

    register("fast")
    wait(lambda: widget.start.enabled)
    assert notification_manager.records == []
    assert {"warped", "warped labels", "warped points"} <= {layer.name for layer in viewer.layers}
    warped = viewer.layers["warped"]
    assert type(warped.metadata["registration"]).__name__ == "Registration"
    fixed, moving, after = (view_of(viewer, viewer.layers[name]) for name in ("fixed", "moving", "warped"))
    assert abs(after - fixed).mean() < 0.5 * abs(moving - fixed).mean()

    widget.time.value = 0.5
    widget.time.value = 0.0
    wait(lambda: not widget.moving)
    np.testing.assert_allclose(warped.data, warped.metadata["registration"].at(1.0)[0].numpy().T)
    assert abs(view_of(viewer, warped) - fixed).mean() > 1.5 * abs(after - fixed).mean()

    count = len(viewer.layers)
    register("accurate")
    widget.cancel.native.click()
    wait(lambda: widget.start.enabled)
    assert widget.status.value == "cancelled"
    assert len(viewer.layers) == count

    widget.choices["moving"].value = viewer.add_image(np.ones((40, 44)), name="flat")
    register("fast")
    wait(lambda: widget.start.enabled)
    assert notification_manager.records[-1].message.startswith("moving flat: every voxel is 1")
    assert "\n" not in notification_manager.records[-1].message

    widget.choices["moving"].value = viewer.layers["moving"]
    register("accurate")  # and the viewer is closed
