# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
import shutil
import struct
import subprocess
from dataclasses import replace

import h5py
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from grids import GRIDS, OBLIQUE, VOLUME, interior, make_ddf, make_image, make_start, moved, registration, warped, world

from monai_nodeo.files import (
    Affine,
    Displacement,
    ImageGrid,
    Transform,
    read_affine,
    read_displacement,
    read_points,
    read_transform,
    write_affine,
    write_displacement,
    write_points,
    write_transform,
)
from monai_nodeo.files.resampling import apply_to_image, read_chain

FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])  # RAS <-> LPS


def some_voxels(grid: ImageGrid, count: int = 40) -> np.ndarray:
    return np.random.default_rng(5).integers(1, np.array(grid.spatial_shape) - 1, (count, grid.spatial_dims))


@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("name", ["transform.h5", "displacement.nii.gz", "disp_0001_0002.nii.gz", "transform.x5"])
def test_every_format_takes_points_to_the_moving_image(kind, name, tmp_path):
    grid = GRIDS[kind]
    if name.startswith(("disp_", "transform.x5")) and kind == "plane":
        with pytest.raises(ValueError, match="of volumes"):
            write_transform(tmp_path / name, registration(grid))
        return
    write_transform(tmp_path / name, registration(grid))
    index = some_voxels(grid)
    there = read_transform(tmp_path / name).map_points(world(grid, index))
    expected = moved(grid, make_ddf(grid), make_start(grid), index)
    assert np.abs(expected - world(grid, index)).max() > 1
    np.testing.assert_allclose(there, expected, rtol=0, atol=2e-5)


def test_nitransforms_reads_our_composite(tmp_path):
    from nitransforms.manip import TransformChain

    write_transform(tmp_path / "transform.h5", registration(VOLUME))
    index = some_voxels(VOLUME)
    there = TransformChain.from_filename(tmp_path / "transform.h5", fmt="itk").map(world(VOLUME, index))
    np.testing.assert_allclose(there, moved(VOLUME, make_ddf(VOLUME), make_start(VOLUME), index), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["affine", "field"])
def test_x5_goes_to_nitransforms_and_back(kind, tmp_path):
    from nitransforms.io.x5 import to_filename
    from nitransforms.linear import Affine as TheirAffine
    from nitransforms.nonlinear import DenseFieldTransform

    ours = Transform((Affine(make_start(VOLUME)),)) if kind == "affine" else registration(VOLUME)
    write_transform(tmp_path / "ours.x5", ours)
    reader = TheirAffine if kind == "affine" else DenseFieldTransform
    theirs = reader.from_filename(tmp_path / "ours.x5", fmt="X5")
    theirs.reference = nib.Nifti1Image(np.zeros(VOLUME.shape, np.uint8), VOLUME.affine)
    points = world(VOLUME, some_voxels(VOLUME))
    np.testing.assert_allclose(theirs.map(points), ours.map_points(points), rtol=0, atol=1e-4)
    to_filename(tmp_path / "theirs.x5", [theirs.to_x5()])
    back = read_transform(tmp_path / "theirs.x5").map_points(points)
    np.testing.assert_allclose(back, ours.map_points(points), rtol=0, atol=1e-4)
    to_filename(tmp_path / "two.x5", [theirs.to_x5()] * 2)
    with pytest.raises(ValueError, match=r"two\.x5: 2 x 1 transforms"):
        read_transform(tmp_path / "two.x5")


@pytest.mark.parametrize("of", ["ours", "AFNI's"])
def test_afni_is_what_nitransforms_says(of, tmp_path):
    from nitransforms.io.afni import AFNIDisplacementsField, AFNILinearTransform
    from nitransforms.nonlinear import DenseFieldTransform

    grid = ImageGrid(np.array([[0, 1.5, 0, 3], [-0.8, 0, 0, 7], [0, 0, 2.5, -3], [0, 0, 0, 1]]), (9, 11, 13))
    field = Transform((Displacement(grid, make_ddf(grid)),))
    write_transform(tmp_path / "f.nii.gz", field)
    if of == "AFNI's":
        image = nib.Nifti1Image.from_filename(tmp_path / "f.nii.gz")
        image = nib.Nifti1Image(np.asarray(image.dataobj), image.affine)  # it sets no intent
        image.header.extensions.append(nib.nifti1.Nifti1Extension("afni", b"<AFNI_attributes/>"))
        nib.save(image, tmp_path / "f.nii.gz")
    points = world(grid, some_voxels(grid))
    theirs = DenseFieldTransform(AFNIDisplacementsField.from_image(nib.load(tmp_path / "f.nii.gz")))
    np.testing.assert_allclose(theirs.map(points), field.map_points(points), rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        read_transform(tmp_path / "f.nii.gz").map_points(points), field.map_points(points), rtol=0, atol=1e-5
    )
    write_transform(tmp_path / "a.aff12.1D", Transform((Affine(make_start(grid)),)))
    if of == "AFNI's":
        AFNILinearTransform.from_ras(make_start(grid)).to_filename(tmp_path / "a.aff12.1D")
    there = AFNILinearTransform.from_filename(tmp_path / "a.aff12.1D").to_ras()
    np.testing.assert_allclose(there, make_start(grid), atol=1e-4)  # it writes 6 digits
    np.testing.assert_allclose(read_affine(tmp_path / "a.aff12.1D"), there, atol=1e-9)


def test_greedy_warps_with_our_field_and_we_with_its(tmp_path, monkeypatch):
    greedy = pytest.importorskip(
        "picsl_greedy", reason="greedy is not installed; pip install picsl_greedy for this test"
    )
    monkeypatch.chdir(tmp_path)
    image = nib.Nifti1Image(make_image(VOLUME).astype(np.float32), VOLUME.affine)
    nib.save(image, "image.nii.gz")
    write_transform("ours.nii.gz", registration(VOLUME))
    run = greedy.Greedy3D().execute
    run("-rf image.nii.gz -rm image.nii.gz by_ours.nii.gz -r ours.nii.gz")
    run("-i image.nii.gz by_ours.nii.gz -m SSD -n 40x40 -o theirs.nii.gz")
    run("-rf image.nii.gz -rm by_ours.nii.gz by_theirs.nii.gz -r theirs.nii.gz")
    affine = Transform((Affine(make_start(VOLUME)),))
    write_transform("affine.mat", affine, tool="greedy")
    run("-rf image.nii.gz -rm image.nii.gz by_affine.nii.gz -r affine.mat")
    run("-a -dof 6 -ia-identity -i image.nii.gz by_affine.nii.gz -m SSD -n 10 -o its.mat")
    its = read_transform("its.mat", "greedy")
    run("-rf image.nii.gz -rm image.nii.gz by_its.nii.gz -r its.mat")
    for name, moving in (("ours", "image"), ("theirs", "by_ours"), ("affine", "image"), ("its", "image")):
        chain = {"affine": affine, "its": its}.get(name) or read_chain([f"{name}.nii.gz"])
        apply_to_image(f"{moving}.nii.gz", "image.nii.gz", chain, "w.nii.gz", "linear", 0)
        expected, found, before = (
            interior(nib.Nifti1Image.from_filename(file).get_fdata())
            for file in (f"by_{name}.nii.gz", "w.nii.gz", f"{moving}.nii.gz")
        )
        assert np.abs(expected - before).max() > 50
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)


@pytest.mark.skipif(shutil.which("niftyreg") is None, reason="niftyreg, a package of PyPI, is not installed")
def test_we_warp_with_fields_of_niftyreg_as_it_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nib.save(nib.Nifti1Image(make_image(VOLUME).astype(np.float32), VOLUME.affine), "image.nii.gz")
    index = np.indices(VOLUME.shape).reshape(3, -1).T
    places = moved(VOLUME, make_ddf(VOLUME), make_start(VOLUME), index).reshape(*VOLUME.shape, 1, 3)
    start = nib.Nifti1Image(places.astype(np.float32), VOLUME.affine)
    start.header["intent_code"], start.header["intent_name"] = 1007, "NREG_TRANS"
    nib.save(start, "start.nii")
    for words in (
        "transform -ref image.nii.gz -def start.nii def.nii",
        "transform -ref image.nii.gz -disp def.nii disp.nii",
        "resample -ref image.nii.gz -flo image.nii.gz -trans disp.nii -res by_it.nii -inter 1",
    ):
        subprocess.run(["niftyreg", *words.split()], check=True, capture_output=True)
    expected = interior(nib.Nifti1Image.from_filename("by_it.nii").get_fdata())
    assert np.abs(expected - interior(make_image(VOLUME))).max() > 50
    for name in ("def.nii", "disp.nii"):
        apply_to_image("image.nii.gz", "image.nii.gz", read_chain([name]), "w.nii", "linear", 0)
        found = interior(nib.Nifti1Image.from_filename("w.nii").get_fdata())
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-2)


def test_learn2reg_holds_voxels_along_the_arrays_axes(tmp_path):
    from scipy.ndimage import map_coordinates

    write_transform(tmp_path / "disp_0001_0002.nii.gz", registration(VOLUME))
    field = np.asarray(nib.Nifti1Image.from_filename(tmp_path / "disp_0001_0002.nii.gz").dataobj)
    # what Learn2Reg's evaluation does, whatever the headers say
    moving = make_image(VOLUME)
    theirs = map_coordinates(moving, np.indices(moving.shape) + np.moveaxis(field, 3, 0), order=1)
    assert field.shape == (*VOLUME.shape, 3)
    assert field.dtype == np.float32
    ours = warped(VOLUME, moving, make_ddf(VOLUME), make_start(VOLUME))
    np.testing.assert_allclose(interior(theirs), interior(ours), rtol=0, atol=1e-2)


@pytest.mark.parametrize("name", ["start.mat", "start.tfm", "start.txt", "start.h5"])
@pytest.mark.parametrize("kind", GRIDS)
def test_affine_comes_back(name, kind, tmp_path):
    start = make_start(GRIDS[kind])
    write_affine(tmp_path / name, start, len(GRIDS[kind].shape))
    np.testing.assert_allclose(read_affine(tmp_path / name), start, rtol=0, atol=1e-9)
    assert read_transform(tmp_path / name).world_dims == len(GRIDS[kind].shape)


def test_linear_transforms_of_every_kind_are_read(tmp_path):
    rigid = sitk.Euler3DTransform((10.0, -20.0, 30.0), 0.2, -0.1, 0.3, (1.0, 2.0, 3.0))
    similarity = sitk.Similarity3DTransform(1.1, (0.0, 0.0, 1.0), 0.2, (4.0, 5.0, 6.0), (7.0, 8.0, 9.0))
    shift = sitk.TranslationTransform(3, (1.0, -2.0, 3.0))
    point = np.array([11.0, -12.0, 13.0])
    for transform in (rigid, similarity, shift, sitk.CompositeTransform([rigid, similarity, shift])):
        sitk.WriteTransform(transform, tmp_path / "t.h5")
        lps = FLIP @ read_affine(tmp_path / "t.h5") @ FLIP
        np.testing.assert_allclose(lps[:3, :3] @ point + lps[:3, 3], transform.TransformPoint(point.tolist()))


def test_affine_alone_becomes_a_field_on_a_given_grid(tmp_path):
    start = Transform((Affine(make_start(VOLUME)),))
    with pytest.raises(ValueError, match=r"field\.nii\.gz: a field needs a grid"):
        write_transform(tmp_path / "field.nii.gz", start)
    write_transform(tmp_path / "field.nii.gz", start, VOLUME)
    points = world(VOLUME, some_voxels(VOLUME))
    there = read_transform(tmp_path / "field.nii.gz").map_points(points)
    np.testing.assert_allclose(there, start.map_points(points), rtol=0, atol=1e-4)


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_fields_in_other_formats_are_read(ending, tmp_path):
    field = Displacement(VOLUME, make_ddf(VOLUME)).itk.GetDisplacementField()
    sitk.WriteImage(field, tmp_path / f"field{ending}")
    (step,) = read_transform(tmp_path / f"field{ending}").steps
    assert isinstance(step, Displacement)
    np.testing.assert_allclose(step.ddf, make_ddf(VOLUME), rtol=0, atol=1e-6)


def test_composite_is_small_and_leaves_nothing_beside_it(tmp_path):
    write_transform(tmp_path / "transform.h5", registration(VOLUME))
    assert [path.name for path in tmp_path.iterdir()] == ["transform.h5"]
    assert (tmp_path / "transform.h5").stat().st_size < make_ddf(VOLUME).nbytes + 20000


@pytest.mark.parametrize("name", ["damaged.mat", "damaged.h5", "damaged.x5"])
def test_a_damaged_size_takes_no_memory(name, tmp_path):
    path = tmp_path / name
    numbers = 2**40  # more than any memory holds
    if name.endswith(".mat"):
        sitk.WriteTransform(sitk.AffineTransform(3), str(path))
        data = path.read_bytes()
        place = 20 + len(b"AffineTransform_double_3_3\0") + 12 * 8
        header = struct.pack("<5i", 0, 2**30, 1024, 0, 6)
        path.write_bytes(data[:place] + header + data[place + 20 :])
    else:
        kind = "AffineTransform_double_3_3"
        with h5py.File(path, "w") as file:
            group = file.create_group("TransformGroup/0")
            file.attrs["Format"], group.attrs["Type"] = "X5", "linear"
            group["TransformType"] = np.array([kind], h5py.string_dtype("ascii"))
            for values in ("TransformParameters", "Transform"):
                group.create_dataset(values, (numbers,), "<f8", chunks=(100,))
            group["TransformFixedParameters"] = np.zeros(3)
    with pytest.raises(ValueError, match=rf"{name}: no transform .* damaged one \(ValueError\)"):
        read_transform(path)


def test_bad_transforms_are_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.h5: there is no such file"):
        read_transform(tmp_path / "absent.h5")
    for name, text in {"fsl.mat": "1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n", "bad.h5": "none", "bad.tfm": ""}.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=rf"{name}: no transform of ITK"):
            read_transform(tmp_path / name)
    (tmp_path / "bad.x5").write_text("none")
    with pytest.raises(ValueError, match=r"bad\.x5: no transform in the format X5"):
        read_transform(tmp_path / "bad.x5")
    (tmp_path / "x.pdf").touch()
    with pytest.raises(ValueError, match=r"x\.pdf: transforms are files that end with \.h5"):
        read_transform(tmp_path / "x.pdf")
    with pytest.raises(ValueError, match=r"x\.png: transforms are files"):
        write_transform(tmp_path / "x.png", registration(VOLUME))
    with pytest.raises(ValueError, match=r"x\.mat: the transform holds a displacement"):
        write_transform(tmp_path / "x.mat", registration(VOLUME))
    sitk.WriteTransform(sitk.BSplineTransform(3), tmp_path / "spline.h5")
    with pytest.raises(ValueError, match=r"spline\.h5: holds a BSplineTransform"):
        read_transform(tmp_path / "spline.h5")
    sitk.WriteImage(sitk.Image([5, 6, 7], sitk.sitkFloat32), tmp_path / "scalar.mha")
    with pytest.raises(ValueError, match=r"scalar\.mha: 1 values a voxel"):
        read_transform(tmp_path / "scalar.mha")


def test_values_that_make_no_transform_are_refused():
    with pytest.raises(ValueError, match="singular"):
        Affine(np.diag([1.0, 0, 1, 1]))
    with pytest.raises(ValueError, match="4 x 4"):
        Affine(np.full((4, 4), np.nan))
    with pytest.raises(ValueError, match="expected"):
        Displacement(VOLUME, make_ddf(VOLUME)[:, 1:])
    with pytest.raises(ValueError, match="no step"):
        Transform(())
    with pytest.raises(ValueError, match="of one world"):
        Transform((Affine(np.eye(4)), Affine(np.eye(4), 2)))
    with pytest.raises(ValueError, match="2D world"):
        Transform((Affine(np.eye(4), 2),)).displacement_on("it", VOLUME)


def test_field_of_a_slice_holds_the_part_within_it(tmp_path, caplog):
    grid = GRIDS["slice"]
    away = np.eye(4)
    away[:3, 3] = np.cross(*grid.affine[:3, :2].T) * 7
    whole = Transform((*registration(grid).steps, Affine(away)))
    index = some_voxels(grid)
    write_transform(tmp_path / "transform.h5", whole)
    write_transform(tmp_path / "field.nii.gz", whole)
    assert "leaves the slice by up to 7 mm" in caplog.text
    points = world(grid, index)
    whole_way = read_transform(tmp_path / "transform.h5").map_points(points)
    within = read_transform(tmp_path / "field.nii.gz").map_points(points)
    np.testing.assert_allclose(within, registration(grid).map_points(points), rtol=0, atol=1e-4)
    np.testing.assert_allclose(whole_way - within, np.broadcast_to(away[:3, 3], within.shape), rtol=0, atol=1e-4)


def test_slices_field_and_affine_are_put_together_as_by_itk(caplog):
    grid = ImageGrid(OBLIQUE, (23, 27, 1))
    out_of_plane = np.array([[1.02, 0.05, 0, 2], [-0.04, 0.97, 0, 1], [0.1, 0.2, 1, 0.5], [0, 0, 0, 1]])
    transform = Transform.of_registration(make_ddf(grid), grid, out_of_plane)
    found = transform.displacement_on("it", grid)
    by_itk = transform.displacement_on("it", replace(grid))  # another object: it takes ITK's way
    np.testing.assert_allclose(found, by_itk, atol=1e-4)
    assert len(caplog.messages) == 2
    assert caplog.messages[0] == caplog.messages[1]
    assert "leaves the slice" in caplog.messages[0]


def test_points_keep_their_columns(tmp_path):
    (tmp_path / "points.csv").write_text("label,x,y,z,t\nleft,1,2,3,0\nright, -4.5,5,6,1\n\n")
    points = read_points(tmp_path / "points.csv")
    np.testing.assert_array_equal(points.ras, [[-1, -2, 3], [4.5, -5, 6]])
    write_points(tmp_path / "moved.csv", points.moved_to(points.ras + [1, 0, 0]))
    text = (tmp_path / "moved.csv").read_text(encoding="utf-8")
    assert text.split() == [
        "label,x,y,z,t",
        "left,0.000000,2.000000,3.000000,0",
        "right,-5.500000,5.000000,6.000000,1",
    ]


def test_points_of_a_plane_have_no_third_coordinate(tmp_path):
    (tmp_path / "points.csv").write_text("x,y\n1,2\n")
    points = read_points(tmp_path / "points.csv")
    np.testing.assert_array_equal(points.ras, [[-1, -2, 0]])
    write_points(tmp_path / "out.csv", points)
    assert (tmp_path / "out.csv").read_text(encoding="utf-8").split() == ["x,y", "1.000000,2.000000"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the header is ''"),
        ("1,2,3\n4,5,6\n", "the header is '1,2,3', expected x,y,z"),
        ("x,y,z\n", "no point below"),
        ("x,y,z\n1,2,3\n1,two,3\n", "point 2 is '1,two,3'"),
        ("x,y,z\n1,2\n", "point 1 is '1,2'"),
        ("x,y,z\n1,2,nan\n", "not finite"),
    ],
)
def test_bad_points_are_refused(text, message, tmp_path):
    (tmp_path / "points.csv").write_text(text)
    with pytest.raises(ValueError, match=rf"points\.csv: .*{message}"):
        read_points(tmp_path / "points.csv")


def test_field_that_is_no_number_is_refused(tmp_path):
    values = np.zeros((5, 6, 7, 3), np.float32)
    values[1, 2, 3] = np.nan
    nib.save(nib.Nifti1Image(values, OBLIQUE), tmp_path / "disp_1_2.nii.gz")
    with pytest.raises(ValueError, match=r"disp_1_2\.nii\.gz: .*NaN"):
        read_transform(tmp_path / "disp_1_2.nii.gz")


@pytest.mark.parametrize("name", GRIDS)
def test_nothing_depends_on_the_parts_that_are_worked_on(name, tmp_path, monkeypatch):
    grid, transform = GRIDS[name], registration(GRIDS[name])
    found = []
    for voxels in (2**20, 1):
        monkeypatch.setattr("monai_nodeo.files.grid._AT_A_TIME", voxels)
        whole = transform.displacement_on("it", grid)
        write_transform(tmp_path / "it.h5", transform)
        write_displacement(tmp_path / "it.nii", whole, grid)
        read, _ = read_displacement(tmp_path / "it.nii")
        np.testing.assert_allclose(read, whole, rtol=0, atol=1e-5)
        found.append([(tmp_path / "it.h5").read_bytes(), (tmp_path / "it.nii").read_bytes()])
    assert found[0] == found[1]
