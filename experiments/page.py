# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""docs/reproduction.md: the tables and figures of the recorded results, and what they say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from experiments.catalogue import COLUMNS, Run, experiments
from experiments.recorded import field_file, read_result
from experiments.tables import ablation_table, cohort_table, mean, pair_table, volume_table
from monai_nodeo.files import atomic_path
from monai_nodeo.report.plots import plot_columns

__all__ = ["write_page"]

_ABLATIONS = {
    "steps": "Solver steps (Euler)",
    "solver": "Solver (one step; dopri5 chooses its own)",
    "gradient": "Gradient: of the discrete solution, or by the adjoint equation",
    "bottleneck": "Bottleneck",
    "smoothing": "Smoothing of the velocity (window in voxels, 1 is none)",
    "similarity": "Window of the local correlation",
}
_PICTURES = ("slice", "shapes")


def write_page(results: Path, output: Path, quick: bool = False) -> None:
    """Write the page, and the pictures of fields that are there; pictures that were made before stay.

    Args:
        results: folder of the JSON results.
        output: Markdown file; pictures get its name with endings.
        quick: the results are those of a quick run.

    Raises:
        FileNotFoundError: when the folder of the page does not exist.
    """
    groups = experiments(quick)
    pictures = {name: _draw(_of(groups["figure"], name), results, output, name) for name in _PICTURES}
    reference = list(COLUMNS)[2]
    published = groups["cohort"][reference]

    def average(name: str, key: str, form: str = ".4f") -> str:
        result = read_result(results, runs[name])
        return "(not run yet)" if result is None else f"{mean(result, key):{form}}"

    runs = {run.name: run for group in groups.values() for run in group.values()}
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, keep_trailing_newline=True
    )
    text = environment.get_template("reproduction.md.j2").render(
        quick=quick,
        average=average,
        machines=_machines(list(runs.values()), results),
        volumes=volume_table(groups["volumes"], results) if "volumes" in groups else None,
        pictures=pictures,
        figures={name: pair_table(_of(groups["figure"], name), results) for name in _PICTURES},
        cohort=cohort_table(groups["cohort"], results, reference),
        ablations={
            group: (title, ablation_table(groups[group], results, published)) for group, title in _ABLATIONS.items()
        },
    )
    with atomic_path(output) as partial:
        partial.write_text(text, encoding="utf-8")


def _of(runs: Mapping[str, Run], name: str) -> dict[str, Run]:
    """The runs of one of the figure's pairs, by their column."""
    ending = f", {name}"
    return {label.removesuffix(ending): run for label, run in runs.items() if label.endswith(ending)}


def _draw(runs: Mapping[str, Run], results: Path, page: Path, name: str) -> str | None:
    """File name of the picture beside the page, drawn if all its fields are there; None if there is none."""
    file = page.with_name(f"{page.stem}_{name}.png")
    if all(field_file(results, run).is_file() for run in runs.values()):
        fields = {label: np.load(field_file(results, run)) for label, run in runs.items()}
        columns = {label: (field["warped"], field["ddf"]) for label, field in fields.items()}
        with atomic_path(file) as partial:
            plot_columns(columns, next(iter(fields.values()))["affine"]).savefig(partial)
    return file.name if file.is_file() else None


def _machines(runs: list[Run], results: Path) -> list[str]:
    """On what the results were made."""
    found = [result for run in runs if (result := read_result(results, run)) is not None]
    return sorted(
        {f"{r['machine']}, {r['device']}, " + ", ".join(f"{k} {v}" for k, v in r["versions"].items()) for r in found}
    )
