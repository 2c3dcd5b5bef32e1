# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Pictures of what is found in one pair of each kind, and the rows of the table in docs/gallery.md.

    python benchmarks/gallery.py DATA [--only KIND]

DATA is the folder of ``domains.py``, which reads and judges the pairs. Of each kind the first pair is registered with
the default and no option. ``docs/gallery/KIND.png`` shows the deformation alone, without the affine start: the Jacobian
determinant on a logarithmic scale, where the deformation takes it, and the grid. No grey value of an image is in it.
"""

from __future__ import annotations

import argparse
import tempfile
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from domains import judged, ours, part
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import center_of_mass

from monai_nodeo import Registration
from monai_nodeo.report.plots.panels import JACOBIAN_COLOURS, draw_grid, draw_jacobian
from monai_nodeo.report.plots.planes import cut

PICTURES = Path(__file__).parents[1] / "docs" / "gallery"
CROP = 200  # voxels along an axis, around the middle of what moves
PANELS = 2  # of a volume: the planes with the most voxels
WIDTH, HEIGHT, GAP = 5.2, 2.6, 0.25  # inches; of all panels, at most
TICKS = {0.5: "½", 0.71: "0.71", 1: "1", 1.41: "1.41", 2: "2"}


def draw(ddf: NDArray, affine: NDArray, to: Path) -> None:
    """Write the picture of a displacement in voxels, (D, *spatial)."""
    length = np.linalg.norm(ddf, axis=0)
    corner = [round(x) - CROP // 2 for x in center_of_mass(length)]
    corner = [min(max(start, 0), max(size - CROP, 0)) for start, size in zip(corner, length.shape, strict=True)]
    inside = tuple(slice(start, start + CROP) for start in corner)
    planes = cut({"length": length[inside]}, ddf[:, *inside], affine)
    planes = sorted(planes, key=lambda plane: plane.determinant.size)[-PANELS:]
    widths, heights = zip(*(plane.size for plane in planes), strict=True)
    scale = min(WIDTH / sum(widths), HEIGHT / max(heights))
    wide, high = scale * sum(widths) + GAP * len(planes) + 0.8, scale * max(heights) + 2 * GAP
    figure = Figure(figsize=(wide, high), dpi=90)
    left = GAP / 2
    for plane, width, height in zip(planes, widths, heights, strict=True):
        ax = figure.add_axes((left / wide, GAP / high, scale * width / wide, scale * height / high))
        mesh = draw_jacobian(ax, plane, deformed=True)
        mesh.set_clim(min(TICKS), max(TICKS))
        draw_grid(ax, plane)
        ax.set_title(plane.name if len(ddf) == 3 else "", fontsize=9)
        left += scale * width + GAP
    side = figure.add_axes((left / wide, GAP / high, 0.12 / wide, scale * max(heights) / high))
    bar = figure.colorbar(mesh, cax=side, extend="both", ticks=list(TICKS))
    bar.ax.set_yticklabels(list(TICKS.values()), fontsize=7)
    bar.ax.minorticks_off()
    bar.set_label("Jacobian determinant", fontsize=7)
    figure.savefig(to)
    grey = colormaps["gray"](np.linspace(0, 1, 12))
    colours = [*JACOBIAN_COLOURS(np.linspace(0, 1, 64)), *JACOBIAN_COLOURS([np.nan]), *grey]
    palette = Image.new("P", (1, 1))
    palette.putpalette((255 * np.array(colours)[:, :3]).round().astype(np.uint8).tobytes())
    with Image.open(to) as picture:
        small = picture.convert("RGB").quantize(palette=palette, dither=Image.Dither.NONE)  # a third of the bytes
    small.save(to, optimize=True)


def row(kind: str, found: dict[str, Any]) -> str:
    """Markdown."""
    dice, error = ("{" + name + "_before:.3f} → {" + name + ":.3f}" for name in ("dice", "tre"))
    figure = f"Dice {dice}" if "dice" in found else f"distance {error}"
    choice = found["choice"]
    chosen = f"{choice['similarity']}, {choice['smoothness_weight']:.2f}, start: {found['start']['kind']}"
    cells = (kind, figure.format(**found), f"{found['sd_log_jacobian']:.2f}", f"{found['seconds']:.1f}", chosen)
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Register, draw, and print a row for each kind."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", default="", help="what the name of the kind begins with")
    given = parser.parse_args()
    folders = sorted(path for path in given.data.iterdir() if path.is_dir() and part(path, "fixed"))
    PICTURES.mkdir(exist_ok=True)
    print("| kind | figure | SDlogJ | seconds | chosen |\n|---|---|---|---|---|")
    for kind, pairs in groupby(folders, lambda folder: folder.name.split("_")[0]):
        if not kind.startswith(given.only):
            continue
        with tempfile.TemporaryDirectory() as temporary:
            folder, out = next(pairs), Path(temporary)
            way, said = ours(folder, out, {})
            found = Registration.load(out)
            draw(found.displacement.cpu().numpy(), found.flow.grid.affine, PICTURES / f"{kind}.png")
            print(row(kind, judged(folder, way) | said), flush=True)


if __name__ == "__main__":
    main()
