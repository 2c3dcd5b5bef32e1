# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Transform files of every kind: points go where ITK takes them."""

from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import event, given
from hypothesis import strategies as st
from judge import cases, check_folder, check_refusal, run

from monai_nodeo.files import read_transform

CODE = '$__import__("pathlib").Path("pwned").touch()'
KINDS = ["AffineTransform", "Euler3DTransform", "TranslationTransform", "ScaleTransform", "VersorRigid3DTransform"]
KINDS += ["CompositeTransform", "BSplineTransform", "DisplacementFieldTransform", "Nonsense", CODE]
COUNTS = {"AffineTransform": 12, "Euler3DTransform": 6, "VersorRigid3DTransform": 6}
POINTS = np.array([[0.0, 0, 0], [1, 2, 3], [-4, 5, 0.5]])
numbers = st.one_of(st.floats(-2, 2), st.sampled_from([0.0, 1.0, -1.0]), st.floats(width=32))


@st.composite
def texts(draw: st.DrawFn) -> bytes:
    """A text file of ITK, more or less."""
    lines = [draw(st.sampled_from(["#Insight Transform File V1.0", "#Insight Transform File V1.0", "", "garbage"]))]
    for number in range(draw(st.integers(1, 2))):
        kind = draw(st.sampled_from(KINDS))
        usual = COUNTS.get(kind, 3)
        count = draw(st.one_of(st.just(usual), st.just(usual), st.integers(0, 13)))
        parameters = draw(st.lists(numbers, min_size=count, max_size=count))
        fixed = draw(st.lists(numbers, min_size=3, max_size=3)) if usual > 3 else []
        lines += [
            draw(st.sampled_from([f"#Transform {number}", f"# {CODE}", ""])),
            f"Transform: {kind}_{draw(st.sampled_from(['double_3_3', 'double_3_3', 'float_3_3', 'double_2_2']))}",
            f"Parameters: {' '.join(map(str, parameters))}",
            f"FixedParameters: {' '.join(map(str, fixed))}",
        ]
    return "\n".join(lines[: draw(st.integers(max(0, len(lines) - 2), len(lines)))]).encode() + b"\n"


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """The file with a byte changed, or its end missing."""
    place = draw(st.integers(0, len(data) - 1))
    if draw(st.booleans()):
        return data[:place]
    return data[:place] + bytes([draw(st.integers(0, 255))]) + data[place + 1 :]


@st.composite
def fields(draw: st.DrawFn) -> nib.Nifti1Image:
    """A NIfTI that somebody might give as a transform."""
    shape = draw(
        st.sampled_from(
            [(4, 5, 6, 1, 3), (4, 5, 6, 1, 3), (4, 5, 6, 3), (4, 5, 1, 1, 2), (4, 5, 1, 1, 3), (4, 5, 6), (4, 5, 6, 2)]
        )
    )
    values = np.random.default_rng(draw(st.integers(0, 9))).uniform(-1, 1, shape).astype(np.float32)
    if draw(st.integers(0, 5)) == 0:
        values.flat[0] = np.nan
    affine = np.diag([draw(st.sampled_from([1.0, -1.5, 2.0])), 1.25, draw(st.sampled_from([1.0, -1.0])), 1])
    affine[:3, 3] = draw(st.tuples(*[st.floats(-5, 5)] * 3))
    image = nib.Nifti1Image(values, affine)
    image.set_sform(affine, draw(st.sampled_from([0, 1, 2])))
    image.set_qform(affine, draw(st.sampled_from([0, 1])))
    image.header["intent_code"] = draw(st.sampled_from([1007, 1007, 1007, 0, 1006, 2006, 2007]))
    image.header["intent_name"] = draw(st.sampled_from(["", "", "NREG_TRANS", "Mapping", CODE[:15]]))
    image.header["intent_p1"] = draw(st.sampled_from([0.0, 1.0, 2.0, float("nan")]))
    image.header["descrip"] = CODE
    return image


def composite(path: Path, type_name: str) -> bytes:
    with h5py.File(path, "w") as file:
        for number, kind in enumerate(("CompositeTransform_double_3_3", type_name)):
            group = file.create_group(f"TransformGroup/{number}")
            group.create_dataset("TransformType", data=np.array([kind], object), dtype=h5py.string_dtype("ascii"))
            if number:
                group["TransformParameters"] = np.array([1.0, 0, 0, 0, 1, 0, 0, 0, 1, 2, 3, 4])
                group["TransformFixedParameters"] = np.zeros(3)
    return path.read_bytes()


def check_points(folder: Path, path: Path) -> None:
    """`apply` takes points where ITK does, or refuses the file."""
    before = {file.name for file in folder.iterdir()}
    table, output = folder / "points.csv", folder / "moved.csv"
    result = run("apply", "-i", table, "-t", path, "-o", output)
    event(f"{path.suffix}: exit status {result.exit_code}")
    check_folder(folder, before, output, result.exit_code == 0)
    assert not Path("pwned").exists()
    if result.exit_code:
        check_refusal(result, path, table)
        return
    lines = [line.split(",") for line in output.read_text().splitlines()[1:]]
    found = np.array([[float(number) for number in line] for line in lines])
    by_itk = itk_transform(path)
    if by_itk is not None:
        dims = by_itk.GetDimension()
        expected = np.array([by_itk.TransformPoint(point[:dims].tolist()) for point in POINTS])
        assert np.allclose(found[:, :dims], expected, rtol=1e-5, atol=1e-4)


def itk_transform(path: Path) -> sitk.Transform | None:
    """As ITK reads the file; None for fields that it takes for something else, or drops an axis of."""
    if path.suffix != ".nii":
        return sitk.ReadTransform(str(path))
    header = nib.load(path).header
    ours = header.get_data_shape()[2] > 1 and len(header.get_data_shape()) == 5
    if not ours or header.get_intent()[2] in ("NREG_TRANS", "Mapping"):
        return None
    return sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))


@pytest.fixture(scope="module", autouse=True)
def _elsewhere(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        yield


@given(st.data())
@cases(300)
def test_points_go_where_itk_takes_them(data):
    with TemporaryDirectory() as name:
        folder = Path(name)
        table = "\n".join(",".join(map(str, point)) for point in POINTS)
        (folder / "points.csv").write_text(f"x,y,z\n{table}\n")
        kind = data.draw(st.sampled_from(["tfm", "txt", "mat", "h5", "nii", "nii"]))
        path = folder / f"t.{kind}"
        if kind == "nii":
            nib.save(data.draw(fields()), path)
        elif kind == "h5":
            composite(path, data.draw(st.sampled_from(["AffineTransform_double_3_3", CODE, "Nonsense_double_3_3"])))
        elif kind == "mat":
            sitk.WriteTransform(sitk.AffineTransform(3), str(path))
        else:
            path.write_bytes(data.draw(texts()))
        if data.draw(st.integers(0, 3)) == 0:
            path.write_bytes(data.draw(damaged(path.read_bytes() or b"x")))
        check_points(folder, path)


@given(fields(), st.sampled_from(["out.h5", "out.nii.gz", "disp_1_2.nii.gz", "out.tfm", "out.xyz"]))
@cases(60)
def test_convert(field, target):
    """A field that is read goes through every format that takes it, and comes back."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        path, output = folder / "t.nii", folder / target
        nib.save(field, path)
        result = run("convert", path, output)
        check_folder(folder, {"t.nii"}, output, result.exit_code == 0)
        if result.exit_code:
            check_refusal(result, path, output)
        else:
            np.testing.assert_allclose(
                read_transform(output).map_points(POINTS), read_transform(path).map_points(POINTS), atol=1e-4
            )
