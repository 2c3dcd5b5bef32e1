# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""What a registration gives: its map both ways, its proof, its folder."""

import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from grids import CORONAL, OBLIQUE
from monai.data import MetaTensor
from synthetic import deformed_pair, quick_settings, save_pair
from torch import Tensor

from monai_nodeo import Flow, Registration, Settings, register
from monai_nodeo.files import read_displacement

KINDS = {"volume": ((19, 17, 13), OBLIQUE), "slice": ((33, 29, 1), CORONAL), "nodeo": ((33, 29, 1), CORONAL)}
STARTS = {"start": "moments", "headers": None}


@dataclasses.dataclass
class Case:
    """Files of a pair, and what is found for it."""

    row: dict[str, str]
    found: Registration
    folder: Path
    figures: dict[str, Any]

    @property
    def points(self) -> Tensor:
        """Some voxel centres of the fixed image, RAS mm (N, 3), not at its border."""
        grid = self.found.flow.grid
        axes = [torch.arange(4, n - 4, 3) for n in grid.spatial_shape]
        index = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2).double()
        return index @ torch.tensor(grid.affine[:3, : index.shape[1]]).T + torch.tensor(grid.affine[:3, 3])


@pytest.fixture(scope="module", params=[(kind, start) for kind in KINDS for start in STARTS], ids="-".join)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    kind, start = request.param
    shape, axes = KINDS[kind]
    folder = tmp_path_factory.mktemp(f"{kind}-{start}")
    dims = 2 if shape[2] == 1 else 3
    row = save_pair(
        folder, shape, axes, axes @ np.array([[1.1, 0, 0, 0.8], [0, 1, 0, -0.5], [0, 0, 1, 0], [0, 0, 0, 1]])
    )
    changes: dict[str, Any] = {"iterations": (12, 8), "initial_transform": STARTS[start]}
    if kind == "nodeo":  # a cloud of points, not a velocity of places
        changes |= {"velocity": "nodeo", "bottleneck": 8, "solver": "euler", "num_steps": 1, "learning_rate": 0.02}
        changes |= {"iterations": (30,), "shrink_factors": (1,), "smoothness_weight": 0.0}
    found = register(**row, settings=quick_settings(dims, **changes), device="cpu", handlers=())
    figures = found.save(folder / "result", seconds_total=1.5)
    return Case(row, found, folder / "result", figures)


def test_points_and_warp_are_one_map(case):
    """A linear function of the place is sampled without an error: the warped image holds where points are taken."""
    moving = case.found.pair.moving.image
    axes = [torch.arange(n, dtype=torch.float64) for n in moving.shape[1:]]
    index = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    affine = moving.affine
    world = torch.einsum("ij,j...->i...", affine[:3, : len(index)], index) + affine[:3, 3].view(3, *[1] * len(index))
    warped = case.found.warp(MetaTensor(world.float(), affine=affine))
    there = case.found.points(case.points)
    grid = case.found.flow.grid
    back = (case.points - torch.tensor(grid.affine[:3, 3])) @ torch.linalg.pinv(
        torch.tensor(grid.affine[:3, : len(index)])
    ).T
    sampled = warped.as_tensor()[(slice(None), *back.round().long().T)].T.double()
    inside = ((sampled - there).abs() < 1).all(1)  # beyond the moving image is its background
    assert inside.float().mean() > 0.7
    in_plane = torch.linalg.qr(affine[:3, : len(index)]).Q  # slices are matched in their plane
    torch.testing.assert_close((sampled @ in_plane)[inside], (there @ in_plane)[inside], rtol=0, atol=2e-3)


def test_the_inverse_brings_points_home(case):
    there = case.found.points(case.points)
    home = case.found.inverse.points(there)
    tolerance = 0.05 if case.found.settings.velocity == "nodeo" else 5e-3
    assert (home - case.points).norm(dim=1).mean() < tolerance
    again = case.found.inverse.inverse(case.found.flow.grid)
    torch.testing.assert_close(again.points(case.points), there, rtol=0, atol=1e-6)


def test_the_inverse_warps_the_fixed_image(case):
    pair = case.found.pair
    found = case.found.inverse.warp(case.row["fixed"])
    assert found.shape == pair.moving.image.shape
    inside = (slice(None), *[slice(5, -5)] * pair.spatial_dims)
    before = (pair.fixed.image.as_tensor() - pair.moving.image.as_tensor())[inside].norm()
    assert (found.as_tensor() - pair.moving.image.as_tensor())[inside].norm() < 0.6 * before


def test_times_on_the_way(case):
    found = case.found
    warped, moving = found.warp(found.pair.moving.image), found.at(1)
    torch.testing.assert_close(found.at(0).as_tensor(), warped.as_tensor())
    started = Registration(**{**vars_of(found), "flow": still(found.flow), "displacement": 0 * found.displacement})
    torch.testing.assert_close(moving.as_tensor(), started.warp(found.pair.moving.image).as_tensor(), atol=1e-4, rtol=0)
    between = found.at(0.5)
    fixed = found.pair.fixed.image
    inside = (slice(None), *[slice(4, -4)] * found.pair.spatial_dims)
    distances = [(image.as_tensor() - fixed.as_tensor())[inside].norm() for image in (warped, between, moving)]
    assert distances == sorted(distances)
    if found.settings.velocity != "nodeo":  # which knows its points at the start alone
        half = found.map.points(case.points, 0, 0.5)
        torch.testing.assert_close(found.map.points(half, 0.5, 1), found.points(case.points), rtol=0, atol=2e-3)


def vars_of(found: Registration) -> dict[str, Any]:
    return {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}


def still(flow: Flow) -> Flow:
    """The flow of no velocity."""
    other = pickle.loads(pickle.dumps(flow))
    for parameter in other.velocity.parameters():
        parameter.data.zero_()
    return other


def test_the_ddf_is_the_whole_way(case):
    grid, found = case.found.flow.grid, case.found
    dims = len(found.ddf)
    index = torch.stack(torch.meshgrid(*[torch.arange(n) for n in grid.spatial_shape], indexing="ij"))
    affine = torch.tensor(grid.affine)
    world = torch.einsum("ij,j...->i...", affine[:3, :dims], index.double()) + affine[:3, 3].view(3, *[1] * dims)
    there = found.points(world.flatten(1).T)
    ways = (there - world.flatten(1).T) @ torch.linalg.pinv(affine[:3, :dims]).T
    # each point takes steps of its own, of a length that rounding may decide about
    tolerance = 1e-3 + 2 * found.certificate.solver_error.voxels_max
    torch.testing.assert_close(found.ddf.flatten(1).T.double(), ways, rtol=0, atol=tolerance)
    assert (found.ddf.flatten(1).T.double() - ways).abs().mean() < 1e-4
    if found.start is None:
        assert torch.equal(found.ddf, found.displacement)


def test_a_loaded_registration_is_the_saved_one(case):
    loaded, found = Registration.load(case.folder), case.found
    torch.testing.assert_close(loaded.displacement, found.displacement, rtol=0, atol=1e-6)
    torch.testing.assert_close(loaded.ddf, found.ddf, rtol=0, atol=1e-6)
    assert (loaded.start is None) == (found.start is None)
    if found.start is not None:
        assert torch.equal(loaded.start, found.start)
    assert loaded.settings == found.settings
    assert loaded.interrupted is None
    assert loaded.similarity == found.similarity
    assert loaded.seconds == pytest.approx(found.seconds, abs=1e-3)
    assert list(loaded.history) == list(found.history)
    for name, curve in found.history.items():
        torch.testing.assert_close(loaded.history[name], curve, rtol=1e-6, atol=0)
    assert dataclasses.replace(loaded.certificate, file_error_voxels=None) == found.certificate
    for mine, theirs in ((loaded, found), (loaded.inverse, found.inverse)):
        torch.testing.assert_close(mine.points(case.points), theirs.points(case.points), rtol=0, atol=1e-5)
    label = found.pair.moving.label
    assert torch.equal(loaded.warp(label, "nearest").as_tensor(), found.warp(label, "nearest").as_tensor())
    assert torch.equal(loaded.pair.fixed.image.as_tensor(), found.pair.fixed.image.as_tensor())
    assert loaded.figures()["after"] == found.figures()["after"]


def test_fields_may_be_left_out(case, tmp_path):
    """Also those of an earlier result."""
    bare = dataclasses.replace(case.found, pair=None)
    bare.save(tmp_path)
    fields = {"transform.h5", "displacement.nii.gz", "jacobian.nii.gz"}
    whole = {path.name for path in tmp_path.iterdir()}
    assert fields < whole
    figures = bare.save(tmp_path, fields=False)
    assert {path.name for path in tmp_path.iterdir()} == whole - fields
    assert figures["certificate"]["file_error_voxels"] is None
    assert torch.equal(Registration.load(tmp_path).flow.displacement(), case.found.flow.displacement())


def test_what_is_on_disk_is_the_flow(case):
    field, grid = read_displacement(case.folder / "displacement.nii.gz")
    ddf = case.found.ddf.numpy()
    assert np.abs(field - ddf).max() < 2e-5
    assert grid.spatial_shape == ddf.shape[1:]
    assert case.figures["certificate"]["file_error_voxels"] < 2e-5
    assert torch.equal(Flow.load(case.folder / "flow.safetensors").displacement(), case.found.flow.displacement())
    if case.found.settings.velocity != "nodeo":
        assert torch.equal(case.found.flow.displacement(), case.found.displacement)


def test_simpleitk_applies_what_is_on_disk(case):
    fixed, moving = (sitk.ReadImage(case.row[name], sitk.sitkFloat64) for name in ("fixed", "moving"))
    way = sitk.ReadTransform(str(case.folder / "transform.h5"))
    for point in case.points[::7]:
        there = way.TransformPoint((point * torch.tensor([-1.0, -1, 1], dtype=torch.float64)).tolist())
        expected = case.found.points(point[None])[0] * torch.tensor([-1.0, -1, 1], dtype=torch.float64)
        np.testing.assert_allclose(there, expected, atol=5e-3)
    warped = nib.load(case.folder / "warped.nii.gz").get_fdata()
    if fixed.GetSize()[2] > 1:  # ITK samples slices of another level as outside
        theirs = sitk.GetArrayFromImage(sitk.Resample(moving, fixed, way, sitk.sitkLinear, 0.0)).T
        inside = (slice(4, -4),) * 3
        np.testing.assert_allclose(warped[inside], theirs[inside], atol=2e-3)
    np.testing.assert_allclose(warped, case.found.warp(case.row["moving"])[0].numpy().reshape(warped.shape), atol=1e-5)


def test_figures_are_those_of_the_objects(case):
    figures = json.loads((case.folder / "metrics.json").read_text(encoding="utf-8"))
    assert figures == case.figures
    assert figures["after"]["similarity"] == case.found.similarity[1] < figures["before"]["similarity"]
    assert figures["after"]["dice_mean"] > figures["before"]["dice_mean"]
    assert figures["certificate"]["folded_cells"] == case.found.certificate.folded_cells
    assert Settings.from_dict(figures["settings"]) == case.found.settings
    assert (figures["seconds_total"], figures["iterations"]) == (1.5, case.found.iterations)
    assert {name: figures[name] for name in case.row} == case.row


def test_how_it_shows_itself(case):
    text = repr(case.found)
    assert case.found.certificate.verdict in text
    html = case.found._repr_html_()
    assert html.count("data:image/png;base64,") == 5  # both images, the warped one, and two differences
    assert case.found.certificate.verdict in html
    alone = Registration.load(case.folder, with_pair=False)
    assert "<img" not in alone._repr_html_()
    named = dataclasses.replace(case.found, pair=dataclasses.replace(case.found.pair, id="<script>"))
    assert "<script>" not in named._repr_html_()


def test_without_its_images(case):
    alone = Registration.load(case.folder, with_pair=False)
    assert alone.pair is None
    assert torch.equal(alone.at(0, case.row["moving"]).as_tensor(), case.found.warp(case.row["moving"]).as_tensor())
    for use in (lambda: alone.inverse, lambda: alone.at(0.5)):
        with pytest.raises(ValueError, match="the moving image is not there"):
            use()
    other = alone.save(case.folder.parent / "again")
    assert other["after"] == {"similarity": case.found.similarity[1]}
    assert not (case.folder.parent / "again" / "warped.nii.gz").exists()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], Registration]:
    """A pair of slices with voxels of 1 mm, and its registration."""
    folder = tmp_path_factory.mktemp("plain")
    files = save_pair(folder, (33, 29, 1), np.eye(4))
    row = {name: files[name] for name in ("fixed", "moving")}
    return row, register(**row, settings=quick_settings(2), device="cpu", handlers=())


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_result_from_before_a_setting_is_read(plain, tmp_path):
    _, found = plain
    figures = found.save(tmp_path / "out")
    del figures["settings"]["label_weight"], figures["settings"]["channel_weights"]
    (tmp_path / "out" / "metrics.json").write_text(json.dumps(figures), encoding="utf-8")
    assert Registration.load(tmp_path / "out").settings == found.settings


def test_a_stranger_s_folder_runs_nothing(plain, tmp_path):
    _, found = plain
    exploded = tmp_path / "exploded"
    code = f"$__import__('pathlib').Path({str(exploded)!r}).touch()"
    folder = tmp_path / "out"
    figures = found.save(folder)
    hostile = [
        {**figures, "fixed": code, "moving": f"%{code}"},
        {**figures, "settings": {**figures["settings"], "velocity": code, "_target_": "os.system"}},
        {**figures, "certificate": {"_target_": "os.system", "command": code}},
        {**figures, "initial_affine": code},
        {**figures, "settings": code},
        [code],
        {},
    ]
    for values in hostile:
        (folder / "metrics.json").write_text(json.dumps(values), encoding="utf-8")
        if values is hostile[0]:  # images that are not there
            assert Registration.load(folder).pair is None
        else:
            with pytest.raises(ValueError, match=r"metrics.json is damaged|damaged figures") as error:
                Registration.load(folder)
            assert "\n" not in str(error.value)
    found.save(folder)
    for name in ("flow.safetensors", "metrics.json", "history.csv"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(pickle.dumps(Bomb(exploded)))
        with pytest.raises(ValueError, match=name.split(".")[0]):
            Registration.load(folder)
        (folder / name).write_bytes(whole)
    assert not exploded.exists()
    assert torch.equal(Registration.load(folder).ddf, found.ddf)


def test_images_of_any_kind(plain):
    row, found = plain
    fixed, moving = (nib.load(path).get_fdata(dtype=np.float32) for path in row.values())
    kinds: dict[str, Callable[[str, np.ndarray], Any]] = {
        "path": lambda path, _: Path(path),
        "array": lambda _, values: values[..., 0],
        "tensor": lambda _, values: torch.from_numpy(values[None, ..., 0].copy()),
        "stored slice": lambda _, values: values,
        "nibabel": lambda path, _: nib.load(path),
        "SimpleITK": lambda path, _: sitk.ReadImage(path),
        "MetaTensor": lambda _, values: MetaTensor(torch.from_numpy(values[None, ..., 0].copy()), affine=torch.eye(4)),
    }
    for name, kind in kinds.items():
        images = (kind(path, values) for path, values in zip(row.values(), (fixed, moving), strict=True))
        assert torch.equal(register(*images, found.settings, handlers=()).ddf, found.ddf), name


@pytest.mark.parametrize("number", [0, 7])
def test_real_slices_get_an_accurate_flow_without_folds(oasis, number):
    """The proof that is asked for, without a repair that leaves the flow."""
    row = json.loads((oasis / "pairs2d.json").read_text(encoding="utf-8"))[number]
    found = register(**{key: oasis / path for key, path in row.items()}, handlers=())
    proof = found.certificate
    assert proof.folded_cells == 0
    assert not any(proof.folded_by_difference)
    assert proof.invertible
    assert proof.solver_error.voxels_max <= 0.05
    assert proof.inverse.voxels_mean <= 0.01
    assert proof.inverse.voxels_max <= 0.1
    assert torch.equal(found.flow.displacement(), found.displacement)
    figures = found.figures()
    assert figures["after"]["dice_mean"] > figures["before"]["dice_mean"] + 0.1


@pytest.mark.parametrize(
    ("shape", "preset"), [((64, 48), "fast"), ((40, 32, 36), "fast"), ((64, 48), "mutual_information")]
)
def test_what_the_moving_image_does_not_show_does_not_pull(shape, preset):
    fixed, moving, ddf = deformed_pair(shape)
    half = shape[0] // 2
    images = [MetaTensor(image, affine=torch.eye(4)) for image in (fixed, moving[:, :half])]
    settings = Settings.preset(preset, len(shape), initial_transform="none", self_tuning=False)
    found = register(*images, settings, device="cpu", handlers=())
    error = torch.linalg.vector_norm(found.displacement - ddf, dim=0)
    assert error[: half - 2].mean() < 0.5 * torch.linalg.vector_norm(ddf, dim=0)[: half - 2].mean()
    assert error[half:].mean() < 1.5
