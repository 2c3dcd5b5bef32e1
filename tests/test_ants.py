# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""ANTs applies our files: same image, same points. It needs an environment of its own.

python -m venv ants && ants/bin/pip install antspyx
MONAI_NODEO_ANTS=ants/bin/python python -m pytest tests/test_ants.py
"""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from grids import GRIDS, ImageGrid, interior, make_ddf, make_image, make_start, moved, warped, world

from monai_nodeo.files import Transform, write_affine, write_image, write_transform
from monai_nodeo.files.resampling import apply_to_image, apply_to_points, read_chain

PYTHON = os.environ.get("MONAI_NODEO_ANTS")

pytestmark = pytest.mark.skipif(PYTHON is None, reason="MONAI_NODEO_ANTS names no Python with antspyx")

SCRIPT = """
import json, sys
import ants, pandas
names, invert, points, folder = json.load(sys.stdin)
fixed = ants.image_read(folder + "/fixed.nii.gz")
moving = ants.image_read(folder + "/moving.nii.gz")
warped = ants.apply_transforms(fixed, moving, names, interpolator="linear", whichtoinvert=invert)
ants.image_write(warped, folder + "/ants.nii.gz")
table = pandas.DataFrame(points, columns=list("xyz")[: fixed.dimension])
there = ants.apply_transforms_to_points(fixed.dimension, table, names, whichtoinvert=invert)
print(json.dumps(there[list("xyz")[: fixed.dimension]].values.tolist()))
"""

CHAINS = {
    "composite": ["transform.h5"],
    "field and affine": ["warp.nii.gz", "start.mat"],
    "field of all steps": ["displacement.nii.gz"],
    "inverse of an affine": ["warp.nii.gz", "[back.mat,1]"],
}


def ants(folder: Path, names: Sequence[str], points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Image on the fixed grid, and the places of points (N, D) in LPS mm, both by ANTs."""
    files = [str(folder / name.strip("[]").removesuffix(",1")) for name in names]
    invert = [name.startswith("[") for name in names]
    words = json.dumps([files, invert, points.tolist(), str(folder)])
    assert PYTHON is not None
    done = subprocess.run([PYTHON, "-c", SCRIPT], input=words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    image = nib.Nifti1Image.from_filename(folder / "ants.nii.gz").get_fdata()
    return image, np.array(json.loads(done.stdout.splitlines()[-1]))


def write_files(folder: Path, grid: ImageGrid) -> None:
    start = make_start(grid)
    whole = Transform.of_registration(make_ddf(grid), grid, start)
    write_image(folder / "fixed.nii.gz", make_image(grid, 1), grid)
    write_image(folder / "moving.nii.gz", make_image(grid), grid)
    write_transform(folder / "transform.h5", whole)
    write_transform(folder / "displacement.nii.gz", whole)
    write_transform(folder / "warp.nii.gz", Transform.of_registration(make_ddf(grid), grid))
    write_affine(folder / "start.mat", start, len(grid.shape))
    write_affine(folder / "back.mat", np.linalg.inv(start), len(grid.shape))


CASES = [(kind, chain) for kind in ("volume", "plane") for chain in CHAINS]
CASES += [("slice", "composite")]  # ITK drops the third axis of a field in NIfTI, and ANTs cannot open it


@pytest.mark.parametrize(("kind", "chain"), CASES)
def test_ants_gets_our_image_and_our_points(kind, chain, tmp_path):
    grid = GRIDS[kind]
    write_files(tmp_path, grid)
    dims = len(grid.shape)
    flip = np.array([-1, -1, 1])
    index = np.random.default_rng(2).integers(2, np.array(grid.spatial_shape) - 2, (30, grid.spatial_dims))
    points = world(grid, index) * flip

    image, there = ants(tmp_path, CHAINS[chain], points[:, :dims])

    start, ddf, moving = make_start(grid), make_ddf(grid), make_image(grid)
    difference = interior(image.reshape(grid.spatial_shape) - warped(grid, moving, ddf, start))
    apart = there - (moved(grid, ddf, start, index) * flip)[:, :dims]
    print(f"{kind}, {chain}: image {np.abs(difference).max() / np.ptp(moving):.2g} of the range, ", end="")
    print(f"points {np.abs(apart).max():.2g} mm")
    assert np.abs(difference).max() < 1e-3 * np.ptp(moving)
    assert np.abs(apart).max() < 1e-2

    # and our own command line, with the same words in the same order
    names = [name.replace("[", f"[{tmp_path}/") if "[" in name else str(tmp_path / name) for name in CHAINS[chain]]
    ours = tmp_path / "ours.nii.gz"
    images = [str(tmp_path / f"{side}.nii.gz") for side in ("moving", "fixed")]
    apply_to_image(*images, read_chain(names), str(ours), outside=0)  # as ANTs has it
    difference = interior((nib.Nifti1Image.from_filename(ours).get_fdata() - image).reshape(grid.spatial_shape))
    assert np.abs(difference).max() < 1e-3 * np.ptp(moving)
    (tmp_path / "points.csv").write_text("x,y,z\n" + "\n".join(",".join(map(str, point)) for point in points))
    apply_to_points(str(tmp_path / "points.csv"), read_chain(names), str(tmp_path / "moved.csv"))
    table = np.loadtxt(tmp_path / "moved.csv", delimiter=",", skiprows=1)
    np.testing.assert_allclose(table[:, :dims], there, rtol=0, atol=1e-2)


REGISTER = """
import json, sys
import ants
folder = sys.stdin.read()
fixed, moving = (ants.image_read(f"{folder}/{side}.nii.gz") for side in ("fixed", "moving"))
found = ants.registration(fixed, moving, "SyN", reg_iterations=(5, 0, 0), outprefix=folder + "/found", random_seed=1)
for way, reference, image in (("fwdtransforms", fixed, moving), ("invtransforms", moving, fixed)):
    invert = [name.endswith(".mat") and way == "invtransforms" for name in found[way]]
    result = ants.apply_transforms(reference, image, found[way], whichtoinvert=invert)
    ants.image_write(result, f"{folder}/{way}.nii.gz")
    found[way] = [f"[{name},1]" if back else name for name, back in zip(found[way], invert)]
print(json.dumps([found["fwdtransforms"], found["invtransforms"]]))
"""


@pytest.mark.parametrize("kind", ["volume", "plane"])
def test_we_apply_what_ants_registered(kind, tmp_path):
    write_files(tmp_path, GRIDS[kind])
    assert PYTHON is not None
    done = subprocess.run([PYTHON, "-c", REGISTER], input=str(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    forward, inverse = json.loads(done.stdout.splitlines()[-1])
    for names, theirs, sides in (
        (forward, "fwdtransforms", ("moving", "fixed")),
        (inverse, "invtransforms", ("fixed", "moving")),
    ):
        ours = tmp_path / "ours.nii.gz"
        sources = [str(tmp_path / f"{side}.nii.gz") for side in sides]
        apply_to_image(*sources, read_chain(names), str(ours), outside=0)  # as ANTs has it
        images = [nib.Nifti1Image.from_filename(path).get_fdata() for path in (ours, tmp_path / f"{theirs}.nii.gz")]
        assert np.abs(interior(images[0] - images[1])).max() < 1e-3 * np.ptp(images[1])
