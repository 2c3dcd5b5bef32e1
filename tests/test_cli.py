# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from click.testing import CliRunner, Result
from grids import GRIDS, SLICE, VOLUME, interior, make_ddf, make_image, make_start, moved, world

import monai_nodeo
from monai_nodeo.cli import COMMANDS, main
from monai_nodeo.cli.settings import parse_setting
from monai_nodeo.files import (
    ImageGrid,
    Transform,
    itk_geometry,
    read_transform,
    write_image,
    write_labels,
    write_transform,
)
from monai_nodeo.files.resampling import INTERPOLATIONS

ROOT = Path(__file__).resolve().parents[1]


def call(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def succeed(*words: object) -> str:
    result = call(*words)
    assert result.exit_code == 0, result.output
    return result.stdout


def fail(*words: object) -> str:
    """The one line that a mistake of the user leads to."""
    result = call(*words)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    return line


def registration(grid: ImageGrid) -> Transform:
    return Transform.of_registration(make_ddf(grid), grid, make_start(grid))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A volume with labels and the transform of a registration."""
    write_image(tmp_path / "moving.nii.gz", make_image(VOLUME), VOLUME)
    write_labels(tmp_path / "labels.nii.gz", np.digitize(make_image(VOLUME), [400, 600]), VOLUME)
    write_transform(tmp_path / "transform.h5", registration(VOLUME))
    return tmp_path


def run_python(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *words], cwd=cwd, env=environment, capture_output=True, text=True)


# Help


@pytest.mark.parametrize("words", [[], *([name] for name in COMMANDS)], ids=lambda words: " ".join(words) or "none")
def test_help_needs_no_library(words: list[str]) -> None:
    heavy = "{'torch', 'monai', 'numpy', 'SimpleITK', 'nibabel'}"
    code = (
        "import sys\nfrom monai_nodeo.cli import main\n"
        f"try:\n    main({[*words, '--help']})\n"
        f"finally:\n    print('loaded:', *{heavy} & set(sys.modules))"
    )

    shown = run_python("-c", code)

    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("Usage: ")
    assert shown.stdout.splitlines()[-1].strip() == "loaded:"


def test_help_is_there_in_half_a_second() -> None:
    def seconds() -> float:
        started = time.perf_counter()
        run_python("-m", "monai_nodeo", "--help").check_returncode()
        return time.perf_counter() - started

    assert min(seconds() for _ in range(3)) < 0.5  # other work on the machine is not its fault


def test_apply_needs_no_torch() -> None:
    shown = run_python("-c", "import sys, monai_nodeo.files.resampling; print('torch' in sys.modules)")

    assert shown.stdout.strip() == "False", shown.stderr


def test_every_command_explains_itself_and_its_options() -> None:
    for name in COMMANDS:
        command = main.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None
        assert command.help
        options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
        assert [option.name for option in options if not option.help] == []


def test_version_and_unknown_command() -> None:
    assert succeed("--version").split() == ["main", monai_nodeo.__version__]
    result = call("aply")
    assert result.exit_code == 2
    assert "No such command 'aply'" in result.stderr


# Transforms


def test_apply_is_what_simpleitk_does_with_the_same_files(folder: Path) -> None:
    moving, warped = folder / "moving.nii.gz", folder / "warped.nii.gz"
    succeed("apply", "-i", moving, "-r", moving, "-t", folder / "transform.h5", "-o", warped)

    image = sitk.ReadImage(moving)
    theirs = sitk.Resample(image, image, sitk.ReadTransform(folder / "transform.h5"), sitk.sitkLinear)
    ours = nib.Nifti1Image.from_filename(warped).get_fdata()
    np.testing.assert_allclose(ours, sitk.GetArrayFromImage(theirs).T, rtol=0, atol=1e-2)


def make_channels(kind: str, name: str) -> sitk.Image:
    """Three different images on a grid: channels, or volumes of a series."""
    grid, parts = GRIDS[kind], []
    for seed in range(3):
        part = sitk.GetImageFromArray(np.rint(make_image(grid, seed) / 4).astype(np.uint8).reshape(grid.shape).T)
        for key, value in itk_geometry(grid).items():
            if not name.endswith(".png"):
                getattr(part, f"Set{key}")(value)
        parts.append(part)
    return sitk.JoinSeries(parts, 0.0, 2.5) if "series" in name else sitk.Compose(parts)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("plane", "colour.png"),
        ("plane", "vector.nrrd"),
        ("slice", "vector.nrrd"),
        ("slice", "series.nii.gz"),
        ("volume", "vector.nrrd"),
        ("volume", "vector.nii.gz"),
        ("volume", "series.nii.gz"),
        ("volume", "series.nrrd"),
    ],
)
@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
def test_every_channel_and_volume_is_what_simpleitk_makes_of_it(
    kind: str, name: str, interpolation: str, tmp_path: Path
) -> None:
    image = make_channels(kind, name)
    sitk.WriteImage(image, tmp_path / name)
    series = image.GetDimension() > len(GRIDS[kind].shape)
    parts = [image[..., i] if series else sitk.VectorIndexSelectionCast(image, i) for i in range(3)]
    sitk.WriteImage(parts[0], tmp_path / "fixed.mha")
    write_transform(tmp_path / "t.h5", registration(ImageGrid.from_file(tmp_path / "fixed.mha")))

    files = ["-i", tmp_path / name, "-r", tmp_path / "fixed.mha", "-t", tmp_path / "t.h5", "-o", tmp_path / "o.nii.gz"]
    succeed("apply", *files, "-n", interpolation)

    warped = nib.Nifti1Image.from_filename(tmp_path / "o.nii.gz")
    shape = (*GRIDS[kind].shape, 1)[:3]
    assert warped.shape == ((*shape, 3) if series else (*shape, 1, 3))
    assert warped.get_data_dtype() == np.uint8
    assert warped.header["intent_code"] == (0 if series else 1007)
    values = np.asarray(warped.dataobj).reshape(*GRIDS[kind].shape, 3).astype(int)
    way, mode = sitk.ReadTransform(tmp_path / "t.h5"), INTERPOLATIONS[interpolation]
    for i, part in enumerate(parts):
        expected = sitk.GetArrayFromImage(sitk.Resample(part, part, way, mode)).T.astype(int)
        different = np.abs(values[..., i] - expected)
        assert np.ptp(expected) > 50
        # a tie of two neighbours, or of rounding, falls this way or that
        assert (different > 1).mean() < 1e-3 if interpolation == "nearest" else different.max() <= 1


def test_apply_to_points(folder: Path) -> None:
    index = np.array([[5, 6, 7], [11, 13, 15]])
    rows = ["x,y,z,t", *(f"{-x},{-y},{z},0" for x, y, z in world(VOLUME, index))]
    (folder / "points.csv").write_text("\n".join(rows))

    succeed("apply", "-i", folder / "points.csv", "-t", folder / "transform.h5", "-o", folder / "moved.csv")

    table = np.loadtxt(folder / "moved.csv", delimiter=",", skiprows=1)
    there = moved(VOLUME, make_ddf(VOLUME), make_start(VOLUME), index)
    np.testing.assert_allclose(table[:, :3] * [-1, -1, 1], there, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("way", [["field.nii.gz"], ["disp_0001_0002.nii.gz"], ["field.nii.gz", "back.h5"]])
def test_convert_keeps_the_way_of_points(kind: str, way: list[str], tmp_path: Path) -> None:
    grid = GRIDS[kind]
    if kind == "plane" and way[0].startswith("disp_"):
        return  # Learn2Reg has none
    write_transform(tmp_path / "transform.h5", registration(grid))
    names = [tmp_path / name for name in ("transform.h5", *way)]
    for source, target in zip(names[:-1], names[1:], strict=True):
        succeed("convert", source, target)
    points = world(grid, np.random.default_rng(0).integers(1, 20, (20, grid.spatial_dims)))
    expected = registration(grid).map_points(points)
    np.testing.assert_allclose(read_transform(names[-1]).map_points(points), expected, rtol=0, atol=1e-4)


def test_invert_says_how_far_from_home(folder: Path) -> None:
    figures = json.loads(succeed("invert", "-t", folder / "transform.h5", "-o", folder / "inverse.h5", "--json"))

    (field,) = figures["field"]
    assert 0 < field["residual_voxels_mean"] <= field["residual_voxels_99.9"] <= field["residual_voxels_max"] < 2e-3
    assert field["voxels"] == np.prod(VOLUME.shape)
    assert field["voxels_not_converged"] == field["voxels_folded"] == 0
    points = world(VOLUME, np.array([[9, 11, 13], [12, 14, 16]]))
    home = read_transform(folder / "inverse.h5").map_points(registration(VOLUME).map_points(points))
    np.testing.assert_allclose(home, points, rtol=0, atol=0.1)


def test_inverse_as_one_field_needs_the_moving_grid(folder: Path) -> None:
    words = ["invert", "-t", folder / "transform.h5", "-o", folder / "inverse.nii.gz"]
    assert "a field needs a grid" in fail(*words)
    succeed(*words, "-r", folder / "moving.nii.gz")
    assert [type(step).__name__ for step in read_transform(folder / "inverse.nii.gz").steps] == ["Displacement"]


def test_fold_is_said(tmp_path: Path) -> None:
    write_transform(tmp_path / "folds.h5", Transform.of_registration(5 * make_ddf(SLICE), SLICE))
    result = call("invert", "-t", tmp_path / "folds.h5", "-o", tmp_path / "inverse.h5")
    assert result.exit_code == 0
    assert "warning: the field folds in " in result.stderr


def test_info_shows_every_step(folder: Path) -> None:
    first, second = json.loads(succeed("info", folder / "transform.h5", "--json"))["step"]
    assert first["kind"] == "displacement"
    assert first["shape"] == list(VOLUME.shape)
    np.testing.assert_allclose(first["spacing_mm"], [1.2, 0.9, 2.5])
    assert first["folding_voxels"] == 0
    to_mm = np.einsum("cd,d...->c...", VOLUME.affine[:3, :3], make_ddf(VOLUME))
    assert first["displacement_mm_max"] == pytest.approx(np.linalg.norm(to_mm, axis=0).max(), rel=1e-5)
    assert second["kind"] == "affine"
    np.testing.assert_allclose(second["matrix_ras"], make_start(VOLUME), atol=1e-9)
    assert second["determinant"] == pytest.approx(np.linalg.det(make_start(VOLUME)[:3, :3]))

    text = succeed("info", folder / "transform.h5")
    assert "step 1 kind" in text
    assert "step 2 rotation degrees" in text


def test_evaluate_finds_a_known_transform_perfect(folder: Path) -> None:
    """The fixed labels and landmarks are made by the transform itself."""
    words = ["-t", folder / "transform.h5", "-r", folder / "labels.nii.gz", "-n", "nearest"]
    succeed("apply", "-i", folder / "labels.nii.gz", *words, "-o", folder / "fixed_labels.nii.gz")
    (folder / "fixed.csv").write_text(
        "x,y,z\n" + "\n".join(f"{-x},{-y},{z}" for x, y, z in world(VOLUME, np.array([[9, 11, 13], [12, 14, 16]])))
    )
    succeed("apply", "-i", folder / "fixed.csv", "-t", folder / "transform.h5", "-o", folder / "moving.csv")
    labels = ["--fixed-label", folder / "fixed_labels.nii.gz", "--moving-label", folder / "labels.nii.gz"]
    landmarks = ["--fixed-landmarks", folder / "fixed.csv", "--moving-landmarks", folder / "moving.csv"]

    shown = succeed("evaluate", "-t", folder / "transform.h5", *labels, *landmarks, "-o", folder / "figures.json")

    figures: dict[str, Any] = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
    assert figures["labels"]["after"]["dice_mean"] == 1
    assert figures["labels"]["before"]["dice_mean"] < 0.9
    assert max(figures["landmarks"]["after"]["tre_mm"]) < 1e-4
    assert figures["landmarks"]["before"]["tre_mm_mean"] > 0.5
    assert figures["step"][0]["folding_percent"] == 0
    assert "labels after dice mean" in shown


# Mistakes


def test_mistakes_are_told_in_one_line(folder: Path) -> None:
    transform, moving = folder / "transform.h5", folder / "moving.nii.gz"
    apply = ["apply", "-i", moving, "-r", moving]
    assert "absent.h5: there is no such file" in fail(*apply, "-t", folder / "absent.h5", "-o", folder / "o.nii.gz")
    assert "results are NIfTI files" in fail(*apply, "-t", transform, "-o", folder / "o.jpg")
    assert "make it first" in fail(*apply, "-t", transform, "-o", folder / "no" / "o.nii.gz")
    assert "absent.nii.gz" in fail(
        "apply", "-i", folder / "absent.nii.gz", "-r", moving, "-t", transform, "-o", folder / "o.nii.gz"
    )
    assert "transforms are files that end" in fail("convert", transform, folder / "o.xyz")
    assert "holds a displacement" in fail("convert", transform, folder / "o.mat")
    assert "no transform of ITK" in fail("info", _text(folder / "bad.h5"))
    labels = ["evaluate", "-t", transform, "--fixed-label", folder / "labels.nii.gz", "--moving-label"]
    assert "moving.nii.gz: the values are no whole numbers, expected labels" in fail(*labels, moving)
    assert "absent.nii.gz" in fail("register", "-f", folder / "absent.nii.gz", "-m", moving, "-o", folder / "out")
    assert {path.name for path in folder.iterdir()} == {
        "moving.nii.gz",
        "labels.nii.gz",
        "transform.h5",
        "bad.h5",
    }


def _text(path: Path) -> Path:
    path.write_text("no transform", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["apply", "-i", "a.nii.gz", "-t", "t.h5", "-o", "o.nii.gz"], "give it with -r"),
        (["evaluate", "-t", "t.h5", "--fixed-label", "a.nii.gz"], "--moving-label come together"),
        (["register", "-f", "a", "-m", "b", "-o", "c", "--preset", "slow"], "'slow' is not one of"),
        (["register", "-f", "a", "-m", "b", "-o", "c", "--set", "iterations"], "is not of the form ID=VALUE"),
    ],
)
def test_wrong_use_is_told(words: list[str], message: str) -> None:
    result = call(*words)
    assert result.exit_code == 2
    assert message in result.stderr


# Registration


@pytest.mark.parametrize(
    ("text", "value"),
    [("a=false", False), ("a=False", False), ("a=true", True), ("a=null", None), ("a=[1,2]", [1, 2]), ("a=b=c", "b=c")],
)
def test_settings_are_read_as_python_or_json(text: str, value: Any) -> None:
    assert parse_setting(text) == ("a", value)


@pytest.mark.parametrize(
    ("shape", "offset", "words"),
    [
        pytest.param((14, 16, 12), (120.0, -80.0, 60.0), ["--init", "moments"], id="volumes far apart"),
        pytest.param((20, 22, 1), 40 * VOLUME.affine[:3, 2] / 2.5, ["--quiet"], id="slices of different levels"),
    ],
)
def test_register_writes_what_apply_takes(
    shape: tuple[int, ...], offset: np.ndarray, words: list[str], tmp_path: Path
) -> None:
    """The moving image has voxels and a place of its own."""
    away = VOLUME.affine.copy()
    away[:3, 3] += offset
    moving_shape = (shape[0] + 2, shape[1] + 3, shape[2])
    grids = {"fixed": ImageGrid(VOLUME.affine, shape), "moving": ImageGrid(away, moving_shape)}
    for number, (name, grid) in enumerate(grids.items()):
        write_image(tmp_path / f"{name}.nii.gz", make_image(grid, number), grid)
    fixed, moving, out = (tmp_path / name for name in ("fixed.nii.gz", "moving.nii.gz", "out"))
    settings = ["iterations=[4]", "shrink_factors=[1]"]

    done = run_python(
        *["-m", "monai_nodeo", "register", "-f", str(fixed), "-m", str(moving), "-o", str(out), "--device", "cpu"],
        *[*words, *(word for setting in settings for word in ("--set", setting))],
        cwd=tmp_path,
    )

    assert done.returncode == 0, done.stderr
    assert ("results are in" in done.stderr + done.stdout) == ("--quiet" not in words)
    assert not ("--quiet" in words and done.stdout + done.stderr)
    figures = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert figures["iterations"] == 4
    assert figures["config"]["spatial_dims"] == grids["fixed"].spatial_dims
    assert figures["config"]["shrink_factors"] == [1]
    low = str(nib.Nifti1Image.from_filename(moving).get_fdata().min())
    files = ["-i", moving, "-r", fixed, "-t", out / "transform.h5", "--outside", low]
    succeed("apply", *files, "-o", tmp_path / "again.nii.gz")
    ours, again = (nib.Nifti1Image.from_filename(path) for path in (out / "warped.nii.gz", tmp_path / "again.nii.gz"))
    assert ours.shape == again.shape == shape
    values, expected = (image.get_fdata().reshape(grids["fixed"].spatial_shape) for image in (again, ours))
    assert np.ptp(interior(expected, 3)) > 50
    np.testing.assert_allclose(interior(values, 3), interior(expected, 3), rtol=0, atol=0.1)
