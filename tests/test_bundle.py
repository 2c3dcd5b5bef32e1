# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from grids import make_affine
from monai.bundle import ConfigParser, ConfigWorkflow, create_workflow, verify_net_in_out
from synthetic import deformed_pair, smooth_ddf, smooth_image

import monai_nodeo
from monai_nodeo.files import read_displacement
from monai_nodeo.flows import EulerianVelocity, Lattice
from monai_nodeo.registration.inferer import PAIR_EXTRAS, PairInferer
from monai_nodeo.registration.transforms import RegisterPair

# MONAI says of every config file, whoever wrote it, that parsing it runs code.
pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "bundle"
CONFIGS = BUNDLE / "configs"
INFERENCE, INFERENCE_2D, METADATA = (CONFIGS / f"{name}.json" for name in ("inference", "inference_2d", "metadata"))
MULTI_GPU = CONFIGS / "multi_gpu.json"  # for lists of pairs: test_cohort_ranks.py
SCHEMA = BUNDLE / "schema" / "meta_schema_20240725.json"
PRESETS = sorted((ROOT / "configs").glob("*.json"))
OVERLAYS = sorted({*PRESETS, *CONFIGS.glob("*.json")} - {INFERENCE, METADATA, MULTI_GPU})

VOLUME, PLANE = (12, 14, 10), (16, 18)
MARGIN = 2  # voxels that the moving volume reaches beyond the fixed one on every side
# As many levels as fit, with few iterations.
FEW: dict[str, Any] = {"shrink_factors": [2, 1], "iterations": [2, 1]}
PAPER: dict[str, Any] = {"shrink_factors": [1], "iterations": [60]}
VISIBLE: dict[str, Any] = {"shrink_factors": [2, 1], "iterations": [10, 20], "similarity_window": 9}

KEYS = ("fixed", "moving", "fixed_label", "moving_label")
IMAGES = {"warped.nii.gz", "displacement.nii.gz", "jacobian.nii.gz"}
FILES = IMAGES | {"transform.h5", "metrics.json", "history.csv"}
LABELLED = FILES | {"warped_label.nii.gz"}
REPORT = {"report.html", "report.json"}
LABEL_FIGURES = {"dice", "dice_mean", "hd95_mm", "hd95_mm_mean"}


# Pairs on disk


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


# Running the bundle, in a process of its own and in this one


class Finished(NamedTuple):
    status: int
    stdout: str
    stderr: str


def start(*words: object, cwd: Path) -> subprocess.Popen[str]:
    """A command of MONAI's bundle, without a network."""
    nowhere = "http://127.0.0.1:9"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "http_proxy": nowhere, "https_proxy": nowhere}
    return subprocess.Popen(
        [sys.executable, "-m", "monai.bundle", *map(str, words)],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> Finished:
    stdout, stderr = process.communicate(timeout=600)
    return Finished(process.returncode, stdout, stderr)


def as_words(overrides: Mapping[str, Any]) -> list[object]:
    return [word for key, value in overrides.items() for word in (f"--{key}", value)]


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


@pytest.fixture(autouse=True)
def _import_path_as_it_was(monkeypatch) -> None:
    """A workflow adds the bundle's folder when it runs."""
    monkeypatch.setattr(sys, "path", sys.path.copy())


def refusal(act: Callable[[], Any]) -> str:
    """The message of a process that ends: it goes to stderr, and the status is 1."""
    with pytest.raises(SystemExit) as info:
        act()
    assert isinstance(info.value.code, str)
    assert info.value.code.startswith("error: ")
    return info.value.code


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def figures(folder: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"), parse_constant=refuse)


def history(folder: Path) -> dict[str, np.ndarray]:
    with (folder / "history.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    return dict(zip(header, np.array(rows, dtype=float).T, strict=True))


# The commands of the README, and those that must fail


@pytest.fixture(scope="module")
def commands(data, tmp_path_factory) -> dict[str, tuple[Finished, Path]]:
    """Each command as it ended, and its output folder. All at once: they spend most of their time on imports.

    One pair is registered from the root of the repository, the other commands run elsewhere.
    """
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    run = ("run", "--bundle_root", BUNDLE, "--config_file")
    both = f"['{INFERENCE}','{INFERENCE_2D}']"
    volume = {**paths(data, "volume", labels=True), "pair_id": "volume", "seed": 3, **VISIBLE}
    plane = paths(data, "plane")
    words: dict[str, tuple[Any, ...]] = {
        "volume": (
            "run",
            "--bundle_root",
            "bundle",
            "--config_file",
            "bundle/configs/inference.json",
            *as_words(volume),
        ),
        "slices": (*run, both, "--datalist", data / "pairs.json", *as_words(VISIBLE)),
        "metadata": ("verify_metadata", "--meta_file", METADATA, "--filepath", SCHEMA),
        "mistyped": (*run, both, *as_words(plane | {"iteratoins": 5})),
        "diverging": (*run, both, *as_words(plane | {"learning_rate": 1e30})),
    }
    processes = {}
    for name, command in words.items():
        # Relative to where the command runs, but for the one that runs in the repository.
        output = elsewhere / name if name == "volume" else name
        options = () if name == "metadata" else ("--output_dir", output)
        processes[name] = start(*command, *options, cwd=ROOT if name == "volume" else elsewhere)
    return {name: (finish(process), elsewhere / name) for name, process in processes.items()}


class Result(NamedTuple):
    """What a command made of one pair, and the pair."""

    folder: Path
    fixed: str
    moving: str
    moving_label: str


@pytest.fixture(params=["volume", "slice", "plane"])
def result(request, data, commands) -> Result:
    kind = request.param
    _, folder = commands["volume" if kind == "volume" else "slices"]
    files = paths(data, kind, labels=True)
    id = "plane_moving_to_plane_fixed" if kind == "plane" else kind
    return Result(folder / id, files["fixed"], files["moving"], files["moving_label"])


with_labels = pytest.mark.parametrize("result", ["volume", "slice"], indirect=True)


@pytest.mark.parametrize("name", ["volume", "slices"])
def test_the_commands_end_well(commands, name: str) -> None:
    finished, folder = commands[name]
    assert finished.status == 0, finished.stderr
    assert "Traceback" not in finished.stderr
    assert f"results are in {folder}" in finished.stdout


def test_the_folders_hold_what_was_promised_and_no_more(commands) -> None:
    volume, slices = commands["volume"][1], commands["slices"][1]
    assert names(volume) == {"volume", "metrics.csv", "index.html"}
    assert names(volume / "volume") == LABELLED | REPORT
    assert names(slices) == {"slice", "plane_moving_to_plane_fixed", "metrics.csv", "index.html"}
    assert names(slices / "slice") == LABELLED | REPORT
    assert names(slices / "plane_moving_to_plane_fixed") == FILES | REPORT  # it came without labels


def test_images_are_stored_on_the_fixed_grid(result) -> None:
    fixed = load(result.fixed)
    for name in names(result.folder) & {*IMAGES, "warped_label.nii.gz"}:
        image = load(result.folder / name)
        np.testing.assert_allclose(image.affine, fixed.affine, atol=1e-5)
        assert image.get_data_dtype() == (np.uint8 if "label" in name else np.float32)
        if name != "displacement.nii.gz":
            assert image.shape == fixed.shape


def test_the_displacement_is_an_itk_field(result) -> None:
    fixed, field = load(result.fixed), load(result.folder / "displacement.nii.gz")
    components = len(fixed.shape)  # three for a slice in a 3D header
    assert field.shape == (*(*fixed.shape, 1)[:3], 1, components)
    assert int(field.header["intent_code"]) == 1007
    assert int(field.header["dim"][0]) == 5


def itk_warp(result: Result, path: str, interpolator: int, moved: bool = True) -> np.ndarray:
    """An image on the fixed grid, (X, Y, Z) or (X, Y): by SimpleITK, from the files."""
    fixed = sitk.ReadImage(result.fixed)
    file = str(result.folder / "displacement.nii.gz")
    if load(result.fixed).shape[2:] == (1,):  # a slice in a 3D header: see `write_displacement`
        field = sitk.GetImageFromArray(voxels(file)[:, :, :, 0].transpose(2, 1, 0, 3), isVector=True)
        field.CopyInformation(fixed)
    else:
        field = sitk.ReadImage(file, sitk.sitkVectorFloat64)
    transform = sitk.DisplacementFieldTransform(field) if moved else sitk.Transform()
    image = sitk.Resample(sitk.ReadImage(path, sitk.sitkFloat64), fixed, transform, interpolator)
    return sitk.GetArrayFromImage(image).T


def interior(image: np.ndarray) -> np.ndarray:
    """Without the two outer voxels of every axis but that of a slice."""
    return image[tuple(slice(2, -2) if n > 1 else slice(None) for n in image.shape)]


def test_itk_makes_our_warped_image_of_the_moving_file_and_our_field(result) -> None:
    ours = voxels(result.folder / "warped.nii.gz")
    theirs = itk_warp(result, result.moving, sitk.sitkLinear)
    assert np.abs(interior(ours - theirs)).max() < 1e-3 * np.ptp(ours)
    # It says something because the image was moved, and to where the fixed one is.
    before, fixed = itk_warp(result, result.moving, sitk.sitkLinear, moved=False), voxels(result.fixed)
    assert np.abs(interior(ours - before)).max() > 0.05 * np.ptp(ours)
    assert np.abs(interior(ours - fixed)).mean() < 0.7 * np.abs(interior(before - fixed)).mean()


@with_labels
def test_itk_warps_the_labels_as_we_do(result) -> None:
    ours = voxels(result.folder / "warped_label.nii.gz")
    theirs = itk_warp(result, result.moving_label, sitk.sitkNearestNeighbor)
    assert set(np.unique(ours)) == {0, 1, 2}
    # Rounding decides where a position lies midway between two voxels.
    assert np.mean(interior(ours) == interior(theirs)) > 0.99


def test_the_jacobian_is_that_of_the_field(result) -> None:
    ddf, grid = read_displacement(result.folder / "displacement.nii.gz")
    dims = grid.spatial_dims
    inside = (slice(-1),) * dims
    gradient = np.stack([np.diff(ddf, axis=1 + a, append=0)[(slice(None), *inside)] for a in range(dims)], axis=1)
    determinant = np.linalg.det(np.eye(dims) + np.moveaxis(gradient, (0, 1), (-2, -1)))
    ours = voxels(result.folder / "jacobian.nii.gz").reshape(grid.spatial_shape)
    np.testing.assert_allclose(ours[inside], determinant, atol=1e-5)
    for axis in range(dims):  # forward differences end one voxel early: the last value stands twice
        np.testing.assert_array_equal(ours.take(-1, axis), ours.take(-2, axis))


def test_figures_are_json_and_complete(result) -> None:
    values = figures(result.folder)
    without_labels = result.folder.name.startswith("plane")
    assert set(values) - {"fixed_label", "moving_label"} == {
        *(
            "id",
            "fixed",
            "moving",
            "before",
            "after",
            "folding_percent",
            "folded_cells",
            "sd_log_jacobian",
            "displacement_mm_mean",
        ),
        *(
            "iterations",
            "interrupted_level",
            "seconds_optimisation",
            "seconds_total",
            "peak_memory_mb",
            "device",
            "seed",
            "versions",
        ),
        "config",
    }
    assert (values["fixed"], values["moving"]) == (result.fixed, result.moving)
    assert values["iterations"] == sum(VISIBLE["iterations"])
    assert values["after"]["similarity"] < 0.5 * values["before"]["similarity"]
    assert 0 <= values["folding_percent"] <= 100
    assert 0 < values["seconds_optimisation"] <= values["seconds_total"]
    assert ("fixed_label" in values) == ("moving_label" in values) == (not without_labels)
    for side in ("before", "after"):
        assert set(values[side]) == {"similarity", *(() if without_labels else LABEL_FIGURES)}


@with_labels
def test_every_label_is_scored_and_registration_helps(result) -> None:
    values = figures(result.folder)
    for side in ("before", "after"):
        assert set(values[side]["dice"]) == set(values[side]["hd95_mm"]) == {"1", "2"}
    assert values["after"]["dice_mean"] > values["before"]["dice_mean"]


def test_the_displacement_figure_is_that_of_the_file(result) -> None:
    lps = voxels(result.folder / "displacement.nii.gz")
    mean = np.linalg.norm(lps, axis=-1).mean()
    assert figures(result.folder)["displacement_mm_mean"] == pytest.approx(mean, rel=1e-4)


def test_the_config_in_the_figures_is_the_one_that_ran(commands) -> None:
    volume, planar = (figures(commands[name][1] / id) for name, id in (("volume", "volume"), ("slices", "slice")))
    assert (volume["config"]["spatial_dims"], planar["config"]["spatial_dims"]) == (3, 2)
    assert (volume["config"]["seed"], planar["config"]["seed"]) == (volume["seed"], planar["seed"]) == (3, 0)
    assert volume["config"]["pair_id"] == "volume"
    for config in (volume["config"], planar["config"]):
        assert config["iterations"] == VISIBLE["iterations"]
        assert config["shrink_factors"] == VISIBLE["shrink_factors"]
        assert set(config) == set(ConfigParser.load_config_file(INFERENCE))


def test_the_history_has_every_term_of_every_iteration(result) -> None:
    terms = history(result.folder)
    assert list(terms) == ["iteration", "level", "loss", "similarity", "intensity", "folding", "smoothness"]
    np.testing.assert_array_equal(terms["iteration"], np.arange(sum(VISIBLE["iterations"])) + 1)
    np.testing.assert_array_equal(terms["level"], np.repeat([0, 1], VISIBLE["iterations"]))
    coarseness = np.array(VISIBLE["shrink_factors"])[terms["level"].astype(int)]
    weights = {name: ConfigParser.load_config_file(INFERENCE)[f"{name}_weight"] for name in list(terms)[4:]}
    weights["smoothness"] *= coarseness  # or coarse levels overshoot
    weighted = sum(weight * terms[name] for name, weight in weights.items())
    np.testing.assert_allclose(terms["loss"], terms["similarity"] + weighted, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "ids"), [("volume", ["volume"]), ("slices", ["slice", "plane_moving_to_plane_fixed"])]
)
def test_the_table_has_a_row_a_pair_with_the_same_figures(commands, name: str, ids: list[str]) -> None:
    _, folder = commands[name]
    assert [row["id"] for row in table(folder)] == ids
    for row in table(folder):
        values = figures(folder / row["id"])
        for side in ("before", "after"):
            values |= {
                f"{key}_{side}": values[side].get(key, "")
                for key in ("similarity", "dice_mean", "hd95_mm_mean", "tre_mm_mean")
            }
        assert (row.pop("status"), row.pop("reason")) == ("done", "")
        assert row == {column: str(values[column]) for column in row}


# Images that lie anywhere


def test_two_scans_with_a_start_masks_and_landmarks(data, tmp_path) -> None:
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
    for side, affine in (("fixed", fixed.affine), ("moving", away @ fixed.affine)):
        points = np.array([[3, 4, 5], [8, 9, 3]]) @ affine[:3, :3].T + affine[:3, 3]
        rows = [f"{-x},{-y},{z},0" for x, y, z in points]
        files[f"{side}_landmarks"] = str(tmp_path / f"{side}.csv")
        (tmp_path / f"{side}.csv").write_text("\n".join(["x,y,z,t", *rows]))
    flip = np.diag([-1.0, -1, 1])
    given = sitk.AffineTransform(3)
    given.SetMatrix((flip @ away[:3, :3] @ flip).ravel().tolist())
    given.SetTranslation((flip @ away[:3, 3]).tolist())
    sitk.WriteTransform(given, str(tmp_path / "start.tfm"))

    options = {**files, "initial_transform": str(tmp_path / "start.tfm"), "pair_id": "pair", **VISIBLE}
    workflow(tmp_path / "out", **options).run()

    folder = tmp_path / "out" / "pair"
    transform = sitk.ReadTransform(str(folder / "transform.h5"))
    theirs = sitk.Resample(sitk.ReadImage(files["moving"], sitk.sitkFloat64), sitk.ReadImage(files["fixed"]), transform)
    warped = load(folder / "warped.nii.gz")
    assert warped.get_data_dtype() == np.int16
    difference = np.abs(interior(sitk.GetArrayFromImage(theirs).T - warped.get_fdata()))
    assert difference.max() < 0.5 + 1e-3 * np.ptp(values)  # half a unit of rounding
    written = figures(folder)
    np.testing.assert_allclose(written["initial_affine"], away, atol=1e-6)
    assert written["before"]["tre_mm_mean"] < 1e-3
    for fixed_point, error in zip(((3, 4, 5), (8, 9, 3)), written["after"]["tre_mm"], strict=True):
        start, end = (
            np.array([*point, 1])
            for point in (fixed.affine[:3] @ [*fixed_point, 1], (away @ fixed.affine)[:3] @ [*fixed_point, 1])
        )
        there = np.array(transform.TransformPoint((start[:3] * (-1, -1, 1)).tolist())) * (-1, -1, 1)
        assert np.linalg.norm(there - end[:3]) == pytest.approx(error, abs=1e-3)
    (row,) = table(tmp_path / "out")
    assert float(row["tre_mm_mean_after"]) == written["after"]["tre_mm_mean"]


# A MONAI bundle


def test_metadata_follows_the_schema_without_a_network(commands) -> None:
    finished, _ = commands["metadata"]
    assert finished.status == 0, finished.stderr
    assert "metadata is verified with no error" in finished.stdout + finished.stderr


def test_metadata_names_the_tested_versions() -> None:
    metadata = ConfigParser.load_config_file(METADATA)
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE))
    keys = {"monai": "monai", "torch": "pytorch", "numpy": "numpy"}
    named = {name: metadata[f"{key}_version"] for name, key in keys.items()}
    others = dict(metadata["required_packages_version"])
    assert metadata["version"] == others.pop("monai-nodeo") == monai_nodeo.__version__
    assert metadata["version"] in metadata["changelog"]
    for name, version in {**named, **others}.items():
        assert pins[name] == version


def test_the_network_takes_and_gives_what_the_metadata_says() -> None:
    verify_net_in_out("network_def", meta_file=str(METADATA), config_file=str(INFERENCE), device="cpu")


@pytest.fixture(params=[3, 2])
def spatial_dims(request) -> int:
    return request.param


def overlays(spatial_dims: int) -> list[Path]:
    return [INFERENCE_2D] if spatial_dims == 2 else []


def kind_of(spatial_dims: int) -> str:
    return "plane" if spatial_dims == 2 else "volume"


def test_the_workflow_has_the_properties_of_a_bundle(data, tmp_path, spatial_dims: int) -> None:
    options = {**paths(data, kind_of(spatial_dims)), "pair_id": "pair"}
    bundle = workflow(tmp_path / "out", *overlays(spatial_dims), **options)
    assert bundle.check_properties() == []
    assert isinstance(bundle.network_def, EulerianVelocity)
    assert isinstance(bundle.inferer, PairInferer)
    assert bundle.network_def.spatial_dims == bundle.inferer.spatial_dims == spatial_dims
    assert bundle.evaluator.inferer is bundle.inferer
    assert bundle.bundle_root == str(BUNDLE)
    assert bundle.version == monai_nodeo.__version__
    assert [row["id"] for row in bundle.dataset.data] == ["pair"]
    assert bundle.preprocessing is not None
    assert bundle.postprocessing is not None
    assert bundle.handlers


def test_it_runs_from_python_more_than_once(data, tmp_path) -> None:
    bundle = workflow(tmp_path / "out", **paths(data, "volume"), pair_id="pair")
    bundle.run()
    first = voxels(tmp_path / "out" / "pair" / "warped.nii.gz")
    bundle.initialize()
    bundle.run()
    bundle.finalize()
    np.testing.assert_array_equal(voxels(tmp_path / "out" / "pair" / "warped.nii.gz"), first)
    assert bundle.inferer.registrations[0].iterations == sum(FEW["iterations"])


@pytest.mark.parametrize(
    ("name", "value", "iterations", "keyframes"),
    [
        ("inferer", PairInferer(3, iterations=[2], shrink_factors=[1]), 2, 1),
        ("network_def", EulerianVelocity(3, parametrisation=Lattice((8, 8, 8), keyframes=2)), 3, 2),
        ("device", torch.device("cpu"), 3, 1),
    ],
    ids=["inferer", "network_def", "device"],
)
def test_a_property_can_be_replaced(data, tmp_path, name: str, value: Any, iterations: int, keyframes: int) -> None:
    bundle = workflow(tmp_path / "out", **paths(data, "volume"), pair_id="pair")
    setattr(bundle, name, value)
    bundle.initialize()
    bundle.run()
    assert figures(tmp_path / "out" / "pair")["iterations"] == iterations
    assert bundle.network_def.parametrisation.keyframes == keyframes


# Configs


def nested(config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Every id of a config with its plain value; a dict is opened."""
    pairs: list[tuple[str, Any]] = []
    for id, value in config.items():
        pairs += [(f"{id}::{key}", v) for key, v in nested(value)] if isinstance(value, dict) else [(id, value)]
    return pairs


def fits(overlay: Path, spatial_dims: int) -> bool:
    return ConfigParser.load_config_file(overlay).get("spatial_dims", spatial_dims) == spatial_dims


@pytest.mark.parametrize(
    ("overlay", "spatial_dims"),
    [
        pytest.param(overlay, dims, id=f"{overlay.stem}-{dims}D")
        for overlay in OVERLAYS
        for dims in (2, 3)
        if fits(overlay, dims)
    ],
)
def test_every_config_runs_over_inference(data, tmp_path, overlay: Path, spatial_dims: int) -> None:
    files = dict.fromkeys([*overlays(spatial_dims), overlay])
    own = ConfigParser.load_config_file(overlay).get("shrink_factors", FEW["shrink_factors"])
    settings = {
        **paths(data, kind_of(spatial_dims)),
        "pair_id": "pair",
        "shrink_factors": own,
        "iterations": [2] * len(own),
    }
    workflow(tmp_path / "out", *files, **settings).run()
    assert names(tmp_path / "out" / "pair") == FILES
    ran = ConfigParser(figures(tmp_path / "out" / "pair")["config"])
    for id, value in nested(ConfigParser.load_config_file(overlay)):
        assert ran[id] == settings.get(id, value)


def test_there_are_the_presets_of_the_paper() -> None:
    assert {"paper_lambda2", "paper_lambda2.5"} <= {path.stem for path in PRESETS}


@pytest.mark.parametrize("preset", [p for p in PRESETS if p.stem.startswith("paper")], ids=lambda path: path.stem)
def test_the_best_field_of_the_paper_has_the_lowest_product(data, tmp_path, preset: Path) -> None:
    settings = {
        **paths(data, "plane"),
        "pair_id": "pair",
        "network_def::scale": 0.005,
        "regularisers::folding::margin": 1.5,
        **PAPER,
    }
    bundle = workflow(tmp_path / "out", INFERENCE_2D, preset, **settings)
    bundle.run()
    terms = {name: torch.tensor(values) for name, values in history(tmp_path / "out" / "pair").items()}
    score = bundle.parser.get_parsed_content("field_score")(terms)
    torch.testing.assert_close(score, terms["similarity"] * terms["folding"])
    best = 10 + int(score[10:].argmin())  # of the last 50 iterations
    kept = figures(tmp_path / "out" / "pair")["after"]["similarity"]
    # Not to the last digit: for the figure the image is its minimum outside, for the optimisation its border goes on.
    assert terms["similarity"][best].item() == pytest.approx(kept, abs=0.02)
    assert best < 59


MONAI_SIMILARITIES = {
    "lncc": {"_target_": "LocalNormalizedCrossCorrelationLoss", "spatial_dims": "@spatial_dims", "kernel_size": 5},
    "mutual information": {"_target_": "GlobalMutualInformationLoss"},
    "mse": {"_target_": "torch.nn.MSELoss"},
    "ssim": {"_target_": "SSIMLoss", "spatial_dims": "@spatial_dims", "win_size": 5},
}


@pytest.mark.parametrize("similarity", MONAI_SIMILARITIES.values(), ids=MONAI_SIMILARITIES)
def test_losses_of_monai_drop_in(data, tmp_path, spatial_dims: int, similarity: dict[str, Any]) -> None:
    options = {**paths(data, kind_of(spatial_dims)), "pair_id": "pair", "similarity": similarity, **VISIBLE}
    workflow(tmp_path / "out", *overlays(spatial_dims), **options).run()
    values = figures(tmp_path / "out" / "pair")
    assert values["after"]["similarity"] < values["before"]["similarity"]


# BendingEnergyLoss of MONAI 1.6.1 indexes tensors in a way that torch 2.9 and later announce the end of.
@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence for multidimensional indexing:UserWarning")
def test_a_regulariser_of_monai_drops_in(data, tmp_path) -> None:
    bending = {"_target_": "BendingEnergyLoss"}
    options = {**paths(data, "volume"), "pair_id": "pair", "regularisers::smoothness": bending, **VISIBLE}
    workflow(tmp_path / "out", **options).run()
    assert history(tmp_path / "out" / "pair")["smoothness"].max() > 0


@pytest.mark.parametrize(
    "solver",
    [{"solver::method": "midpoint"}, {"solver::method": "rk4", "solver::num_steps": 2}, {"solver::adjoint": True}],
    ids=str,
)
def test_the_solver_is_a_matter_of_config(data, tmp_path, solver: dict[str, Any]) -> None:
    bundle = workflow(tmp_path / "out", **paths(data, "volume"), pair_id="pair", **solver)
    bundle.run()
    for id, value in solver.items():
        assert getattr(bundle.inferer.solver, id.removeprefix("solver::")) == value


HANDLER = {"_target_": "monai_nodeo.registration.handlers.EarlyStop", "_mode_": "callable", "threshold": 9.0}


@pytest.mark.parametrize(
    "options",
    [{"trainer_handlers": [HANDLER]}, {"convergence_threshold": 9.0}],
    ids=lambda options: next(iter(options)),
)
def test_handlers_are_a_matter_of_config(data, tmp_path, options: dict[str, Any]) -> None:
    options = {**paths(data, "volume"), "pair_id": "pair", "iterations": [50, 50], **options}
    workflow(tmp_path / "out", **options).run()
    stopped = figures(tmp_path / "out" / "pair")["iterations"]
    assert stopped < 100
    assert len(history(tmp_path / "out" / "pair")["loss"]) == stopped


# The defaults stand in JSON and in Python: the same ones


def schedule(spatial_dims: int) -> dict[str, Any]:
    """The bundle's own levels."""
    config: dict[str, Any] = {}
    for file in (INFERENCE, *overlays(spatial_dims)):
        config |= ConfigParser.load_config_file(file)
    return {key: config[key] for key in ("shrink_factors", "iterations")}


def test_the_bundle_registers_as_the_python_classes_do(data, tmp_path, spatial_dims: int) -> None:
    options = {**paths(data, kind_of(spatial_dims)), **schedule(spatial_dims)}
    bundle = workflow(tmp_path / "out", *overlays(spatial_dims), **options)
    bundle.run()
    theirs = bundle.inferer.registrations[0]
    item = next(iter(bundle.dataset))
    register = RegisterPair(spatial_dims)
    more = {key: item[key][None] for key in PAIR_EXTRAS if key in item}
    register.inferer(item["fixed_input"][None], register.network, moving=item["moving_input"][None], **more)
    (ours,) = register.inferer.registrations
    assert ours.iterations == sum(options["iterations"])
    assert torch.equal(ours.ddf, theirs.ddf)
    assert list(ours.history) == list(theirs.history)
    assert all(torch.equal(ours.history[name], theirs.history[name]) for name in ours.history)


def test_json_and_python_defaults_are_equal_where_a_registration_does_not_tell(
    data, tmp_path, spatial_dims: int
) -> None:
    options = {**paths(data, kind_of(spatial_dims)), **schedule(spatial_dims)}
    bundle = workflow(tmp_path / "out", *overlays(spatial_dims), **options)
    theirs, ours = bundle.inferer, PairInferer(spatial_dims)
    for name in (
        "iterations",
        "shrink_factors",
        "point_spacing",
        "crop_air",
        "unfold",
        "cuda_graph",
        "seed",
        "spatial_dims",
    ):
        assert getattr(theirs, name) == getattr(ours, name)
    assert vars(theirs.solver) == vars(ours.solver)
    # Terms and weights, on a field that folds, with all that a pair may have.
    shape = PLANE if spatial_dims == 2 else VOLUME
    fixed, warped, ddf = smooth_image(shape)[None], smooth_image(shape, 1)[None], 4 * smooth_ddf(shape, sigma=1.0)[None]
    more = {
        "weight": torch.rand(1, 1, *shape),
        "spacing": (1.0, 1.5, 2.0)[:spatial_dims],
        "coarseness": 3.0,
        "landmarks": 5 * torch.rand(1, 3, 2, spatial_dims),
    }
    terms, expected = (inferer.loss_function(warped, fixed, ddf, [ddf / 9], **more) for inferer in (theirs, ours))
    assert terms == expected
    assert min(expected.values()) > 0
    parameter = [torch.nn.Parameter(torch.zeros(1))]
    adam, expected_adam = (inferer.optimizer(parameter) for inferer in (theirs, ours))
    assert type(adam) is type(expected_adam)
    assert adam.defaults == expected_adam.defaults
    *handlers, on_interrupt = [make() for make in theirs.handlers]
    assert on_interrupt.action == "drop"
    assert [type(handler) for handler in handlers] == [type(make()) for make in ours.handlers]


# Refused before anything is computed


def test_a_mistyped_override_is_refused_with_the_nearest_name(commands) -> None:
    finished, folder = commands["mistyped"]
    assert finished.status == 1
    last = finished.stderr.splitlines()[-1]
    assert last.startswith("error: unknown config id 'iteratoins' (did you mean 'iterations'?); valid are ")
    assert "Traceback" not in finished.stderr
    assert not folder.exists()


@pytest.mark.parametrize(
    ("typo", "nearest"),
    [
        ("iteratoins", "iterations"),
        ("learning_rte", "learning_rate"),
        ("folding_wieght", "folding_weight"),
        ("sed", "seed"),
    ],
)
def test_python_refuses_a_mistyped_override_too(data, tmp_path, typo: str, nearest: str) -> None:
    message = refusal(lambda: workflow(tmp_path / "out", **paths(data, "volume"), **{typo: 1}))
    assert f"{typo!r} (did you mean {nearest!r}?)" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("typo", ["solver::num_stpes", "smoothing::widnow", "inferer::sed", "solvr::method"])
def test_a_mistyped_option_of_a_component_is_refused(data, tmp_path, typo: str) -> None:
    with pytest.raises((RuntimeError, KeyError, SystemExit)):
        workflow(tmp_path / "out", **paths(data, "volume"), **{typo: 1}).run()
    assert not list((tmp_path / "out").rglob("*"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((), ("no fixed and no moving image was given", "give fixed and moving, or a datalist")),
        (("fixed",), ("no moving image was given",)),
        (("moving",), ("no fixed image was given",)),
        (("fixed", "moving", "datalist"), ("were both given", "give a list or one pair")),
    ],
    ids=["nothing", "fixed alone", "moving alone", "pair and list"],
)
def test_it_takes_one_pair_or_one_list(data, tmp_path, given: Sequence[str], words: Sequence[str]) -> None:
    request = {**paths(data, "volume"), "datalist": str(data / "pairs.json")}
    message = refusal(lambda: workflow(tmp_path / "out", **{key: request[key] for key in given}))
    for word in words:
        assert word in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "found"),
    [("[", "not JSON"), ("[]", "the list is empty"), ("{}", "a JSON object"), (None, "cannot be read")],
)
def test_a_list_that_is_none_is_refused(tmp_path, content: str | None, found: str) -> None:
    path = tmp_path / "list.json"
    if content is not None:
        path.write_text(content)
    message = refusal(lambda: workflow(tmp_path / "out", datalist=str(path)))
    assert str(path) in message
    assert found in message


def test_an_output_folder_that_cannot_be_is_found_before_the_optimisation(data, tmp_path) -> None:
    (tmp_path / "file").write_text("a file, not a folder")
    target = tmp_path / "file" / "out"
    message = refusal(lambda: workflow(target, **paths(data, "volume")))
    assert str(target) in message
    assert "give another folder with --output_dir" in message


# Bad pairs

Make = Callable[[Path, Path], dict[str, str]]  # (data, empty folder) -> overrides of a good pair


def changed(change: Callable[[np.ndarray], np.ndarray], source: str = "moving", **labels: str) -> Make:
    """The file of a good pair with its voxels changed, as "bad.nii.gz"."""

    def make(data: Path, folder: Path) -> dict[str, str]:
        image = load(data / f"volume_{source}.nii.gz")
        path = save(folder / "bad.nii.gz", change(np.asanyarray(image.dataobj)), image.affine)
        return {**labels_for(data, source), source: path}

    return make


def labels_for(data: Path, source: str) -> dict[str, str]:
    return paths(data, "volume", labels=source.endswith("label"))


def moved(millimetres: float, source: str = "moving") -> Make:
    def make(data: Path, folder: Path) -> dict[str, str]:
        image = load(data / f"volume_{source}.nii.gz")
        affine = image.affine.copy()
        affine[:3, 3] += millimetres
        path = save(folder / "bad.nii.gz", np.asanyarray(image.dataobj), affine)
        return {**labels_for(data, source), source: path}

    return make


def file_of(content: Callable[[bytes], bytes], name: str = "bad.nii.gz") -> Make:
    """The bytes of a good file changed."""

    def make(data: Path, folder: Path) -> dict[str, str]:
        image = load(data / "volume_moving.nii.gz")
        good = Path(save(folder / name.replace("bad", "good"), np.asanyarray(image.dataobj), image.affine))
        (folder / name).write_bytes(content(good.read_bytes()))
        return {"moving": str(folder / name)}

    return make


def absent(_: Path, folder: Path) -> dict[str, str]:
    return {"fixed": str(folder / "bad.nii.gz")}


def directory(_: Path, folder: Path) -> dict[str, str]:
    (folder / "bad.nii.gz").mkdir()
    return {"moving": str(folder / "bad.nii.gz")}


def one_label(data: Path, folder: Path) -> dict[str, str]:
    labels = load(data / "volume_fixed_label.nii.gz")
    return {"fixed_label": save(folder / "bad.nii.gz", np.asanyarray(labels.dataobj))}


def empty_mask(data: Path, folder: Path) -> dict[str, str]:
    fixed = load(data / "volume_fixed.nii.gz")
    return {"fixed_mask": save(folder / "bad.nii.gz", np.zeros(fixed.shape, np.uint8), fixed.affine)}


def with_one(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        values = values.copy()
        values[3, 4, 5] = value
        return values

    return change


def coloured(values: np.ndarray) -> np.ndarray:
    return np.zeros(values.shape, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])


BAD: dict[str, tuple[Make, tuple[str, ...]]] = {
    "missing": (absent, ("there is no such file", "check the path")),
    "directory": (directory, ("holds no DICOM files", "expected NIfTI")),
    "empty": (file_of(lambda good: b""), ("the file is empty", "copy or download it again")),
    "no image": (file_of(lambda good: b"a line of text\n"), ("not an image that nibabel reads", "expected NIfTI")),
    "truncated": (file_of(lambda good: good[: len(good) // 2]), ("truncated or damaged", "copy or download it again")),
    "truncated .nii": (
        file_of(lambda good: good[: len(good) // 2], "bad.nii"),
        ("truncated or damaged", "copy or download it again"),
    ),
    "constant": (changed(lambda v: np.full_like(v, 7)), ("every voxel is 7", "give another image")),
    "constant fixed": (changed(np.zeros_like, "fixed"), ("every voxel is 0", "give another image")),
    "nan": (changed(with_one(np.nan)), ("voxels are NaN or infinite", "replace them")),
    "infinite": (changed(with_one(np.inf), "fixed"), ("1 of 1680 voxels are NaN or infinite", "replace them")),
    "4D": (changed(lambda v: np.stack([v, v], axis=-1)), ("(16, 18, 14, 2) is 4D", "extract one volume")),
    "RGB": (changed(coloured, "fixed"), ("1, 3) is 5D", "extract one volume or channel")),
    "slice": (changed(lambda v: v[:, :, :1]), ("(16, 18, 1) is a slice", "only volumes or only slices")),
    "true 2D": (changed(lambda v: v[:, :, 0], "fixed"), ("(12, 14) is a slice", "inference_2d.json")),
    "no overlap": (moved(500), ("do not overlap", 'start with initial_transform "affine"')),
    "float labels": (
        changed(lambda v: v + np.float32(0.4), "fixed_label"),
        ("no whole numbers", "expected a label map"),
    ),
    "labels of another shape": (changed(lambda v: v[:-1], "moving_label"), ("differs from (16, 18, 14)", "resample")),
    "labels elsewhere": (moved(0.5, "fixed_label"), ("mm from that of its image", "resample it")),
    "empty mask": (empty_mask, ("the mask excludes everything", "greater than 0")),
    "one label map": (one_label, ("labels came without moving_label", "give both")),
}


@pytest.mark.parametrize(("make", "words"), BAD.values(), ids=BAD)
def test_a_bad_pair_is_refused_with_file_finding_and_advice(data, tmp_path, make: Make, words: tuple[str, ...]) -> None:
    (tmp_path / "bad").mkdir()
    settings = {**paths(data, "volume"), **make(data, tmp_path / "bad"), "pair_id": "pair"}
    message = refusal(workflow(tmp_path / "out", **settings).run)
    for word in (str(tmp_path / "bad" / "bad.nii"), *words):
        assert word in message
    assert names(tmp_path / "out") == {"metrics.csv"}
    (row,) = table(tmp_path / "out")
    assert (row["id"], row["status"]) == ("pair", "failed")
    assert row["reason"] in message


def test_a_pair_too_small_for_its_network_is_refused(data, tmp_path) -> None:
    (tmp_path / "bad").mkdir()
    options = {**paths(data, "volume"), **changed(lambda v: v[:7])(data, tmp_path / "bad"), **PAPER}
    message = refusal(workflow(tmp_path / "out", ROOT / "configs" / "paper_lambda2.json", **options).run)
    for word in ("bad.nii", "7 voxels along an axis of (7, 18, 14)", "at least 8", "crop less"):
        assert word in message


@pytest.mark.parametrize("mask_air", [False, True])
def test_masks_that_the_loss_cannot_take_make_a_bad_row(data, tmp_path, mask_air: bool) -> None:
    good = paths(data, "volume")
    ones = save(tmp_path / "ones.nii.gz", np.ones(VOLUME, np.uint8))
    rows = [good | {"id": "first"}, good | {"id": "masked", "fixed_mask": ones}, good | {"id": "last"}]
    preset = ROOT / "configs" / "mutual_information.json"
    options = {"datalist": write_list(tmp_path, rows), "mask_air": mask_air}

    message = refusal(workflow(tmp_path / "out", preset, **options).run)

    reasons = {line["id"]: line["reason"] for line in table(tmp_path / "out")}
    refused = "GlobalMutualInformationLoss cannot take masks; register without them"
    assert reasons["masked"].startswith(f"fixed_mask {ones}: {refused}")
    assert f"row 2 (masked): {reasons['masked']}" in message
    for id in ("first", "last"):
        assert reasons[id].startswith(f"mask_air: {refused}") if mask_air else reasons[id] == ""
    assert names(tmp_path / "out") == {"metrics.csv"} | (set() if mask_air else {"first", "last"})


def test_a_volume_is_refused_by_the_2d_config(data, tmp_path) -> None:
    message = refusal(workflow(tmp_path / "out", INFERENCE_2D, **paths(data, "volume")).run)
    for word in ("volume_fixed.nii.gz", "(12, 14, 10) is a volume", "inference.json without inference_2d.json"):
        assert word in message
    assert names(tmp_path / "out") == {"metrics.csv"}


def test_bad_rows_are_reported_and_the_others_registered(data, tmp_path) -> None:
    good = paths(data, "volume")
    bad = ["missing", "nan", "truncated", "4D", "labels of another shape"]
    rows = [good | {"id": "first"}]
    for id in bad:
        (tmp_path / id).mkdir()
        rows.append({**good, **BAD[id][0](data, tmp_path / id), "id": id})
    rows.append(good | {"id": "last"})
    rows[3], rows[-1] = rows[-1], rows[3]
    ids = [row["id"] for row in rows]

    message = refusal(workflow(tmp_path / "out", datalist=write_list(tmp_path, rows)).run)

    assert message.splitlines()[0] == f"error: 5 of 7 pairs failed, see {tmp_path / 'out' / 'metrics.csv'}:"
    lines = table(tmp_path / "out")
    assert [line["id"] for line in lines] == ids
    for number, line in enumerate(lines, start=1):
        if line["id"] in bad:
            assert line["status"] == "failed"
            assert f"row {number} ({line['id']}): {line['reason']}" in message
            assert all(word in line["reason"] for word in BAD[line["id"]][1])
        else:
            assert (line["status"], line["reason"]) == ("done", "")
    assert names(tmp_path / "out") == {"first", "last", "metrics.csv"}
    assert names(tmp_path / "out" / "first") == names(tmp_path / "out" / "last") == FILES
    first, last = (voxels(tmp_path / "out" / id / "warped.nii.gz") for id in ("first", "last"))
    np.testing.assert_array_equal(first, last)


def test_rows_that_say_too_little_are_bad_rows_too(data, tmp_path) -> None:
    good = paths(data, "volume")
    rows = [{"fixed": good["fixed"]}, good | {"id": "good"}, good | {"id": "../up"}, good | {"movin_label": "x"}, 7]
    message = refusal(workflow(tmp_path / "out", datalist=write_list(tmp_path, rows)).run)
    assert [line["status"] for line in table(tmp_path / "out")] == ["failed", "done", "failed", "failed", "failed"]
    for word in ('no "moving"', "names the output folder", 'did you mean "moving_label"', "JSON number"):
        assert word in message
    assert names(tmp_path / "out") == {"good", "metrics.csv"}
    assert names(tmp_path) == {"out", "list.json"}


# Runs that end in the middle


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> dict[str, tuple[Finished, Path]]:
    """Runs of two pairs, ended in the second pair: how they ended, and their output folders.

    The first pair is done in a second, the second one takes half a minute.
    """
    endings = {
        "kill": (signal.SIGKILL, "drop"),
        "drop": (signal.SIGINT, "drop"),
        "save": (signal.SIGINT, "save"),
    }
    folder = tmp_path_factory.mktemp("ended")
    rows = []
    for name, shape in (("first", PLANE), ("second", (640, 512))):
        save_pair(folder, name, make_pair(shape), (IN_PLANE, IN_PLANE))
        rows.append({**paths(folder, name), "id": name})
    words = ["run", "--config_file", f"['{INFERENCE}','{INFERENCE_2D}']", "--bundle_root", BUNDLE]
    words += as_words({"datalist": write_list(folder, rows), "iterations": "[10,600]"})
    # A test session in the background of a shell ignores ctrl-C, and its children would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        processes = {}
        for name, (_, action) in endings.items():
            options = {"output_dir": name, "tensorboard": f"{name}_curves", "on_interrupt": action}
            processes[name] = start(*words, *as_words(options), cwd=folder)
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        for name, process in processes.items():
            wait_for(lambda curves=folder / f"{name}_curves": len(list(curves.glob("*_level1"))) == 2, process)
        time.sleep(0.5)  # the second pair is on its way
        for name, process in processes.items():
            assert process.poll() is None
            process.send_signal(endings[name][0])
        return {name: (finish(process), folder / name) for name, process in processes.items()}
    finally:
        for process in processes.values():
            process.kill()


def wait_for(sign: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    patience = time.monotonic() + 90
    while not sign():
        assert process.poll() is None
        assert time.monotonic() < patience
        time.sleep(0.05)


@pytest.mark.parametrize("ending", ["kill", "drop"])
def test_a_run_that_is_ended_leaves_whole_pairs_only(ended, ending: str) -> None:
    _, folder = ended[ending]
    assert names(folder) == {"first", "metrics.csv"}
    assert names(folder / "first") == FILES | REPORT
    assert figures(folder / "first")["id"] == "first"
    assert [(row["id"], row["status"]) for row in table(folder)] == [("first", "done")]


def test_ctrl_c_ends_with_a_message(ended) -> None:
    finished, folder = ended["drop"]
    assert finished.status == 130
    assert "Traceback" not in finished.stderr
    assert f"interrupted: finished pairs and metrics.csv are in {folder}" in finished.stdout + finished.stderr


def test_ctrl_c_saves_the_best_field_so_far_if_asked_to(ended) -> None:
    finished, folder = ended["save"]
    assert finished.status == 130
    assert "Traceback" not in finished.stderr
    assert "the pair that was being optimised is saved as far as it came" in finished.stdout + finished.stderr
    assert names(folder) == {"first", "second", "metrics.csv", "index.html"}
    assert names(folder / "second") == FILES | REPORT
    assert 1 <= figures(folder / "second")["iterations"] < 610
    assert [figures(folder / name)["interrupted_level"] for name in ("first", "second")] in ([None, 0], [None, 1])
    summary = json.loads((folder / "second" / "report.json").read_text(encoding="utf-8"))
    assert "interruption" in {finding["topic"] for finding in summary["findings"]}
    assert "interrupt" in summary["headline"]
    assert np.abs(voxels(folder / "second" / "displacement.nii.gz")).max() > 0


def test_an_optimisation_that_diverges_fails_with_advice(commands) -> None:
    # In a process of its own: torch's 2D sampler reads anywhere in memory when a position is NaN.
    finished, folder = commands["diverging"]
    assert finished.status == 1
    assert "learning_rate" in finished.stderr.splitlines()[-1]
    assert not list(folder.rglob("*.nii.gz"))
    assert not list(folder.rglob("metrics.json"))


# Nothing leaks from pair to pair


def test_a_pair_is_registered_the_same_alone_and_after_another(data, tmp_path) -> None:
    a, b = paths(data, "slice") | {"id": "a"}, paths(data, "plane") | {"id": "b"}
    for name, rows in (("both", [a, b]), ("alone", [b])):
        (tmp_path / name).mkdir()
        workflow(tmp_path / name / "out", INFERENCE_2D, datalist=write_list(tmp_path / name, rows), **VISIBLE).run()
    for file in IMAGES:
        both, alone = (load(tmp_path / name / "out" / "b" / file) for name in ("both", "alone"))
        assert np.asanyarray(both.dataobj).tobytes() == np.asanyarray(alone.dataobj).tobytes()


def test_the_seed_decides_and_torch_s_generator_does_not(data, tmp_path) -> None:
    random = {"parametrisation": {"_target_": "monai_nodeo.flows.Coordinates"}}  # a lattice starts from zeros
    results = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(len(results))
        workflow(
            tmp_path / name, INFERENCE_2D, **paths(data, "plane"), pair_id="pair", seed=seed, **random, **VISIBLE
        ).run()
        results[name] = voxels(tmp_path / name / "pair" / "displacement.nii.gz")
    np.testing.assert_array_equal(results["a"], results["b"])
    assert np.abs(results["a"] - results["c"]).max() > 1e-3


def test_pairs_of_different_shapes_and_headers_share_a_list(tmp_path) -> None:
    rows = []
    for shape in ((9, 11, 13), (12, 8, 9), (10, 9, 8, 1)):
        name = "x".join(map(str, shape))
        save_pair(tmp_path, name, [image.reshape(shape) for image in make_pair(shape[:3])], (OBLIQUE, OBLIQUE))
        rows.append({**paths(tmp_path, name), "id": name})
    workflow(tmp_path / "out", datalist=write_list(tmp_path, rows)).run()
    for row in rows:
        warped = load(tmp_path / "out" / row["id"] / "warped.nii.gz")
        assert warped.shape == load(row["fixed"]).shape[:3]


# Real images


def test_a_real_slice_is_registered_by_the_paper_s_preset(oasis, tmp_path) -> None:
    (row, *_) = json.loads((oasis / "pairs2d.json").read_text(encoding="utf-8"))
    row["id"] = "pair"
    options = {"datalist": write_list(tmp_path, [row]), "dataset_dir": str(oasis)} | PAPER | {"iterations": [300]}
    workflow(tmp_path / "out", INFERENCE_2D, ROOT / "configs" / "paper_lambda2.5.json", **options).run()
    values = figures(tmp_path / "out" / "pair")
    assert values["after"]["dice_mean"] > values["before"]["dice_mean"] + 0.1
    assert values["folding_percent"] < 0.2
