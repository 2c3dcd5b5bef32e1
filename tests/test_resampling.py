# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from grids import (
    GRIDS,
    OBLIQUE,
    PLANE,
    VOLUME,
    interior,
    make_ddf,
    make_image,
    make_start,
    moved,
    registration,
    warped,
    world,
)

from monai_nodeo.files import ImageGrid, Transform, write_affine, write_image, write_transform
from monai_nodeo.files.resampling import apply_to_image, apply_to_points, read_chain


def load(path: Path) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_filename(path)


def save(path: Path, values: np.ndarray, affine: np.ndarray) -> str:
    nib.save(nib.Nifti1Image(values, affine), path)
    return str(path)


@pytest.fixture(params=GRIDS)
def grid(request: pytest.FixtureRequest) -> ImageGrid:
    return GRIDS[request.param]


@pytest.fixture
def image(grid: ImageGrid, tmp_path: Path) -> str:
    write_image(tmp_path / "moving.nii.gz", make_image(grid), grid)
    return str(tmp_path / "moving.nii.gz")


def test_image_is_sampled_once_where_its_points_arrive(grid, image, tmp_path):
    apply_to_image(image, image, registration(grid), str(tmp_path / "warped.nii.gz"))
    result = load(tmp_path / "warped.nii.gz")
    expected = warped(grid, make_image(grid), make_ddf(grid), make_start(grid))
    assert result.shape == grid.shape
    assert result.get_data_dtype() == np.float32
    np.testing.assert_array_equal(result.affine, load(Path(image)).affine)
    np.testing.assert_allclose(
        interior(result.get_fdata().reshape(expected.shape)), interior(expected), rtol=0, atol=1e-2
    )


def test_points_go_the_way_opposite_to_the_image(grid, tmp_path):
    """A bright voxel of the moving image is seen at the fixed point that is mapped on to it."""
    index = np.array(grid.spatial_shape)[None] // 2
    there = moved(grid, make_ddf(grid), make_start(grid), index)
    flip = np.array([-1, -1, 1])
    lines = ["x,y,z,t", ",".join(map(str, [*(world(grid, index)[0] * flip), 0]))]
    (tmp_path / "fixed.csv").write_text("\n".join(lines))
    apply_to_points(str(tmp_path / "fixed.csv"), registration(grid), str(tmp_path / "moving.csv"))
    header, line = (tmp_path / "moving.csv").read_text(encoding="utf-8").split()
    assert header == "x,y,z,t"
    expected = there[0] * flip
    np.testing.assert_allclose([float(x) for x in line.split(",")[:3]], expected, rtol=0, atol=1e-4)
    # an image that is the first coordinate itself: its value on the fixed voxel is where the point went
    coordinates = world(grid, np.indices(grid.spatial_shape).reshape(grid.spatial_dims, -1).T)[:, 0]
    write_image(tmp_path / "x.nii.gz", coordinates.reshape(grid.spatial_shape), grid)
    name = str(tmp_path / "x.nii.gz")
    apply_to_image(name, name, registration(grid), str(tmp_path / "warped.nii.gz"))
    value = load(tmp_path / "warped.nii.gz").get_fdata().reshape(grid.spatial_shape)[tuple(index[0])]
    assert value == pytest.approx(there[0, 0], abs=1e-3)


def test_points_that_are_not_displaced_are_told(grid, tmp_path, caplog):
    flip = np.array([-1, -1, 1])
    inside, outside = (world(grid, np.full((1, grid.spatial_dims), place))[0] * flip for place in (9, 99))
    lines = ["x,y,z", *(",".join(map(str, point)) for point in (inside, inside, outside))]
    (tmp_path / "points.csv").write_text("\n".join(lines))
    apply_to_points(str(tmp_path / "points.csv"), registration(grid), str(tmp_path / "moved.csv"))
    assert "only 67 % of" in caplog.text
    assert "points.csv lie on the grid of the displacement field; the rest is not displaced" in caplog.text


def test_reference_may_be_finer_than_the_fixed_image(tmp_path):
    fine = ImageGrid(OBLIQUE @ np.diag([0.5, 0.5, 0.5, 1]), (45, 53, 61))
    write_image(tmp_path / "moving.nii.gz", make_image(VOLUME), VOLUME)
    write_image(tmp_path / "fine.nii.gz", np.zeros(fine.shape), fine)
    names = [str(tmp_path / name) for name in ("moving.nii.gz", "fine.nii.gz", "warped.nii.gz")]
    apply_to_image(names[0], names[1], registration(VOLUME), names[2])
    expected = warped(VOLUME, make_image(VOLUME), make_ddf(VOLUME), make_start(VOLUME))
    values = load(Path(names[2])).get_fdata()
    assert values.shape == fine.shape
    np.testing.assert_allclose(interior(values[::2, ::2, ::2]), interior(expected), rtol=0, atol=1e-2)


def test_scaled_values_become_numbers(tmp_path):
    image = nib.Nifti1Image(make_image(VOLUME), OBLIQUE)
    image.set_data_dtype(np.int16)
    nib.save(image, tmp_path / "in.nii.gz")
    name = str(tmp_path / "in.nii.gz")
    apply_to_image(name, name, registration(VOLUME), str(tmp_path / "out.nii.gz"))
    result = load(tmp_path / "out.nii.gz")
    expected = warped(VOLUME, make_image(VOLUME), make_ddf(VOLUME), make_start(VOLUME))
    assert result.get_data_dtype() == np.float32
    np.testing.assert_allclose(interior(result.get_fdata()), interior(expected), rtol=0, atol=0.1)


def test_last_transform_reaches_the_image_first(tmp_path):
    """As antsApplyTransforms: a point of the fixed image goes through the first one first."""
    double = np.diag([2.0, 2, 2, 1])
    shift = np.eye(4)
    shift[0, 3] = 5
    for name, matrix in {"double.mat": double, "shift.mat": shift}.items():
        write_affine(tmp_path / name, matrix)
    names = [str(tmp_path / name) for name in ("double.mat", "shift.mat")]
    point = np.array([[1.0, 0, 0]])
    assert read_chain(names).map_points(point)[0, 0] == 7
    assert read_chain(names[::-1]).map_points(point)[0, 0] == 12
    assert read_chain([f"[{names[0]},1]", names[1]]).map_points(point)[0, 0] == 5.5
    assert read_chain([f"[{names[0]}, 0]", names[1]]).map_points(point)[0, 0] == 7


def test_nonsense_chains_are_refused(tmp_path):
    write_affine(tmp_path / "flat.mat", np.eye(4), 2)
    write_affine(tmp_path / "solid.mat", np.eye(4), 3)
    write_transform(tmp_path / "warp.h5", registration(VOLUME))
    with pytest.raises(ValueError, match=r"flat\.mat is 2D, .*solid\.mat is 3D"):
        read_chain([str(tmp_path / "flat.mat"), str(tmp_path / "solid.mat")])
    with pytest.raises(ValueError, match=r"warp\.h5 holds a displacement field; make its inverse"):
        read_chain([f"[{tmp_path / 'warp.h5'},1]"])


def far_away(grid: ImageGrid) -> ImageGrid:
    affine = grid.affine.copy()
    affine[:3, 3] += 1000
    return ImageGrid(affine, grid.shape)


def test_transform_of_another_image_is_refused(tmp_path, caplog):
    write_image(tmp_path / "here.nii.gz", make_image(VOLUME), VOLUME)
    write_image(tmp_path / "far.nii.gz", make_image(VOLUME), far_away(VOLUME))
    here, far, out = (str(tmp_path / name) for name in ("here.nii.gz", "far.nii.gz", "out.nii.gz"))
    with pytest.raises(ValueError, match="the reference lies outside the grid of the displacement field"):
        apply_to_image(here, far, registration(VOLUME), out)
    with pytest.raises(ValueError, match=r"far\.nii\.gz: the transform takes no point of the reference into this"):
        apply_to_image(far, here, registration(VOLUME), out)
    (tmp_path / "far.csv").write_text("x,y,z\n900,900,900\n")
    with pytest.raises(ValueError, match=r"far\.csv lies outside the grid"):
        apply_to_points(str(tmp_path / "far.csv"), registration(VOLUME), out)
    assert not Path(out).exists()
    assert not caplog.records


def test_field_that_covers_little_of_the_reference_is_told(tmp_path, caplog):
    part = ImageGrid(OBLIQUE, (12, 14, 16))
    write_image(tmp_path / "all.nii.gz", make_image(VOLUME), VOLUME)
    name = str(tmp_path / "all.nii.gz")
    apply_to_image(name, name, Transform.of_registration(make_ddf(part), part), str(tmp_path / "out.nii.gz"))
    assert "of the reference lie on the grid" in caplog.text


def test_dimensions_that_do_not_fit_are_refused(tmp_path):
    write_image(tmp_path / "volume.nii.gz", make_image(VOLUME), VOLUME)
    write_image(tmp_path / "plane.nii.gz", make_image(PLANE), PLANE)
    volume, plane, out = (str(tmp_path / name) for name in ("volume.nii.gz", "plane.nii.gz", "out.nii.gz"))
    with pytest.raises(ValueError, match=r"volume\.nii\.gz: an image of shape .* transform of 2D points"):
        apply_to_image(volume, plane, registration(PLANE), out)
    with pytest.raises(ValueError, match=r"plane\.nii\.gz: an image of shape .* transform of 3D points"):
        apply_to_image(volume, plane, registration(VOLUME), out)
