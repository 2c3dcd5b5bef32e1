# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureTyped
from scipy import ndimage
from synthetic import deformed_pair, smooth_ddf, smooth_image
from torch import Tensor

from monai_nodeo.data.pair import PairError
from monai_nodeo.flows import NODEONet
from monai_nodeo.losses import RegistrationLoss
from monai_nodeo.registration import transforms
from monai_nodeo.registration.inferer import PairInferer, Registration
from monai_nodeo.registration.transforms import RegisterPair, RegisterPaird, WarpWithDDF, WarpWithDDFd

SHAPES = [(25, 21), (13, 17, 11)]
FIXED_AFFINE = torch.tensor([[2.0, 0, 0, 5], [0, -3, 0.5, 6], [0, 0.5, 4, 7], [0, 0, 0, 1]], dtype=torch.float64)
MOVING_AFFINE = torch.tensor([[2.0, 0, 0, 4], [0, -3, 0.5, 7], [0, 0.5, 4, 8], [0, 0, 0, 1]], dtype=torch.float64)


def label_map(shape: tuple[int, ...], dtype: torch.dtype = torch.uint8) -> Tensor:
    """Blocks of the labels 1 to 4, (1, *shape)."""
    return (1 + 3 * smooth_image(shape, 4)).round().to(dtype)


def sampled(image: np.ndarray, ddf: np.ndarray, order: int, background: float = 0) -> np.ndarray:
    """By scipy: image(x + ddf(x)) of one channel, the background where that is not in a voxel of the image."""
    positions = np.indices(image.shape) + ddf
    limit = np.reshape(image.shape, (-1, *[1] * image.ndim)) - 0.5
    inside = ((positions >= -0.5) & (positions <= limit)).all(0)
    return np.where(inside, ndimage.map_coordinates(image, positions, order=order, mode="nearest"), background)


def inferer_of(shape: tuple[int, ...], iterations: int = 5) -> PairInferer:
    return PairInferer(len(shape), iterations=[iterations], shrink_factors=[1])


# WarpWithDDF


@pytest.mark.parametrize("shape", SHAPES)
def test_warp_is_linear_interpolation_with_the_minimum_outside(shape):
    image = torch.cat([smooth_image(shape, seed) for seed in (0, 1)]) - 3
    ddf = smooth_ddf(shape, 2, largest=6, sigma=3)
    expected = np.stack([sampled(channel.numpy(), ddf.numpy(), 1, float(image.min())) for channel in image])
    assert (expected == float(image.min())).mean() > 0.01  # some lie outside
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


def test_warp_of_a_mask_is_a_mask():
    mask = label_map(SHAPES[0]) > 2
    warped = WarpWithDDF("nearest")(mask, torch.zeros(2, *SHAPES[0]))
    assert warped.dtype == torch.bool
    assert torch.equal(warped, mask)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_warp_by_whole_voxels_is_a_shift(mode, axis):
    image = smooth_image(SHAPES[1]) + 1
    ddf = torch.zeros(3, *SHAPES[1])
    ddf[axis] = 2
    warped = WarpWithDDF(mode)(image, ddf)
    n = SHAPES[1][axis]
    inside, source = warped.narrow(axis + 1, 0, n - 2), image.narrow(axis + 1, 2, n - 2)
    torch.testing.assert_close(inside, source, rtol=0, atol=0 if mode == "nearest" else 1e-5)
    background = 0 if mode == "nearest" else image.min()
    assert (warped.narrow(axis + 1, n - 2, 2) == background).all()


def test_warp_of_whole_numbers_is_linear_in_float32():
    ddf = smooth_ddf(SHAPES[0])
    labels = label_map(SHAPES[0], torch.int16)
    warped = WarpWithDDF()(labels, ddf)
    assert warped.dtype == torch.float32
    torch.testing.assert_close(warped, WarpWithDDF()(labels.float(), ddf))


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


OBLIQUE = torch.tensor([[1.4, 0.3, 0, 5], [-0.3, 1.6, 0.2, 6], [0, -0.2, 2.5, 7], [0, 0, 0, 1]], dtype=torch.float64)
START = torch.tensor([[0.98, 0.1, 0, 2], [-0.1, 1.03, 0, 1], [0, 0, 1.1, -1], [0, 0, 0, 1]], dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("order", [0, 1])
def test_warp_goes_through_both_affines_and_the_start_in_one_interpolation(shape, order):
    dims = len(shape)
    fixed = OBLIQUE.clone()
    if dims == 2:
        fixed[:2, 2] = fixed[2, :2] = 0
    own = [2 * n + 4 for n in reversed(shape)]
    moving_affine = torch.diag(torch.tensor([0.9, -1.1, 1.3, 1], dtype=torch.float64))
    middle = torch.tensor([*[(n - 1) / 2 for n in shape], *[0] * (3 - dims), 1], dtype=torch.float64)
    own_middle = torch.tensor([*[(n - 1) / 2 for n in own], *[0] * (3 - dims)], dtype=torch.float64)
    moving_affine[:3, 3] = (START @ fixed @ middle)[:3] - moving_affine[:3, :3] @ own_middle
    image = smooth_image(own, 3) + 1
    ddf = smooth_ddf(shape, 2, largest=3, sigma=4)
    warp = WarpWithDDF("bilinear" if order else "nearest")
    found = warp(MetaTensor(image, affine=moving_affine), MetaTensor(ddf, affine=fixed), START)

    # voxel by voxel in homogeneous coordinates; a slice lies at 0 of its third axis
    places = np.zeros((4, *shape))
    places[:dims], places[3] = np.indices(shape) + ddf.numpy(), 1
    matrix = (torch.linalg.inv(moving_affine) @ START @ fixed).numpy()
    positions = np.einsum("ij,j...->i...", matrix, places)[:dims]
    expected = ndimage.map_coordinates(image[0].numpy(), positions, order=order, mode="nearest")
    limit = np.reshape(own, (-1, *[1] * dims)) - 0.5
    inside = ((positions > -0.49) & (positions < limit - 0.01)).all(0)
    clear = inside & ((np.abs(positions % 1 - 0.5) > 1e-3).all(0) | (order == 1))
    assert inside.mean() > 0.3
    np.testing.assert_allclose(found.array[0][clear], expected[clear], atol=1e-4)
    assert torch.equal(found.affine, fixed)


def test_warp_leaves_its_input_alone():
    image, ddf = MetaTensor(smooth_image(SHAPES[0]), affine=MOVING_AFFINE), smooth_ddf(SHAPES[0])
    copies = image.clone(), ddf.clone()
    warped = WarpWithDDF()(image, ddf)
    warped.affine[0, 0] = 77  # its own, not the image's
    warped += 1
    assert torch.equal(image, copies[0])
    assert torch.equal(ddf, copies[1])
    assert torch.equal(image.affine, MOVING_AFFINE)


# WarpWithDDFd


def row(shape: tuple[int, ...]) -> dict[str, Tensor]:
    return {
        "fixed": MetaTensor(smooth_image(shape), affine=FIXED_AFFINE),
        "moving": MetaTensor(smooth_image(shape, 1), affine=MOVING_AFFINE),
        "label": MetaTensor(label_map(shape), affine=MOVING_AFFINE),
        "ddf": smooth_ddf(shape, 2, largest=6, sigma=3),
    }


@pytest.mark.parametrize("shape", SHAPES)
def test_dictionary_warp_is_the_array_warp(shape):
    data = row(shape)
    on_fixed = MetaTensor(data["ddf"], affine=FIXED_AFFINE)
    expected = {
        "moving": WarpWithDDF()(data["moving"], on_fixed),
        "label": WarpWithDDF("nearest")(data["label"], on_fixed),
    }
    found = WarpWithDDFd(["moving", "label"], mode=["bilinear", "nearest"])(data)
    assert list(found) == list(data)
    for key, value in expected.items():
        assert torch.equal(found[key], value)
        assert found[key].dtype == value.dtype
        assert torch.equal(found[key].affine, FIXED_AFFINE)
    assert found["fixed"] is data["fixed"]
    assert found["ddf"] is data["ddf"]
    assert torch.equal(data["moving"], row(shape)["moving"])  # the row that came is as it was


def test_dictionary_warp_puts_results_where_asked():
    data = row(SHAPES[0])
    data["field"], data["template"] = data.pop("ddf"), data.pop("fixed")
    warp = WarpWithDDFd(
        ["moving", "label"],
        ddf_key="field",
        mode="nearest",
        reference_key="template",
        output_keys=["warped", "warped_label"],
    )
    found = warp(data)
    on_fixed = MetaTensor(data["field"], affine=FIXED_AFFINE)
    assert list(found) == [*data, "warped", "warped_label"]
    assert all(found[key] is data[key] for key in data)
    for source, result in (("moving", "warped"), ("label", "warped_label")):
        assert torch.equal(found[result].as_tensor(), WarpWithDDF("nearest")(data[source], on_fixed).as_tensor())
        assert torch.equal(found[result].affine, FIXED_AFFINE)


def test_dictionary_warp_keeps_the_affine_of_the_image_without_a_fixed_one():
    data = row(SHAPES[0])
    del data["fixed"]
    assert torch.equal(WarpWithDDFd("moving")(data)["moving"].affine, MOVING_AFFINE)


def test_dictionary_warp_of_absent_keys():
    data = row(SHAPES[0])
    del data["label"]
    options = {"mode": ["bilinear", "nearest"], "output_keys": ["warped", "warped_label"]}
    with pytest.raises(KeyError, match="label"):
        WarpWithDDFd(["label", "moving"], **options)(data)
    options["mode"].reverse()
    options["output_keys"].reverse()
    found = WarpWithDDFd(["label", "moving"], **options, allow_missing_keys=True)(data)
    assert list(found) == [*data, "warped"]
    assert torch.equal(
        found["warped"].as_tensor(),
        WarpWithDDF()(data["moving"], MetaTensor(data["ddf"], affine=FIXED_AFFINE)).as_tensor(),
    )


@pytest.mark.parametrize("option", ["mode", "output_keys"])
def test_dictionary_warp_refuses_lists_of_another_length(option):
    with pytest.raises(ValueError, match="length"):
        WarpWithDDFd(["moving", "label"], **{option: ["bilinear"]})


# RegisterPair and RegisterPaird


@pytest.mark.parametrize("shape", SHAPES)
def test_registration_as_one_step_of_a_compose(shape):
    fixed, moving, _ = deformed_pair(shape)
    rows = Compose(
        [
            EnsureTyped(["fixed", "moving", "label"]),
            RegisterPaird(len(shape), inferer=inferer_of(shape, 40)),
            WarpWithDDFd(["moving", "label"], mode=["bilinear", "nearest"], output_keys=["warped", "warped_label"]),
        ]
    )
    data = {
        "fixed": MetaTensor(fixed, affine=FIXED_AFFINE),
        "moving": MetaTensor(moving, affine=FIXED_AFFINE),
        "label": MetaTensor(label_map(shape), affine=FIXED_AFFINE),
    }
    found = rows(data)
    assert set(found) == {*data, "ddf", "warped", "warped_label"}
    assert found["ddf"].shape == (len(shape), *shape)
    assert found["warped_label"].dtype == torch.uint8
    for key in ("ddf", "warped", "warped_label"):
        assert torch.equal(found[key].affine, FIXED_AFFINE)
    inside = (slice(None), *[slice(3, -3)] * len(shape))
    after, before = ((image - fixed)[inside].norm() for image in (found["warped"].as_tensor(), moving))
    assert after < 0.4 * before


@pytest.mark.parametrize("shape", SHAPES)
def test_array_and_dictionary_registration_are_those_of_the_inferer(shape):
    fixed, moving, _ = deformed_pair(shape)
    dims = len(shape)
    network = NODEONet(dims, bottleneck=4, downsample=3)
    inferer = inferer_of(shape)
    expected = inferer(fixed[None], network, moving[None])[0]
    register = RegisterPair(dims, inferer, network)
    result = register(fixed, moving)
    assert isinstance(result, Registration)
    assert type(result.ddf) is Tensor
    assert torch.equal(result.ddf, expected)
    assert result.iterations == len(result.history["loss"]) == 5
    assert torch.equal(register(fixed.numpy(), moving.numpy()).ddf, expected)
    assert torch.equal(Compose([register], map_items=False, unpack_items=True)((fixed, moving)).ddf, expected)
    placed = MetaTensor(fixed, affine=FIXED_AFFINE)
    of_grid = register(placed, MetaTensor(moving, affine=MOVING_AFFINE)).ddf
    assert torch.equal(of_grid.affine, FIXED_AFFINE)
    assert torch.equal(of_grid.as_tensor(), inferer(placed[None], network, moving[None])[0])  # its voxels are no cubes

    named = RegisterPaird(dims, fixed_key="a", moving_key="b", ddf_key="u", inferer=inferer, network=network)
    data = {"a": fixed, "b": moving, "other": 1}
    found = named(data)
    assert list(found) == ["a", "b", "other", "u"]
    assert torch.equal(found["u"], expected)
    assert list(data) == ["a", "b", "other"]


@pytest.mark.parametrize("dims", [2, 3])
def test_registration_without_options_is_the_inferers(dims):
    register = RegisterPair(dims)
    assert register.inferer.spatial_dims == register.network.spatial_dims == dims
    assert register.inferer.iterations == PairInferer(dims).iterations


def test_registration_of_images_that_do_not_fit():
    fixed, moving, _ = deformed_pair(SHAPES[0])
    with pytest.raises(ValueError, match="2 spatial axes and one shape"):
        RegisterPair(2)(fixed, moving[:, 1:])
    with pytest.raises(ValueError, match="3 spatial axes and one shape"):
        RegisterPair(3)(fixed, moving)
    with pytest.raises(ValueError, match="give MetaTensors"):
        RegisterPaird(2)({"fixed": fixed, "moving": moving[:, 1:]})
    with pytest.raises(KeyError, match="moving"):
        RegisterPaird(2)({"fixed": fixed})


def test_a_mask_that_the_loss_cannot_take_is_refused_before_a_start_is_searched_for():
    inferer = PairInferer(2, RegistrationLoss(torch.nn.MSELoss()))
    flat = torch.zeros(1, *SHAPES[0])  # no start can be found for it
    with pytest.raises(PairError, match="fixed_mask: MSELoss cannot take masks"):
        RegisterPaird(2, initial_transform="moments", inferer=inferer)(
            {"fixed": flat, "moving": flat, "fixed_mask": torch.ones_like(flat)}
        )


@pytest.mark.parametrize("name", ["RegisterPaird", "WarpWithDDFd"])
def test_names_of_the_dictionary_versions(name):
    classes = {getattr(transforms, name[:-1] + ending) for ending in ("d", "D", "Dict")}
    assert len(classes) == 1
    assert {name[:-1] + ending for ending in ("", "d", "D", "Dict")} <= set(transforms.__all__)


SMALL_SHAPE = (25, 21)


def test_dictionary_warp_falls_back_on_the_affine_of_the_ddf():
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0], dtype=torch.float64))
    data = {"moving": MetaTensor(smooth_image(SMALL_SHAPE)), "ddf": MetaTensor(smooth_ddf(SMALL_SHAPE), affine=affine)}
    assert torch.equal(WarpWithDDFd("moving")(data)["moving"].affine, affine)
