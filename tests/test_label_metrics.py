# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from monai_nodeo.metrics.labels import label_metrics


def blobs(shape: tuple[int, ...], seed: int, labels: int = 4) -> np.ndarray:
    """Label map of irregular connected regions, 0 to ``labels``, some of them on the border."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2.0)
    return np.digitize(noise, np.quantile(noise, np.linspace(0, 1, labels + 2)[1:-1])).astype(np.uint8)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * int((a & b).sum()) / int(a.sum() + b.sum())


def hd95(a: np.ndarray, b: np.ndarray, spacing: tuple[float, ...]) -> float:
    """By distance maps of the whole grid: no crop, no tree."""
    surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in (a, b)]
    maps = [ndimage.distance_transform_edt(~surface, sampling=spacing) for surface in surfaces]
    return max(np.percentile(maps[1][surfaces[0]], 95), np.percentile(maps[0][surfaces[1]], 95))


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((19, 23), (1.0, 1.0)), ((19, 23), (0.7, 2.5)), ((17, 21, 25), (1.0, 1.0, 1.0)), ((17, 21, 25), (0.5, 1.25, 3.0))],
)
def test_figures_are_those_of_an_independent_computation(shape, spacing):
    fixed, label = blobs(shape, 0), blobs(shape, 1)
    figures = label_metrics(torch.from_numpy(label), torch.from_numpy(fixed), spacing)
    expected_dice = [dice(label == value, fixed == value) for value in (1, 2, 3, 4)]
    expected_hd95 = [hd95(label == value, fixed == value, spacing) for value in (1, 2, 3, 4)]
    assert list(figures["dice"]) == list(figures["hd95_mm"]) == [1, 2, 3, 4]
    np.testing.assert_allclose(list(figures["dice"].values()), expected_dice, rtol=1e-6)
    np.testing.assert_allclose(list(figures["hd95_mm"].values()), expected_hd95, rtol=1e-5)
    assert figures["dice_mean"] == pytest.approx(np.mean(expected_dice))
    assert figures["hd95_mm_mean"] == pytest.approx(np.mean(expected_hd95))


def test_labels_may_be_large_numbers_and_far_between():
    fixed, label = blobs((17, 21), 0).astype(np.int64), blobs((17, 21), 1).astype(np.int64)
    numbers = np.array([0, 7, 614454277, 3000000000, -5])  # as in an atlas; what is negative is no label
    plain, named = label_metrics(label, fixed, (1.0, 1.0)), label_metrics(numbers[label], numbers[fixed], (1.0, 1.0))
    assert list(named["dice"]) == numbers[1:4].tolist()
    assert list(named["dice"].values()) == list(plain["dice"].values())[:3]
    assert list(named["hd95_mm"].values()) == list(plain["hd95_mm"].values())[:3]


def test_a_lost_label_has_dice_0_and_no_distance_and_labels_of_the_fixed_map_alone_count():
    fixed = torch.zeros(9, 11)
    fixed[2:4, 2:4], fixed[6:8, 6:9] = 2, 5
    label = fixed.clone()
    label[label == 5] = 9
    figures = label_metrics(label, fixed, (1.0, 1.0))
    assert figures == {"dice": {2: 1.0, 5: 0.0}, "dice_mean": 0.5, "hd95_mm": {2: 0.0, 5: None}, "hd95_mm_mean": 0.0}
    assert json.loads(json.dumps(figures, allow_nan=False))["hd95_mm"] == {"2": 0.0, "5": None}


def test_no_labels_give_no_means():
    empty = torch.zeros(9, 11, dtype=torch.int16)
    assert label_metrics(empty, empty, (1, 1)) == {"dice": {}, "dice_mean": None, "hd95_mm": {}, "hd95_mm_mean": None}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.float32])
def test_type_channel_and_meta_do_not_matter(dtype):
    fixed, label = blobs((9, 11, 13), 9), blobs((9, 11, 13), 10)
    plain = label_metrics(label, fixed, (1.0, 1.0, 1.0))
    tensors = [MetaTensor(torch.from_numpy(array)[None].to(dtype)) for array in (label, fixed)]
    assert label_metrics(tensors[0], tensors[1], (1.0, 1.0, 1.0)) == plain


@pytest.mark.parametrize(
    ("label_shape", "fixed_shape", "spacing"),
    [((9, 11), (11, 9), (1, 1)), ((9, 11), (9, 11), (1, 1, 1)), ((2, 9, 11), (2, 9, 11), (1, 1))],
)
def test_shapes_that_do_not_fit_are_refused(label_shape, fixed_shape, spacing):
    with pytest.raises(ValueError, match=r"label \(.*\), fixed_label \(.*\) and spacing"):
        label_metrics(torch.zeros(label_shape), torch.zeros(fixed_shape), spacing)


def test_real_labels_before_registration(oasis):
    nib = pytest.importorskip("nibabel")
    pairs = json.loads((oasis / "pairs2d.json").read_text(encoding="utf-8"))
    maps = [
        [np.asarray(nib.load(oasis / pair[key]).dataobj)[..., 0] for key in ("moving_label", "fixed_label")]
        for pair in pairs
    ]
    means = [label_metrics(moving, fixed, (1.0, 1.0))["dice_mean"] for moving, fixed in maps]
    assert np.mean(means) == pytest.approx(0.513, abs=5e-4)  # DESIGN's figure, made by an independent judge
