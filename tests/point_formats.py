# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Files of points of every format, how to write and read them without the package, and where ITK takes their points."""

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
import SimpleITK as sitk
from click.testing import CliRunner
from grids import VOLUME, world
from nibabel.gifti import GiftiDataArray, GiftiImage, GiftiMetaData
from nibabel.streamlines import Field, Tractogram

from monai_nodeo.apps.cli import main

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


def apply(source: Path, transform: Path, target: Path) -> str:
    return CliRunner().invoke(main, ["apply", "-i", str(source), "-t", str(transform), "-o", str(target)]).stderr


def by_itk(transform: Path, ras: np.ndarray) -> np.ndarray:
    itk = sitk.ReadTransform(transform)
    return np.array([itk.TransformPoint(point.tolist()) for point in ras @ LPS]) @ LPS
