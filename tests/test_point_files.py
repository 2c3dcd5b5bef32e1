# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""What people move with a transform: each format goes where ITK takes its points, and all else in the file stays."""

import base64
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from click.testing import CliRunner
from grids import VOLUME, registration, world
from nibabel.gifti import GiftiDataArray, GiftiImage, GiftiMetaData
from nibabel.streamlines import Field, Tractogram

from monai_nodeo.apps.cli import main
from monai_nodeo.files import holds_points, read_points, write_transform

LPS = np.diag([-1.0, -1.0, 1.0])
VERTICES = world(VOLUME, np.random.default_rng(3).uniform(3, 18, (12, 3)))  # RAS mm
FACES = np.arange(12).reshape(4, 3)
VALUES = np.arange(12, dtype=np.float32) / 8

Read = Callable[[Path], tuple[np.ndarray, Any]]  # RAS mm, and what else is in the file


def write_text(text: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(text, encoding="utf-8", newline="") and None


def rows(ras: np.ndarray, start: str = "", between: str = " ", end: str = "\n") -> str:
    return "".join(start + between.join(map(repr, map(float, point))) + end for point in ras)


def read_rows(path: Path, start: int, axes: slice, sep: str | None, to_ras: np.ndarray) -> tuple[np.ndarray, Any]:
    """Columns of the twelve lines from ``start`` on."""
    lines = [line.split(sep) for line in path.read_text(encoding="utf-8").split("\n")]
    places = np.array([line[axes] for line in lines[start : start + 12]], float)
    for line in lines[start : start + 12]:
        line[axes] = []
    return places @ to_ras, lines


def read_markups(path: Path) -> tuple[np.ndarray, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    (lps, ras) = (np.array([c.pop("position") for c in m["controlPoints"][:6]]) for m in content["markups"])
    return np.concatenate([lps @ LPS, ras]), content


def markups() -> str:
    def markup(space: str, places: np.ndarray) -> dict[str, Any]:
        controls = [{"id": str(at), "position": p, "label": "ä"} for at, p in enumerate(places.tolist())]
        unset = {"id": "7", "position": None, "positionStatus": "undefined"}
        return {"type": "Fiducial", "coordinateSystem": space, "controlPoints": [*controls, unset]}

    return json.dumps({"@schema": "s", "markups": [markup("LPS", VERTICES[:6] @ LPS), markup("RAS", VERTICES[6:])]})


def write_streamlines(path: Path) -> None:
    lines = np.split(VERTICES.astype(np.float32), [5])
    trk = path.suffix == ".trk"
    data = {"data_per_point": {"fa": np.split(VALUES[:, None], [5])}, "data_per_streamline": {"w": [[1.0], [2.0]]}}
    header = {Field.VOXEL_TO_RASMM: VOLUME.affine, Field.DIMENSIONS: VOLUME.shape, Field.VOXEL_ORDER: "RAS"}
    header[Field.VOXEL_SIZES] = np.linalg.norm(VOLUME.affine[:3, :3], axis=0)
    tracts = Tractogram(lines, **(data if trk else {}), affine_to_rasmm=np.eye(4))
    nib.streamlines.save(tracts, path, header=header if trk else {"command_history": "tckgen"})


def read_tck(path: Path) -> tuple[np.ndarray, Any]:
    head, _, data = path.read_bytes().partition(b"END\n")
    start = int(head.partition(b"file: . ")[2].split()[0])
    points = np.frombuffer(path.read_bytes()[start:], "<f4").reshape(-1, 3)
    kept = np.isfinite(points).all(1)
    return points[kept].astype(float), (kept.tolist(), b"command_history: tckgen" in head)


def read_trk(path: Path) -> tuple[np.ndarray, Any]:
    data = path.read_bytes()
    sizes, affine = np.frombuffer(data, "<f4", 3, 12), np.frombuffer(data, "<f4", 16, 440).reshape(4, 4).astype(float)
    points, rest, at = [], [data[:1000]], 1000
    for count in (5, 7):
        assert struct.unpack_from("<i", data, at) == (count,)
        table = np.frombuffer(data, "<f4", count * 4, at + 4).reshape(count, 4)
        points.append((table[:, :3] / sizes - 0.5) @ affine[:3, :3].T + affine[:3, 3])
        at += 4 + count * 16 + 4
        rest += [table[:, 3].tobytes(), data[at - 4 : at]]
    return np.concatenate(points), (rest, data[at:])


def write_gifti(path: Path) -> None:
    arrays = [
        GiftiDataArray(VERTICES.astype(np.float32), "NIFTI_INTENT_POINTSET", meta=GiftiMetaData(Name="lh")),
        GiftiDataArray(FACES.astype(np.int32), "NIFTI_INTENT_TRIANGLE"),
        GiftiDataArray(VALUES, "NIFTI_INTENT_SHAPE"),
    ]
    GiftiImage(darrays=arrays, meta=GiftiMetaData(Who="me")).to_filename(path)


def read_gifti(path: Path) -> tuple[np.ndarray, Any]:
    root = ElementTree.parse(path).getroot()
    data = next(root.iter("Data"))
    points = np.frombuffer(zlib.decompress(base64.b64decode(data.text or "")), "<f4").reshape(-1, 3)
    data.text = ""
    return points.astype(float), ElementTree.tostring(root).split()


def write_stl(path: Path) -> None:
    facets = np.zeros(4, [("n", "<f4", 3), ("v", "<f4", (3, 3)), ("a", "<u2")])
    facets["v"], facets["a"] = (VERTICES @ LPS)[FACES], [7, 8, 9, 10]
    path.write_bytes(b"made by me".ljust(80) + struct.pack("<I", 4) + facets.tobytes())


def read_stl(path: Path) -> tuple[np.ndarray, Any]:
    data = path.read_bytes()
    facets = np.frombuffer(data, [("n", "<f4", 3), ("v", "<f4", (3, 3)), ("a", "<u2")], offset=84)
    return facets["v"].reshape(-1, 3).astype(float) @ LPS, (data[:84], facets["a"].tolist())


PLY = "ply\nformat {}\ncomment SPACE=RAS\nelement vertex 12\nproperty uchar red\nproperty double x\nproperty double y\n"
PLY += "property double z\nelement face 4\nproperty list uchar int vertex_indices\nend_header\n"
TRIANGLES = "".join(f"3 {a} {b} {c}\n" for a, b, c in FACES)
VTK = "# vtk DataFile Version 5.1\nmine\n{}\nDATASET POLYDATA\nPOINTS 12 double\n"
VTP = (
    '<?xml version="1.0"?><VTKFile type="PolyData" byte_order="LittleEndian"><PolyData><Piece NumberOfPoints="12">'
    '<Points><DataArray type="Float64" NumberOfComponents="3" format="ascii" RangeMax="9">'
)


def write_ply(path: Path) -> None:
    table = np.zeros(12, [("red", "u1"), ("at", ">f8", 3)])
    table["red"], table["at"] = range(12), VERTICES
    path.write_bytes(PLY.format("binary_big_endian 1.0").encode() + table.tobytes() + b"faces\0\1")


def read_binary(start: int, step: int, skip: int, to_ras: np.ndarray) -> Read:
    """Big-endian doubles in rows of ``step`` bytes."""

    def read(path: Path) -> tuple[np.ndarray, Any]:
        data = path.read_bytes()
        table = np.frombuffer(data, "u1", 12 * step, start).reshape(12, step)
        points = table[:, skip : skip + 24].copy().view(">f8").astype(float)
        return points @ to_ras, (data[:start], table[:, :skip].tolist(), data[start + 12 * step :])

    return read


TABLES = {
    "fcsv": "# Markups fiducial file version = 4.10\n# CoordinateSystem = 0\n# columns = id,x,y,z,label\n"
    + rows(VERTICES, "n,", ",", ",L\n"),
    "ascii.ply": PLY.format("ascii 1.0") + rows(VERTICES, "200 ") + TRIANGLES,
    "ascii.vtk": VTK.format("ASCII") + rows(VERTICES @ LPS) + "METADATA\nINFORMATION 0\n\nPOLYGONS 4 16\n" + TRIANGLES,
    "vtp": VTP + "\n" + rows(VERTICES @ LPS) + "</DataArray></Points></Piece></PolyData></VTKFile>",
    "ascii.stl": "solid mine\n"
    + "".join(
        f"facet normal 0 0 0\n outer loop\n{rows(corners @ LPS, '  vertex ')} endloop\nendfacet\n"
        for corners in VERTICES[FACES]
    )
    + "endsolid mine\n",
}


def read_stl_text(path: Path) -> tuple[np.ndarray, Any]:
    lines = path.read_text(encoding="utf-8").splitlines()
    points = np.array([line.split()[1:] for line in lines if "vertex" in line], float)
    return points @ LPS, [line.split()[0] for line in lines]


VTK_START = VTK.format("BINARY").encode()
FORMATS: dict[str, tuple[Callable[[Path], None], Read]] = {
    "p.csv": (
        write_text("x,y,z,t\n" + rows(VERTICES @ LPS, "", ",", ",a\n")),
        lambda p: read_rows(p, 1, slice(3), ",", LPS),
    ),
    "p.fcsv": (write_text(TABLES["fcsv"]), lambda p: read_rows(p, 3, slice(1, 4), ",", np.eye(3))),
    "p.mrk.json": (write_text(markups()), read_markups),
    "p.pts": (write_text("point\n12\n" + rows(VERTICES @ LPS)), lambda p: read_rows(p, 2, slice(3), None, LPS)),
    "p.tck": (write_streamlines, read_tck),
    "p.trk": (write_streamlines, read_trk),
    "p.gii": (write_gifti, read_gifti),
    "p.stl": (write_stl, read_stl),
    "ascii.stl": (write_text(TABLES["ascii.stl"]), read_stl_text),
    "p.ply": (write_ply, read_binary(len(PLY.format("binary_big_endian 1.0")), 25, 1, np.eye(3))),
    "ascii.ply": (write_text(TABLES["ascii.ply"]), lambda p: read_rows(p, 11, slice(1, 4), None, np.eye(3))),
    "p.vtk": (
        lambda p: p.write_bytes(VTK_START + (VERTICES @ LPS).astype(">f8").tobytes() + b"P\1") and None,
        read_binary(len(VTK_START), 24, 0, LPS),
    ),
    "ascii.vtk": (write_text(TABLES["ascii.vtk"]), lambda p: read_rows(p, 5, slice(3), None, LPS)),
    "p.vtp": (write_text(TABLES["vtp"]), lambda p: read_rows(p, 1, slice(3), None, LPS)),
}  # fmt: skip


@pytest.fixture(scope="module")
def transform(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("transform") / "transform.h5"
    write_transform(path, registration(VOLUME))
    return path


def apply(source: Path, transform: Path, target: Path) -> str:
    return CliRunner().invoke(main, ["apply", "-i", str(source), "-t", str(transform), "-o", str(target)]).output


def by_itk(transform: Path, ras: np.ndarray) -> np.ndarray:
    itk = sitk.ReadTransform(transform)
    return np.array([itk.TransformPoint(point.tolist()) for point in ras @ LPS]) @ LPS


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
