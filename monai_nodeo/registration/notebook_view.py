# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Small pictures of a registration, for a notebook."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from html import escape
from io import BytesIO

import numpy as np
from monai.data import MetaTensor
from PIL import Image

__all__ = ["strip_of_planes"]

_HEIGHT = 180  # pixels


def strip_of_planes(images: Mapping[str, MetaTensor]) -> str:
    """The middle planes of images on one grid, and what the others differ from the first by, as HTML."""
    grey = {name: _plane(image) for name, image in images.items()}
    first, *others = grey
    grey |= {f"|{name} - {first}|": np.abs(grey[name] - grey[first]) for name in others}
    cells = "".join(f"<td><img src='{_png(values)}'><br>{escape(name)}</td>" for name, values in grey.items())
    return f"<table style='text-align: center'><tr>{cells}</tr></table>"


def _plane(image: MetaTensor) -> np.ndarray:
    """The middle plane of the first channel, in [0, 1], up is the end of its second axis."""
    values = image[0].as_tensor().cpu().numpy()
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
