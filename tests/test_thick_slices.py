# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scans import centred, load, make_affine, smooth
from scipy import ndimage
from synthetic import deformed_pair, smooth_image

from monai_nodeo.data.match import MatchGridd
from monai_nodeo.geometry.folding import folded_cells
from monai_nodeo.geometry.resizing import coarsen_ddf, refine_ddf
from monai_nodeo.geometry.sampling import warp
from monai_nodeo.metrics.fields import folding_fraction
from monai_nodeo.metrics.labels import label_metrics
from monai_nodeo.metrics.pairs import pair_figures
from monai_nodeo.registration.inferer import PairInferer
from monai_nodeo.registration.thick_slices import DDFOnFixedGridd, RefineThickSlicesd, parts_of, refined
from monai_nodeo.registration.transforms import RegisterPaird

OBLIQUE = (0.4, -0.7, 0.3)


def image_of(values: torch.Tensor, spacing: tuple[float, ...], angles: tuple[float, float, float] = OBLIQUE):
    return MetaTensor(values, affine=torch.from_numpy(make_affine(spacing, angles, (5, -7, 9))))


def thick(values: torch.Tensor, parts: tuple[int, ...]) -> torch.Tensor:
    """(C, *spatial) in voxels that are the means of several."""
    for axis, count in enumerate(parts, start=1):
        values = values.unflatten(axis, (-1, count)).mean(axis + 1)
    return values


@pytest.mark.parametrize(
    ("shape", "spacing", "parts"),
    [
        ((9, 11, 13), (1, 1, 4), (1, 1, 4)),
        ((9, 11, 13), (3, 1, 1.2), (3, 1, 1)),
        ((9, 11, 13), (0.7, 0.7, 0.7), (1, 1, 1)),
        ((9, 11), (0.5, 1.6, 1), (1, 3)),
        ((512, 512, 30), (0.45, 0.45, 5), (1, 1, 2)),  # eleven parts would be 86 million voxels
        ((512, 512, 512), (0.45, 0.45, 1), (1, 1, 1)),
    ],
)
def test_voxels_are_cut_into_about_cubes(shape, spacing, parts) -> None:
    image = image_of(torch.empty(1, *shape, device="cpu"), spacing)
    assert parts_of(image) == parts


@pytest.mark.parametrize(("shape", "parts"), [((9, 11, 13), (1, 2, 4)), ((5, 4, 11), (3, 1, 2)), ((9, 11), (3, 1))])
def test_values_stay_where_they_are_in_the_world(shape, parts) -> None:
    """A linear function of the world is one on the finer grid, between the voxel centres."""
    dims = len(shape)
    spacing = (*[float(n) for n in parts], 1.0)[:3]
    affine = torch.from_numpy(make_affine(spacing, OBLIQUE, (5, -7, 9)))

    def linear(affine: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        index = torch.stack(torch.meshgrid(*[torch.arange(n).double() for n in shape], indexing="ij"))
        world = torch.einsum("ij,j...->i...", affine[:3, :dims], index) + affine[:3, 3].view(3, *[1] * dims)
        return (torch.tensor([0.3, -1.2, 0.7]).double().view(3, *[1] * dims) * world).sum(0, keepdim=True)

    values = linear(affine, shape)
    image = MetaTensor(values.float(), affine=affine)

    fine = refined(image, parts)

    assert fine.shape[1:] == tuple(n * k for n, k in zip(shape, parts, strict=True))
    expected = linear(fine.affine, fine.shape[1:]).clamp(float(image.min()), float(image.max()))
    torch.testing.assert_close(fine.as_tensor().double(), expected, rtol=0, atol=1e-4)


def test_parts_lie_halfway_between_two_cubic_splines() -> None:
    values = smooth_image((12, 20, 24), sigma=1.0)
    inside = (slice(None), slice(None), slice(7, -7))  # at the border, the splines end in different ways

    def parts(values: np.ndarray) -> np.ndarray:
        places = np.meshgrid(np.arange(12), np.arange(20), (np.arange(72) + 0.5) / 3 - 0.5, indexing="ij")
        return ndimage.map_coordinates(values, places, order=3, mode="nearest").reshape(12, 20, 24, 3)

    through = parts(values.numpy()[0])
    wanted = values.numpy()[0]
    for _ in range(30):  # until the means over the parts are the values
        wanted = wanted + values.numpy()[0] - parts(wanted).mean(-1)
    assert np.abs(parts(wanted).mean(-1) - values.numpy()[0])[inside].max() < 1e-4

    fine = refined(image_of(values, (1, 1, 3)), (1, 1, 3)).numpy()[0].reshape(12, 20, 24, 3)

    expected = (through + parts(wanted)) / 2
    expected = expected.clip(float(values.min()), float(values.max()))
    np.testing.assert_allclose(fine[inside], expected[inside], atol=1e-3)


def test_slices_of_a_smooth_image_are_better_than_by_linear_interpolation() -> None:
    sharp = smooth_image((9, 11, 48), sigma=3.0)
    image = image_of(thick(sharp, (1, 1, 4)), (1, 1, 4))

    found = refined(image, (1, 1, 4)).as_tensor()

    linear = torch.nn.functional.interpolate(image.as_tensor()[None], sharp.shape[1:], mode="trilinear")[0]
    assert (found - sharp).square().mean() < 0.5 * (linear - sharp).square().mean()


def test_air_and_range_stay() -> None:
    values = torch.zeros(1, 9, 11, 12)
    values[..., 5:8] = 1 + smooth_image((9, 11, 3))
    fine = refined(image_of(values, (1, 1, 3)), (1, 1, 3))
    assert fine[..., :12].count_nonzero() == 0  # a slice beside the first that holds something may
    assert fine[..., 27:].count_nonzero() == 0
    assert (float(fine.min()), float(fine.max())) == (float(values.min()), float(values.max()))


def test_cubes_are_left_alone() -> None:
    image = image_of(smooth_image((9, 11, 13)), (1, 1.4, 1))
    pair = RefineThickSlicesd()({"fixed": image, "moving": image})
    assert pair["fixed_input"] is image
    assert pair["moving_input"] is image


@pytest.mark.parametrize(("count", "hat"), [(2, [0.5, 0.5]), (3, [1 / 3, 1, 1 / 3]), (4, [0.25, 0.75, 0.75, 0.25])])
@pytest.mark.parametrize("axis", [0, 2])
def test_a_fixed_image_is_surest_in_the_middle_of_its_slices(count: int, hat: list[float], axis: int) -> None:
    spacing = [1.0, 1.0, 1.0]
    spacing[axis] = count
    image = image_of(smooth_image((9, 11, 10)), tuple(spacing))

    pair = RefineThickSlicesd()({"fixed": image, "moving": image})

    certainty = pair["fixed_certainty"]
    assert certainty.shape == pair["fixed_input"].shape
    torch.testing.assert_close(certainty.affine, pair["fixed_input"].affine)
    lines = certainty.as_tensor()[0].movedim(axis, -1).flatten(0, -2)
    torch.testing.assert_close(lines, torch.tensor(hat).repeat(image.shape[1 + axis]).expand_as(lines))


def test_only_a_fixed_image_in_thick_slices_is_unsure() -> None:
    thin, thick_one = (image_of(smooth_image((9, 11, 10)), (1, 1, side)) for side in (1, 4))
    assert "fixed_certainty" not in RefineThickSlicesd()({"fixed": thin, "moving": thick_one})


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("count", [3, 4])
def test_a_slanted_tube_goes_on_between_picked_slices(axis: int, count: int) -> None:
    places = torch.arange(10 * count) / count
    x, y = torch.meshgrid(torch.arange(64.0), torch.arange(30.0), indexing="ij")
    discs = [torch.sigmoid(9 - ((x - 12 - 4 * place).square() + (y - 15).square()).sqrt()) for place in places]
    sharp = torch.stack(discs).movedim(0, axis)[None]
    spacing = [1.0, 1.0, 1.0]
    spacing[axis] = count
    # picked where the middle of a slice is: at a part if their number is odd, else between the two parts in the middle
    middles = sharp.unflatten(1 + axis, (10, count)).movedim(2 + axis, 0)[(count - 1) // 2 : count // 2 + 1].mean(0)
    image = image_of(middles, tuple(spacing))

    pair = RefineThickSlicesd()({"fixed": image, "moving": image})

    plain = refined(image, parts_of(image)).as_tensor()
    for key in ("fixed_input", "moving_input"):
        assert (pair[key].as_tensor() - sharp).square().mean() < 0.8 * (plain - sharp).square().mean()


@pytest.mark.parametrize(("shape", "parts"), [((9, 11, 13), (1, 2, 4)), ((9, 11), (3, 1))])
def test_displacement_on_finer_voxels_and_back(shape, parts) -> None:
    """A field that is linear in space is the same in millimetres on both grids."""
    dims, fine_shape = len(shape), tuple(n * k for n, k in zip(shape, parts, strict=True))
    cut = torch.tensor(parts).view(-1, *[1] * dims)
    gradient = torch.rand(dims, dims, generator=torch.Generator().manual_seed(1)) - 0.5

    def linear(shape: tuple[int, ...], side: torch.Tensor) -> torch.Tensor:
        index = torch.stack(torch.meshgrid(*[torch.arange(n) for n in shape], indexing="ij"))
        place = (index + 0.5) * side
        return (torch.einsum("ij,j...->i...", gradient, place) / side)[None]

    coarse, fine = linear(shape, cut), linear(fine_shape, torch.ones_like(cut))
    torch.testing.assert_close(coarsen_ddf(fine, shape), coarse)
    inside = (..., *[slice(k, -k) for k in parts])
    torch.testing.assert_close(refine_ddf(coarse, fine_shape)[inside], fine[inside])


def test_folds_between_larger_voxels_are_taken_out_if_asked() -> None:
    fine = torch.zeros(3, 9, 10, 12)
    fine[0, 4, 5] = -3.0
    fixed = image_of(torch.zeros(1, 9, 10, 3), (1, 1, 4))
    for wanted in (True, False):
        found = DDFOnFixedGridd(unfold=wanted)({"fixed": fixed, "ddf": fine})["ddf"]
        assert found.shape == (3, 9, 10, 3)
        assert bool(folded_cells(found[None]).any()) != wanted


def test_masks_and_landmarks_follow(save, tmp_path) -> None:
    shape, coarse = (12, 11, 36), (12, 11, 9)
    affine = centred(make_affine((1, 1, 4), OBLIQUE), coarse)
    values, mask = smooth(coarse), np.zeros(coarse, np.uint8)
    mask[3:, :, 2:5] = 1
    names = [save("f.nii.gz", values, affine), save("m.nii.gz", values, affine)]
    masks = {side: save(f"{side}.nii.gz", mask, affine) for side in ("fixed_mask", "moving_mask")}
    voxels = np.array([[3.0, 4, 2], [5, 6, 3.25], [7, 7, 1]])
    points = [affine[:3, :3] @ v + affine[:3, 3] for v in voxels]
    moved = [p + affine[:3, 2] / 4 for p in points]  # by 1 mm along the slices' normal
    marks = {}
    for side, rows in (("fixed", points), ("moving", moved)):
        lines = ["x,y,z", *[f"{-x},{-y},{z}" for x, y, z in rows]]
        (tmp_path / f"{side}.csv").write_text("\n".join(lines) + "\n")
        marks[f"{side}_landmarks"] = str(tmp_path / f"{side}.csv")

    pair = MatchGridd()(RefineThickSlicesd()(load(3, *names, **masks, **marks)))

    assert pair["fixed"].shape[1:] == coarse
    for key in ("fixed_input", "moving_input", "fixed_mask", "moving_mask"):
        assert pair[key].shape[1:] == shape
    for key in ("fixed_mask", "moving_mask"):
        assert np.array_equal(pair[key].array[0], mask.repeat(4, axis=2))
    still = {"pred": torch.zeros(3, *coarse)}
    figures = pair_figures(pair, still, torch.nn.MSELoss())
    assert figures["before"]["tre_mm"] == pytest.approx([1.0] * 3, abs=1e-4)
    step = torch.zeros(3, *coarse)
    step[2] = 0.25
    assert pair_figures(pair, {"pred": step}, torch.nn.MSELoss())["after"]["tre_mm"] == pytest.approx([0] * 3, abs=1e-4)


@pytest.mark.parametrize("which", ["fixed", "moving", "both"])
@pytest.mark.parametrize(("shape", "parts"), [((32, 40, 36), (1, 1, 3)), ((48, 60), (3, 1))])
def test_thick_slices_are_registered_between_their_voxels(shape, parts, which) -> None:
    fixed, moving, true = deformed_pair(shape, largest=3.0)
    spacing = (*[float(n) for n in parts], 1.0)[:3]
    images = {}
    for key, values in (("fixed", fixed), ("moving", moving)):
        fine = MetaTensor(values, affine=centred_affine((1, 1, 1), values))
        coarse = thick(values, parts)
        images[key] = MetaTensor(coarse, affine=centred_affine(spacing, coarse)) if which in (key, "both") else fine
    dims = len(shape)
    inferer = PairInferer(dims, handlers=[])

    found = RegisterPaird(dims, inferer=inferer)(images)["ddf"]

    assert found.shape[1:] == images["fixed"].shape[1:]
    assert folding_fraction(found.as_tensor()[None]).item() == 0
    assert error_mm(found, true, parts) < 0.5 * error_mm(torch.zeros_like(found), true, parts)


@pytest.mark.parametrize("axis", [0, 1])
def test_real_slices_of_long_pixels_are_registered_better_than_on_their_pixels(oasis, axis) -> None:
    parts = (4, 1) if axis == 0 else (1, 4)
    spacing = (*[float(n) for n in parts], 1.0)
    found: dict[str, list[float]] = {"cut": [], "whole": []}
    for pair in json.loads((oasis / "pairs2d.json").read_text())[:3]:
        fixed, moving, fixed_label, moving_label = (
            torch.from_numpy(np.asarray(nib.load(oasis / name).dataobj, np.float32).squeeze()[None])
            for name in (pair["fixed"], pair["moving"], pair["fixed_label"], pair["moving_label"])
        )
        scaled = [x / x.quantile(0.995) for x in (thick(fixed, parts), moving)]
        images = {
            "fixed": MetaTensor(scaled[0], affine=centred_affine(spacing, scaled[0])),
            "moving": MetaTensor(scaled[1], affine=centred_affine((1, 1, 1), moving)),
        }
        register = RegisterPaird(2, inferer=PairInferer(2, handlers=[]))
        cut = register(images)["ddf"]
        whole = register.register(images["fixed"], MatchGridd()(images)["moving_input"]).ddf
        for name, ddf in (("cut", cut), ("whole", whole)):
            fine = refine_ddf(torch.as_tensor(ddf)[None], fixed.shape[1:])
            warped = warp(moving_label[None], fine, "nearest")[0]
            found[name].append(label_metrics(warped, fixed_label, (1, 1))["dice_mean"])
    assert np.mean(found["cut"]) > np.mean(found["whole"]) + 0.01


def centred_affine(spacing: tuple[float, ...], values: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(centred(make_affine(spacing), tuple(values.shape[1:])))


def error_mm(ddf: torch.Tensor, true: torch.Tensor, parts: tuple[int, ...]) -> float:
    """Mean distance to the true displacement, which is on cubes of 1 mm, away from the border."""
    ddf = torch.as_tensor(ddf)[None]
    fine = refine_ddf(ddf, true.shape[1:]) if ddf.shape[2:] != true.shape[1:] else ddf
    inside = (slice(None), *[slice(6, -6)] * len(parts))
    return torch.linalg.vector_norm((fine[0] - true)[inside], dim=0).mean().item()
