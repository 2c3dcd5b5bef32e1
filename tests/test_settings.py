# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from synthetic import deformed_pair, quick_settings, quickly

from monai_nodeo import RegisterPair, Settings
from monai_nodeo.registration import PairInferer, SettingsError
from monai_nodeo.registration.presets import preset_files, preset_names

ROOT = Path(__file__).resolve().parents[1]
PRESETS = [None, *preset_names()]
SHAPES = {2: (25, 21), 3: (17, 21, 13)}


def differences(file: Path) -> dict[str, Any]:
    """The settings in a file, by their names."""
    config = json.loads(file.read_text(encoding="utf-8"))
    whole = {name: value for name, value in config.get("settings", {}).items() if name != "_target_"}
    return whole | {id.removeprefix("settings::"): value for id, value in config.items() if "::" in id}


# One home of every value


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_what_the_files_say_last(preset, dims):
    files = [ROOT / "bundle" / "configs" / "inference.json"]
    files += [ROOT / "bundle" / "configs" / "inference_2d.json"] if dims == 2 else []
    names = [] if preset is None else [f"{preset}.json", *([f"{preset}_2d.json"] if dims == 2 else [])]
    files += [file for file in (ROOT / "configs" / name for name in names) if file.exists()]
    expected: dict[str, Any] = {}
    for file in files:
        expected |= differences(file)
    assert Settings.preset(preset, dims).to_dict() == expected
    assert expected["spatial_dims"] == dims


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")  # MONAI says so of every file
def test_the_bundle_reads_the_same(preset, dims):
    parser = ConfigParser()
    parser.read_config([str(file) for file in preset_files(dims, preset)])
    assert parser.get_parsed_content("settings") == Settings.preset(preset, dims)


# Every file builds and registers


def registers(settings: Settings) -> None:
    quick = settings.replace(iterations=[2] * len(settings.iterations), initial_transform=None)
    fixed, moving, _ = deformed_pair(SHAPES[settings.spatial_dims])
    result = RegisterPair(quick, handlers=())(fixed, moving)
    assert result.ddf.isfinite().all()
    assert result.ddf.abs().max() > 0
    assert result.settings == quick


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_registers(preset, dims):
    registers(Settings.preset(preset, dims))


@pytest.mark.parametrize("file", sorted(ROOT.glob("configs/paper_2d/*.json")), ids=lambda file: file.stem)
def test_every_variant_of_the_paper_registers(file):
    registers(Settings.preset("paper_lambda2.5", 2, **differences(file)))


# Changes


def test_settings_are_kept_whole_by_dict_and_json():
    for preset in PRESETS:
        settings = Settings.preset(preset, 2, initial_transform="rigid", best_window=None)
        plain = settings.to_dict()
        assert Settings.from_dict(json.loads(json.dumps(plain))) == settings
        assert all(type(value) in (int, float, str, bool, list, type(None)) for value in plain.values())
        for other in (copy.deepcopy(settings), pickle.loads(pickle.dumps(settings))):
            assert other == settings
            assert hash(other) == hash(settings)


def test_settings_are_frozen_and_a_change_makes_new_ones():
    settings = Settings.preset("fast", 2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.seed = 3
    other = settings.replace(seed=3.0)
    assert (other.seed, type(other.seed)) == (3, int)
    assert settings.seed == 0
    assert other.replace(seed=0) == settings
    assert settings.replace(iterations=[5, 4]).iterations == (5, 4)
    assert Settings.preset("fast", 2, learning_rate=1).learning_rate == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"iterations": 50}, r"iterations is 50, expected a list with a number for each level"),
        ({"iterations": []}, r"iterations is \[\], expected a list"),
        ({"iterations": [5, 0]}, r"need one number a level, iterations at least 1"),
        ({"iterations": [5, 4, 3]}, r"iterations \[5, 4, 3\] and shrink_factors \[2.0, 1.0\] need one number a level"),
        ({"iterations": [5, 2.5]}, r"iterations is 2.5, expected a whole number"),
        ({"spatial_dims": 4}, r"spatial_dims is 4, expected 2 for slices or 3 for volumes"),
        ({"iterations": [5, 10**10]}, r"iterations is 10000000000, expected 1000000 at most"),
        ({"kernel_size": 1e9}, r"kernel_size is 1000000000, expected 1000 at most"),
        ({"similarity_window": 10**9 + 1}, r"similarity_window is 1000000001, expected 1001 at most"),
        ({"learning_rate": "abc"}, r"learning_rate is 'abc', expected a number of 0 or more"),
        ({"learning_rate": -0.1}, r"learning_rate is -0.1, expected a number of 0 or more"),
        ({"learning_rate": float("nan")}, r"learning_rate is nan, expected a number"),
        ({"learning_rate": None}, r"learning_rate is None, expected a number of 0 or more\."),
        ({"seed": True}, r"seed is True, expected a whole number"),
        ({"unfold": 1}, r"unfold is 1, expected true or false"),
        ({"velocity": 3}, r"velocity is 3, expected a word"),
        ({"best_window": "all"}, r"best_window is 'all', expected a whole number or null"),
        ({"lerning_rate": 1}, r"unknown setting 'lerning_rate' \(did you mean 'learning_rate'\?\); there are spatial_"),
        ({"quux": 1}, r"unknown setting 'quux'; there are"),
    ],
)
def test_a_setting_that_cannot_be_is_told_in_one_line(changes, message):
    for attempt in (
        lambda: quick_settings(2).replace(**changes),
        lambda: Settings.preset(**{"spatial_dims": 2, **changes}),
    ):
        with pytest.raises(SettingsError, match=message) as error:
            attempt()
        assert "\n" not in str(error.value)


def test_a_preset_that_there_is_not_lists_those_that_there_are():
    with pytest.raises(SettingsError, match="there is no preset 'fst'; known are accurate, fast, .*multimodal"):
        Settings.preset("fst")
    with pytest.raises(SettingsError, match=r"settings lack spatial_dims, .*seed; start from Settings.preset\(\)"):
        Settings.from_dict({})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"velocity": "latice"}, "^velocity is 'latice', expected one of lattice, "),
        ({"kernel": "gausian"}, "^kernel is 'gausian', expected one of gaussian, averaging"),
        ({"similarity": "ncc"}, "^similarity is 'ncc', expected one of local_ncc, "),
        ({"solver": "midpiont"}, "^solver is 'midpiont', expected one of scaling_and_squaring, .*midpoint"),
        ({"best_of": "los", "best_window": 5}, "^best_of is 'los', expected one of loss, similarity_times_folding"),
        ({"num_steps": 3}, "takes num_steps 1, 2, 4"),
        ({"keyframes": 2}, "one keyframe.*take midpoint or rk4"),
        ({"adjoint": True}, "no adjoint.*take midpoint or rk4"),
        ({"adjoint": True, "solver": "trapezoidal"}, "takes no adjoint; take midpoint or rk4"),
        ({"intensity": "lin"}, "^intensity is 'lin', expected one of linear, mapped"),
        ({"similarity_window": 4}, "odd"),
    ],
)
def test_names_and_numbers_that_do_not_fit_are_refused_before_the_work(changes, message):
    with pytest.raises(ValueError, match=message):
        PairInferer(quick_settings(2, **changes))


def test_what_is_set_is_what_is_used():
    """Each of these settings changes the result; one that nobody reads would not."""
    fixed, moving, _ = deformed_pair((33, 29))
    fixed, moving = (torch.nn.functional.pad(image, (30, 30, 30, 30)) for image in (fixed, moving))
    base = {"iterations": (8, 6), "folding_margin": 0.9}
    seen = {"nothing": quickly(fixed, moving, **base).ddf}
    with_it = {"kernel": {"kernel_size": 5.0}, "intensity": {"intensity_weight": 30.0}}
    changes = {
        "mask_air": True,
        "point_spacing": 2,
        "learning_rate": 0.3,
        "amsgrad": True,
        "velocity": "coordinates",
        "kernel": "averaging",
        "kernel_size": 3.0,
        "kernel_window": 3,
        "kernel_passes": 2,
        "solver": "euler",
        "num_steps": 4,
        "similarity": "local_correlation_ratio",
        "similarity_window": 5,
        "similarity_floor": 0.5,
        "intensity": "mapped",
        "intensity_weight": 1.0,
        "folding_weight": 50.0,
        "smoothness_weight": 3.0,
        "displacement_smoothness_weight": 1.0,
        "magnitude_weight": 1.0,
        "crop_air": False,
    }
    for name, value in changes.items():
        found = quickly(fixed, moving, **base, **{name: value}, **with_it.get(name, {})).ddf
        for other, ddf in seen.items():
            assert not torch.equal(found, ddf), f"{name} and {other} give the same"
        seen[name] = found
