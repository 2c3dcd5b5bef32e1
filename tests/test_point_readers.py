# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Other programs write files of points, we move them, and they read where the points are then."""

import json
import shutil
import subprocess
import sys
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from grids import VOLUME, registration, world
from point_formats import FORMATS, LPS, VERTICES, apply, by_itk

from monai_nodeo.files import write_transform


@pytest.fixture(scope="module")
def transform(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("transform") / "transform.h5"
    write_transform(path, registration(VOLUME))
    return path


@pytest.mark.parametrize("space", ["LPS", "RAS"])
@pytest.mark.parametrize("name", ["f.fcsv", "f.mrk.json"])
def test_afids_utils_reads_our_fiducials_and_we_its(name, space, transform, tmp_path):
    """Its sets are of 32 points with given names, those of its template."""
    afids = pytest.importorskip("afids_utils.afids", reason="pip install afids-utils for this test")
    to_ras = {"LPS": LPS, "RAS": np.eye(3)}[space]
    places = world(VOLUME, np.random.default_rng(4).uniform(3, 18, (32, 3))) @ to_ras
    template = Path(afids.__file__).parent / "resources" / "template.fcsv"
    points = afids.AfidSet.load(template)
    points.coord_system = space
    for afid, place in zip(points.afids, places, strict=True):
        afid.x, afid.y, afid.z = place.tolist()
    points.save(tmp_path / name)
    assert apply(tmp_path / name, transform, tmp_path / f"moved_{name}") == ""
    moved = afids.AfidSet.load(tmp_path / f"moved_{name}")
    there = np.array([[afid.x, afid.y, afid.z] for afid in moved.afids]) @ to_ras
    assert moved.coord_system == space
    assert [afid.desc for afid in moved.afids] == [afid.desc for afid in points.afids]
    np.testing.assert_allclose(there, by_itk(transform, places @ to_ras), atol=2e-5)


def test_slicerio_reads_our_fiducials_and_we_what_it_makes_of_them(transform, tmp_path):
    slicerio = pytest.importorskip("slicerio", reason="pip install slicerio for this test")
    FORMATS["p.fcsv"][0](tmp_path / "p.fcsv")
    assert apply(tmp_path / "p.fcsv", transform, tmp_path / "once.fcsv") == ""
    slicerio.fcsv_to_markups_json(tmp_path / "once.fcsv", tmp_path / "once.mrk.json")
    assert apply(tmp_path / "once.mrk.json", transform, tmp_path / "twice.mrk.json") == ""
    (by_it,) = slicerio.read_markups_fcsv(tmp_path / "once.fcsv")["markups"]
    (by_us,) = json.loads((tmp_path / "twice.mrk.json").read_text(encoding="utf-8"))["markups"]
    once, twice = (np.array([c.pop("position") for c in one["controlPoints"]]) for one in (by_it, by_us))
    assert by_us == by_it
    np.testing.assert_allclose(once, by_itk(transform, VERTICES), atol=2e-5)
    np.testing.assert_allclose(twice, by_itk(transform, once), atol=2e-5)


def vtk_files(vtk: Any, folder: Path) -> list[Path]:
    """A sphere with scalars, normals and lines in every format and encoding that VTK writes."""
    sphere = vtk.vtkSphereSource()
    sphere.SetRadius(9)
    sphere.SetCenter(*(LPS @ VERTICES.mean(0)))
    sphere.Update()
    mesh = sphere.GetOutput()
    mesh.GetPoints().GetData().GetRange(-1)  # kept in the file, and wrong when the points have moved
    space = vtk.vtkStringArray()
    space.SetName("SPACE")
    space.InsertNextValue("LPS")
    mesh.GetFieldData().AddArray(space)
    files = []

    def write(writer: Any, name: str, *calls: str) -> None:
        writer.SetInputData(mesh)
        writer.SetFileName(str(folder / name))
        for call in calls:
            getattr(writer, call)()
        assert writer.Write()
        files.append(folder / name)

    for kind in ("ASCII", "Binary"):
        for ending, writer in (("vtk", "PolyData"), ("ply", "PLY"), ("stl", "STL")):
            write(getattr(vtk, f"vtk{writer}Writer")(), f"{kind}.{ending}", f"SetFileTypeTo{kind}")
    for mode in ("Ascii", "Binary", "Appended"):
        for pack in ("None", "ZLib", "LZMA"):
            calls = (f"SetDataModeTo{mode}", f"SetCompressorTypeTo{pack}")
            write(vtk.vtkXMLPolyDataWriter(), f"{mode}{pack}.vtp", *calls)
            if mode == "Appended":
                calls = (*calls, "EncodeAppendedDataOff", "SetByteOrderToBigEndian", "SetHeaderTypeToUInt64")
                write(vtk.vtkXMLPolyDataWriter(), f"Raw{pack}.vtp", *calls)
    return files


def test_vtk_reads_what_we_write_of_its_files(transform, tmp_path):
    vtk = pytest.importorskip("vtk", reason="VTK is not installed; pip install vtk for this test")
    from vtk.util.numpy_support import vtk_to_numpy

    readers = {".vtk": "PolyData", ".ply": "PLY", ".stl": "STL", ".vtp": "XMLPolyData"}

    def read(path: Path) -> tuple[np.ndarray, Any]:
        reader = getattr(vtk, f"vtk{readers[path.suffix]}Reader")()
        reader.SetFileName(str(path))
        reader.Update()
        mesh = reader.GetOutput()
        data = mesh.GetPointData()
        arrays = {
            data.GetArrayName(at): vtk_to_numpy(data.GetArray(at)).tolist() for at in range(data.GetNumberOfArrays())
        }
        reach = np.array(mesh.GetPoints().GetData().GetRange(-1))
        points = vtk_to_numpy(mesh.GetPoints().GetData()).astype(float)
        lengths = np.linalg.norm(points, axis=1)
        np.testing.assert_allclose(reach, [lengths.min(), lengths.max()], rtol=1e-5)
        return points @ LPS, (arrays, vtk_to_numpy(mesh.GetPolys().GetConnectivityArray()).tolist())

    for path in vtk_files(vtk, tmp_path):
        apply(path, transform, tmp_path / f"moved_{path.name}")
        (before, rest), (after, rest_after) = read(path), read(tmp_path / f"moved_{path.name}")
        np.testing.assert_allclose(after, by_itk(transform, before), atol=2e-5, err_msg=path.name)
        assert rest_after == rest, path.name


TRANSFORMIX = """
import sys, itk, numpy as np
parameters = itk.ParameterObject.New()
parameters.AddParameterMap({
    "Transform": ["TranslationTransform"], "TransformParameters": ["1", "2", "3"], "NumberOfParameters": ["3"],
    "InitialTransformParameterFileName": ["NoInitialTransform"], "FixedImageDimension": ["3"],
    "MovingImageDimension": ["3"], "Size": ["4"] * 3, "Spacing": ["1"] * 3, "Index": ["0"] * 3, "Origin": ["0"] * 3,
    "Direction": [*"100010001"], "Resampler": ["DefaultResampler"], "ResampleInterpolator": ["FinalLinearInterpolator"],
})
transformix = itk.TransformixFilter.New(itk.image_from_array(np.zeros((4, 4, 4), np.float32)), parameters)
transformix.SetFixedPointSetFileName("moved.pts")
transformix.SetOutputDirectory(".")
transformix.Update()
"""  # in a process of its own: greedy, which has an ITK too, finds no formats after it


@pytest.mark.skipif(not list(metadata.Distribution.discover(name="itk-elastix")), reason="itk-elastix is not installed")
def test_transformix_reads_our_points(transform, tmp_path):
    FORMATS["p.pts"][0](tmp_path / "p.pts")
    assert apply(tmp_path / "p.pts", transform, tmp_path / "moved.pts") == ""
    subprocess.run([sys.executable, "-c", TRANSFORMIX], check=True, capture_output=True, cwd=tmp_path)
    lines = (tmp_path / "outputpoints.txt").read_text(encoding="utf-8").splitlines()
    there = np.array([line.partition("OutputPoint = [")[2].partition("]")[0].split() for line in lines], float)
    np.testing.assert_allclose((there - [1, 2, 3]) @ LPS, by_itk(transform, VERTICES), atol=2e-5)


def run(*words: object) -> None:
    subprocess.run([str(word) for word in words], check=True, capture_output=True)


@pytest.mark.skipif(shutil.which("tckconvert") is None, reason="mrtrix3, a package of Debian, is not installed")
def test_mrtrix_reads_our_streamlines_and_we_its(transform, tmp_path):
    lines = np.split(VERTICES, [5])
    for number, line in enumerate(lines):
        np.savetxt(tmp_path / f"in-{number}.txt", line)
    run("tckconvert", tmp_path / "in-[].txt", tmp_path / "its.tck")
    assert apply(tmp_path / "its.tck", transform, tmp_path / "ours.tck") == ""
    run("tckconvert", tmp_path / "ours.tck", tmp_path / "out-[].txt")
    there = [np.loadtxt(path) for path in sorted(tmp_path.glob("out-*.txt"))]
    assert [len(line) for line in there] == [len(line) for line in lines]
    np.testing.assert_allclose(np.concatenate(there), by_itk(transform, VERTICES), atol=1e-4)


@pytest.mark.skipif(shutil.which("wb_command") is None, reason="connectome-workbench of Debian is not installed")
def test_workbench_moves_its_surface_as_we_do(tmp_path):
    write_transform(tmp_path / "itk.nii.gz", registration(VOLUME))
    run("wb_command", "-convert-warpfield", "-from-itk", tmp_path / "itk.nii.gz", "-to-world", tmp_path / "w.nii.gz")
    run("wb_command", "-surface-create-sphere", 200, tmp_path / "sphere.surf.gii")
    to_middle = np.eye(4)
    to_middle[:3] = np.c_[np.eye(3) * 0.05, VOLUME.world.reshape(-1, 3).mean(0)]  # its radius is 100 mm
    np.savetxt(tmp_path / "middle.txt", to_middle)
    sphere = tmp_path / "s.surf.gii"
    run("wb_command", "-surface-apply-affine", tmp_path / "sphere.surf.gii", tmp_path / "middle.txt", sphere)
    run("wb_command", "-surface-apply-warpfield", sphere, tmp_path / "w.nii.gz", tmp_path / "theirs.surf.gii")
    assert apply(sphere, tmp_path / "itk.nii.gz", tmp_path / "ours.surf.gii") == ""

    def read(name: str) -> np.ndarray:
        """By Workbench: the coordinates of a surface as a metric, and the metric as text."""
        run("wb_command", "-surface-coordinates-to-metric", tmp_path / name, tmp_path / "m.func.gii")
        run("wb_command", "-metric-convert", "-to-nifti", tmp_path / "m.func.gii", tmp_path / "m.nii")
        return np.asarray(nib.Nifti1Image.from_filename(tmp_path / "m.nii").dataobj).reshape(-1, 3)

    assert np.abs(read("ours.surf.gii") - read("s.surf.gii")).max() > 1
    np.testing.assert_allclose(read("ours.surf.gii"), read("theirs.surf.gii"), atol=1e-4)


LOAD = """async ([name, bytes]) => {
    const viewer = new niivue.Niivue();
    await viewer.attachTo("canvas");
    await viewer.loadMeshes([{url: URL.createObjectURL(new Blob([Uint8Array.from(bytes)])), name}]);
    return Array.from(viewer.meshes[0].pts);
}"""


@pytest.mark.parametrize("name", ["p.trk", "p.tck", "p.gii"])
def test_niivue_reads_our_streamlines_and_surfaces(name, transform, browser, tmp_path):
    FORMATS[name][0](tmp_path / name)
    assert apply(tmp_path / name, transform, tmp_path / f"moved_{name}") == ""
    page = browser.new_page(offline=True)
    page.set_content('<canvas id="canvas" width="9" height="9"></canvas>')
    page.add_script_tag(path=str(resources.files("monai_nodeo.report") / "vendor" / "niivue.umd.js"))
    there = page.evaluate(LOAD, [name, list((tmp_path / f"moved_{name}").read_bytes())])
    page.close()
    np.testing.assert_allclose(np.reshape(there, (-1, 3)), by_itk(transform, VERTICES), atol=3e-5)
