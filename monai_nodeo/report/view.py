# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The viewer of one pair: linked planes and 3D by NiiVue, in a single page that asks for nothing."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

from markupsafe import Markup
from monai.config import PathLike

from monai_nodeo.files import atomic_path
from monai_nodeo.registration.folder import read_figures
from monai_nodeo.registration.result import Registration
from monai_nodeo.report.layers import css_gradient
from monai_nodeo.report.page import render
from monai_nodeo.report.plots.panels import FOLD_COLOUR, JACOBIAN_COLOURS
from monai_nodeo.report.scene import scene_of

__all__ = ["VIEW", "view_page", "write_view"]

VIEW = "view.html"


def write_view(folder: PathLike, page: PathLike | None = None) -> Path:
    """Write the viewer of a finished pair; see `view_page`.

    Args:
        folder: of the pair.
        page: target; by default ``view.html`` in the folder.

    Returns:
        The page.
    """
    target = Path(str(folder)) / VIEW if page is None else Path(str(page))
    text = view_page(folder)
    with atomic_path(target) as partial:
        partial.write_text(text, encoding="utf-8")
    return target


def view_page(folder: PathLike) -> str:
    """The viewer of a finished pair as HTML, with all its volumes in it.

    Args:
        folder: of the pair; the images that were registered have to be where they were.

    Raises:
        FileNotFoundError: when the folder holds no finished pair.
        ValueError: when an image that was registered is gone.
    """
    path = Path(str(folder))
    figures = read_figures(path)
    scene = scene_of(Registration.load(path))
    program = (files("monai_nodeo.report") / "vendor" / "niivue.umd.js").read_text(encoding="utf-8")
    return render(
        "view.html.j2",
        title=f"Images of {figures['id']}",
        id=figures["id"],
        scene=scene,
        # no text within a script element may end it
        scene_text=Markup(json.dumps(scene).replace("<", "\\u003c")),
        program=Markup(program),
        gradient=css_gradient(JACOBIAN_COLOURS),
        fold=FOLD_COLOUR,
    )
