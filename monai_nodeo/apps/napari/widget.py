# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The dock widget of napari: two layers in, a registration and its warped layers out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from magicgui.widgets import CheckBox, ComboBox, Container, FloatSlider, Label, ProgressBar, PushButton, create_widget
from napari import Viewer
from napari.layers import Image, Labels, Layer, Points
from napari.qt.threading import create_worker
from napari.utils.notifications import show_error
from qtpy.QtCore import QThreadPool, QTimer

from monai_nodeo.apps.napari.layers import CancelledError, LayerData, Steps, register_layers, warped_layers
from monai_nodeo.registration import Registration
from monai_nodeo.registration.metrics_table import summary_of
from monai_nodeo.registration.presets import preset_names

__all__ = ["RegistrationWidget"]

_POLL_MS, _PATIENCE_MS = 100, 10_000
_LAYERS = {
    "fixed": ("Fixed image", Image),
    "moving": ("Moving image", Image),
    "fixed_label": ("Fixed labels", Labels | None),
    "moving_label": ("Moving labels", Labels | None),
    "fixed_landmarks": ("Fixed points", Points | None),
    "moving_landmarks": ("Moving points", Points | None),
}


class RegistrationWidget(Container):
    """Registers the layers that are chosen in it, in a thread.

    Args:
        napari_viewer: whose layers they are, and to which the warped ones are added.
    """

    def __init__(self, napari_viewer: Viewer) -> None:
        self._viewer = napari_viewer
        self._steps = Steps()
        self._shown: tuple[Registration, dict[str, Layer | None], list[Layer]] | None = None
        self.moving = self._closed = False
        self.choices = {key: create_widget(label=label, annotation=kind) for key, (label, kind) in _LAYERS.items()}
        self.preset = ComboBox(label="Preset", choices=["default", *preset_names()])
        self.pull = CheckBox(text="Labels of both images pull")
        self.start = PushButton(text="Register")
        self.cancel = PushButton(text="Cancel", enabled=False)
        self.bar = ProgressBar(label="Progress", max=100)
        self.time = FloatSlider(label="Way of the flow", value=1, max=1, enabled=False)
        self.status = Label(value="")
        super().__init__(
            widgets=[
                *self.choices.values(),
                self.preset,
                self.pull,
                self.start,
                self.cancel,
                self.bar,
                self.time,
                self.status,
            ]
        )
        self.status.native.setWordWrap(True)  # a long line would push the images aside
        self.start.changed.connect(self._register)
        self.cancel.changed.connect(self._end)
        self.time.changed.connect(self._move)
        self._timer = QTimer(self.native)
        self._timer.timeout.connect(self._tell)
        self.native.destroyed.connect(self._close)

    def _register(self) -> None:
        layers = {key: choice.value for key, choice in self.choices.items()}
        preset = None if self.preset.value == "default" else self.preset.value
        self._steps = Steps()
        self._set_running(True)

        def registered(found: tuple[Registration, list[LayerData], str]) -> None:
            registration, data, self.status.value = found
            self._shown = registration, layers, [self._viewer.add_layer(Layer.create(*one)) for one in data]
            with self.time.changed.blocked():
                self.time.value = 1

        changes = {"label_weight": 1.0} if self.pull.value else {}
        self._work(
            partial(_registered, layers, preset, self._steps, changes),
            returned=registered,
            errored=self._fail,
            finished=lambda: self._set_running(False),
        )

    def _end(self) -> None:
        self._steps.cancel()
        self.status.value = "cancelling ..."

    def _set_running(self, running: bool) -> None:
        self.start.enabled, self.cancel.enabled = not running, running
        self.time.enabled = not running and self._shown is not None
        if running:
            self.status.value = "registering ..."
            self._timer.start(_POLL_MS)
        else:
            self._timer.stop()
            self.bar.value = 0

    def _tell(self) -> None:
        self.bar.value = round(100 * self._steps.share)

    def _fail(self, error: Exception) -> None:
        if isinstance(error, CancelledError):
            self.status.value = "cancelled"
        else:
            self.status.value = "failed"
            expected = isinstance(error, ValueError | OSError | ImportError)
            show_error(" ".join(str(error if expected else f"{type(error).__name__}: {error}").split()))

    def _move(self, share: float) -> None:
        """Take what is warped to another time of the flow; while that is worked on, only the last wish is kept."""
        if self._shown is None or self.moving:
            return
        registration, layers, warped = self._shown
        self.moving = True

        def moved(data: list[LayerData]) -> None:
            self.moving = False
            for layer, one in zip(warped, data, strict=True):
                layer.data = one[0]
            if self.time.value != share:
                self._move(self.time.value)

        def failed(error: Exception) -> None:
            self.moving = False
            self._fail(error)

        self._work(partial(warped_layers, registration, layers, share), returned=moved, errored=failed)

    def _work(self, work: Callable[[], Any], **slots: Callable[..., Any]) -> None:
        """Work in a thread. When the panel is closed, nobody hears what came of it."""

        def heard(slot: Callable[..., Any]) -> Callable[..., None]:
            return lambda *said: None if self._closed else slot(*said)

        create_worker(work, _ignore_errors=True, _connect={name: heard(slot) for name, slot in slots.items()})

    def _close(self) -> None:
        self._closed = True
        self._steps.cancel()
        QThreadPool.globalInstance().waitForDone(_PATIENCE_MS)  # a thread that outlives Qt would crash it


def _registered(
    layers: dict[str, Layer | None], preset: str | None, steps: Steps, changes: dict[str, float]
) -> tuple[Registration, list[LayerData], str]:
    """The registration, what is warped, and the figures."""
    logging.getLogger("ignite").setLevel(logging.CRITICAL)  # it prints each exception, which is shown here
    registration = register_layers(layers, preset, [lambda: steps], **changes)
    return registration, warped_layers(registration, layers), summary_of(registration.figures()).replace(", ", "\n")
