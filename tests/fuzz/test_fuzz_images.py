# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""NIfTI headers and values of every kind: the result is what ITK would make of the same files."""

import gzip
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from hypothesis import event, given
from hypothesis import strategies as st
from judge import IDENTITY, cases, check_folder, check_refusal, run

TYPES = ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8", "c8", "f2"]
GZIP = b"\x1f\x8b"
MODES = {"linear": sitk.sitkLinear, "nearest": sitk.sitkNearestNeighbor, "label": sitk.sitkLabelLinear}
reals = st.floats(width=32, allow_nan=True, allow_infinity=True)
places = st.one_of(st.sampled_from([0.0, 1.0, -1.0, 0.5]), st.floats(-3, 3, width=32), reals)
side = st.integers(1, 5)


def rotations(angle: float, flip: float) -> np.ndarray:
    return np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, flip]])


@st.composite
def good_forms(draw: st.DrawFn) -> np.ndarray:
    affine = np.eye(4)
    zooms = [draw(st.floats(0.5, 3)) for _ in range(3)]
    affine[:3, :3] = rotations(draw(st.floats(-0.5, 0.5)), draw(st.sampled_from([1.0, -1.0]))) @ np.diag(zooms)
    affine[:3, 3] = [draw(st.floats(-3, 3)) for _ in range(3)]
    return affine


@st.composite
def headers(draw: st.DrawFn) -> dict[str, Any]:
    """Fields of a header that are not what nibabel would write."""
    wrong = {
        "srow_x": st.tuples(places, places, places, places),
        "quatern_b": reals,
        "quatern_c": st.sampled_from([0.0, 1.0, 0.7071068, 1.000002]),
        "qoffset_x": places,
        "pixdim": st.tuples(st.sampled_from([1.0, -1.0, 0.0, 2.0]), *[places] * 7),
        "scl_slope": reals,
        "scl_inter": reals,
        "xyzt_units": st.integers(0, 63),
        "sform_code": st.integers(-1, 6),
        "qform_code": st.integers(-1, 6),
        "intent_code": st.sampled_from([0, 1002, 1005, 1006, 1007, 2003, 2006]),
        "dim": st.tuples(st.integers(0, 7), *[st.integers(0, 6)] * 7),
        "vox_offset": st.sampled_from([0.0, 352.0, 356.0, 1e9]),
        "bitpix": st.sampled_from([8, 16, 64]),
        "magic": st.sampled_from([b"n+1", b"ni1", b"xyz", b""]),
    }
    count = draw(st.sampled_from([0, 0, 1, 2]))
    names = draw(st.lists(st.sampled_from(sorted(wrong)), min_size=count, max_size=count, unique=True))
    return {name: draw(wrong[name]) for name in names}


@st.composite
def images(draw: st.DrawFn) -> bytes:
    """A file."""
    dtype = np.dtype(draw(st.sampled_from(TYPES)))
    shape = draw(
        st.one_of(*[st.tuples(side, side, side)] * 4, st.tuples(side, side), st.tuples(side, side, side, side))
    )
    largest = draw(st.sampled_from([1, 100, 2**31, 2**60]))
    values = np.random.default_rng(draw(st.integers(0, 3))).uniform(0, 1, shape) * largest
    if dtype.kind in "iu":
        values = np.minimum(values, np.iinfo(dtype).max * 0.9)
    if dtype.kind == "f" and draw(st.booleans()):
        values = np.rint(values)
    with np.errstate(all="ignore"):
        values = values.astype(dtype)
    if dtype.kind == "f" and draw(st.integers(0, 4)) == 0:
        values.flat[0] = draw(st.sampled_from([np.nan, np.inf]))
    stored = np.dtype("f4") if dtype == np.float16 else dtype
    image = nib.Nifti1Image(values.astype(stored), np.eye(4), dtype=stored)
    image.set_sform(draw(good_forms()), draw(st.sampled_from([0, 1, 2])))
    image.set_qform(draw(good_forms()), draw(st.sampled_from([0, 0, 1])))
    image.header.set_xyzt_units(draw(st.sampled_from(["mm", "mm", "unknown", "meter", "micron"])))
    block = bytearray(image.to_bytes())
    header = image.header.copy()
    header["vox_offset"], header["magic"] = 352, b"n+1"
    with np.errstate(all="ignore"):
        for name, value in draw(headers()).items():
            header[name] = value
    block[:348] = header.binaryblock
    data = bytes(block)
    if draw(st.integers(0, 9)) == 0:
        data = data[: draw(st.integers(0, len(data)))]
    return gzip.compress(data, mtime=0) if draw(st.booleans()) else data


def itk_answer(image: Path, reference: Path, interpolation: str) -> tuple[sitk.Image, np.ndarray] | None:
    """By SimpleITK alone; None where it does not read or resample such files."""
    try:
        moving, fixed = (sitk.ReadImage(str(path)) for path in (image, reference))
        if moving.GetDimension() != fixed.GetDimension() or moving.GetNumberOfComponentsPerPixel() > 1:
            return None
        by_itk = sitk.GetArrayViewFromImage(moving).T
        if not np.allclose(nib.load(image).get_fdata().reshape(by_itk.shape), by_itk, equal_nan=True):
            return None  # scaled in another way, where the header's slope is none
        identity = sitk.Transform(moving.GetDimension(), sitk.sitkIdentity)
        low = float(sitk.GetArrayViewFromImage(moving).min()) if interpolation == "linear" else 0.0
        return fixed, sitk.GetArrayFromImage(sitk.Resample(moving, fixed, identity, MODES[interpolation], low)).T
    except RuntimeError:
        return None


def check_like_itk(image: Path, reference: Path, output: Path, interpolation: str) -> None:
    written = nib.load(output)
    kind = nib.load(image).get_data_dtype()
    scaling = nib.load(image).dataobj
    if kind.kind in "iu" and (scaling.slope, scaling.inter) == (1, 0):
        assert written.get_data_dtype() == kind.newbyteorder("=")
    answer = itk_answer(image, reference, interpolation)
    exact = kind.itemsize < 8 or kind.kind == "f"  # ITK's own 64-bit integers go through doubles
    if answer is None or not exact:
        return
    fixed, expected = answer
    if fixed.GetDimension() == len(written.shape) and np.isfinite(expected).all():
        place = sitk.ReadImage(str(output))
        for there, here in zip(fixed.GetSize(), place.GetSize(), strict=True):
            assert there == here
        corner = tuple(size - 1 for size in fixed.GetSize())
        side = min(fixed.GetSpacing())
        for index in ((0,) * len(corner), corner):
            there, here = (np.array(one.TransformIndexToPhysicalPoint(index)) for one in (fixed, place))
            assert np.abs(there - here).max() <= 0.011 * side + 1e-5 * np.abs(there).max()
        if interpolation == "linear":
            values = np.asanyarray(written.dataobj).astype(np.float64)
            assert np.median(np.abs(values - expected)) <= 1e-4 * np.ptp(expected) + 1e-6 * np.abs(expected).max() + 1


@given(
    images(),
    st.one_of(st.none(), images()),
    st.sampled_from(sorted(MODES)),
    st.sampled_from([None, "0", "-1", "300", "nan"]),
)
@cases(350)
def test_apply(image, reference, interpolation, outside):
    with TemporaryDirectory() as name:
        folder = Path(name)
        paths = []
        for stem, data in (("image", image), ("reference", image if reference is None else reference)):
            paths.append(folder / (f"{stem}.nii.gz" if data[:2] == GZIP else f"{stem}.nii"))
            paths[-1].write_bytes(data)
        dims = 2 if nib_dims(paths[0]) == 2 else 3
        transform, output = folder / "t.tfm", folder / "out.nii.gz"
        transform.write_text(IDENTITY.format(dims) + f"Parameters: {'0 ' * dims}\nFixedParameters: \n")
        before = {path.name for path in folder.iterdir()}
        words = [] if outside is None else ["--outside", outside]
        result = run(
            "apply", "-i", paths[0], "-r", paths[1], "-t", transform, "-o", output, "-n", interpolation, *words
        )
        event(f"exit status {result.exit_code}")
        check_folder(folder, before, output, result.exit_code == 0)
        if result.exit_code:
            check_refusal(result, *paths, "reference")
        elif outside is None:
            check_like_itk(*paths, output, interpolation)


def nib_dims(path: Path) -> int:
    try:
        return len(nib.load(path).shape)
    except Exception:
        return 3
