# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""What people move with a transform: each format goes where ITK takes its points, and all else in the file stays."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from grids import VOLUME, registration
from nibabel.gifti import GiftiImage
from point_formats import FORMATS, VERTICES, VTP, apply, by_itk, markups

from monai_nodeo.files import holds_points, read_points, write_transform


@pytest.fixture(scope="module")
def transform(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("transform") / "transform.h5"
    write_transform(path, registration(VOLUME))
    return path


@pytest.mark.parametrize("name", FORMATS)
def test_points_go_where_itk_takes_them_and_all_else_stays(name, transform, tmp_path):
    write, read = FORMATS[name]
    write(tmp_path / name)
    before, rest = read(tmp_path / name)
    np.testing.assert_allclose(before, VERTICES, atol=2e-5)
    assert apply(tmp_path / name, transform, tmp_path / f"moved_{name}") == ""
    after, rest_after = read(tmp_path / f"moved_{name}")
    np.testing.assert_allclose(after, by_itk(transform, before), atol=3e-5)
    if name in ("ascii.vtk", "p.vtp"):  # without the range of the points that were
        return
    assert rest_after == rest


@pytest.mark.parametrize("name", FORMATS)
def test_broken_files_are_told_in_one_line(name, transform, tmp_path):
    FORMATS[name][0](tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for part in (b"", b"\xff\0[[[", whole[:9], whole[: len(whole) // 2]):
        (tmp_path / name).write_bytes(part)
        said = apply(tmp_path / name, transform, tmp_path / f"moved_{name}")
        assert said.startswith(f"Error: {tmp_path / name}"), said
        assert said.count("\n") == 1
        assert not (tmp_path / f"moved_{name}").exists()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.fcsv", "# columns = id,x,y,z\n1,1,2,3\n", "the coordinate system is none"),
        ("p.fcsv", "# CoordinateSystem = LPS\n1,1,2\n", "point 1 has too few fields"),
        ("p.mrk.json", markups().replace("Fiducial", "ROI"), "holds a ROI"),
        ("p.mrk.json", '{"markups": []}', "no point"),
        ("p.pts", "index\n1\n1 2 3\n", "expected 'point'"),
        ("p.pts", "point\n2\n1 2 3\n", "1 lines"),
        ("p.pts", "point\n1\n1 2 inf\n", "point 1 is not finite"),
        ("p.vtp", '<!DOCTYPE a [<!ENTITY b "c">]>' + VTP[21:], "declares entities"),
        ("p.obj", "v 1 2 3\n", "end with .csv"),
    ],
)
def test_what_is_no_set_of_points_is_refused(name, text, message, tmp_path):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"{name}: .*({message})"):
        read_points(tmp_path / name)


def test_the_format_is_kept_and_a_vtk_image_is_an_image(transform, tmp_path):
    FORMATS["p.csv"][0](tmp_path / "p.csv")
    assert "p.ply: the points come from a .csv file" in apply(tmp_path / "p.csv", transform, tmp_path / "p.ply")
    sitk.WriteImage(sitk.Image([4, 5, 6], sitk.sitkFloat32), tmp_path / "i.vtk")
    assert not holds_points(tmp_path / "i.vtk")
    FORMATS["p.gii"][0](tmp_path / "lh.gii")
    image = GiftiImage.from_filename(tmp_path / "lh.gii")
    image.darrays[0].meta["VolGeomC_R"] = "3.5"
    image.to_filename(tmp_path / "lh.gii")
    with pytest.raises(ValueError, match=r"lh\.gii: in FreeSurfer's own space"):
        read_points(tmp_path / "lh.gii")
