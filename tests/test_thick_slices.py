# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scans import centred, load, make_affine, smooth
from synthetic import deformed_pair, smooth_image

from monai_nodeo.data import Pair, Scan, as_image, match
from monai_nodeo.data.pair import stored_grid
from monai_nodeo.geometry.folds import folded_cells
from monai_nodeo.metrics.labels import label_metrics
from monai_nodeo.registration import PairInferer, Registration, Settings
from monai_nodeo.registration.preparation import prepared_pair
from monai_nodeo.registration.preparation.thick_slices import parts_of, refine, refined

OBLIQUE = (0.4, -0.7, 0.3)
NARROW = 7  # voxels: slices with so few along a side are not registered to each other, which takes time


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
def test_voxels_are_cut_into_about_cubes(shape, spacing, parts):
    image = image_of(torch.empty(1, *shape, device="cpu"), spacing)
    assert parts_of(image) == parts


@pytest.mark.parametrize(("shape", "parts"), [((9, 11, 13), (1, 2, 4)), ((5, 4, 11), (3, 1, 2)), ((9, 11), (3, 1))])
def test_values_stay_where_they_are_in_the_world(shape, parts):
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


def test_slices_of_a_smooth_image_are_better_than_by_linear_interpolation():
    sharp = smooth_image((9, 11, 48), sigma=3.0)
    image = image_of(thick(sharp, (1, 1, 4)), (1, 1, 4))
    found = refined(image, (1, 1, 4)).as_tensor()
    linear = torch.nn.functional.interpolate(image.as_tensor()[None], sharp.shape[1:], mode="trilinear")[0]
    assert (found - sharp).square().mean() < 0.5 * (linear - sharp).square().mean()


def test_air_and_range_stay():
    values = torch.zeros(1, 9, 11, 12)
    values[..., 5:8] = 1 + smooth_image((9, 11, 3))
    fine = refined(image_of(values, (1, 1, 3)), (1, 1, 3))
    assert fine[..., :12].count_nonzero() == 0  # a slice beside the first that holds something may
    assert fine[..., 27:].count_nonzero() == 0
    assert (float(fine.min()), float(fine.max())) == (float(values.min()), float(values.max()))


def test_cubes_are_left_alone_and_sure():
    image = image_of(smooth_image((9, 11, 13)), (1, 1.4, 1))
    fine, certainty = refine(Pair(Scan(image), Scan(image)))
    assert fine.fixed.image is fine.moving.image is image
    assert certainty is None
    thin, thick_one = (image_of(smooth_image((9, NARROW, 10)), (1, 1, side)) for side in (1, 4))
    assert refine(Pair(Scan(thin), Scan(thick_one)))[1] is None


@pytest.mark.parametrize(("count", "hat"), [(2, [0.5, 0.5]), (3, [1 / 3, 1, 1 / 3]), (4, [0.25, 0.75, 0.75, 0.25])])
@pytest.mark.parametrize("axis", [0, 2])
def test_a_fixed_image_is_surest_in_the_middle_of_its_slices(count, hat, axis):
    spacing = [1.0, 1.0, 1.0]
    spacing[axis] = count
    image = image_of(smooth_image((9, NARROW, 10)), tuple(spacing))
    fine, certainty = refine(Pair(Scan(image), Scan(image)))
    assert certainty.shape == fine.fixed.image.shape
    lines = certainty[0].movedim(axis, -1).flatten(0, -2)
    torch.testing.assert_close(lines, torch.tensor(hat).repeat(image.shape[1 + axis]).expand_as(lines))


@pytest.mark.parametrize(("axis", "count", "scale"), [(0, 3, 1), (1, 4, 700), (2, 4, 1)])
def test_a_slanted_tube_goes_on_between_picked_slices(axis, count, scale):
    places = torch.arange(10 * count) / count
    x, y = torch.meshgrid(torch.arange(64.0), torch.arange(30.0), indexing="ij")
    discs = [torch.sigmoid(9 - ((x - 12 - 4 * place).square() + (y - 15).square()).sqrt()) for place in places]
    sharp = scale * torch.stack(discs).movedim(0, axis)[None]
    spacing = [1.0, 1.0, 1.0]
    spacing[axis] = count
    # picked where the middle of a slice is: at a part if their number is odd, else between the two parts in the middle
    middles = sharp.unflatten(1 + axis, (10, count)).movedim(2 + axis, 0)[(count - 1) // 2 : count // 2 + 1].mean(0)
    image = image_of(middles, tuple(spacing))
    fine, _ = refine(Pair(Scan(image), Scan(image)))
    plain = refined(image, parts_of(image)).as_tensor()
    for scan in (fine.fixed, fine.moving):
        assert (scan.image.as_tensor() - sharp).square().mean() < 0.8 * (plain - sharp).square().mean()


def test_masks_and_landmarks_follow(save, tmp_path):
    shape, coarse = (12, 11, 36), (12, 11, 9)
    affine = centred(make_affine((1, 1, 4), OBLIQUE), coarse)
    values, mask = smooth(coarse), np.zeros(coarse, np.uint8)
    mask[3:, :, 2:5] = 1
    names = [save("f.nii.gz", values, affine), save("m.nii.gz", values, affine)]
    voxels = np.array([[3.0, 4, 2], [5, 6, 3.25], [7, 6, 1]])
    points = voxels @ affine[:3, :3].T + affine[:3, 3]
    marks = {"fixed_landmarks": points, "moving_landmarks": points + affine[:3, 2] / 4}  # by 1 mm across the slices
    pair = load(*names, fixed_mask=mask, moving_mask=mask, **marks)
    fine = match(*refine(pair)[:1])
    assert pair.fixed.image.shape[1:] == coarse  # as it was
    assert fine.fixed.shape[1:] == fine.moving.shape[1:] == shape
    for found in (fine.fixed_mask, fine.moving_mask):
        assert np.array_equal(found[0].numpy(), mask.repeat(4, axis=2))
    expected = np.stack([voxels * (1, 1, 4) + (0, 0, 1.5), voxels * (1, 1, 4) + (0, 0, 2.5)], axis=1)
    np.testing.assert_allclose(fine.landmarks, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "parts", "which"),
    [((32, 40, 36), (1, 1, 3), "fixed"), ((48, 60), (3, 1), "moving"), ((48, 60), (3, 1), "both")],
)
def test_thick_slices_are_registered_between_their_voxels(shape, parts, which):
    fixed, moving, true = deformed_pair(shape, largest=3.0)
    spacing = (*[float(n) for n in parts], 1.0)[:3]
    cubes = {key: on_grid(values, (1, 1, 1)) for key, values in (("fixed", fixed), ("moving", moving))}
    images = {
        key: on_grid(thick(image.as_tensor(), parts), spacing) if which in (key, "both") else image
        for key, image in cubes.items()
    }
    found = registered(images["fixed"], images["moving"], "fast")
    assert found.ddf.shape[1:] == images["fixed"].shape[1:]
    assert not folded_cells(found.ddf[None]).any()
    ddf = found.map.on(stored_grid(cubes["fixed"])).ddf
    inside = (slice(None), *[slice(6, -6)] * len(parts))
    error, before = (torch.linalg.vector_norm((x - true)[inside], dim=0).mean() for x in (ddf, torch.zeros_like(true)))
    assert error < 0.5 * before


def test_real_slices_of_long_pixels_are_registered_better_than_on_their_pixels(oasis, monkeypatch):
    rows = json.loads((oasis / "pairs2d.json").read_text())[:2]
    labels = [on_grid(as_image(oasis / row["fixed_label"]).as_tensor(), (1, 1, 1)) for row in rows]
    pairs = []
    for row, parts in zip(rows, [(4, 1), (1, 4)], strict=True):
        fixed, *moving = (as_image(oasis / row[key]).as_tensor() for key in ("fixed", "moving", "moving_label"))
        thick_one = on_grid(thick(fixed, parts), (*[float(n) for n in parts], 1.0))
        pairs.append(Pair(Scan(thick_one), Scan(*(on_grid(values, (1, 1, 1)) for values in moving))))

    def dice() -> list[float]:
        """Of labels on the pixels as they were before."""
        found = []
        for pair, label in zip(pairs, labels, strict=True):
            way = registered(pair.fixed.image, pair.moving.image, "fast").map.on(stored_grid(label))
            warped = way.warp(pair.moving.label, "nearest").as_tensor()
            found.append(label_metrics(warped, label.as_tensor(), (1, 1))["dice_mean"])
        return found

    cut = dice()
    monkeypatch.setattr(prepared_pair, "refine", lambda pair: (pair, None))
    whole = dice()
    assert all(better > worse + 0.01 for better, worse in zip(cut, whole, strict=True))


def on_grid(values: torch.Tensor, spacing: tuple[float, ...]) -> MetaTensor:
    """An image (C, *spatial) whose middle lies at the world's origin."""
    return as_image(MetaTensor(values, affine=torch.from_numpy(centred(make_affine(spacing), tuple(values.shape[1:])))))


def registered(fixed: MetaTensor, moving: MetaTensor, preset: str) -> Registration:
    inferer = PairInferer(Settings.preset(preset, fixed.ndim - 1), handlers=[])
    return inferer.register([Pair(Scan(fixed), Scan(moving))], "cpu")[0]
