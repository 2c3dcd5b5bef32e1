# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Inputs that break tools: each gives the right value, or an error of one line that fits."""

import json
import tarfile
import time
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from click.testing import CliRunner
from dicom import write_frames
from grids import OBLIQUE, VOLUME, make_affine, make_ddf, smooth_noise, world
from PIL import Image
from scans import refuse

from monai_nodeo import Settings, register
from monai_nodeo.apps import NodeoWorkflow
from monai_nodeo.apps.bundle.trust import check_safe_files
from monai_nodeo.apps.cli import main
from monai_nodeo.data.lists import load_datalist
from monai_nodeo.files import ImageGrid, Transform, open_stored, read_transform, write_transform
from monai_nodeo.registration.presets import preset_files

OTHER = make_affine((0.25, -0.2, 0.4), (1.2, 0.9, 2.5))
SHAPE = (9, 11, 13)
EVIL = '$__import__("pathlib").Path("pwned").touch()'
IDENTITY = "#Insight Transform File V1.0\n#Transform 0\nTransform: TranslationTransform_double_{0}_{0}\n"


def run(*words: object) -> None:
    result = CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output


def error(*words: object) -> str:
    """What a user is told, in one line."""
    result = CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code
    (line,) = (line for line in result.output.splitlines() if line.startswith("Error"))
    assert result.output.endswith(line + "\n")
    return line


@pytest.fixture
def identity(tmp_path: Path) -> Path:
    (tmp_path / "identity.tfm").write_text(IDENTITY.format(3) + "Parameters: 0 0 0\nFixedParameters: \n")
    return tmp_path / "identity.tfm"


def applied(image: Path | str, reference: Path | str, transform: Path | str, folder: Path, *words: str) -> np.ndarray:
    run("apply", "-i", image, "-r", reference, "-t", transform, "-o", folder / "out.nii.gz", *words)
    return np.asanyarray(nib.load(folder / "out.nii.gz").dataobj)


@pytest.mark.parametrize("name", ["ants_Warp", "nreg_def", "nreg_disp", "y_spm", "fsl_warp", "fsl_coef"])
def test_fields_of_other_tools_are_what_they_mean_or_refused(inputs, name, tmp_path):
    folder = inputs / "foreign_fields"
    image, field = folder / "mov.nii.gz", folder / f"{name}.nii.gz"
    if name.startswith("fsl"):
        told = error("apply", "-i", image, "-r", image, "-t", field, "-o", tmp_path / "out.nii.gz")
        assert f"{field}: a transform of FSL" in told
        assert not list(tmp_path.iterdir())
    else:
        expected = nib.load(folder / "expected.nii.gz").get_fdata()
        np.testing.assert_allclose(applied(image, image, field, tmp_path), expected, atol=1e-4)


def save_field(path: Path, values: np.ndarray, intent: int, name: str = "", kind: float = 0) -> None:
    image = nib.Nifti1Image(values.astype(np.float32), OBLIQUE)
    image.header["intent_code"], image.header["intent_name"], image.header["intent_p1"] = intent, name, kind
    nib.save(image, path)


@pytest.mark.parametrize(("name", "kind"), [("Mapping", 0), ("NREG_TRANS", 0), ("NREG_TRANS", 1)])
def test_places_and_displacements_in_ras(name, kind, tmp_path):
    index = np.indices(VOLUME.shape).reshape(3, -1).T
    there = world(VOLUME, index) + 3 * np.stack([smooth_noise(VOLUME.shape, seed).ravel() for seed in range(3)], 1)
    values = there - world(VOLUME, index) if kind else there
    save_field(tmp_path / "t.nii", values.reshape(*VOLUME.shape, 1, 3), 1007, name, kind)
    chosen = slice(None, None, 997)
    found = read_transform(tmp_path / "t.nii").map_points(world(VOLUME, index[chosen]))
    np.testing.assert_allclose(found, there[chosen], atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "intent", "name", "kind", "told"),
    [
        ((4, 5, 6, 3), 2008, "", 0, "a transform of FSL (intent code 2008)"),
        ((4, 5, 6, 1, 3), 1007, "NREG_TRANS", 5, "a transform of NiftyReg (kind 5"),
        ((4, 5, 6, 3), 1007, "Mapping", 0, "a field of shape (4, 5, 6, 3)"),
    ],
)
def test_other_fields_are_refused(shape, intent, name, kind, told, tmp_path):
    save_field(tmp_path / "t.nii", np.zeros(shape), intent, name, kind)
    assert told in error("info", tmp_path / "t.nii")


def test_afni_is_named_and_a_field_that_says_nothing_is_a_guess(tmp_path, caplog):
    image = nib.Nifti1Image(np.zeros((4, 5, 6, 1, 3), np.float32), OBLIQUE)
    image.header.set_intent("vector")
    image.header.extensions.append(nib.nifti1.Nifti1Extension("afni", b"<AFNI_attributes/>"))
    nib.save(image, tmp_path / "t.nii")
    assert "a transform of AFNI" in (said := error("info", tmp_path / "t.nii"))
    assert "--from afni -r FIXED -m MOVING" in said
    for name, warned in (("t.nii", True), ("disp_1_2.nii", False)):
        save_field(tmp_path / name, np.zeros((4, 5, 6, 3)), 0)
        caplog.clear()
        run("info", tmp_path / name)
        assert (f"{tmp_path / name}: nothing says" in caplog.text) == warned


def check_as_itk(image: Path, reference: Path, folder: Path) -> None:
    """A transform of ours, applied by ITK to the same files, gives our image."""
    grid = ImageGrid.from_file(reference)
    ddf = make_ddf(grid)
    write_transform(folder / "t.h5", Transform.of_registration(ddf, grid), grid)
    ours = applied(image, reference, folder / "t.h5", folder, "--outside", "0")
    moving, fixed = (sitk.ReadImage(str(path), sitk.sitkFloat32) for path in (image, reference))
    warped = sitk.Resample(moving, fixed, sitk.ReadTransform(str(folder / "t.h5")), sitk.sitkLinear, 0.0)
    theirs = sitk.GetArrayFromImage(warped).T
    assert theirs.any()
    assert np.median(np.abs(ours - theirs)) < 1e-3 * np.ptp(theirs)
    place, expected = sitk.ReadImage(str(folder / "out.nii.gz")), fixed
    np.testing.assert_allclose(place.GetOrigin(), expected.GetOrigin(), atol=1e-3)
    np.testing.assert_allclose(place.GetDirection(), expected.GetDirection(), atol=1e-4)


@pytest.mark.parametrize("name", ["b2_s2_q1", "b2_s0_q0", "b5_shear_q", "slice_q0_f"])
def test_the_place_is_the_one_that_itk_sees(inputs, name, tmp_path, caplog):
    file = inputs / "two_spaces" / f"{name}.nii.gz"
    check_as_itk(file, file, tmp_path)
    assert str(file) in caplog.text


@pytest.mark.parametrize(
    ("sform", "qform", "warned"),
    [
        ((OBLIQUE, 1), (OBLIQUE, 1), ""),
        ((OBLIQUE, 4), (OBLIQUE, 0), ""),
        ((OBLIQUE, 0), (OBLIQUE, 1), ""),
        ((OBLIQUE, 2), (OTHER, 1), "its sform (code 2) and qform (code 1) differ; the qform is used"),
        ((OBLIQUE, 1), (OTHER, 2), ""),
        ((OBLIQUE, 0), (OTHER, 0), "the header holds no place"),
        ((OBLIQUE @ (np.eye(4) + 0.3 * np.eye(4, k=1) * [0, 1, 0, 0]), 2), (OBLIQUE, 1), "the qform is used"),
    ],
)
@pytest.mark.parametrize("shape", [SHAPE, (9, 11, 1)])
def test_one_rule_for_two_forms(sform, qform, warned, shape, tmp_path, caplog):
    image = nib.Nifti1Image(100 * smooth_noise(shape, 1).astype(np.float32), None)
    image.set_sform(*sform)
    image.set_qform(*qform)
    nib.save(image, tmp_path / "i.nii.gz")
    if shape == SHAPE:
        check_as_itk(tmp_path / "i.nii.gz", tmp_path / "i.nii.gz", tmp_path)
    else:
        open_stored(tmp_path / "i.nii.gz")
    assert warned in caplog.text
    assert bool(warned) == bool(caplog.text)


def test_a_quaternion_longer_than_one(inputs, tmp_path):
    folder = inputs / "quaternion"
    found = applied(folder / "bad_quaternion.nii.gz", folder / "ref.nii.gz", folder / "id.tfm", tmp_path)
    image, reference = (sitk.ReadImage(str(folder / f"{name}.nii.gz")) for name in ("bad_quaternion", "ref"))
    expected = sitk.GetArrayFromImage(sitk.Resample(image, reference)).T
    inside = (slice(2, -2),) * 3
    np.testing.assert_allclose(found[inside], expected[inside], atol=1e-3)


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [3, 0, 4, 1, 2]])
def test_frames_of_any_order(order, tmp_path):
    values = np.random.default_rng(0).integers(0, 999, (6, 7, 5)).astype(np.int16)
    affine = make_affine((0.3, -0.2, 0.4), (1.25, 0.75, 2.5))
    write_frames(tmp_path / "f.dcm", values, affine, order)
    stored = open_stored(tmp_path / "f.dcm")
    found, place = stored.load(), stored.affine
    if place[:3, 2] @ affine[:3, 2] < 0:  # counted from the other end
        found, place = found[:, :, ::-1], place @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 4], [0, 0, 0, 1]])
    np.testing.assert_array_equal(found, values)
    np.testing.assert_allclose(place, affine, atol=1e-3)


@pytest.mark.parametrize("order", [[0, 1, 2, 4, 5], [0, 1, 1, 2, 3], [0, 1, 2, 0, 1], [1, 1, 1, 1, 1]])
def test_frames_that_are_no_volume_are_refused(order, tmp_path):
    write_frames(tmp_path / "f.dcm", np.zeros((6, 7, 6), np.int16), OBLIQUE, order)
    assert f"{tmp_path / 'f.dcm'}: its 5 frames are no regular grid" in refuse(tmp_path / "f.dcm", tmp_path / "f.dcm")


def unpack(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")


QUICK = ("--no-report", "--quiet", "--device", "cpu", "--init", "none")
QUICK += ("--set", "iterations=[1]", "--set", "shrink_factors=[2]", "--set", "dense_iterations=0")


def test_a_series_by_its_number(inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    unpack(inputs / "series_number" / "two.tar.gz", tmp_path)
    run("register", "-f", "two#3", "-m", "two#5", "-o", "out", *QUICK)
    assert nib.load("out/warped.nii.gz").shape == ImageGrid.from_file("two#3").shape


@pytest.mark.parametrize("name", ["x#1", "sub-01@#site", "$scan", "%scan", EVIL.replace("/", "")])
def test_a_path_is_a_path(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = nib.Nifti1Image(100 * smooth_noise((12, 13, 14), 1).astype(np.float32), OBLIQUE)
    nib.save(image, f"{name}.nii.gz")
    run("register", "-f", f"{name}.nii.gz", "-m", f"{name}.nii.gz", "-o", f"{name} out", *QUICK)
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.nii.gz", f"{name} out"}
    figures = json.loads(Path(f"{name} out/metrics.json").read_text())
    assert figures["moving"] == str(tmp_path / f"{name}.nii.gz")
    applied(f"{name}.nii.gz", f"{name}.nii.gz", f"{name} out", tmp_path)


@pytest.fixture
def place(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    image = nib.Nifti1Image(100 * smooth_noise((12, 13, 14), 1).astype(np.float32), OBLIQUE)
    image.header["descrip"], image.header["aux_file"], image.header["intent_name"] = EVIL, EVIL[:23], EVIL[:15]
    nib.save(image, "i.nii.gz")
    Path("evil.tfm").write_text(
        IDENTITY.format(3).replace("#Transform 0", f"# {EVIL}") + "Parameters: 0 0 0\nFixedParameters: \n"
    )
    Path("bad.tfm").write_text(f"#Insight Transform File V1.0\nTransform: {EVIL}\nParameters: {EVIL}\n")
    with h5py.File("evil.h5", "w") as file:
        file.create_group("TransformGroup/0")["TransformType"] = [EVIL]
    Path("pairs.json").write_text(
        json.dumps([{"fixed": EVIL, "moving": "i.nii.gz"}, {"fixed": "i.nii.gz", "id": EVIL}])
    )
    cell = '"{}"'.format(EVIL.replace('"', '""'))
    Path("pairs.csv").write_text(f"fixed,moving\n{cell},{cell}\n")
    Path("points.csv").write_text(f"x,y,z,name\n0,0,0,{cell}\n")
    Path("bad.csv").write_text(f"x,y,z\n{cell},0,0\n")
    return tmp_path


REGISTER = ("register", "-f", "i.nii.gz", *QUICK)


@pytest.mark.parametrize(
    "words",
    [
        (*REGISTER, "-m", EVIL, "-o", "out"),
        (*REGISTER, "-m", "i.nii.gz", "-o", EVIL.replace("/", "")),
        (*REGISTER, "-m", "i.nii.gz", "-o", "out", "--set", f"similarity={EVIL}"),
        (*REGISTER, "-m", "i.nii.gz", "-o", "out", "--set", f"{EVIL}=1"),
        (*REGISTER, "-m", "i.nii.gz", "-o", "out", "--init", EVIL),
        (*REGISTER, "-m", "i.nii.gz", "-o", "out", "--device", EVIL),
        ("apply", "-i", "i.nii.gz", "-r", "i.nii.gz", "-t", EVIL, "-o", "o.nii.gz"),
        ("apply", "-i", "i.nii.gz", "-r", "i.nii.gz", "-t", "evil.tfm", "-o", "o.nii.gz"),
        ("apply", "-i", "points.csv", "-t", "evil.tfm", "-o", "o.csv"),
        ("apply", "-i", "bad.csv", "-t", "evil.tfm", "-o", "o.csv"),
        ("info", "bad.tfm"),
        ("info", "evil.h5"),
        ("info", "i.nii.gz"),
        ("cohort", "pairs.json", "-o", "out", "--quiet"),
        ("cohort", "pairs.csv", "-o", "out", "--quiet"),
        ("cohort", "-f", "i.nii.gz", "-m", EVIL, "-o", "out"),
    ],
    ids=lambda words: " ".join(words[:1] + words[-4:])[:50],
)
def test_nothing_is_evaluated(words, place):
    result = CliRunner().invoke(main, words)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert not (place / "pwned").exists()


def test_a_refused_cohort_leaves_no_folder(place):
    Path("one.csv").write_text("fixed,moving\ni.nii.gz,i.nii.gz\n")
    assert "solver is 'x', expected one of" in error("cohort", "one.csv", "-o", "new/out", "--set", "solver=x")
    assert not (place / "new").exists()


@pytest.mark.parametrize("id", ["device", "settings#seed", "handlers", "fixed", "evaluator#amp"])
def test_no_override_of_the_bundle_is_evaluated(id, place):
    value = [EVIL] if id == "handlers" else EVIL
    if id == "fixed":
        workflow = NodeoWorkflow(logging_file=False, spatial_dims=3)
        workflow.fixed = EVIL
        workflow.initialize()
        assert workflow.fixed == Path(EVIL)
    else:
        with pytest.raises(ValueError, match="an override holds .*which could run code"):
            NodeoWorkflow(logging_file=False, **{id: value})
    assert len(load_datalist(place / "pairs.json")) == 2
    assert not (place / "pwned").exists()


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"settings::seed": 7, "device": "cpu"}, ""),
        ({"device": EVIL}, "device"),
        ({"handlers": [1, {"a": EVIL}]}, "handlers#1#a"),
        ({"loss_function": {"_target_": "os.system"}}, "loss_function#_target_"),
        ({"device": "%other.json::device"}, "device"),
    ],
)
def test_a_safe_config_holds_values_only(config, found, place):
    Path("c.json").write_text(json.dumps(config))
    files = [*map(str, preset_files(3)), "c.json"]
    if found:
        with pytest.raises(ValueError, match=rf"c\.json holds .* at '{found}', which could run code"):
            NodeoWorkflow(files, safe=True, logging_file=False)
    else:
        check_safe_files(files)
        assert NodeoWorkflow(files, safe=True, logging_file=False).parser["settings#seed"] == 7
    assert not (place / "pwned").exists()


@pytest.mark.parametrize("transform", ["e.tfm", "id.tfm"])
@pytest.mark.parametrize("interpolation", ["label", "nearest"])
@pytest.mark.parametrize("name", ["huge_i64", "huge_f64", "seg_u64", "seg_i64", "allen_u32"])
def test_ids_of_64_bits(inputs, name, interpolation, transform, tmp_path):
    folder = inputs / "labels_64bit"
    ids = np.asanyarray(nib.load(folder / f"{name}.nii.gz").dataobj)
    found = applied(folder / f"{name}.nii.gz", folder / "i16.nii.gz", folder / transform, tmp_path, "-n", interpolation)
    assert found.dtype == ids.dtype
    assert set(found.ravel().tolist()) <= {0, *ids.ravel().tolist()}
    if transform == "id.tfm":
        np.testing.assert_array_equal(found, ids)


@pytest.mark.parametrize("dtype", ["u1", ">i2", "u2", "u4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize("interpolation", ["linear", "nearest", "label"])
def test_the_type_stays(dtype, interpolation, identity, tmp_path):
    kind = np.dtype(dtype)
    largest = min(np.iinfo(kind).max, 2**53 if interpolation == "linear" else 2**64) if kind.kind != "f" else 2**24
    values = np.zeros(SHAPE, kind)
    values[3:5, 4:7, 5:9], values[6, 7, 8] = largest, 1
    if kind.kind == "f" and interpolation == "nearest":
        values[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(values, OBLIQUE, dtype=kind), tmp_path / "i.nii")
    found = applied(tmp_path / "i.nii", tmp_path / "i.nii", identity, tmp_path, "-n", interpolation)
    assert found.dtype == kind.newbyteorder("=")
    tolerance = 1e-6 * float(largest) if interpolation == "linear" and kind.itemsize > 2 else 0
    np.testing.assert_allclose(found, values, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("dtype", "outside", "held"),
    [("u1", 300, False), ("u1", -1, False), ("u1", 1.5, False), ("u1", "nan", False), ("u1", 255, True)]
    + [("i8", -5, True), ("f4", "nan", True), ("f4", 1e39, False), ("f8", 1e39, True), ("u8", 1e20, False)],
)
def test_the_value_outside(dtype, outside, held, identity, tmp_path):
    nib.save(nib.Nifti1Image(np.ones(SHAPE, dtype), np.eye(4), dtype=np.dtype(dtype)), tmp_path / "i.nii")
    nib.save(nib.Nifti1Image(np.ones((19, 11, 13), np.uint8), np.eye(4)), tmp_path / "r.nii")
    words = (tmp_path / "i.nii", tmp_path / "r.nii", identity)
    if held:
        found = applied(*words, tmp_path, "--outside", str(outside))[-1]
        np.testing.assert_array_equal(found, np.full(found.shape, float(outside)))
    else:
        told = error(
            *("apply", "-i", words[0], "-r", words[1], "-t", words[2], "-o", tmp_path / "o.nii", "--outside", outside)
        )
        assert f"{words[0]}: the value outside is" in told


def test_large_numbers_are_not_interpolated(identity, tmp_path):
    nib.save(nib.Nifti1Image(np.full(SHAPE, 2**60), OBLIQUE, dtype=np.int64), tmp_path / "i.nii")
    told = error("apply", "-i", tmp_path / "i.nii", "-r", tmp_path / "i.nii", "-t", identity, "-o", tmp_path / "o.nii")
    assert f"{tmp_path / 'i.nii'}: values of int64 up to 1152921504606846976 cannot be interpolated exactly" in told


@pytest.mark.parametrize(
    ("ids", "slope", "told"),
    [
        (np.int64(720575940628857210), 1, "label 720575940628857210 is not below 16777216"),
        (np.int32(614454277), 1, "label 614454277 is not below 16777216"),
        (np.int16(3), 0.5, "labels that were resampled linearly or whose header scales them"),
    ],
)
def test_label_maps_that_cannot_be_used(ids, slope, told, tmp_path):
    nib.save(nib.Nifti1Image(smooth_noise(SHAPE, 1).astype(np.float32), OBLIQUE), image := tmp_path / "i.nii")
    labels = np.zeros(SHAPE, ids.dtype)
    labels[2:5] = ids
    stored = nib.Nifti1Image(labels, OBLIQUE, dtype=ids.dtype)
    stored.header.set_slope_inter(slope, 0)
    nib.save(stored, label := tmp_path / "l.nii")
    assert told in refuse(image, image, fixed_label=label, moving_label=label)


@pytest.mark.parametrize(("mode", "told"), [("LA", "such as grey with transparency"), ("RGBA", "every voxel is 0")])
def test_pictures_with_more_than_grey(mode, told, tmp_path):
    Image.new(mode, (32, 40)).save(tmp_path / "p.png")
    line = refuse(tmp_path / "p.png", tmp_path / "p.png")
    assert told in line
    assert "damaged" not in line


def test_the_pull_of_landmarks_has_no_unit(tmp_path):
    """The same voxels, in millimetres and in micrometres."""
    settings = Settings.preset("fast", 3, iterations=[4, 4], shrink_factors=[2, 1], initial_transform=None)
    fields = []
    for scale in (1.0, 0.001):
        affine = np.diag([scale, scale, scale, 1])
        fixed, moving = (nib.Nifti1Image(smooth_noise((16, 17, 18), seed), affine) for seed in (1, 2))
        points = scale * np.array([[4.0, 5, 6], [10, 9, 8]])
        found = register(
            fixed,
            moving,
            fixed_landmarks=points,
            moving_landmarks=points + scale * np.array([2, -1, 1.5]),
            settings=settings,
            device="cpu",
        )
        fields.append(found.ddf)
    torch.testing.assert_close(fields[0], fields[1], atol=1e-3, rtol=0)


def test_the_same_bytes_from_the_same_transform(tmp_path):
    transform = Transform.of_registration(make_ddf(VOLUME), VOLUME, make_affine((0.1, 0, 0), (1, 1, 1.1)))
    for name in ("t.h5", "t.nii.gz"):
        (tmp_path / "1").mkdir(exist_ok=True)
        write_transform(tmp_path / name, transform)
        write_transform(tmp_path / "1" / name, transform)
    time.sleep(1.1)  # HDF5 and gzip count time in seconds
    for name in ("t.h5", "t.nii.gz"):
        write_transform(tmp_path / "1" / name, transform)
        assert (tmp_path / name).read_bytes() == (tmp_path / "1" / name).read_bytes()


# What the fuzz tests found


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("t.tfm", "Transform: CompositeTransform_double_3_3\n", "found no step"),
        ("t.tfm", "Transform: DisplacementFieldTransform_double_3_3\n", "the stored shape is (0, 0, 0)"),
        ("t.txt", "Transform: Euler3DTransform_double_3_3\nParameters: \n", "with 0 parameters, expected 6"),
        ("t.tfm", "Transform: Euler3DTransform_float_3_3\nParameters: 0 1 inf 0 0 0\n", "no finite numbers"),
        ("t.tfm", f"Transform: CompositeTransform_double_3_3\n{IDENTITY.format(2)[29:]}", "of one dimension"),
        ("t.tfm", f"{IDENTITY.format(3)[29:]}{IDENTITY.format(3)[29:]}", "2 transforms that are no composite"),
        ("t.mat", "\x80\x01", "no transform of ITK"),
        ("t.h5", "\x80\x01", "no transform of ITK"),
        ("t\n.h5", "", "no transform of ITK"),
    ],
)
def test_transform_files_that_end_itk_or_are_read_half(name, text, told, tmp_path):
    head = "" if name.endswith("h5") else "#Insight Transform File V1.0\n"
    (tmp_path / name).write_text(head + text, encoding="utf-8")
    line = error("info", tmp_path / name)
    assert told in line
    assert f"{tmp_path}/t" in line


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("xyzt_units", 4),
        ("dim", [4, 9, 11, 13, 0, 1, 1, 1]),
        ("srow_x", [np.nan] * 4),
        ("srow_z", [0] * 4),
        ("datatype", 4096),
    ],
)
def test_headers_that_say_what_cannot_be(field, value, identity, tmp_path):
    image = nib.Nifti1Image(np.ones(SHAPE, np.uint8), OBLIQUE)
    data = bytearray(image.to_bytes())
    header = image.header.copy()
    header["magic"], header["vox_offset"], header[field] = b"n+1", 352, value
    data[:348] = header.binaryblock
    (tmp_path / "i.nii").write_bytes(data)
    told = error("apply", "-i", tmp_path / "i.nii", "-r", tmp_path / "i.nii", "-t", identity, "-o", tmp_path / "o.nii")
    assert f"{tmp_path / 'i.nii'}: " in told


def test_a_step_of_time_that_is_none(identity, tmp_path):
    image = nib.Nifti1Image(np.ones((*SHAPE, 2), np.uint8), OBLIQUE)
    image.header["pixdim"][4], image.header["xyzt_units"] = -2, 2 + 56
    nib.save(image, tmp_path / "i.nii")
    assert applied(tmp_path / "i.nii", tmp_path / "i.nii", identity, tmp_path).shape == (*SHAPE, 2)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--device", "cuda:97"), "device 'cuda:97' cannot be used here"),
        (("--device", "gpu"), "'gpu' is no device"),
        (("--set", "name=x"), "unknown setting 'name'"),
        (("--set", "self=1"), "unknown setting 'self'"),
        (("--set", "spatial_dims=2"), "is a volume, and this run registers slices (spatial_dims=2)"),
        (("--set", f"seed={10**30}"), "expected a number of at most 64 bits"),
        (("--fixed-label", "~nobody-here"), "~nobody-here: there is no such file"),
    ],
)
def test_command_lines_that_ask_for_what_is_not(words, told, tmp_path):
    nib.save(nib.Nifti1Image(smooth_noise((12, 13, 14), 1).astype(np.float32), OBLIQUE), tmp_path / "i.nii")
    start = ("register", "-f", tmp_path / "i.nii", "-m", tmp_path / "i.nii", "-o", tmp_path / "out")
    device = () if "--device" in words else ("--device", "cpu")
    assert told in error(*start, "--no-report", "--quiet", *device, *words)
    assert {path.name for path in tmp_path.iterdir()} == {"i.nii"}
