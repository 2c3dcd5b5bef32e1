# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""OME-Zarr images in and out; zarr's own reading of the arrays and the specification's text are the judges."""

import json
import sys

import numpy as np
import pytest
import SimpleITK as sitk
from grids import GRIDS, OBLIQUE, make_ddf, make_start, moved, registration, smooth_noise, world
from scipy.ndimage import map_coordinates

from monai_nodeo.extras import MissingExtraError
from monai_nodeo.files import (
    Affine,
    ImageFileError,
    ImageGrid,
    Transform,
    open_stored,
    read_transform,
    save_nifti,
    write_transform,
)
from monai_nodeo.files.ome_zarr import write_zarr
from monai_nodeo.files.resampling import apply_to_image

zarr = pytest.importorskip("zarr")
SHAPE = (9, 11, 13)
# the array's axes run to the back, the head and the right
TURNED = np.array([[0, 0, 1.5, -4.0], [-0.8, 0, 0, 7.0], [0, 2.5, 0, -3.0], [0, 0, 0, 1]])


def values_at(path, points):
    """Values of an OME-Zarr of LPS mm at points in RAS mm, by its metadata."""
    group = zarr.open_group(str(path), mode="r")
    (image,) = group.attrs["ome"]["multiscales"]
    assert [axis["name"] for axis in image["axes"]] == ["z", "y", "x"]
    (scale, translation) = image["datasets"][0]["coordinateTransformations"]
    zyx = (points * [-1, -1, 1])[:, ::-1]
    index = (zyx - translation["translation"]) / scale["scale"]
    np.testing.assert_allclose(index, np.rint(index), atol=1e-6)
    return group["0"][...][tuple(np.rint(index).astype(int).T)]


@pytest.mark.parametrize("affine", [np.diag([1.5, 0.8, 2.5, 1.0]), TURNED], ids=["RAS", "turned"])
def test_a_written_image_has_its_values_in_their_places(affine, tmp_path):
    values = np.random.default_rng(0).integers(-500, 500, SHAPE).astype(np.int16)
    write_zarr(tmp_path / "a.ome.zarr", values, affine, 3)
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1).reshape(-1, 3)
    points = index @ affine[:3, :3].T + affine[:3, 3]
    np.testing.assert_array_equal(values_at(tmp_path / "a.ome.zarr", points), values.ravel())
    back = open_stored(tmp_path / "a.ome.zarr")
    there = np.rint((points - back.affine[:3, 3]) @ np.linalg.inv(back.affine[:3, :3]).T).astype(int)
    assert back.dtype == np.int16
    np.testing.assert_array_equal(back.load()[tuple(there.T)], values.ravel())


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_channels_units_and_directions_are_read(version, tmp_path):
    axes = [{"name": "c", "type": "channel"}]
    for name, toward in (("z", "superior-to-inferior"), ("y", "left-to-right"), ("x", "posterior-to-anterior")):
        orientation = {"type": "anatomical", "value": toward}
        axes.append({"name": name, "type": "space", "unit": "micrometer", "orientation": orientation})
    place = [{"type": "scale", "scale": [1, 3000, 2000, 500]}, {"type": "translation", "translation": [0, 10, 20, 30]}]
    image = {"axes": axes, "datasets": [{"path": "s0", "coordinateTransformations": place}], "version": version}
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=2 if version == "0.4" else 3)
    values = np.random.default_rng(1).integers(0, 255, (2, 5, 6, 7)).astype(np.uint8)
    group.create_array("s0", data=values)
    group.attrs.update(
        {"multiscales": [image]} if version == "0.4" else {"ome": {"version": "0.5", "multiscales": [image]}}
    )
    stored = open_stored(tmp_path / "a.zarr")
    assert (stored.spatial_shape, stored.channels) == ((7, 6, 5), 2)
    np.testing.assert_array_equal(stored.load()[:, :, :, 0], values.transpose(3, 2, 1, 0))
    expected = [[0, 2, 0, 0.02], [0.5, 0, 0, 0.03], [0, 0, -3, -0.01], [0, 0, 0, 1]]
    np.testing.assert_allclose(stored.affine, expected, atol=1e-12)


@pytest.mark.parametrize("shape", [SHAPE, (9, 11), (9, 11, 13, 1, 3), (9, 11, 13, 4)])
def test_apply_takes_and_gives_it(shape, tmp_path):
    space = shape[:3]
    grid = ImageGrid(np.diag([-1.0, -1.0, 1.0, 1.0]), space)  # already LPS, so that the arrays can be compared
    values = np.stack([smooth_noise(space, c) for c in range(int(np.prod(shape[3:])))], -1).reshape(shape)
    save_nifti(tmp_path / "i.nii.gz", values.astype(np.float32), grid, "vector" if len(shape) == 5 else "none")
    save_nifti(tmp_path / "r.nii.gz", np.zeros(space, np.uint8), grid)
    still = Transform((Affine(np.eye(4), len(space)),))
    apply_to_image(str(tmp_path / "i.nii.gz"), str(tmp_path / "r.nii.gz"), still, str(tmp_path / "w.zarr"))
    stored = open_stored(tmp_path / "w.zarr")
    assert stored.shape == shape
    np.testing.assert_allclose(stored.load(), values, atol=1e-6)
    np.testing.assert_allclose(stored.affine, grid.affine, atol=1e-12)
    assert stored.picture == (len(shape) == 2)


def test_what_it_does_not_hold_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="oblique"):
        write_zarr(tmp_path / "a.zarr", np.zeros(SHAPE), OBLIQUE, 3)
    zarr.open_group(str(tmp_path / "e.zarr"), mode="w").attrs["ome"] = {"version": "0.6"}
    with pytest.raises(ImageFileError, match=r"e\.zarr: no OME-Zarr image"):
        open_stored(tmp_path / "e.zarr")
    write_zarr(tmp_path / "a.zarr", np.zeros(SHAPE), np.eye(4), 3)
    file = tmp_path / "a.zarr" / "zarr.json"
    text = json.loads(file.read_text(encoding="utf-8"))
    text["attributes"]["ome"]["version"] = "0.9"
    file.write_text(json.dumps(text), encoding="utf-8")
    with pytest.raises(ImageFileError, match=r"version 0\.9, expected 0\.4 or 0\.5"):
        open_stored(tmp_path / "a.zarr")
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(MissingExtraError, match=r"monai-nodeo\[zarr\]"):
        open_stored(tmp_path / "a.zarr")


def through_scene(path, zyx):
    """Where points arrive by the steps of a scene of OME-NGFF 0.6."""
    root = zarr.open_group(str(path), mode="r")
    (whole,) = root.attrs["ome"]["scene"]["coordinateTransformations"]
    for step in whole["transformations"]:
        if step["type"] == "affine":
            rows = np.array(step["affine"])
            zyx = zyx @ rows[:, :-1].T + rows[:, -1]
            continue
        group = root[step["path"]]
        (image,) = group.attrs["ome"]["multiscales"]
        assert image["coordinateSystems"][0]["axes"][0]["type"] == "displacement"
        ((scale, translation),) = [t["transformations"] for t in image["datasets"][0]["coordinateTransformations"]]
        index = (zyx - translation["translation"][1:]) / scale["scale"][1:]
        zyx = zyx + np.stack([map_coordinates(c, index.T, order=1, mode="nearest") for c in group["0"][...]], 1)
    return zyx


@pytest.mark.parametrize("kind", [*GRIDS, "straight"])
def test_scene_takes_points_to_the_moving_image(kind, tmp_path):
    grid = GRIDS.get(kind) or ImageGrid(np.diag([-1.5, -0.8, 2.5, 1.0]), (9, 11, 13))
    write_transform(tmp_path / "t.zarr", registration(grid))
    index = np.random.default_rng(5).integers(1, np.array(grid.spatial_shape) - 1, (40, grid.spatial_dims))
    expected = moved(grid, make_ddf(grid), make_start(grid), index)
    points, dims = world(grid, index), len(grid.shape)
    np.testing.assert_allclose(read_transform(tmp_path / "t.zarr").map_points(points), expected, rtol=0, atol=2e-5)
    lps = [-1, -1, 1][:dims]
    there = through_scene(tmp_path / "t.zarr", (points[:, :dims] * lps)[:, ::-1])[:, ::-1] * lps
    np.testing.assert_allclose(there, expected[:, :dims], rtol=0, atol=2e-5)


def test_images_are_no_transforms(tmp_path):
    write_zarr(tmp_path / "a.zarr", np.zeros(SHAPE), np.eye(4), 3)
    with pytest.raises(ValueError, match=r"a\.zarr: no scene of OME-NGFF"):
        read_transform(tmp_path / "a.zarr")


@pytest.mark.parametrize("kind", [*GRIDS, "straight"])
def test_ngff_zarr_reads_our_scene_and_we_what_it_writes(kind, tmp_path):
    ngff = pytest.importorskip("ngff_zarr", reason="pip install ngff-zarr for this test")
    grid = GRIDS.get(kind) or ImageGrid(np.diag([-1.5, -0.8, 2.5, 1.0]), (9, 11, 13))
    dims = len(grid.shape)
    write_transform(tmp_path / "t.zarr", registration(grid))
    scene = ngff.from_ome_zarr(str(tmp_path / "t.zarr"), kind="scene", validate=True)
    (whole,) = scene.coordinateTransformations
    index = np.random.default_rng(5).integers(1, np.array(grid.spatial_shape) - 1, (40, grid.spatial_dims))
    lps = [-1, -1, 1][:dims]
    there = world(grid, index)[:, :dims] * lps
    for step in whole.transformations:
        fields = None
        if step.type == "displacements":
            fields = {step.path: ngff.from_ome_zarr(str(tmp_path / "t.zarr" / step.path), validate=True)}
            field = ngff.to_multiscales(fields[step.path].images[0], scale_factors=[])
            ngff.to_ome_zarr(str(tmp_path / "theirs.zarr" / step.path), field, version="0.6")
        (theirs,) = ngff.ngff_transform_to_itk_transform(step, "zyx"[-dims:], fields=fields)
        itk = sitk.DisplacementFieldTransform(dims) if fields else sitk.AffineTransform(dims)
        itk.SetFixedParameters(theirs.fixedParameters.tolist())
        itk.SetParameters(theirs.parameters.tolist())
        there = np.array([itk.TransformPoint(point.tolist()) for point in there])
    expected = moved(grid, make_ddf(grid), make_start(grid), index)
    np.testing.assert_allclose(there * lps, expected[:, :dims], rtol=0, atol=2e-5)
    scene.to_ome_zarr(str(tmp_path / "theirs.zarr"), version="0.6", overwrite=False)
    back = read_transform(tmp_path / "theirs.zarr").map_points(world(grid, index))
    np.testing.assert_allclose(back, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ngff_zarr_reads_our_images_and_we_those_of_it(version, tmp_path):
    ngff = pytest.importorskip("ngff_zarr", reason="pip install ngff-zarr for this test")
    values = np.random.default_rng(0).integers(-500, 500, SHAPE).astype(np.int16)
    write_zarr(
        tmp_path / "ours.zarr", values, np.diag([-1.5, -0.8, 2.5, 1.0]) + [[0, 0, 0, 3], [0] * 4, [0] * 4, [0] * 4], 3
    )
    theirs = ngff.from_ome_zarr(str(tmp_path / "ours.zarr"), validate=True).images[0]
    np.testing.assert_array_equal(np.asarray(theirs.data).T, values)
    assert (theirs.scale, theirs.translation) == ({"z": 2.5, "y": 0.8, "x": 1.5}, {"z": 0, "y": 0, "x": -3})
    image = ngff.to_multiscales(theirs, scale_factors=[2])
    ngff.to_ome_zarr(str(tmp_path / "theirs.zarr"), image, version=version)
    stored = open_stored(tmp_path / "theirs.zarr")
    np.testing.assert_array_equal(stored.load(), values)
    np.testing.assert_allclose(stored.affine, open_stored(tmp_path / "ours.zarr").affine)
