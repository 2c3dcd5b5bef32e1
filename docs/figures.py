# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Draw the figures of method.md and flow.md from the built-in example: python docs/figures.py."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from PIL import Image

from monai_nodeo import Registration, Settings, register
from monai_nodeo.data.examples import example_pair
from monai_nodeo.geometry.sampling import warp
from monai_nodeo.losses import FoldingLoss, LocalNCCLoss, LogJacobianLoss

HERE = Path(__file__).parent
TIMES = (0.0, 0.25, 0.5, 0.75, 1.0)
STEP = 6  # voxels between the lines of a grid


def main() -> None:
    """Register the example's slices and draw what the pages speak of."""
    pair = example_pair(2)
    found = register(pair.fixed, pair.moving, Settings.preset("accurate", 2, initial_transform=None), handlers=())
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    warped = found.warp(pair.moving)[0].numpy()
    figures = {"flow": draw_flow(found, pair.moving), "losses": draw_losses(pair.fixed, pair.moving, warped)}
    for name, figure in figures.items():
        figure.savefig(HERE / f"{name}.png", dpi=110)
        with Image.open(HERE / f"{name}.png") as picture:
            few = picture.convert("RGB").quantize(128)
        few.save(HERE / f"{name}.png", optimize=True)


def draw_flow(found: Registration, moving: np.ndarray) -> plt.Figure:
    """The moving image and a grid on it, both carried along the flow."""
    figure, axes = plt.subplots(1, len(TIMES), figsize=(10, 2.7), layout="constrained")
    for axis, time, ddf in zip(axes, TIMES, found.flow.trajectory(TIMES), strict=True):
        warped = warp(torch.from_numpy(moving).float()[None, None], ddf[None].float())
        show(axis, warped[0, 0].numpy(), f"t = {time:g}")
        for place in np.indices(moving.shape) + ddf.numpy():
            axis.contour(place.T, np.arange(0, max(moving.shape), STEP), colors="tab:orange", linewidths=0.5)
    return figure


def draw_losses(fixed: np.ndarray, moving: np.ndarray, warped: np.ndarray) -> plt.Figure:
    """Local correlations before and after, and what a determinant costs."""
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.1), width_ratios=(1, 1, 1.5), layout="constrained")
    loss = LocalNCCLoss(2, 21, reduction="none")
    for axis, image, when in ((axes[0], moving, "before"), (axes[1], warped, "after")):
        missing = loss(*(torch.from_numpy(x).float()[None, None] for x in (image, fixed)))[0, 0]
        show(axis, 1 - missing.numpy(), f"cc² {when}", cmap="viridis", vmin=0, vmax=1)
    determinants = np.linspace(-0.3, 2.5, 141)
    for name, penalty in (("(log det J)²", LogJacobianLoss()), ("folding", FoldingLoss(margin=0.5))):
        axes[2].plot(determinants, [float(penalty(stretched(d))) for d in determinants], label=name)
    axes[2].set(xlabel="det J", title="penalties", ylim=(0, 8))
    axes[2].legend()
    return figure


def stretched(determinant: float) -> torch.Tensor:
    """A displacement with the same determinant everywhere, (1, 2, 9, 9)."""
    ddf = torch.zeros(1, 2, 9, 9)
    ddf[0, 0] = (determinant - 1) * torch.arange(9.0)[:, None]
    return ddf


def show(axis: Axes, image: np.ndarray, title: str, **options: object) -> None:
    """Nose up."""
    axis.imshow(image.T, origin="lower", **({"cmap": "gray"} | options))
    axis.set_title(title)
    axis.set_axis_off()


if __name__ == "__main__":
    main()
