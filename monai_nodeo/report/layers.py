# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Pictures as text for a page: layers that lie on each other voxel by voxel, and charts in the page's own colours."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Iterator
from functools import partial
from io import BytesIO, StringIO
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, to_hex
from matplotlib.figure import Figure

from monai_nodeo.report.plots.panels import (
    FIXED_COLOUR,
    MOVING_COLOUR,
    draw_contours,
    draw_difference,
    draw_displacement,
    draw_edges,
    draw_grid,
    draw_image,
    draw_jacobian,
    draw_uncertainty,
)
from monai_nodeo.report.plots.planes import Plane

__all__ = ["Layer", "css_gradient", "inline_svg", "make_layers", "thumbnail"]

Draw = Callable[[Axes, Plane], object]

_DPI = 100
_PIXELS_A_VOXEL = 2
_LARGEST = 560  # pixels
_THUMBNAIL = 96
_PAGE_COLOUR = "#010203"  # stands for the text colour of the page in a chart
_QUALITY = {"image": 82, "overlay": 75, "thumbnail": 60}


class Layer(NamedTuple):
    """A picture of one plane.

    Attributes:
        name: such as "warped".
        title: for those who do not see it.
        source: data URI.
    """

    name: str
    title: str
    source: str


def make_layers(plane: Plane, largest_mm: float, uncertain_mm: float = 0.0) -> list[Layer]:
    """All layers of a plane, each as large as the plane.

    Args:
        plane: with the images "fixed", "moving" and "warped", and labels of these names or none.
        largest_mm: displacement that gets the last colour.
        uncertain_mm: uncertainty that gets the last colour, if the plane has one.
    """
    figure = _canvas(plane)
    return [
        Layer(name, f"{plane.name} plane: {title}", _picture(figure, plane, draw, quality))
        for name, title, draw, quality in _drawings(plane, largest_mm, uncertain_mm)
    ]


def thumbnail(plane: Plane) -> str:
    """What the warped and the fixed image differ by, as a small data URI."""
    return _picture(_canvas(plane, _THUMBNAIL), plane, partial(draw_difference, name="warped"), "thumbnail")


def inline_svg(make: Callable[[], Figure], name: str) -> Markup:
    """A chart as SVG for a page, whose text colour and font it takes.

    Args:
        make: makes the figure.
        name: makes the ids within the SVG unique in the page.
    """
    keys = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "legend.labelcolor")
    style: Any = {**dict.fromkeys(keys, _PAGE_COLOUR), "svg.fonttype": "none", "svg.hashsalt": name, "svg.id": name}
    text = StringIO()
    with rc_context(style):
        make().savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()[text.getvalue().index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return Markup(svg.replace(_PAGE_COLOUR, "currentColor"))


def css_gradient(colours: Colormap) -> str:
    """A colour map as a CSS background, from left to right."""
    return f"linear-gradient(to right, {', '.join(to_hex(colours(x)) for x in np.linspace(0, 1, 13))})"


def _drawings(plane: Plane, largest_mm: float, uncertain_mm: float) -> Iterator[tuple[str, str, Draw, str]]:
    for name, title in (("fixed", "fixed image"), ("moving", "moving image"), ("warped", "warped image")):
        yield name, title, partial(draw_image, name=name), "image"
    yield "edges", "edges of the fixed image", partial(draw_edges, name="fixed", colour=FIXED_COLOUR), "overlay"
    yield "difference-before", "moving minus fixed image", partial(draw_difference, name="moving"), "image"
    yield "difference-after", "warped minus fixed image", partial(draw_difference, name="warped"), "image"
    yield "grid", "deformed grid, coloured by the Jacobian determinant", _draw_deformed, "overlay"
    yield "jacobian", "Jacobian determinant, folds in red", draw_jacobian, "overlay"
    yield "displacement", "length of the displacement", partial(draw_displacement, largest=largest_mm), "image"
    if plane.uncertainty is not None:
        draw = partial(draw_uncertainty, largest=uncertain_mm)
        yield "uncertainty", "uncertainty of the displacement", draw, "image"
    for name, colour in (("fixed", FIXED_COLOUR), ("moving", MOVING_COLOUR), ("warped", MOVING_COLOUR)):
        if name in plane.labels:
            draw = partial(draw_contours, name=name, colour=colour)
            yield f"contours-{name}", f"outlines of the {name} labels", draw, "overlay"


def _draw_deformed(ax: Axes, plane: Plane) -> None:
    draw_jacobian(ax, plane, deformed=True)
    draw_grid(ax, plane)


def _canvas(plane: Plane, largest: int = _LARGEST) -> Figure:
    """A figure of the shape of the plane, filled by its axes."""
    width, height = plane.size
    scale = min(_PIXELS_A_VOXEL / min(plane.spacing), largest / max(width, height))
    figure = Figure(figsize=(width * scale / _DPI, height * scale / _DPI), dpi=_DPI)
    figure.add_axes((0, 0, 1, 1))
    return figure


def _picture(figure: Figure, plane: Plane, draw: Draw, quality: str) -> str:
    """A picture that shows the plane to its edges and nothing around it, transparent where nothing is drawn."""
    (ax,) = figure.axes
    draw(ax, plane)
    ax.set(xlim=(0, plane.size[0]), ylim=(0, plane.size[1]), aspect="auto")
    ax.set_axis_off()
    data = BytesIO()
    options = {"quality": _QUALITY[quality], "method": 2}
    figure.savefig(data, format="webp", transparent=True, pil_kwargs=options)
    for drawn in (*ax.images, *ax.collections):  # for the next one: making axes takes longer than drawing
        drawn.remove()
    return f"data:image/webp;base64,{b64encode(data.getvalue()).decode()}"
