# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data import CacheDataset, DataLoader, Dataset, MetaTensor, ThreadDataLoader, decollate_batch
from monai.networks.blocks import Warp
from monai.transforms import Compose, EnsureTyped, Invertd, LoadImaged, SaveImaged, SqueezeDimd
from monai.utils import SpaceKeys
from scipy import ndimage
from scipy.spatial.transform import Rotation
from synthetic import deformed_pair, quick_settings, quickly, save_pair, smooth_ddf, smooth_image
from torch import Tensor

import monai_nodeo
from monai_nodeo import RegisterPair, RegisterPaird, Registration, WarpWithDDF, WarpWithDDFd
from monai_nodeo.registration import monai_transforms

SHAPES = [(25, 21), (13, 17, 11)]
TURNED = torch.from_numpy(Rotation.from_euler("x", 0.1).as_matrix() * [2, -3, 4])
FIXED_AFFINE, MOVING_AFFINE = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
FIXED_AFFINE[:3], MOVING_AFFINE[:3] = (
    torch.cat([TURNED, torch.tensor(x, dtype=torch.float64)[:, None]], 1) for x in ((5, 6, 7), (4, 7, 8))
)


def label_map(shape: tuple[int, ...], dtype: torch.dtype = torch.uint8) -> Tensor:
    """Blocks of the labels 1 to 4, (1, *shape)."""
    return (1 + 3 * smooth_image(shape, 4)).round().to(dtype)


def sampled(image: np.ndarray, ddf: np.ndarray, order: int, background: float = 0) -> np.ndarray:
    """By scipy: image(x + ddf(x)) of one channel, the background where that is not in a voxel of the image."""
    positions = np.indices(image.shape) + ddf
    limit = np.reshape(image.shape, (-1, *[1] * image.ndim)) - 0.5
    inside = ((positions >= -0.5) & (positions <= limit)).all(0)
    return np.where(inside, ndimage.map_coordinates(image, positions, order=order, mode="nearest"), background)


@pytest.mark.parametrize("shape", SHAPES)
def test_warp_is_linear_interpolation_with_the_minimum_outside(shape):
    image = torch.cat([smooth_image(shape, seed) - seed for seed in (3, 10)])  # each channel has its own minimum
    ddf = smooth_ddf(shape, 2, largest=6, sigma=3)
    expected = np.stack([sampled(channel.numpy(), ddf.numpy(), 1, float(channel.min())) for channel in image])
    assert (expected == image.amin((*range(1, image.ndim),), keepdim=True).numpy()).mean() > 0.01  # some lie outside
    np.testing.assert_allclose(WarpWithDDF()(image, ddf), expected, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_warp_of_labels_is_nearest_and_keeps_their_type(shape, dtype):
    labels = label_map(shape, dtype)
    ddf = smooth_ddf(shape, 2, largest=6, sigma=3)
    warped = WarpWithDDF("nearest")(labels, ddf)
    assert warped.dtype == dtype
    expected = sampled(labels[0].numpy(), ddf.numpy(), 0)
    clear = (ddf - ddf.floor() - 0.5).abs().amin(0) > 1e-3  # half-way between two voxels, either is the nearest
    assert clear.float().mean() > 0.9
    assert {0, 2, 3, 4} <= set(warped.unique().tolist()) <= {0, 1, 2, 3, 4}
    assert torch.equal(warped[0][clear], torch.from_numpy(expected)[clear])
    torch.testing.assert_close(WarpWithDDF()(labels, ddf).float(), WarpWithDDF()(labels.float(), ddf))


def test_warp_of_a_mask_is_a_mask():
    mask = label_map(SHAPES[0]) > 2
    warped = WarpWithDDF("nearest")(mask, torch.zeros(2, *SHAPES[0]))
    assert warped.dtype == torch.bool
    assert torch.equal(warped, mask)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_warp_of_tensors_without_a_place_of_their_own(mode):
    image, ddf = smooth_image(SHAPES[1]), smooth_ddf(SHAPES[1])
    warp = WarpWithDDF(mode)
    plain = warp(image, ddf)
    assert type(plain) is Tensor
    assert torch.equal(warp(image.numpy(), ddf.numpy()), plain)
    for result, affine in (
        (warp(image, MetaTensor(ddf, affine=FIXED_AFFINE)), FIXED_AFFINE),
        (warp(MetaTensor(image, affine=MOVING_AFFINE), ddf), MOVING_AFFINE),
        (warp(MetaTensor(image, affine=FIXED_AFFINE), MetaTensor(ddf, affine=FIXED_AFFINE)), FIXED_AFFINE),
    ):
        assert torch.equal(result.affine, affine)
        torch.testing.assert_close(result.as_tensor(), plain, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="give MetaTensors"):
        warp(image[:, 1:], ddf)


@pytest.mark.parametrize(
    "transform", [WarpWithDDF, lambda mode: WarpWithDDFd("a", mode=mode), lambda m: RegisterPaird(mode=m)]
)
def test_a_misspelt_mode_is_refused(transform):
    with pytest.raises(ValueError, match="'nearest'"):
        transform("nearst")


def test_warp_leaves_its_input_alone():
    image, ddf = MetaTensor(smooth_image(SHAPES[0]), affine=MOVING_AFFINE), smooth_ddf(SHAPES[0])
    copies = image.clone(), ddf.clone()
    warped = WarpWithDDF()(image, ddf)
    warped.affine[0, 0] = 77  # its own, not the image's
    warped += 1
    assert torch.equal(image, copies[0])
    assert torch.equal(ddf, copies[1])
    assert torch.equal(image.affine, MOVING_AFFINE)


def row(shape: tuple[int, ...]) -> dict[str, Tensor]:
    return {
        "fixed": MetaTensor(smooth_image(shape), affine=FIXED_AFFINE),
        "moving": MetaTensor(smooth_image(shape, 1), affine=MOVING_AFFINE),
        "label": MetaTensor(label_map(shape), affine=MOVING_AFFINE),
        "ddf": MetaTensor(smooth_ddf(shape, 2, largest=6, sigma=3), affine=FIXED_AFFINE),
    }


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("outputs", [["moving", "label"], ["warped", "warped_label"]])
def test_dictionary_warp_is_the_array_warp(shape, outputs):
    data = row(shape)
    keys = ["moving", "label"]
    found = WarpWithDDFd(keys, mode=["bilinear", "nearest"], output_keys=outputs)(data)
    assert list(found) == list(dict.fromkeys([*data, *outputs]))
    assert all(found[key] is data[key] for key in data if key not in outputs)
    for key, output, mode in zip(keys, outputs, ("bilinear", "nearest"), strict=True):
        expected = WarpWithDDF(mode)(data[key], data["ddf"])
        assert torch.equal(found[output], expected)
        assert found[output].dtype == expected.dtype
        assert torch.equal(found[output].affine, FIXED_AFFINE)
        assert torch.equal(data[key], row(shape)[key])  # the row that came is as it was


def test_dictionary_warp_of_absent_keys():
    data = row(SHAPES[0])
    del data["label"]
    options = {"mode": ["nearest", "bilinear"], "output_keys": ["warped_label", "warped"]}
    with pytest.raises(KeyError, match="label"):
        WarpWithDDFd(["label", "moving"], **options)(data)
    found = WarpWithDDFd(["label", "moving"], **options, allow_missing_keys=True)(data)
    assert list(found) == [*data, "warped"]
    assert torch.equal(found["warped"], WarpWithDDF()(data["moving"], data["ddf"]))


# RegisterPair and RegisterPaird


def register_d(dims: int, *args: Any, **kwargs: Any) -> RegisterPaird:
    changes = kwargs.pop("changes", {})
    return RegisterPaird(*args, settings=quick_settings(dims, **changes), handlers=(), **kwargs)


@pytest.mark.parametrize("shape", SHAPES)
def test_registration_as_one_step_of_a_compose(shape):
    fixed, moving, _ = deformed_pair(shape)
    step = register_d(
        len(shape), ["moving", "label"], mode=["bilinear", "nearest"], ddf_key="ddf", changes={"iterations": (30, 20)}
    )
    data = {
        "fixed": MetaTensor(fixed, affine=FIXED_AFFINE),
        "moving": MetaTensor(moving, affine=FIXED_AFFINE),
        "label": MetaTensor(label_map(shape), affine=FIXED_AFFINE),
    }
    found = Compose([EnsureTyped(["fixed", "moving", "label"]), step])(data)
    assert set(found) == {*data, "registration", "ddf"}
    assert torch.equal(data["moving"], moving)
    assert found["ddf"].shape == (len(shape), *shape)
    assert found["label"].dtype == torch.uint8
    for key in ("ddf", "moving", "label"):
        assert torch.equal(found[key].affine, FIXED_AFFINE)
    inside = (slice(None), *[slice(3, -3)] * len(shape))
    after, before = ((image - fixed)[inside].norm() for image in (found["moving"].as_tensor(), moving))
    assert after < 0.4 * before
    for key, mode in (("moving", "bilinear"), ("label", "nearest")):
        expected = WarpWithDDFd(key, mode=mode)({**data, "ddf": found["ddf"]})[key]
        torch.testing.assert_close(found[key].as_tensor(), expected.as_tensor())


@pytest.mark.parametrize("shape", SHAPES)
def test_plain_tensors_and_arrays_lie_on_the_fixed_grid(shape):
    fixed, moving, _ = deformed_pair(shape)
    dims = len(shape)
    expected = quickly(fixed, moving)
    register = RegisterPair(quick_settings(dims), handlers=())
    assert type(expected.ddf) is Tensor
    assert torch.equal(register(fixed.numpy(), moving.numpy()).ddf, expected.ddf)
    placed = register(MetaTensor(fixed, affine=FIXED_AFFINE), MetaTensor(moving, affine=FIXED_AFFINE))
    on_its_grid = register(MetaTensor(fixed, affine=FIXED_AFFINE), moving)
    torch.testing.assert_close(on_its_grid.ddf, placed.ddf)
    by_function = monai_nodeo.register(
        MetaTensor(fixed, affine=FIXED_AFFINE), moving, quick_settings(dims), device="cpu", handlers=()
    )
    assert torch.equal(by_function.ddf, on_its_grid.ddf)
    data = {"a": fixed, "b": moving, "labels": label_map(shape), "other": 1}
    found = register_d(dims, ["b", "labels"], "a", ["bilinear", "nearest"], ddf_key="u", registration_key=None)(data)
    assert list(found) == [*data, "u"]
    assert torch.equal(found["u"], expected.ddf)
    torch.testing.assert_close(found["b"].as_tensor(), WarpWithDDF()(moving, expected.ddf))
    assert torch.equal(found["labels"].as_tensor(), WarpWithDDF("nearest")(label_map(shape), expected.ddf))


@pytest.mark.parametrize("shape", SHAPES)
def test_several_moving_images_of_one_dict(shape):
    """Each with keys and a start of its own, one after the other."""
    fixed = MetaTensor(deformed_pair(shape)[0], affine=FIXED_AFFINE)
    far = FIXED_AFFINE.clone()
    far[:2, 3] += 4
    images = {
        "t1": MetaTensor(deformed_pair(shape)[1], affine=MOVING_AFFINE),
        "t2": MetaTensor(smooth_image(shape, 5), affine=far),
    }
    steps = [
        register_d(
            len(shape), key, registration_key=f"of {key}", ddf_key=f"ddf of {key}", changes={"initial_transform": start}
        )
        for key, start in (("t1", "moments"), ("t2", None))
    ]
    found = Compose(steps)({"fixed": fixed, **images})
    assert found["of t1"].settings.initial_transform == "moments"
    for key, image in images.items():
        expected = RegisterPair(found[f"of {key}"].settings, handlers=())(fixed, image)
        assert torch.equal(found[f"ddf of {key}"].as_tensor(), expected.ddf)
        assert torch.equal(found[key].as_tensor(), expected.warp(image).as_tensor())
        again = WarpWithDDFd(key, f"ddf of {key}")({**found, key: image})[key]  # the ddf is the whole way
        inside = (slice(None), *[slice(3, -3)] * len(shape))
        torch.testing.assert_close(again.as_tensor()[inside], found[key].as_tensor()[inside], rtol=0, atol=1e-3)


@pytest.mark.filterwarnings("ignore:monai.networks.blocks.Warp")  # says how it samples
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("start", [None, "moments"])
def test_the_ddf_is_what_the_warp_of_monai_needs(shape, start):
    fixed, moving, _ = deformed_pair(shape)
    data = {name: MetaTensor(image, affine=FIXED_AFFINE) for name, image in (("fixed", fixed), ("moving", moving))}
    found = register_d(len(shape), ddf_key="ddf", changes={"initial_transform": start})(data)
    assert (found["registration"].start is None) == (start is None)
    theirs = Warp(mode="bilinear", padding_mode="border")(moving[None], found["ddf"].as_tensor()[None])[0]
    inside = (slice(None), *[slice(3, -3)] * len(shape))
    torch.testing.assert_close(theirs[inside], found["moving"].as_tensor()[inside], rtol=0, atol=2e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_affines_in_lps_are_taken_as_such(shape):
    fixed, moving, _ = deformed_pair(shape)
    lps = torch.diag(torch.tensor([-1.0, -1, 1, 1], dtype=torch.float64))
    images = {
        "fixed": MetaTensor(fixed, affine=FIXED_AFFINE),
        "moving": MetaTensor(moving, affine=MOVING_AFFINE),
        "label": MetaTensor(label_map(shape), affine=MOVING_AFFINE),
    }
    step = register_d(len(shape), ["moving", "label"], mode=["bilinear", "nearest"], ddf_key="ddf")
    expected = step(images)
    for changed in (["fixed"], ["moving", "label"]):
        given = images | {
            key: MetaTensor(images[key].as_tensor(), affine=lps @ images[key].affine, meta={"space": SpaceKeys.LPS})
            for key in changed
        }
        found = step(given)
        torch.testing.assert_close(found["ddf"].as_tensor(), expected["ddf"].as_tensor(), rtol=0, atol=1e-3)
        for key, mode in (("moving", "bilinear"), ("label", "nearest")):
            assert torch.equal(found[key].affine, FIXED_AFFINE)
            again = WarpWithDDFd(key, mode=mode)({**given, "ddf": found["ddf"]})[key]
            torch.testing.assert_close(again.as_tensor(), found[key].as_tensor())


def test_absent_keys():
    fixed, moving, _ = deformed_pair(SHAPES[0])
    keys = ["moving", "label"]
    found = register_d(2, keys, allow_missing_keys=True)({"fixed": fixed, "moving": moving})
    assert list(found) == ["fixed", "moving", "registration"]
    with pytest.raises(KeyError, match="label"):
        register_d(2, keys)({"fixed": fixed, "moving": moving})
    with pytest.raises(KeyError, match="fixed"):
        register_d(2, keys, allow_missing_keys=True)({"moving": moving})
    with pytest.raises(KeyError, match="moving"):
        register_d(2, keys, allow_missing_keys=True)({"fixed": fixed})


def test_masks_are_found_by_their_keys():
    fixed, moving, _ = deformed_pair(SHAPES[0])
    mask = torch.ones_like(fixed)
    mask[:, :, 12:] = 0
    data = {"fixed": fixed, "moving": moving, "brain": mask}
    found = register_d(2, fixed_mask_key="brain", ddf_key="ddf")(data)["ddf"]
    expected = RegisterPair(quick_settings(2), handlers=())(fixed, moving, mask)
    assert torch.equal(found, expected.ddf)
    assert not torch.equal(found, quickly(fixed, moving).ddf)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("start", [None, "moments"])
def test_inverse_brings_labels_back_to_the_moving_grid(shape, start):
    larger = [n + 3 for n in shape]
    moving_affine = torch.diag(torch.tensor([0.9, 0.9, 0.9, 1], dtype=torch.float64))
    moving_affine[:3, 3] = -1
    fixed, moving, _ = deformed_pair(shape)
    blob = torch.zeros(1, *larger, dtype=torch.uint8)
    blob[(0, *[slice(5, n - 6) for n in larger])] = 3
    moved = MetaTensor(smooth_image(larger, 8), affine=moving_affine)
    data = {"fixed": fixed, "moving": moved, "label": MetaTensor(blob, affine=moving_affine)}
    step = register_d(
        len(shape), ["moving", "label"], mode=["bilinear", "nearest"], changes={"initial_transform": start}
    )
    whole = Compose([EnsureTyped(["fixed", "moving", "label"]), step])
    found = whole(data)
    assert found["label"].shape == (1, *shape)

    # what somebody found on the fixed grid, by the trace of the image
    drawn = {**found, "drawn": MetaTensor(found["label"].as_tensor().float())}
    post = Invertd("drawn", transform=whole, orig_keys="moving", nearest_interp=True)(drawn)

    assert found["label"].applied_operations
    back = whole.inverse(found)
    assert not back["label"].applied_operations
    assert back["label"].shape == blob.shape
    assert back["label"].dtype == torch.uint8
    overlap = ((back["label"] == 3) & (blob == 3)).sum() * 2 / ((back["label"] == 3).sum() + (blob == 3).sum())
    assert overlap > 0.9  # nearest voxels, twice
    assert torch.equal(post["drawn"].as_tensor(), back["label"].as_tensor().float())
    for result in (back["label"], post["drawn"]):
        assert torch.equal(result.affine, moving_affine)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Tensor]]:
    return [dict(zip(("fixed", "moving"), deformed_pair(SHAPES[0], seed)[:2], strict=True)) for seed in range(6)]


@pytest.mark.parametrize("kind", ["cache", "threads", "processes"])
def test_many_workers_may_use_one_transform(rows, kind):
    step = register_d(2, ddf_key="ddf")
    alone = [step(row)["ddf"] for row in rows]
    if kind == "cache":
        items = list(CacheDataset(rows, step, num_workers=4, progress=False))
    elif kind == "threads":
        items = list(ThreadDataLoader(Dataset(rows, step), batch_size=1, num_workers=2, use_thread_workers=True))
    else:
        items = list(DataLoader(Dataset(rows, step), batch_size=1, num_workers=2))
    for item, expected in zip(items, alone, strict=True):
        found, registration = item["ddf"], item["registration"]
        if kind != "cache":
            found, (registration,) = found[0], registration
        assert torch.equal(found, expected)
        assert torch.equal(registration.ddf, expected)


def test_batches_of_a_loader_are_taken_apart_and_inverted(rows):
    step = register_d(2, registration_key=None)
    (batch,) = DataLoader(Dataset(rows[:2], step), batch_size=2)
    assert batch["moving"].shape == (2, 1, *SHAPES[0])
    for item, row in zip(decollate_batch(batch), rows, strict=False):
        back = step.inverse(item)["moving"].as_tensor()
        inside = (slice(None), *[slice(4, -4)] * 2)
        assert (back - row["moving"])[inside].abs().mean() < 0.02


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_copies_do_the_same(rows, copied):
    fixed, moving = rows[0]["fixed"], rows[0]["moving"]
    expected = quickly(fixed, moving)
    assert torch.equal(copied(register_d(2, ddf_key="ddf"))(rows[0])["ddf"], expected.ddf)
    assert torch.equal(copied(RegisterPair(quick_settings(2), handlers=()))(fixed, moving).ddf, expected.ddf)
    assert torch.equal(
        copied(WarpWithDDFd("moving"))({**rows[0], "ddf": expected.ddf})["moving"], WarpWithDDF()(moving, expected.ddf)
    )
    other = copied(expected)
    assert isinstance(other, Registration)
    assert torch.equal(other.flow.displacement(), expected.displacement)
    assert torch.equal(other.warp(moving), expected.warp(moving))


AXES = {
    "LIA": np.array([[-1.0, 0, 0, 8], [0, 0, 1.2, -7], [0, -0.9, 0, 9], [0, 0, 0, 1]]),
    "oblique": FIXED_AFFINE.numpy(),
}
NEARBY = np.array([[1.1, 0, 0, 0.5], [0, 1.1, 0, -0.3], [0, 0, 1.1, 0], [0, 0, 0, 1]])


def geometry(path: Path | str) -> np.ndarray:
    image = sitk.ReadImage(str(path))
    return np.array([*image.GetSize(), *image.GetOrigin(), *image.GetSpacing(), *image.GetDirection()])


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("shape", [(17, 13, 11), (25, 21, 1)])
def test_saved_files_have_the_name_of_the_moving_image_and_the_space_of_the_fixed_one(tmp_path, axes, shape):
    row = save_pair(tmp_path, shape, AXES[axes], AXES[axes] @ NEARBY)
    dims = 2 if shape[2] == 1 else 3
    keys = ["moving", "moving_label"]
    saved = SaveImaged(
        keys, output_dir=tmp_path / "out", separate_folder=False, print_log=False, squeeze_end_dims=False
    )
    step = register_d(dims, keys, mode=["bilinear", "nearest"], ddf_key="ddf")
    load = LoadImaged(["fixed", *keys], ensure_channel_first=True)
    found = Compose([load, step, saved])(row)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(f"{key}_trans.nii.gz" for key in keys)
    for key in keys:
        file = tmp_path / "out" / f"{key}_trans.nii.gz"
        np.testing.assert_allclose(geometry(file), geometry(row["fixed"]), atol=1e-5)
        stored = sitk.GetArrayFromImage(sitk.ReadImage(str(file))).T
        np.testing.assert_allclose(stored, found[key][0].numpy(), atol=1e-6)

    # the warp of what LoadImaged gives is the same, by the ddf, with a key of its own, or by the registration
    by_ddf = WarpWithDDFd("moving", output_keys="warped")({**load(row), "ddf": found["ddf"]})
    options = {"output_postfix": "warped", "separate_folder": False, "print_log": False, "squeeze_end_dims": False}
    SaveImaged("warped", output_dir=tmp_path / "out", **options)(by_ddf)
    file = tmp_path / "out" / "moving_warped.nii.gz"
    np.testing.assert_allclose(geometry(file), geometry(row["fixed"]), atol=1e-5)
    for again in (by_ddf["warped"], found["registration"].warp(by_ddf["moving"])):
        torch.testing.assert_close(again.flatten(), found["moving"].flatten(), rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore:After SqueezeDim, img.affine is ill-posed")  # of the plane, in which it is not
@pytest.mark.parametrize("axes", AXES)
def test_slices_are_the_same_whatever_axes_they_come_with(tmp_path, axes):
    row = save_pair(tmp_path, (25, 21, 1), AXES[axes], AXES[axes] @ NEARBY)
    load = LoadImaged(["fixed", "moving"], ensure_channel_first=True)
    step = register_d(2, ddf_key="ddf")
    stored = Compose([load, step])(row)
    squeezed = Compose([load, SqueezeDimd(["fixed", "moving"], dim=-1), step])(row)
    assert stored["moving"].shape == (1, 25, 21, 1)
    assert squeezed["moving"].shape == (1, 25, 21)
    assert torch.equal(stored["ddf"].as_tensor(), squeezed["ddf"].as_tensor())
    assert torch.equal(stored["moving"].as_tensor()[..., 0], squeezed["moving"].as_tensor())


@pytest.mark.parametrize("name", ["RegisterPaird", "WarpWithDDFd"])
def test_names_of_the_dictionary_versions(name):
    classes = {getattr(monai_transforms, name[:-1] + ending) for ending in ("d", "D", "Dict")}
    assert len(classes) == 1
    assert {name[:-1] + ending for ending in ("", "d", "D", "Dict")} <= set(monai_transforms.__all__)
