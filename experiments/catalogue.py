# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""What is run: every experiment with its pairs and its difference from the published settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from experiments.pairs import PairSet, Shapes, Slices, Volumes
from monai_nodeo.registration.presets import preset_files
from monai_nodeo.registration.settings import Settings

__all__ = ["COLUMNS", "Run", "experiments"]

PAPER = "paper_lambda2.5"

# The columns of the 2D figure -> the file of configs/paper_2d/ that is laid over the published settings.
COLUMNS: dict[str, str | None] = {
    "(a) Gaussian (nsig 0.1), Jacobian loss": "gaussian_nsig0.1",
    "(b) Gaussian (nsig 0.1), no Jacobian loss": "gaussian_nsig0.1_no_jacobian",
    "(c) averaging, Jacobian loss": None,
    "(d) no smoothing, no Jacobian loss": "no_smoothing_no_jacobian",
}

# Twenty pairs of OASIS subjects, fixed and moving, drawn once.
COHORT = Slices(
    (
        *((31, 60), (39, 59), (64, 54), (32, 31), (35, 59), (41, 14), (13, 56), (35, 33), (44, 43), (55, 13)),
        *((7, 31), (21, 11), (6, 38), (56, 61), (49, 44), (3, 42), (28, 31), (45, 52), (43, 45), (12, 43)),
    )
)
CROP = (40, 184)  # planes of the 160x192x144 volume that the published code was measured on here


@dataclass(frozen=True)
class Run:
    """One experiment: pairs registered with the same settings.

    Attributes:
        name: of its result.
        pairs: what is registered.
        preset: the published settings, one of ``configs/``.
        changes: settings that differ from it.
        keep_fields: keep displacements and warped images, for a figure.
    """

    name: str
    pairs: PairSet
    preset: str = PAPER
    changes: Mapping[str, Any] = field(default_factory=dict)
    keep_fields: bool = False

    @property
    def settings(self) -> Settings:
        """All of them."""
        return Settings.preset(self.preset, self.pairs.spatial_dims, **self.changes)


def column_changes(name: str | None) -> dict[str, Any]:
    """The settings in a file of ``configs/paper_2d/``; none for None."""
    if name is None:
        return {}
    file = preset_files(2, PAPER)[-1].parent / "paper_2d" / f"{name}.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    return {id.removeprefix("settings::"): value for id, value in config.items()}


def experiments(quick: bool = False) -> dict[str, dict[str, Run]]:
    """Group -> label of a table's row -> run; a run may be in several groups.

    Args:
        quick: small drawn slices that need no data, few iterations, no volumes.
    """
    cohort: PairSet = Shapes((40, 48), (0.25, 0.4)) if quick else COHORT
    slice_: PairSet = Shapes((48, 40)) if quick else Slices(((1, 2),))
    shapes = Shapes((48, 56)) if quick else Shapes()
    few: dict[str, Any] = {"iterations": [15], "best_window": 10, "learning_rate": 0.01} if quick else {}

    def varied(group: str, changes: Mapping[str, Mapping[str, Any]]) -> dict[str, Run]:
        return {
            label: Run(f"{group}_{_slug(label)}", cohort, changes=few | change) for label, change in changes.items()
        }

    of_columns = {label: few | column_changes(name) for label, name in COLUMNS.items()}
    columns = {label: Run(f"cohort_{label[1]}", cohort, changes=changes) for label, changes in of_columns.items()}
    paper = list(columns.values())[2]
    steps = varied("steps", {str(n): {"num_steps": n} for n in (2, 4, 8)})
    groups = {
        "figure": {
            f"{label}, {name}": Run(f"figure_{name}_{label[1]}", pairs, PAPER, changes, keep_fields=True)
            for name, pairs in (("slice", slice_), ("shapes", shapes))
            for label, changes in of_columns.items()
        },
        "cohort": columns,
        "steps": {"1 (published)": paper, **steps},
        "solver": {"Euler (published)": paper}
        | varied("solver", {name: {"solver": name.lower()} for name in ("midpoint", "RK4", "dopri5")}),
        "gradient": {"Euler, 4 steps, direct": steps["4"]}
        | varied(
            "gradient",
            {
                f"{method}, 4 steps, {kind}": {
                    "solver": method.lower(),
                    "num_steps": 4,
                    "adjoint": kind == "adjoint",
                }
                for method, kind in (("Euler", "adjoint"), ("RK4", "direct"), ("RK4", "adjoint"))
            },
        ),
        "bottleneck": _sorted_in(
            {"16 (published)": paper} | varied("bottleneck", {str(n): {"bottleneck": n} for n in (4, 8, 32, 64, 128)})
        ),
        "smoothing": _sorted_in(
            {"15 (published)": paper} | varied("smoothing", {str(n): {"kernel_size": n} for n in (1, 5, 9, 21, 31)})
        )
        | varied(
            "smoothing",
            {f"Gaussian, sigma {sigma} voxels": {"kernel": "gaussian", "kernel_size": sigma} for sigma in (2.0, 4.3)},
        ),
        "similarity": _sorted_in(
            {"21 (published)": paper} | varied("similarity", {str(n): {"similarity_window": n} for n in (5, 9, 15, 31)})
        ),
    }
    return groups if quick else {"volumes": _volumes(), **groups}


def _volumes() -> dict[str, Run]:
    """Table 1: both directions of one pair, cropped and in full, with both weights."""
    return {
        f"{moving} to {fixed}, {size}, lambda {weight}": Run(
            f"volumes_{moving}_to_{fixed}_{size}_{weight}", Volumes(fixed, moving, planes), f"paper_lambda{weight}"
        )
        for size, planes in (("cropped", CROP), ("full", None))
        for fixed, moving in ((1, 2), (2, 1))
        for weight in ("2", "2.5")
    }


def _sorted_in(runs: dict[str, Run]) -> dict[str, Run]:
    """By the number that a label begins with."""
    return dict(sorted(runs.items(), key=lambda item: int(item[0].split()[0])))


def _slug(label: str) -> str:
    return "_".join(label.replace(",", "").lower().split())
