# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The report of one pair: a page in a single file that needs nothing beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import jinja2
from monai.config import PathLike
from numpy.typing import NDArray

from monai_nodeo.files import atomic_path
from monai_nodeo.metrics.evidence import Evidence
from monai_nodeo.metrics.verdict import Verdict, judge
from monai_nodeo.registration.folder import FIGURES, read_figures
from monai_nodeo.registration.result import Registration
from monai_nodeo.report.layers import css_gradient, inline_svg, make_layers, thumbnail
from monai_nodeo.report.pair import ShownPair, shown
from monai_nodeo.report.plots import plot_dice, plot_history
from monai_nodeo.report.plots.panels import (
    DIFFERENCE_COLOURS,
    DISPLACEMENT_COLOURS,
    FIXED_COLOUR,
    FOLD_COLOUR,
    JACOBIAN_COLOURS,
    MOVING_COLOUR,
)
from monai_nodeo.report.plots.planes import cut

__all__ = ["PAGE", "SUMMARY", "remake_report", "render", "write_report"]

PAGE = "report.html"
SUMMARY = "report.json"

_NAMES = {
    "similarity": "Similarity loss",
    "dice_mean": "Dice, mean of the labels",
    "hd95_mm_mean": "Hausdorff distance (95 %), mean of the labels, mm",
}
_HIGHER_IS_BETTER = {"dice_mean"}


def write_report(registration: Registration, figures: dict[str, Any], folder: PathLike) -> Path:
    """Make the page of a registered pair.

    Writes ``report.html``, and ``report.json`` with verdict, evidence and thumbnail for a page of many pairs.

    Args:
        registration: with its pair.
        figures: content of its metrics.json.
        folder: of the pair.

    Returns:
        The page.

    Raises:
        ValueError: when the images that were registered are not there.
    """
    path = Path(str(folder))
    pair = shown(registration, figures)
    evidence = registration.evidence
    verdict = judge(pair.figures, pair.history, evidence)
    planes = cut(pair.images, pair.ddf, pair.affine, pair.labels, pair.uncertainty)
    largest = max(evidence.largest_mm, 1e-3)
    uncertain = max(figures.get("uncertainty_mm", {}).get("quantile_99", 0.0), 1e-3)
    page = render(
        "report.html.j2",
        title=f"Registration {pair.figures['id']}",
        pair=pair,
        verdict=verdict,
        evidence=evidence,
        certificate=figures["certificate"],
        differences=_differences(figures["certificate"]["folded_by_difference"]),
        proofs=_proofs(figures["certificate"]),
        comparisons=_comparisons(pair.figures, evidence),
        planes=[(plane, make_layers(plane, largest, uncertain)) for plane in planes],
        uncertain_mm=uncertain,
        gradients={
            "difference": css_gradient(DIFFERENCE_COLOURS),
            "jacobian": css_gradient(JACOBIAN_COLOURS),
            "displacement": css_gradient(DISPLACEMENT_COLOURS),
        },
        colours={"fixed": FIXED_COLOUR, "moving": MOVING_COLOUR, "fold": FOLD_COLOUR},
        tiles=_tiles(pair.figures),
        dice_chart=_dice_chart(pair.figures),
        dice_words=_dice_words(pair.figures),
        history_chart=inline_svg(partial(plot_history, pair.history), "history-chart"),
        history_words=_history_words(pair.history),
        figures_file=FIGURES,
        figures_text=json.dumps(pair.figures, indent=2, ensure_ascii=False),
    )
    with atomic_path(path / PAGE) as partial_page:
        partial_page.write_text(page, encoding="utf-8")
    with atomic_path(path / SUMMARY) as partial_summary:
        partial_summary.write_text(
            json.dumps(_summary(pair, verdict, evidence, thumbnail(planes[0])), indent=2) + "\n", encoding="utf-8"
        )
    return path / PAGE


def remake_report(folder: PathLike) -> Path:
    """Make the page of a finished pair again, from its folder and the images that it names.

    Raises:
        FileNotFoundError: when the folder holds no finished pair.
        ValueError: when an image that was registered is gone.
    """
    path = Path(str(folder))
    return write_report(Registration.load(path), read_figures(path), path)


def render(template: str, **values: Any) -> str:
    """Fill a template of this package; everything that is not marked as safe is escaped."""
    return _templates().get_template(template).render(**values)


@cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("monai_nodeo.report", "html"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _summary(pair: ShownPair, verdict: Verdict, evidence: Evidence, picture: str) -> dict[str, Any]:
    return {
        "id": pair.figures["id"],
        "grade": verdict.grade.name.lower(),
        "headline": verdict.headline,
        "findings": [{**f._asdict(), "grade": f.grade.name.lower()} for f in verdict.findings],
        "evidence": evidence._asdict(),
        "thumbnail": picture,
    }


def _comparisons(figures: Mapping[str, Any], evidence: Evidence) -> list[tuple[str, float, float, str]]:
    """Name, before, after and what became of it, for every single figure that there is on both sides."""
    rows = [("Information shared with the fixed image", evidence.shared_before, evidence.shared_after, True)]
    for key, before in figures["before"].items():
        after = figures["after"].get(key)
        if isinstance(before, float | int) and isinstance(after, float | int):
            rows.append((_NAMES.get(key, key.replace("_", " ")), before, after, key in _HIGHER_IS_BETTER))
    return [(name, before, after, _change(before, after, higher)) for name, before, after, higher in rows]


def _change(before: float, after: float, higher_is_better: bool) -> str:
    if f"{before:.4g}" == f"{after:.4g}":
        return "same"
    return "better" if (after > before) == higher_is_better else "worse"


def _dice_chart(figures: Mapping[str, Any]) -> str | None:
    before, after = (figures[side].get("dice") for side in ("before", "after"))
    return inline_svg(partial(plot_dice, before, after), "dice-chart") if before and after else None


def _dice_words(figures: Mapping[str, Any]) -> str:
    after = figures["after"].get("dice") or {}
    return ", ".join(f"label {label} {value:.2f}" for label, value in after.items() if value is not None)


def _history_words(history: Mapping[str, NDArray]) -> str:
    curves = {name: values for name, values in history.items() if name != "level"}
    return ", ".join(f"{name} from {values[0]:.3g} to {values[-1]:.3g}" for name, values in curves.items())


def _tiles(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    spread = figures.get("uncertainty_mm") or {}
    names = {"median": "Uncertainty, median", "quantile_90": "Uncertainty, 90 % below"}
    uncertainty = [(name, f"{spread[key]:.2f} mm") for key, name in names.items() if key in spread]
    return [
        ("Folded cells", str(figures["folded_cells"])),
        ("SD of log Jacobian", f"{figures['sd_log_jacobian']:.3f}"),
        ("Mean displacement", f"{figures['displacement_mm_mean']:.2f} mm"),
        *uncertainty,
        ("Iterations", str(figures["iterations"])),
        ("Time of the optimisation", f"{figures['seconds_optimisation']:.1f} s"),
        ("Inverse, 99.9 % within", f"{figures['certificate']['inverse']['voxels_quantile']:.2g} voxels"),
        ("Peak memory", f"{figures['peak_memory_mb'] / 1000:.2f} GB"),
        ("Device", figures["device"]),
    ]


def _differences(counts: Sequence[int]) -> list[tuple[str, int]]:
    """Name of each difference, in the order of a certificate, and the cells that it folds."""
    dims = 2 if len(counts) == 4 else 3
    names = ["".join(signs) for signs in product("+\N{MINUS SIGN}", repeat=dims)]
    names += ["even", "odd"] if dims == 3 else []
    return list(zip(names, counts, strict=True)) if counts else []


def _proofs(certificate: Mapping[str, Any]) -> list[tuple[str, str]]:
    def at(extreme: tuple[float, Sequence[int]]) -> str:
        return f"{extreme[0]:.3g} at voxel {', '.join(map(str, extreme[1]))}"

    proofs = [
        ("Folded cells, any difference", f"{certificate['folded_cells']} of {certificate['cells']}"),
        ("Smallest volume", at(certificate["smallest_volume"])),
        ("Largest volume", at(certificate["largest_volume"])),
        ("Volumes below \N{VULGAR FRACTION ONE QUARTER}", f"{certificate['small_percent']:.3g} %"),
        ("Volumes above 4", f"{certificate['large_percent']:.3g} %"),
    ]
    error = certificate["file_error_voxels"]
    return proofs if error is None else [*proofs, ("File differs from the flow by", f"{error:.2g} voxels")]
