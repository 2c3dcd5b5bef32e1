# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import click
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from click.testing import CliRunner, Result
from cohorts import as_it_was
from finished import table
from grids import GRIDS, SLICE, VOLUME, interior, make_ddf, make_image, make_start, registration, world
from ignite.engine import Events
from PIL import Image

import monai_nodeo
from monai_nodeo.apps.cli import COMMANDS, main
from monai_nodeo.apps.cli._options import configure_logging
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
from monai_nodeo.registration import ProgressBar

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


def without(*modules: str, calls: list[list[str]], cwd: Path = ROOT) -> list[str]:
    """What calls of the command say, one after the other in a process where some modules cannot be imported."""
    code = f"""
        import json, sys
        from click.testing import CliRunner
        from monai_nodeo.apps.cli import main
        sys.modules |= dict.fromkeys({modules})
        found = [CliRunner().invoke(main, words) for words in {calls}]
        print(json.dumps([[r.exit_code, r.stdout, r.stderr, repr(r.exception)] for r in found]))"""
    done = run_python("-c", textwrap.dedent(code), cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


SLOW = ("torch", "monai", "numpy", "SimpleITK", "nibabel")


def test_help_needs_no_library():
    for status, said, *_ in without(*SLOW, calls=[["--help"], *([name, "--help"] for name in COMMANDS)]):
        assert status == 0
        assert said.startswith("Usage: ")


def test_commands_do_without_what_is_slow_to_import(folder, monkeypatch):
    """A result is whole before the report is imported, and its flow is used without MONAI."""
    image = folder / "moving.nii.gz"
    monkeypatch.setitem(sys.modules, "monai_nodeo.report", None)
    done = call("register", "-f", image, "-m", image, "-o", folder / "out", *FEW)
    assert "import of monai_nodeo.report halted" in str(done.exception)
    assert (folder / "out" / "metrics.json").is_file()
    assert table(folder / "out")
    files = ["-i", "moving.nii.gz", "-r", "moving.nii.gz", "-o", "moved.nii.gz", "-t"]
    over_files = [["apply", *files, "transform.h5"], ["convert", "transform.h5", "f.nii.gz"], ["info", "transform.h5"]]
    over_flows = [["apply", *files, "out"], *(["invert", "-o", "inverse.h5", "-t", t] for t in ("out", "transform.h5"))]
    for modules, calls in (("torch",), over_files), (("monai", "torchdiffeq"), over_flows):
        assert [status for status, *_ in without(*modules, calls=calls, cwd=folder)] == [0, 0, 0]


def test_register_tells_a_mistyped_file_at_once(folder):
    """Before anything slow is imported; and with all files there, it says what it does."""
    keys = ("fixed", "moving", "moving_mask", "init")
    calls = []
    for absent in (*keys, None):
        names = {key: "absent.nii.gz" if key == absent else "moving.nii.gz" for key in keys}
        calls.append(["register", *(w for k, n in names.items() for w in (f"--{k.replace('_', '-')}", n)), "-o", "out"])
    *mistyped, right = without(*SLOW, calls=calls, cwd=folder)
    for key, (status, out, said, _) in zip(keys, mistyped, strict=True):
        assert (status, out) == (1, "")
        assert said.splitlines() == [f"Error: {key} absent.nii.gz: there is no such file; check the path."]
    assert right[1].splitlines() == ["registering moving.nii.gz to moving.nii.gz"]
    assert "halted" in right[3]
    (folder / "broken.nii.gz").write_text("no image", encoding="utf-8")
    words = ["register", "-f", "moving.nii.gz", "-m", "moving.nii.gz", "--moving-mask", "broken.nii.gz", "-o", "out"]
    ((status, _, said, _),) = without("torch", calls=[words], cwd=folder)
    assert status == 1
    assert said.startswith("Error: moving_mask broken.nii.gz: not an image")


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["sequence", "moving.nii.gz", "absent.nii.gz"], "series"),
        (["sequence", "moving.nii.gz", "moving.nii.gz", "--points", "absent.nii.gz"], "points"),
        (["motion", "moving.nii.gz", "absent.nii.gz"], "series"),
        (["template", "moving.nii.gz", "absent.nii.gz"], "image"),
        (["propagate", "moving.nii.gz", "--atlases", ".", "--label", "absent.nii.gz"], "label"),
    ],
)
def test_every_command_for_groups_and_series_tells_a_mistyped_file_before_it_begins(words, key, folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setitem(sys.modules, "monai_nodeo.files", None)
    assert fail(*words, "-o", "out") == f"Error: {key} absent.nii.gz: there is no such file; check the path."


def test_mistakes_about_frames_are_told_without_torch(folder):
    write_image(folder / "other.nii.gz", make_image(VOLUME), VOLUME)
    series = ["moving.nii.gz", "other.nii.gz", "-o"]
    calls = {
        "there is no frame 2; the 2 frames are numbered from 0": ["sequence", *series, "out", "--reference", "2"],
        "there is no frame -1; the 2 frames are numbered": ["motion", *series, "out", "--reference=-1"],
        "2 frames and 3 times": ["sequence", *series, "out", "--times", "0,1,2"],
        "the period is 0.5 and the frames last 1": ["sequence", *series, "out", "--periodic", "0.5"],
        "labels.nii.gz is a file, and the results need a folder": ["sequence", *series, "labels.nii.gz/out"],
    }
    found = without("torch", "monai", calls=list(calls.values()), cwd=folder)
    for message, (status, _, said, _) in zip(calls, found, strict=True):
        assert status == 1
        assert message in said


def test_a_file_in_the_place_of_the_results_and_too_few_atlases_are_told_without_torch(folder):
    rows = [{"image": "moving.nii.gz", "label": "labels.nii.gz", "id": id} for id in "ab"]
    (folder / "atlases.json").write_text(json.dumps(rows), encoding="utf-8")
    write_image(folder / "other.nii.gz", make_image(VOLUME), VOLUME)
    images = ["moving.nii.gz", "other.nii.gz"]
    taken = ["-o", "labels.nii.gz/out"]
    atlases = ["propagate", "other.nii.gz", "--atlases", "atlases.json"]
    calls = {
        "is a file, and the results need a folder": [
            ["register", "-f", *images[:1], "-m", *images[1:], *taken],
            ["template", *images, *taken],
            [*atlases, *taken],
        ],
        "the best 3 of 2 atlases were asked for": [[*atlases, "-o", "out", "--best", "3"]],
    }
    pairs = [(message, words) for message, several in calls.items() for words in several]
    found = without("torch", "monai", calls=[words for _, words in pairs], cwd=folder)
    for (message, _), (status, _, said, _) in zip(pairs, found, strict=True):
        assert (status, message in said) == (1, True), said


def test_a_template_of_images_that_cannot_be_read_tells_of_no_fixed_image(folder):
    (folder / "list.json").write_text('[{"image": "a.nii.gz"}, {"image": "b.nii.gz"}]', encoding="utf-8")
    assert "Error: no image of the list can be read: " in fail("template", folder / "list.json", "-o", folder / "out")


def test_every_command_explains_itself_and_its_options():
    for name in COMMANDS:
        command = main.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None
        assert command.help
        options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
        assert [option.name for option in options if not option.help] == []


def test_version_and_unknown_command():
    assert succeed("--version").split() == ["main", monai_nodeo.__version__]
    result = call("aply")
    assert result.exit_code == 2
    assert "No such command 'aply'" in result.stderr


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
def test_every_channel_and_volume_is_what_simpleitk_makes_of_it(kind, name, interpolation, tmp_path):
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
    assert not series or warped.header.get_zooms()[3:] == (2.5,)
    assert warped.header["intent_code"] == (0 if series else 1007)
    values = np.asarray(warped.dataobj).reshape(*GRIDS[kind].shape, 3).astype(int)
    way, mode = sitk.ReadTransform(tmp_path / "t.h5"), INTERPOLATIONS[interpolation]
    for i, part in enumerate(parts):
        low = float(sitk.GetArrayViewFromImage(part).min()) if interpolation == "linear" else 0.0
        expected = sitk.GetArrayFromImage(sitk.Resample(part, part, way, mode, low)).T.astype(int)
        different = np.abs(values[..., i] - expected)
        assert np.ptp(expected) > 50
        # a tie of two neighbours, or of rounding, falls this way or that
        assert (different > 1).mean() < 1e-3 if interpolation == "nearest" else different.max() <= 1


def test_convert_keeps_the_way_of_points(folder):
    for source, target in (("transform.h5", "field.nii.gz"), ("field.nii.gz", "back.h5")):
        assert succeed("convert", folder / source, folder / target) == f"{folder / target}\n"
    points = world(VOLUME, np.random.default_rng(0).integers(1, 20, (20, 3)))
    expected = registration(VOLUME).map_points(points)
    np.testing.assert_allclose(read_transform(folder / "back.h5").map_points(points), expected, rtol=0, atol=1e-4)


def test_invert_says_how_far_from_home(folder):
    figures = json.loads(succeed("invert", "-t", folder / "transform.h5", "-o", folder / "inverse.h5", "--json"))
    (field,) = figures["field"]
    residual = field["inverse"]
    assert 0 < residual["voxels_mean"] <= residual["voxels_quantile"] <= residual["voxels_max"] < 2e-3
    assert field["cells"] == np.prod([n - 1 for n in VOLUME.shape])
    assert field["folded_cells"] == sum(field["folded_by_difference"]) == 0
    assert field["invertible"]
    assert field["verdict"].startswith("Invertible: no cell folds")
    points = world(VOLUME, np.array([[9, 11, 13], [12, 14, 16]]))
    home = read_transform(folder / "inverse.h5").map_points(registration(VOLUME).map_points(points))
    np.testing.assert_allclose(home, points, rtol=0, atol=0.1)


def test_inverse_as_one_field_needs_the_moving_grid(folder):
    words = ["invert", "-t", folder / "transform.h5", "-o", folder / "inverse.nii.gz"]
    assert "a field needs a grid" in fail(*words)
    succeed(*words, "-r", folder / "moving.nii.gz")
    assert [type(step).__name__ for step in read_transform(folder / "inverse.nii.gz").steps] == ["Displacement"]


def test_fold_is_said(tmp_path):
    write_transform(tmp_path / "folds.h5", Transform.of_registration(5 * make_ddf(SLICE), SLICE))
    result = call("invert", "-t", tmp_path / "folds.h5", "-o", tmp_path / "inverse.h5")
    assert result.exit_code == 0
    assert result.stderr.startswith("warning: Not invertible: ")
    assert "Where it folds" in result.stderr


def test_info_shows_every_step(folder):
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


def test_evaluate_finds_a_known_transform_perfect(folder):
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
    (proof,) = figures["certificate"]
    assert proof["verdict"] in shown
    assert len(proof["folded_by_difference"]) == 10
    assert proof["solver_error"] is None  # of this field no flow is known
    assert "labels after dice mean" in shown


def test_landmarks_off_the_plane_of_a_slice_are_told_by_evaluate(tmp_path, caplog):
    write_transform(tmp_path / "t.h5", Transform(registration(SLICE).steps[:1]))
    lps = world(SLICE, np.array([[10, 12, 0], [10, 12, 2]])) * [-1, -1, 1]
    (tmp_path / "p.csv").write_text("x,y,z\n" + "".join(",".join(map(str, p)) + "\n" for p in lps), encoding="utf-8")
    words = ["evaluate", "-t", tmp_path / "t.h5", "--fixed-landmarks", tmp_path / "p.csv", "--moving-landmarks"]
    figures = json.loads(succeed(*words, tmp_path / "p.csv", "--json"))
    assert [error > 0.1 for error in figures["landmarks"]["after"]["tre_mm"]] == [True, False]
    assert "only 50 % of" in caplog.text
    assert "p.csv lie on the grid of the displacement field; the rest is not displaced" in caplog.text


def test_mistakes_are_told_in_one_line(folder):
    transform, moving = folder / "transform.h5", folder / "moving.nii.gz"
    apply = ["apply", "-i", moving, "-r", moving]
    assert "absent.h5: there is no such file" in fail(*apply, "-t", folder / "absent.h5", "-o", folder / "o.nii.gz")
    assert "images are .nii.gz, .nii, .ome.zarr, or" in fail(*apply, "-t", transform, "-o", folder / "o.jpg")
    assert "make it first" in fail(*apply, "-t", transform, "-o", folder / "no" / "o.nii.gz")
    register = ["register", "-f", moving, "-m", moving, "-o"]
    for place in (moving, moving / "below"):
        assert f"{moving} is a file, and the results need a folder" in fail(*register, place)
    assert "transforms are files that end" in fail("convert", transform, folder / "o.xyz")
    labels = ["evaluate", "-t", transform, "--fixed-label", folder / "labels.nii.gz", "--moving-label"]
    assert "moving.nii.gz: the values are no whole numbers, expected labels" in fail(*labels, moving)
    assert {path.name for path in folder.iterdir()} == {"moving.nii.gz", "labels.nii.gz", "transform.h5"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["apply", "-i", "a.nii.gz", "-t", "t.h5", "-o", "o.nii.gz"], "give it with -r"),
        (["evaluate", "-t", "t.h5", "--fixed-label", "a.nii.gz"], "--moving-label come together"),
        (["register", "-f", "a", "-o", "c"], "two images are needed: monai-nodeo register FIXED MOVING"),
        (["register", "a"], "1 of 2 images"),
        (["register", "a", "b", "c"], "3 of 2 images"),
        (["register", "a", "b", "-m", "c"], "by their place or by -f and -m, not by both"),
        (["register", "-f", "a", "-m", "b", "-o", "c", "--preset", "slow"], "'slow' is not one of"),
        (["register", "-f", "a", "-m", "b", "-o", "c", "--set", "iterations"], "is not of the form NAME=VALUE"),
        (
            ["apply", "-i", "a.nii.gz", "-r", "a.nii.gz", "-t", "t.h5", "-o", "o.nii.gz", "--inverse"],
            "monai-nodeo invert",
        ),
        (["apply", "-i", "a.csv", "-r", "a.nii.gz", "-t", "t.h5", "-o", "o.csv"], "leave out -r"),
        (["flow", ".", "--times", "0,2"], "'0,2' is no list of times from 0 to 1"),
        (["flow", ".", "--animate", "film.mp4"], "'film.mp4' is neither a .gif nor a folder"),
    ],
)
def test_wrong_use_is_told(words, message):
    result = call(*words)
    assert result.exit_code == 2
    assert message in result.stderr


FEW = ["--device", "cpu", "--init", "none"]
FEW += [word for few in ("iterations=[6,4]", "shrink_factors=[2,1]", "dense_iterations=0") for word in ("--set", few)]
AWAY = {"volume": np.array([120.0, -80.0, 60.0]), "slice": 40 * VOLUME.affine[:3, 2] / 2.5}
SHAPES = {"volume": (14, 16, 12), "slice": (24, 22, 1)}
WORDS = {"volume": ["--init", "moments"], "slice": ["--quiet", "--no-report"]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Result]]:
    """Volumes far apart, and slices of different levels: the folder with images, points and ``out``, and what was said.

    The moving image has voxels and a place of its own.
    """
    found = {}
    for kind, shape in SHAPES.items():
        folder = tmp_path_factory.mktemp(kind)
        moving = VOLUME.affine.copy()
        moving[:3, 3] += AWAY[kind]
        grids = {
            "fixed": ImageGrid(VOLUME.affine, shape),
            "moving": ImageGrid(moving, (*np.add(shape, 2)[:2], shape[2])),
        }
        for number, (name, grid) in enumerate(grids.items()):
            write_image(folder / f"{name}.nii.gz", make_image(grid, number), grid)
            write_labels(folder / f"{name}_label.nii.gz", np.digitize(make_image(grid, number), [500]), grid)
        index = np.minimum([[5, 6, 7], [8, 9, 5]], np.subtract(shape, 1))
        rows = [f"{-x},{-y},{z}" for x, y, z in world(grids["fixed"], index)]
        (folder / "points.csv").write_text("\n".join(["x,y,z", *rows]))
        labels = ["--fixed-label", "fixed_label.nii.gz", "--moving-label", "moving_label.nii.gz"]
        images = ["-f", "fixed.nii.gz", "-m", "moving.nii.gz", "-o", "out"]
        with as_it_was(), contextlib.chdir(folder):
            done = call("register", *images, *labels, *FEW, *WORDS[kind])
        assert done.exit_code == 0, done.output
        found[kind] = folder, done
    return found


@pytest.fixture(params=SHAPES)
def run(request: pytest.FixtureRequest, runs: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One of the folders, as the working directory."""
    monkeypatch.chdir(runs[request.param][0])
    return Path("out")


def values(path: Path | str) -> np.ndarray:
    return nib.Nifti1Image.from_filename(path).get_fdata()


def points_of(path: Path | str) -> np.ndarray:
    return np.loadtxt(path, delimiter=",", skiprows=1)


def test_register_needs_two_images_and_nothing_else(runs, tmp_path, monkeypatch):
    """The results are those of the options; without a name their folder has that of both images, and is never one
    that is there."""
    folder, _ = runs["slice"]
    for name in ("fixed", "moving"):
        shutil.copy(folder / f"{name}.nii.gz", tmp_path)
    monkeypatch.chdir(tmp_path)
    succeed("register", "fixed.nii.gz", "moving.nii.gz", *FEW, *WORDS["slice"])
    assert (values("moving_to_fixed/warped.nii.gz") == values(folder / "out/warped.nii.gz")).all()
    assert "moving_to_fixed is there already; name a folder" in fail("register", "fixed.nii.gz", "moving.nii.gz")


def test_register_says_what_it_did(runs):
    _, loud = runs["volume"]
    figures = json.loads((runs["volume"][0] / "out" / "metrics.json").read_text(encoding="utf-8"))
    first, *_, summary, verdict, place = loud.stdout.splitlines()
    assert first == "registering moving.nii.gz to fixed.nii.gz"
    assert summary.startswith("moving_to_fixed: similarity loss ")
    assert verdict == figures["certificate"]["verdict"]
    assert place.startswith("results are in ")
    _, quiet = runs["slice"]
    assert quiet.stdout == ""
    assert all(line.startswith("warning: ") for line in quiet.stderr.splitlines())  # unlike images


@pytest.mark.parametrize("quiet", [False, True])
def test_warnings_are_told_also_quietly_and_ends_of_ignite_never(quiet, monkeypatch, capsys):
    monkeypatch.setattr(logging.root, "handlers", [])
    with as_it_was():
        configure_logging(quiet)
        logging.getLogger("monai_nodeo").info("done")
        logging.getLogger("monai_nodeo").warning("two places")
        logging.getLogger("ignite.engine.engine.PairTrainer").error("terminating")
    out, err = capsys.readouterr()
    assert (out, err.splitlines()) == ("", ["two places"] if quiet else ["done", "two places"])


def test_register_writes_what_was_asked_for(run):
    figures = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert figures["iterations"] == 10
    assert figures["settings"]["iterations"] == [6, 4]
    volume = figures["settings"]["spatial_dims"] == 3
    assert (run / "report.html").exists() == volume
    (row,) = table(run)
    assert row["id"] == figures["id"] == "moving_to_fixed"
    assert float(row["dice_mean_after"]) == figures["after"]["dice_mean"]
    assert figures["certificate"]["file_error_voxels"] < 1e-4


def test_apply_makes_the_warped_image_again(run, tmp_path):
    files = ["-i", "moving.nii.gz", "-r", "fixed.nii.gz", "-t", "out", "-o", tmp_path / "again.nii.gz"]
    assert succeed("apply", *files) == f"{tmp_path / 'again.nii.gz'}\n"
    warped, again = (np.squeeze(values(path)) for path in (run / "warped.nii.gz", tmp_path / "again.nii.gz"))
    assert np.ptp(interior(warped, 3)) > 50
    np.testing.assert_allclose(interior(again, 3), interior(warped, 3), rtol=0, atol=0.1)


def test_points_go_there_and_back_by_the_flow(run, tmp_path):
    for name, words in {
        "there": ["-i", "points.csv", "-t", run],
        "file": ["-i", "points.csv", "-t", run / "transform.h5"],
        "half": ["-i", "points.csv", "-t", run, "--t1", "0.5"],
        "halves": ["-i", tmp_path / "half.csv", "-t", run, "--t0", "0.5"],
        "back": ["-i", tmp_path / "there.csv", "-t", run, "--inverse"],
    }.items():
        succeed("apply", *words, "-o", tmp_path / f"{name}.csv")
    start, there, file, half, halves, back = (
        points_of(path)
        for path in ("points.csv", *(tmp_path / f"{n}.csv" for n in ("there", "file", "half", "halves", "back")))
    )
    assert np.linalg.norm(half - start, axis=1).min() > 0.1
    np.testing.assert_allclose(there, file, atol=0.02)  # the flow itself, and linear between voxels
    np.testing.assert_allclose(halves, there, atol=0.01)
    np.testing.assert_allclose(back, start, atol=0.01)


def test_the_way_back_is_one_by_apply_and_by_invert(run, tmp_path):
    """The fixed image comes on to the moving grid."""
    files = ["-i", "fixed.nii.gz", "-r", "moving.nii.gz"]
    succeed("apply", *files, "-t", run, "--inverse", "-o", tmp_path / "back.nii.gz")
    succeed("invert", "-t", run, "-o", tmp_path / "inverse.h5")
    succeed("apply", *files, "-t", tmp_path / "inverse.h5", "-o", tmp_path / "again.nii.gz")
    np.testing.assert_allclose(values(tmp_path / "back.nii.gz"), values(tmp_path / "again.nii.gz"), atol=0.1)
    moving = ImageGrid.from_file("moving.nii.gz")  # at whose voxels the file is as exact as the flow
    points = world(moving, np.minimum([[6, 6, 6], [9, 11, 5]], np.subtract(moving.shape, 1)))
    (tmp_path / "moving.csv").write_text("\n".join(["x,y,z", *(f"{-x},{-y},{z}" for x, y, z in points)]))
    succeed("apply", "-i", tmp_path / "moving.csv", "-t", run, "--inverse", "-o", tmp_path / "fixed.csv")
    home = read_transform(tmp_path / "inverse.h5").map_points(points)
    np.testing.assert_allclose(home, points_of(tmp_path / "fixed.csv") * [-1, -1, 1], atol=1e-3)


def test_there_is_one_truth_about_a_registration(run, tmp_path):
    known = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["certificate"]
    (inverted,) = json.loads(succeed("invert", "-t", run, "-o", tmp_path / "inverse.h5", "--json"))["field"]
    labels = ["--fixed-label", "fixed_label.nii.gz", "--moving-label", "moving_label.nii.gz"]
    evaluated = json.loads(succeed("evaluate", "-t", run, *labels, "--json"))
    assert inverted == known
    assert evaluated["certificate"] == [known]
    (as_field,) = json.loads(succeed("evaluate", "-t", run / "transform.h5", "--json"))["certificate"]
    for name in ("cells", "folded_cells", "folded_by_difference"):
        assert as_field[name] == known[name]
    for name in ("smallest_volume", "largest_volume"):  # of millimetres that were voxels
        assert as_field[name] == [pytest.approx(known[name][0], rel=1e-5), known[name][1]]


def test_flow_writes_the_moving_image_on_its_way(run, tmp_path):
    words = ["--times", "0,0.5,1", "--points", "points.csv", "--animate", tmp_path / "film.gif", "-o", tmp_path / "way"]
    succeed("flow", run, *words)
    way = tmp_path / "way"
    names = {
        f"time_{time}{what}"
        for time in ("0.000", "0.500", "1.000")
        for what in (".nii.gz", "_label.nii.gz", "_points.csv")
    }
    assert {path.name for path in way.iterdir()} == names
    np.testing.assert_allclose(values(way / "time_0.000.nii.gz"), values(run / "warped.nii.gz"), atol=0.01)
    np.testing.assert_array_equal(values(way / "time_0.000_label.nii.gz"), values(run / "warped_label.nii.gz"))
    np.testing.assert_allclose(points_of(way / "time_0.000_points.csv"), points_of("points.csv"), atol=1e-5)
    near, half, far = (values(way / f"time_{time}.nii.gz") for time in ("0.000", "0.500", "1.000"))
    assert np.abs(half - near).mean() < np.abs(far - near).mean()
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames == 40
        assert film.size[1] == 320


def test_a_film_may_be_a_folder_of_pictures(runs, tmp_path):
    succeed("flow", runs["slice"][0] / "out", "--times", "0", "--animate", tmp_path / "frames", "-o", tmp_path / "way")
    frames = sorted((tmp_path / "frames").iterdir())
    assert [frame.name for frame in frames] == [f"frame_{number:03d}.png" for number in range(21)]
    first, last = (np.asarray(Image.open(frame), float) for frame in (frames[0], frames[-1]))
    assert np.abs(first - last).mean() > 1


def test_without_its_images_a_registration_still_moves_points_and_says_what_it_lacks(runs, tmp_path):
    folder = tmp_path / "moved"
    shutil.copytree(runs["volume"][0] / "out", folder)
    figures = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    (folder / "metrics.json").write_text(json.dumps(figures | {"fixed": "gone.nii.gz", "moving": "gone.nii.gz"}))
    points = runs["volume"][0] / "points.csv"
    succeed("apply", "-i", points, "-t", folder, "--inverse", "-o", tmp_path / "moved.csv")
    assert "images that were registered are not where they were" in fail("flow", folder)
    assert "give one with its grid as reference" in fail("invert", "-t", folder, "-o", tmp_path / "inverse.h5")
    assert "holds no metrics.json" in fail("apply", "-i", points, "-t", tmp_path, "-o", tmp_path / "moved.csv")


def test_ctrl_c_ends_every_command_with_a_word(runs, tmp_path, monkeypatch):
    def press(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("monai_nodeo.registration.sequences.register_sequence.fit", press)
    monkeypatch.chdir(runs["slice"][0])
    with as_it_was():
        done = call("sequence", "fixed.nii.gz", "fixed.nii.gz", "-o", tmp_path / "out")
    assert done.exit_code == 130
    assert done.stderr.splitlines()[-1] == "interrupted: nothing is half-written."
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("error", [np.empty, torch.empty], ids=["numpy", "torch"])
def test_want_of_memory_is_told_in_a_line(error, runs, tmp_path, monkeypatch):
    def too_much(*_: Any) -> None:
        error((1 << 25, 1 << 25))  # 8 PB: more than any address space

    monkeypatch.setattr("monai_nodeo.registration.sequences.register_sequence.fit", too_much)
    monkeypatch.chdir(runs["slice"][0])
    with as_it_was():
        assert fail("sequence", "fixed.nii.gz", "fixed.nii.gz", "-o", tmp_path / "out").startswith(
            "Error: memory ran out, and what was not finished is not written"
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("action", ["drop", "save"])
def test_ctrl_c_leaves_nothing_half_written_or_the_flow_so_far(action, runs, tmp_path, monkeypatch):
    class CtrlC(ProgressBar):
        def attach(self, engine: Any) -> None:
            engine.add_event_handler(Events.ITERATION_COMPLETED(once=3), lambda _: signal.raise_signal(signal.SIGINT))

    monkeypatch.setattr("monai_nodeo.registration.ProgressBar", CtrlC)
    monkeypatch.chdir(runs["slice"][0])
    # a process that a shell starts in the background ignores ctrl-C
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with as_it_was():
            images = ["-f", "fixed.nii.gz", "-m", "moving.nii.gz", "-o", tmp_path / "out"]
            done = call("register", *images, *FEW, "--on-interrupt", action)
    finally:
        signal.signal(signal.SIGINT, before)
    assert done.exit_code == 130
    if action == "drop":
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"interrupted: nothing is half-written in {tmp_path / 'out'}")
        assert not (tmp_path / "out").exists()
        return
    assert "interrupted: the flow is saved as far as it came" in done.stderr
    figures = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert (figures["iterations"], figures["interrupted_level"]) == (4, 0)  # three, and the first of the next level
    assert figures["displacement_mm_mean"] > 0
    assert "interrupt" in json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["headline"]


def test_a_reference_of_another_dimension_is_told(runs, tmp_path):
    image, kinds = runs["volume"][0] / "fixed.nii.gz", "a registration of slices, and the reference is a volume"
    words = ["-t", runs["slice"][0] / "out", "-o", tmp_path / "o.nii.gz"]
    assert f"{runs['slice'][0] / 'out'}: {kinds}" in fail("apply", "-i", image, "-r", image, *words)


@pytest.mark.parametrize("way", [[], ["--inverse"], ["--t0", "0.5"]])
def test_points_beside_a_slice_are_told(way, runs, tmp_path, monkeypatch, caplog):
    folder, _ = runs["slice"]
    monkeypatch.chdir(folder)
    grid = ImageGrid.from_file("moving.nii.gz" if "--inverse" in way else "fixed.nii.gz")
    for name, depth in (("in", [0.4, -0.4]), ("off", [0.4, -2.0])):
        rows = [f"{-x},{-y},{z}" for x, y, z in world(grid, np.array([[5, 6, depth[0]], [8, 9, depth[1]]]))]
        (tmp_path / f"{name}.csv").write_text("\n".join(["x,y,z", *rows]), encoding="utf-8")
    words = ["-t", "out", *way, "-o", tmp_path / "moved.csv"]
    succeed("apply", "-i", tmp_path / "in.csv", *words)
    assert caplog.messages == []
    succeed("apply", "-i", tmp_path / "off.csv", *words)
    (said,) = caplog.messages
    far = 2 * np.linalg.norm(grid.affine[:3, 2])
    assert f"off.csv: 1 of 2 points lie off the plane of the slice, by up to {far:.3g} mm" in said


def test_a_pipe_that_is_closed_is_no_error_of_the_input(monkeypatch):
    def closed(self: click.Group, ctx: click.Context) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(click.Group, "invoke", closed)
    with pytest.raises(BrokenPipeError):
        main.invoke(click.Context(main))
