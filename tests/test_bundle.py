# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The bundle as MONAI sees it, and what it leaves on the disk."""

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from finished import names, table
from grids import make_affine
from monai.bundle import ConfigParser, ConfigWorkflow, create_workflow, verify_metadata, verify_net_in_out
from synthetic import deformed_pair

import monai_nodeo
from monai_nodeo import Registration, Settings, register
from monai_nodeo.apps import PairsFailedError
from monai_nodeo.files import read_displacement, write_affine
from monai_nodeo.flows import EulerianVelocity, Lattice
from monai_nodeo.registration import PairInferer

# MONAI says of every config file, whoever wrote it, that parsing it runs code.
pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "bundle"
CONFIGS = BUNDLE / "configs"
INFERENCE, INFERENCE_2D, METADATA = (CONFIGS / f"{name}.json" for name in ("inference", "inference_2d", "metadata"))
MULTI_GPU = CONFIGS / "multi_gpu.json"
SCHEMA = BUNDLE / "schema" / "meta_schema_20240725.json"
VOLUME, PLANE = (12, 14, 10), (16, 18)
MARGIN = 2  # voxels that the moving volume reaches beyond the fixed one on every side
# As many levels as fit, with few iterations.
SHORT = {"initial_transform": "none", "shrink_factors": [2, 1], "iterations": [2, 1], "dense_iterations": 0}
FEW: dict[str, Any] = {f"settings#{name}": value for name, value in SHORT.items()}
VISIBLE: dict[str, Any] = {**FEW, "settings#iterations": [10, 20], "settings#similarity_window": 9}

KEYS = ("fixed", "moving", "fixed_label", "moving_label")
IMAGES = {"warped.nii.gz", "displacement.nii.gz", "jacobian.nii.gz"}
FILES = IMAGES | {"transform.h5", "flow.safetensors", "metrics.json", "history.csv"}
LABELLED = FILES | {"warped_label.nii.gz"}
REPORT = {"report.html", "report.json"}
LABEL_FIGURES = {"dice", "dice_mean", "hd95_mm", "hd95_mm_mean"}


OBLIQUE = make_affine((0.3, -0.2, 0.4), (1.2, 0.9, 2.5))
IN_PLANE = make_affine((0.0, 0.0, 0.4), (-1.2, 0.9, 1.0))


def save(path: Path, values: np.ndarray, affine: np.ndarray = OBLIQUE) -> str:
    nib.save(nib.Nifti1Image(values, affine), path)
    return str(path)


def load(path: Path | str) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_filename(path)


def voxels(path: Path | str) -> np.ndarray:
    return load(path).get_fdata()


def make_pair(shape: Sequence[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Fixed and moving image with values from 0 to about 1000."""
    fixed, moving, _ = deformed_pair(shape, seed, largest=2.0)
    return 1000 * fixed[0].numpy(), 1000 * moving[0].numpy()


def labels_of(image: np.ndarray) -> np.ndarray:
    return np.digitize(image, [400, 600]).astype(np.uint8)


def save_pair(folder: Path, kind: str, images: Sequence[np.ndarray], affines: Sequence[np.ndarray]) -> None:
    for side, image, affine in zip(("fixed", "moving"), images, affines, strict=True):
        save(folder / f"{kind}_{side}.nii.gz", image, affine)
        save(folder / f"{kind}_{side}_label.nii.gz", labels_of(image), affine)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three pairs: volumes, slices in a 3D header, true 2D images; and the list of the last two.

    The moving volume is larger and its voxels lie on those of the fixed one: matching the grids crops it exactly.
    """
    folder = tmp_path_factory.mktemp("data")
    fixed, moving = make_pair([n + 2 * MARGIN for n in VOLUME])
    outer = OBLIQUE.copy()
    outer[:3, 3] -= OBLIQUE[:3, :3] @ np.full(3, MARGIN)
    inner = (slice(MARGIN, -MARGIN),) * 3
    save_pair(folder, "volume", (fixed[inner], moving), (OBLIQUE, outer))
    save_pair(folder, "slice", [image[:, :, None] for image in make_pair(PLANE)], (OBLIQUE, OBLIQUE))
    save_pair(folder, "plane", make_pair(PLANE, seed=2), (IN_PLANE, IN_PLANE))
    rows = [
        {**{key: f"slice_{key}.nii.gz" for key in KEYS}, "id": "slice"},
        {key: f"plane_{key}.nii.gz" for key in KEYS[:2]},
    ]
    (folder / "pairs.json").write_text(json.dumps(rows))
    return folder


def paths(data: Path, kind: str, labels: bool = False) -> dict[str, str]:
    return {key: str(data / f"{kind}_{key}.nii.gz") for key in KEYS[: 4 if labels else 2]}


def write_list(folder: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    (folder / "list.json").write_text(json.dumps(rows))
    return str(folder / "list.json")


# Running the bundle in this process


def workflow(output_dir: Path, *overlays: Path, **overrides: Any) -> ConfigWorkflow:
    """The bundle in this process, on the CPU, for a few iterations and without reports."""
    few = {"device": "cpu", "report": False, **FEW}
    settings = {**few, "output_dir": str(output_dir), **overrides}
    return create_workflow(
        config_file=[str(file) for file in (INFERENCE, *overlays)],
        workflow_type="infer",
        bundle_root=str(BUNDLE),
        logging_file=False,  # logging.conf would be that of the whole test session
        **settings,
    )


def refusal(act: Callable[[], Any], kind: type[Exception] = ValueError) -> str:
    """What an error says, which MONAI raises another one of for each expression around it."""
    with pytest.raises((RuntimeError, kind)) as info:
        act()
    error: BaseException = info.value
    while not isinstance(error, kind) and error.__cause__ is not None:
        error = error.__cause__
    assert isinstance(error, kind)
    return str(error)


def figures(folder: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"), parse_constant=refuse)


def history(folder: Path) -> dict[str, np.ndarray]:
    with (folder / "history.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    return dict(zip(header, np.array(rows, dtype=float).T, strict=True))


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory) -> dict[str, Path]:
    """Output folders of bundles that ran to their end."""
    folder = tmp_path_factory.mktemp("runs")
    options = {"report": True, **VISIBLE, "settings#initial_transform": "auto"}
    volume = paths(data, "volume", labels=True)
    workflow(folder / "volume", **volume, **{"settings#seed": 3}, **options).run()
    workflow(folder / "slices", INFERENCE_2D, datalist=str(data / "pairs.json"), **options).run()
    return {name: folder / name for name in ("volume", "slices")}


class Result(NamedTuple):
    """What a command made of one pair, and the pair."""

    folder: Path
    fixed: str
    moving: str
    moving_label: str


@pytest.fixture(params=["volume", "slice", "plane"])
def result(request, data, runs) -> Result:
    kind = request.param
    folder = runs["volume" if kind == "volume" else "slices"]
    files = paths(data, kind, labels=True)
    id = {"volume": "volume_moving_to_volume_fixed", "plane": "plane_moving_to_plane_fixed"}.get(kind, kind)
    return Result(folder / id, files["fixed"], files["moving"], files["moving_label"])


def test_the_folders_hold_what_was_promised_and_no_more(runs):
    volume, slices = runs.values()
    assert names(volume) == {"volume_moving_to_volume_fixed", "metrics.csv", "index.html"}
    assert names(volume / "volume_moving_to_volume_fixed") == LABELLED | REPORT
    assert names(slices) == {"slice", "plane_moving_to_plane_fixed", "metrics.csv", "index.html"}
    assert names(slices / "slice") == LABELLED | REPORT
    assert names(slices / "plane_moving_to_plane_fixed") == FILES | REPORT  # it came without labels


def test_images_are_stored_on_the_fixed_grid(result):
    fixed = load(result.fixed)
    for name in names(result.folder) & {*IMAGES, "warped_label.nii.gz"}:
        image = load(result.folder / name)
        np.testing.assert_allclose(image.affine, fixed.affine, atol=1e-5)
        assert image.get_data_dtype() == (np.uint8 if "label" in name else np.float32)
        if name != "displacement.nii.gz":
            assert image.shape == fixed.shape


def interior(image: np.ndarray) -> np.ndarray:
    """Without the two outer voxels of every axis but that of a slice."""
    return image[tuple(slice(2, -2) if n > 1 else slice(None) for n in image.shape)]


def test_the_jacobian_is_that_of_the_field(result):
    ddf, grid = read_displacement(result.folder / "displacement.nii.gz")
    dims = grid.spatial_dims
    inside = (slice(-1),) * dims
    gradient = np.stack([np.diff(ddf, axis=1 + a, append=0)[(slice(None), *inside)] for a in range(dims)], axis=1)
    determinant = np.linalg.det(np.eye(dims) + np.moveaxis(gradient, (0, 1), (-2, -1)))
    ours = voxels(result.folder / "jacobian.nii.gz").reshape(grid.spatial_shape)
    np.testing.assert_allclose(ours[inside], determinant, atol=1e-5)
    for axis in range(dims):  # forward differences end one voxel early: the last value stands twice
        np.testing.assert_array_equal(ours.take(-1, axis), ours.take(-2, axis))


def test_figures_are_json_and_complete(result):
    values = figures(result.folder)
    without_labels = result.folder.name.startswith("plane")
    assert {*values} - {"fixed_label", "moving_label"} == {
        *("id", "fixed", "moving", "before", "after", "folding_percent", "folded_cells", "sd_log_jacobian"),
        *("displacement_mm_mean", "certificate", "iterations", "interrupted_level", "seconds_optimisation"),
        *("seconds_total", "peak_memory_mb", "device", "versions", "settings", "start", "accepted", "choice"),
        *("evidence", "wrong_probability", "learn2reg_sd_log_jacobian"),
    }
    assert (values["fixed"], values["moving"]) == (result.fixed, result.moving)
    assert values["iterations"] == sum(VISIBLE["settings#iterations"])
    assert values["after"]["similarity"] < 0.5 * values["before"]["similarity"]
    assert values["peak_memory_mb"] > 10
    assert 0 < values["seconds_optimisation"] <= values["seconds_total"]
    assert ("fixed_label" in values) == ("moving_label" in values) == (not without_labels)
    for side in ("before", "after"):
        assert {*values[side]} == {"similarity", *(() if without_labels else LABEL_FIGURES)}


def test_the_settings_in_the_figures_are_those_that_ran(runs):
    changes = {id.removeprefix("settings#"): value for id, value in VISIBLE.items()} | {"initial_transform": "auto"}
    for folder, given in (
        (runs["volume"] / "volume_moving_to_volume_fixed", {"spatial_dims": 3, "seed": 3}),
        (runs["slices"] / "slice", {"spatial_dims": 2}),
    ):
        found = figures(folder)
        chosen = {"smoothness_weight": found["choice"]["smoothness_weight"]}
        asked = Settings.preset(**given, **changes)
        ran = asked if chosen["smoothness_weight"] == asked.smoothness_weight else asked.replace(**chosen)
        assert found["settings"] == ran.to_dict()


def test_the_history_has_every_term_of_every_iteration(result):
    terms, settings = history(result.folder), figures(result.folder)["settings"]
    levels, weighted = settings["iterations"], ("intensity", "log_jacobian", "smoothness")
    assert {"iteration", "level", "loss", "similarity", *weighted} <= set(terms)
    np.testing.assert_array_equal(terms["iteration"], np.arange(sum(levels)) + 1)
    np.testing.assert_array_equal(terms["level"], np.repeat([0, 1], levels))
    coarseness = np.array(settings["shrink_factors"])[terms["level"].astype(int)]
    weights = {name: settings[f"{name}_weight"] for name in weighted}
    weights["smoothness"] *= coarseness  # or coarse levels overshoot
    total = terms["similarity"] + sum(weight * terms[name] for name, weight in weights.items())
    np.testing.assert_allclose(terms["loss"], total, rtol=1e-5)


def test_the_table_has_a_row_a_pair_with_the_same_figures(runs):
    for folder in runs.values():
        assert {row["id"] for row in table(folder)} == {path.name for path in folder.iterdir() if path.is_dir()}
        for row in table(folder):
            values = figures(folder / row["id"])
            for side in ("before", "after"):
                keys = ("similarity", "dice_mean", "hd95_mm_mean", "tre_mm_mean")
                values |= {f"{key}_{side}": values[side].get(key, "") for key in keys}
            assert (row.pop("status"), row.pop("reason")) == ("done", "")
            assert row == {column: str(values[column]) for column in row}


def test_two_scans_with_a_start_masks_and_landmarks(data, tmp_path):
    """Another grid, place and orientation; ITK makes our warped image of the moving file and our transform."""
    fixed, moving = (load(path) for path in paths(data, "volume").values())
    away = make_affine((0.1, 0.1, -0.2), (1, 1, 1))
    away[:3, 3] = 80, -60, 45
    values = np.flip(np.asanyarray(moving.dataobj).astype(np.int16), 0)
    back = np.diag([-1.0, 1, 1, 1])
    back[0, 3] = values.shape[0] - 1
    files = {
        "fixed": str(data / "volume_fixed.nii.gz"),
        "moving": save(tmp_path / "moving.nii.gz", values, away @ moving.affine @ back),
        "fixed_mask": save(tmp_path / "fixed_mask.nii.gz", np.ones(fixed.shape, np.uint8), fixed.affine),
    }
    files["moving_mask"] = save(tmp_path / "mask.nii.gz", np.ones(values.shape, np.uint8), load(files["moving"]).affine)
    lps = {}
    for side, affine in (("fixed", fixed.affine), ("moving", away @ fixed.affine)):
        lps[side] = (np.array([[3, 4, 5], [8, 9, 3]]) @ affine[:3, :3].T + affine[:3, 3]) * (-1, -1, 1)
        files[f"{side}_landmarks"] = str(tmp_path / f"{side}.csv")
        (tmp_path / f"{side}.csv").write_text("\n".join(["x,y,z,t", *(f"{x},{y},{z},0" for x, y, z in lps[side])]))
    write_affine(tmp_path / "start.tfm", away)
    options = {**files, **VISIBLE, "settings#initial_transform": str(tmp_path / "start.tfm")}
    workflow(tmp_path / "out", **options).run()

    folder = tmp_path / "out" / "moving_to_volume_fixed"
    transform = sitk.ReadTransform(str(folder / "transform.h5"))
    theirs = sitk.Resample(sitk.ReadImage(files["moving"], sitk.sitkFloat64), sitk.ReadImage(files["fixed"]), transform)
    warped = load(folder / "warped.nii.gz")
    assert warped.get_data_dtype() == np.int16
    difference = np.abs(interior(sitk.GetArrayFromImage(theirs).T - warped.get_fdata()))
    assert difference.max() < 0.5 + 1e-3 * np.ptp(values)  # half a unit of rounding
    written = figures(folder)
    np.testing.assert_allclose(written["initial_affine"], away, atol=1e-6)
    assert written["before"]["tre_mm_mean"] < 1e-3
    there = [transform.TransformPoint(point) for point in lps["fixed"].tolist()]
    np.testing.assert_allclose(np.linalg.norm(there - lps["moving"], axis=1), written["after"]["tre_mm"], atol=1e-3)
    (row,) = table(tmp_path / "out")
    assert float(row["tre_mm_mean_after"]) == written["after"]["tre_mm_mean"]


# A MONAI bundle


@pytest.mark.filterwarnings("ignore:No hash value provided:UserWarning")
def test_metadata_follows_the_schema_without_a_network(monkeypatch, tmp_path):
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    verify_metadata(meta_file=str(METADATA), filepath=str(SCHEMA))
    metadata = json.loads(METADATA.read_text(encoding="utf-8"))
    (tmp_path / "metadata.json").write_text(json.dumps(metadata | {"version": 1}))
    with pytest.raises(ValueError, match="Failed validating"):
        verify_metadata(meta_file=str(tmp_path / "metadata.json"), filepath=str(SCHEMA))


def test_metadata_names_the_tested_versions():
    metadata = ConfigParser.load_config_file(METADATA)
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE))
    keys = {"monai": "monai", "torch": "pytorch", "numpy": "numpy"}
    named = {name: metadata[f"{key}_version"] for name, key in keys.items()}
    others = dict(metadata["required_packages_version"])
    assert metadata["version"] == others.pop("monai-nodeo") == monai_nodeo.__version__
    assert metadata["version"] in metadata["changelog"]
    for name, version in {**named, **others}.items():
        assert pins[name] == version


def test_the_network_takes_and_gives_what_the_metadata_says():
    verify_net_in_out("network_def", meta_file=str(METADATA), config_file=str(INFERENCE), device="cpu")


@pytest.fixture(params=[3, 2])
def spatial_dims(request) -> int:
    return request.param


def overlays(spatial_dims: int) -> list[Path]:
    return [INFERENCE_2D] if spatial_dims == 2 else []


def kind_of(spatial_dims: int) -> str:
    return "plane" if spatial_dims == 2 else "volume"


def test_the_workflow_has_the_properties_of_a_bundle(data, tmp_path, spatial_dims):
    bundle = workflow(tmp_path / "out", *overlays(spatial_dims), **paths(data, kind_of(spatial_dims)))
    assert bundle.check_properties() == []
    assert isinstance(bundle.network_def, EulerianVelocity)
    assert isinstance(bundle.inferer, PairInferer)
    assert bundle.network_def.spatial_dims == bundle.inferer.settings.spatial_dims == spatial_dims
    assert bundle.evaluator.inferer is bundle.inferer
    assert bundle.bundle_root == str(BUNDLE)
    assert bundle.version == monai_nodeo.__version__
    assert [row["fixed"] for row in bundle.dataset.data] == [paths(data, kind_of(spatial_dims))["fixed"]]
    assert bundle.handlers


@pytest.mark.parametrize(
    ("name", "value", "iterations", "keyframes"),
    [
        ("inferer", PairInferer(Settings.preset(**SHORT | {"shrink_factors": [1], "iterations": [2]})), 2, 1),
        ("network_def", EulerianVelocity(3, parametrisation=Lattice((8, 8, 8), keyframes=2)), 3, 2),
        ("device", torch.device("cpu"), 3, 1),
    ],
    ids=["inferer", "network_def", "device"],
)
def test_a_property_can_be_replaced(data, tmp_path, name, value, iterations, keyframes):
    bundle = workflow(tmp_path / "out", **paths(data, "volume"), **{"settings#solver": "midpoint"})
    setattr(bundle, name, value)
    bundle.initialize()
    bundle.run()
    found = Registration.load(tmp_path / "out" / "volume_moving_to_volume_fixed", with_pair=False)
    assert found.iterations == iterations
    assert len(found.flow.velocity.images) == keyframes


def test_several_gpus_take_one_pair_too(data, tmp_path):
    workflow(tmp_path / "out", MULTI_GPU, **paths(data, "volume")).run()
    (row,) = table(tmp_path / "out")
    assert row["status"] == "done"


@pytest.mark.parametrize("preset", ["paper_lambda2", "paper_lambda2.5"])
def test_the_best_field_of_the_paper_has_the_lowest_product(preset):
    """Similarity times folding, of the last 50 iterations."""
    changes = {"iterations": [60], "folding_margin": 1.5, "learning_rate": 0.02}
    fixed, moving, _ = deformed_pair(PLANE, seed=2)
    found = register(fixed, moving, Settings.preset(preset, 2, **changes), device="cpu", handlers=())
    best = 10 + int((found.history["similarity"] * found.history["folding"])[10:].argmin())
    assert best < 59
    assert found.similarity[1] == pytest.approx(found.history["similarity"][best].item(), abs=1e-5)


# BendingEnergyLoss of MONAI 1.6.1 indexes tensors in a way that torch 2.9 and later announce the end of.
@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence for multidimensional indexing:UserWarning")
def test_losses_of_monai_drop_in(data, tmp_path):
    loss = {
        "_target_": "monai_nodeo.losses.RegistrationLoss",
        "similarity": {"_target_": "LocalNormalizedCrossCorrelationLoss", "spatial_dims": 3, "kernel_size": 5},
        "ddf_terms": {"bending": [1.0, {"_target_": "BendingEnergyLoss"}]},
    }
    workflow(tmp_path / "out", **paths(data, "volume"), loss_function=loss, **VISIBLE).run()
    folder = tmp_path / "out" / "volume_moving_to_volume_fixed"
    assert figures(folder)["after"]["similarity"] < figures(folder)["before"]["similarity"]
    assert history(folder)["bending"].max() > 0


def test_handlers_are_a_matter_of_config(data, tmp_path):
    stop = {"_target_": "monai_nodeo.registration.EarlyStop", "_mode_": "callable", "threshold": 9.0}
    for number, options in enumerate(({"inferer#handlers": [stop]}, {"settings#convergence_threshold": 9.0})):
        many = {"settings#shrink_factors": [2, 1], "settings#iterations": [50, 50]}
        workflow(tmp_path / str(number), **paths(data, "volume"), **(many | options)).run()
        folder = tmp_path / str(number) / "volume_moving_to_volume_fixed"
        assert figures(folder)["iterations"] == len(history(folder)["loss"]) < 100


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((), "no fixed and no moving image was given"),
        (("fixed",), "no moving image was given"),
        (("moving",), "no fixed image was given"),
        (("fixed", "moving", "datalist"), "were both given; give a list or one pair"),
    ],
)
def test_it_takes_one_pair_or_one_list(data, tmp_path, given, message):
    request = {**paths(data, "volume"), "datalist": str(data / "pairs.json")}
    assert message in refusal(workflow(tmp_path / "out", **{key: request[key] for key in given}).run)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("typo", ["settings#num_stpes", "inferer#sed", "settings::similarty"])
def test_a_mistyped_option_of_a_component_is_refused(data, tmp_path, typo):
    """Also by MONAI's own workflow, which takes any id."""
    with pytest.raises(RuntimeError, match=re.split("#|::", typo)[-1]):
        workflow(tmp_path / "out", **paths(data, "volume"), **{typo: 1}).run()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("batch_size", [1, 3])
def test_bad_rows_are_reported_and_the_others_registered(data, tmp_path, batch_size):
    """Found when the row is read, and when the pair is prepared; what there is to say of files: test_load.py."""
    good = paths(data, "volume")
    moving = load(good["moving"])
    away = save(tmp_path / "away.nii.gz", moving.get_fdata(), moving.affine + 500 * np.eye(4, k=3))
    mask = save(tmp_path / "mask.nii.gz", np.ones(VOLUME, np.uint8))
    bad = {
        "missing": ({"fixed": "gone.nii.gz"}, ("gone.nii.gz: there is no such file",)),
        "apart": ({"moving": away}, ("away.nii.gz", "do not overlap", 'start with initial_transform "auto"')),
        "masked": ({"fixed_mask": mask}, ("mask.nii.gz: GlobalMutualInformationLoss cannot take masks",)),
    }
    rows = [good | bad.get(id, ({},))[0] | {"id": id} for id in ("first", "missing", "last", "apart", "masked")]
    options = {"datalist": write_list(tmp_path, rows), "batch_size": batch_size}
    preset = ROOT / "configs" / "mutual_information.json"
    message = refusal(workflow(tmp_path / "out", preset, **options).run, PairsFailedError)
    assert message.splitlines()[0] == f"3 of 5 pairs failed, see {tmp_path / 'out' / 'metrics.csv'}:"
    lines = table(tmp_path / "out")
    assert [line["id"] for line in lines] == [row["id"] for row in rows]
    for number, line in enumerate(lines, start=1):
        if line["id"] in bad:
            assert line["status"] == "failed"
            assert f"row {number} ({line['id']}): {line['reason']}" in message
            assert all(word in line["reason"] for word in bad[line["id"]][1])
        else:
            assert (line["status"], line["reason"]) == ("done", "")
    assert names(tmp_path / "out") == {"first", "last", "metrics.csv"}
    assert names(tmp_path / "out" / "first") == names(tmp_path / "out" / "last") == FILES
    first, last = (voxels(tmp_path / "out" / id / "warped.nii.gz") for id in ("first", "last"))
    np.testing.assert_allclose(first, last, atol=1e-2)


def test_no_name_is_ever_evaluated(data, tmp_path):
    """By the command of MONAI, in a process of its own and without a network."""
    folder = tmp_path / "$odd %names"
    folder.mkdir()
    odd = {"fixed": "a#1.nii.gz", "moving": '$__import__("os").system("touch pwned").nii.gz'}
    for name, source in zip(odd.values(), paths(data, "plane").values(), strict=True):
        (folder / name).write_bytes(Path(source).read_bytes())
    nowhere = "http://127.0.0.1:9"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "http_proxy": nowhere, "https_proxy": nowhere}
    words = ["run", "--workflow_name", "monai_nodeo.apps.NodeoWorkflow", "--report", "False"]
    words += [str(word) for id, value in (odd | FEW).items() for word in (f"--{id}", value)]
    command = [sys.executable, "-m", "monai.bundle", *words, "--output_dir", "%@out"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert f"results are in {folder / '%@out'}" in done.stdout
    (row,) = table(folder / "%@out")
    assert (row["status"], Path(row["fixed"]).name) == ("done", "a#1.nii.gz")
    assert names(folder) == {*odd.values(), "%@out"}


def test_a_real_slice_is_registered_by_the_paper_s_preset(oasis, tmp_path):
    (row, *_) = json.loads((oasis / "pairs2d.json").read_text(encoding="utf-8"))
    row["id"] = "pair"
    options = {"datalist": write_list(tmp_path, [row]), "dataset_dir": str(oasis)}
    options |= {"settings#shrink_factors": [1], "settings#iterations": [120]}
    workflow(tmp_path / "out", INFERENCE_2D, ROOT / "configs" / "paper_lambda2.5.json", **options).run()
    values = figures(tmp_path / "out" / "pair")
    assert values["after"]["dice_mean"] > values["before"]["dice_mean"] + 0.1
    assert values["folding_percent"] < 0.2
