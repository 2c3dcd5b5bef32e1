# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Films: of a pair the moving image on its way on to the fixed one, of a series its frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from monai.data import MetaTensor
from PIL import Image

from monai_nodeo.data.placement import on_grid_of
from monai_nodeo.registration.result import Registration
from monai_nodeo.registration.sequences.result import SequenceRegistration

__all__ = ["write_film", "write_sequence_film"]

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
    _check(target)
    planes = [_plane(registration.at(float(time))) for time in np.linspace(1, 0, _FRAMES)]
    return _written(planes, target, back=True)


def write_sequence_film(sequence: SequenceRegistration, target: Path) -> Path:
    """Write the middle plane of each frame, in the order of the times, beside the corrected one.

    Args:
        sequence: a series and its flow.
        target: see :py:func:`write_film`.

    Raises:
        ValueError: for another ending.
        OSError: when it cannot be written.
    """
    _check(target)
    fixed = sequence.image
    order = sorted(range(len(sequence.times)), key=lambda number: sequence.times[number])
    sides = [(_plane(on_grid_of(fixed, sequence.frame(n))), _plane(sequence.corrected(n))) for n in order]
    return _written([np.concatenate(both) for both in sides], target, back=False)


def _check(target: Path) -> None:
    if target.suffix not in ("", ".gif"):
        raise ValueError(f"{target}: a film is a .gif, or a folder of PNG files.")


def _written(planes: list[np.ndarray], target: Path, back: bool) -> Path:
    """Planes as a film, which perhaps runs back to its beginning."""
    low, high = np.percentile(planes, (0.5, 99.5))
    frames = [_picture((plane - low) / max(high - low, 1e-9)) for plane in planes]
    if target.suffix == ".gif":
        film = frames + frames[-2:0:-1] if back else frames
        film[0].save(target, save_all=True, append_images=film[1:], duration=_MILLISECONDS, loop=0)
        return target
    target.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames):
        frame.save(target / f"frame_{number:03d}.png")
    return target


def _plane(seen: MetaTensor) -> np.ndarray:
    image: np.ndarray = seen[0].as_tensor().cpu().numpy()
    return image[:, :, image.shape[2] // 2] if image.ndim == 3 else image


def _picture(plane: np.ndarray) -> Image.Image:
    """Up is the end of the second axis."""
    picture = Image.fromarray((255 * plane.T[::-1].clip(0, 1)).astype(np.uint8))
    return picture.resize((max(1, round(picture.width * _HEIGHT / picture.height)), _HEIGHT))
