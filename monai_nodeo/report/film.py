# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""A film of a registration: the moving image on its way on to the fixed one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from monai_nodeo.registration.result import Registration

__all__ = ["write_film"]

_FRAMES = 21
_HEIGHT = 320  # pixels
_MILLISECONDS = 80


def write_film(registration: Registration, target: Path) -> Path:
    """Write the middle plane of the moving image from time 1, where it was, to time 0, on the fixed image, and back.

    Args:
        registration: with its pair.
        target: a .gif, or a folder, which gets PNG files with the way there only.

    Raises:
        ValueError: without the pair, or for another ending.
        OSError: when it cannot be written.
    """
    if target.suffix not in ("", ".gif"):
        raise ValueError(f"{target}: a film is a .gif, or a folder of PNG files.")
    times = np.linspace(1, 0, _FRAMES)
    planes = [_plane(registration, float(time)) for time in times]
    low, high = np.percentile(planes, (0.5, 99.5))
    frames = [_picture((plane - low) / max(high - low, 1e-9)) for plane in planes]
    if target.suffix == ".gif":
        film = frames + frames[-2:0:-1]
        film[0].save(target, save_all=True, append_images=film[1:], duration=_MILLISECONDS, loop=0)
        return target
    target.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames):
        frame.save(target / f"frame_{number:03d}.png")
    return target


def _plane(registration: Registration, time: float) -> np.ndarray:
    image: np.ndarray = registration.at(time)[0].as_tensor().cpu().numpy()
    return image[:, :, image.shape[2] // 2] if image.ndim == 3 else image


def _picture(plane: np.ndarray) -> Image.Image:
    """Up is the end of the second axis."""
    picture = Image.fromarray((255 * plane.T[::-1].clip(0, 1)).astype(np.uint8))
    return picture.resize((max(1, round(picture.width * _HEIGHT / picture.height)), _HEIGHT))
