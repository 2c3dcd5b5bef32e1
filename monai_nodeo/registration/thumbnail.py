# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""How a registration shows itself in a notebook."""

from __future__ import annotations

from base64 import b64encode
from html import escape
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from torch import Tensor

from monai_nodeo.data.placement import on_grid_of

if TYPE_CHECKING:
    from monai_nodeo.registration.result import Registration

__all__ = ["html"]

_HEIGHT = 180  # pixels


def html(registration: Registration) -> str:
    """The middle plane of fixed, moving and warped image, their differences, and the certificate."""
    pair = registration.pair
    text = f"<p>{escape(repr(registration)[1:-1])}</p>"
    if pair is None:
        return text
    before = on_grid_of(pair.fixed.image, pair.moving.image, registration.start)
    after = registration.warp(pair.moving.image)
    planes = {"fixed": pair.fixed.image, "moving": before, "warped": after}
    grey = {name: _plane(image.as_tensor()) for name, image in planes.items()}
    grey |= {f"|{name} - fixed|": np.abs(grey[name] - grey["fixed"]) for name in ("moving", "warped")}
    cells = "".join(f"<td><img src='{_png(values)}'><br>{escape(name)}</td>" for name, values in grey.items())
    return f"<table style='text-align: center'><tr>{cells}</tr></table>{text}"


def _plane(image: Tensor) -> np.ndarray:
    """The middle plane of the first channel, in [0, 1], up is the end of its second axis."""
    values = image[0].cpu().numpy()
    if values.ndim == 3:
        values = values[:, :, values.shape[2] // 2]
    low, high = np.percentile(values, (0.5, 99.5))
    scaled: np.ndarray = ((values - low) / max(high - low, 1e-9)).clip(0, 1)
    return scaled.T[::-1]


def _png(values: np.ndarray) -> str:
    picture = Image.fromarray((255 * values).astype(np.uint8))
    size = (max(1, round(picture.width * _HEIGHT / picture.height)), _HEIGHT)
    data = BytesIO()
    picture.resize(size).save(data, format="png")
    return f"data:image/png;base64,{b64encode(data.getvalue()).decode()}"
