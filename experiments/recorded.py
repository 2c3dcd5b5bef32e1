# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The results that there are: a JSON for each run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.catalogue import Run

__all__ = ["field_file", "is_done", "made_with", "read_result", "relevant_settings", "result_file"]

_WITHOUT_EFFECT = ("cuda_graph",)
# Results from before there were settings hold the config of a MONAI bundle. Setting -> id of its value there.
_IDS = {
    **{name: name for name in ("spatial_dims", "seed", "initial_transform", "shrink_factors", "iterations")},
    **{name: name for name in ("point_spacing", "learning_rate", "similarity_window", "folding_weight")},
    **{name: name for name in ("magnitude_weight", "intensity_weight", "landmark_weight")},
    **{name: name for name in ("crop_air", "unfold", "best_window")},
    "amsgrad": "optimizer::amsgrad",
    "bottleneck": "network_def::bottleneck",
    "kernel_passes": "smoothing::passes",
    "solver": "solver::method",
    "num_steps": "solver::num_steps",
    "adjoint": "solver::adjoint",
    "folding_margin": "regularisers::folding::margin",
    "displacement_smoothness_weight": "smoothness_weight",
}


def result_file(results: Path, run: Run) -> Path:
    """Where the JSON of a run is."""
    return results / f"{run.name}.json"


def field_file(results: Path, run: Run) -> Path:
    """Where the displacement of a run that keeps it is; these files are not part of the repository."""
    return results / "fields" / f"{run.name}.npz"


def read_result(results: Path, run: Run) -> dict[str, Any] | None:
    """The recorded result of a run, whatever its settings were."""
    file = result_file(results, run)
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def relevant_settings(run: Run) -> dict[str, Any]:
    """The settings of a run without those that change no figure."""
    return {name: value for name, value in run.settings.to_dict().items() if name not in _WITHOUT_EFFECT}


def made_with(result: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a result was made with, as far as they are recorded."""
    return result["settings"] if "settings" in result else _settings_in(result["config"])


def is_done(run: Run, results: Path) -> bool:
    """Whether there is a result of the same pairs and the same settings, with its fields if they are needed."""
    result = read_result(results, run)
    if result is None or result["registered"] != repr(run.pairs):
        return False
    settings = relevant_settings(run)
    same = all(name in settings and settings[name] == value for name, value in made_with(result).items())
    return same and (not run.keep_fields or field_file(results, run).is_file())


def _settings_in(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config of MONAI says about the settings."""
    found = {name: value for name, id in _IDS.items() if (value := _value(config, id)) is not _ABSENT}
    kernel = config["smoothing"]
    if "sigma" in kernel:
        return found | {"kernel": "gaussian", "kernel_size": kernel["sigma"], "kernel_window": kernel.get("window")}
    return found | {"kernel": "averaging", "kernel_size": kernel["window"], "kernel_window": None}


_ABSENT = object()


def _value(config: Any, id: str) -> Any:
    for part in id.split("::"):
        if part not in config:
            return _ABSENT
        config = config[part]
    return config
