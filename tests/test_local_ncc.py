# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from loss_inputs import gradient, images, random_weight
from synthetic import smooth_image
from torch import Tensor

from monai_nodeo.losses import LocalNCCLoss

SHAPES = [(11, 9), (9, 7, 5)]


def brute_force_cc(
    pred: np.ndarray, target: np.ndarray, weight: np.ndarray, window: tuple[int, ...], eps: float
) -> np.ndarray:
    """Window by window, from the definition, with weighted means."""
    floors = []
    for image in (pred, target):
        mean = np.average(image, weights=weight)
        floors.append(eps * np.average((image - mean) ** 2, weights=weight))
    cc = np.zeros_like(pred)
    for index in np.ndindex(pred.shape):
        box = tuple(slice(max(0, i - k // 2), i + k // 2 + 1) for i, k in zip(index, window, strict=True))
        if not weight[index]:
            continue  # the window does not count
        x, y = (image[box] - np.average(image[box], weights=weight[box]) for image in (pred, target))
        cov, p, t = (np.average(product, weights=weight[box]) for product in (x * y, x * x, y * y))
        cc[index] = cov**2 / ((p + floors[0]) * (t + floors[1]))
    return cc


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("eps", [1e-5, 0.1])
@pytest.mark.parametrize(
    ("shape", "length", "spacing", "window"),
    [
        ((11, 9), 5, None, (5, 5)),
        ((11, 9), 21, None, (21, 21)),
        ((12, 9), 9, (1, 3), (9, 3)),
        ((9, 7, 5), 3, None, (3, 3, 3)),
        ((9, 7, 5), 5, (2, 1, 4), (3, 5, 1)),
    ],
)
def test_ncc_is_that_of_its_definition(shape, length, spacing, window, eps, weighted):
    """In windows that are as long in mm along every axis."""
    pred, target = images(shape, batch=2, channels=3)
    weight = random_weight(shape, 2) if weighted else None
    counts = torch.ones(2, 1, *shape, dtype=torch.float64) if weight is None else weight
    cc = [
        [brute_force_cc(*(x.numpy() for x in (p, t, w[0])), window, eps) for p, t in zip(ps, ts, strict=True)]
        for ps, ts, w in zip(pred, target, counts, strict=True)
    ]
    expected = (1 - np.array(cc)) * counts.numpy()

    def found(reduction: str) -> Tensor:
        return LocalNCCLoss(len(shape), length, reduction, eps)(pred, target, weight, spacing)

    np.testing.assert_allclose(found("none"), expected, atol=1e-9)
    assert found("sum").item() == pytest.approx(expected.sum(), abs=1e-8)
    assert found("mean").item() == pytest.approx(expected.sum() / 3 / counts.sum().item(), abs=1e-9)
    each = LocalNCCLoss(len(shape), length, "mean", eps).of_each(pred, target, weight, spacing)
    np.testing.assert_allclose(each, expected.sum((1, *range(2, expected.ndim))) / 3 / counts.flatten(1).sum(1).numpy())


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("window", [5, 21])
@pytest.mark.parametrize("shape", SHAPES)
def test_ncc_gradient_is_that_of_autograd(shape, window, weighted, reduction):
    pred, target = images(shape, batch=2, channels=3)
    weight, spacing = (random_weight(shape, batch=2), (1.0, 1.7, 3.1)[: len(shape)]) if weighted else (None, None)
    by_hand, plain = LocalNCCLoss(len(shape), window, reduction), LocalNCCLoss(len(shape), window, "none")

    def reduced(x: Tensor) -> Tensor:
        total = plain(x, target, weight, spacing).sum()
        count = pred.numel() if weight is None else 3 * weight.sum()
        return total / count if reduction == "mean" else total

    def found(x: Tensor) -> Tensor:
        return by_hand(x, target, weight, spacing)

    torch.testing.assert_close(found(pred), reduced(pred), rtol=0, atol=1e-9)
    torch.testing.assert_close(gradient(found, pred), gradient(reduced, pred), rtol=1e-9, atol=1e-11)


def test_ncc_gradient_of_the_target_is_that_of_the_other_image():
    pred, target = images((11, 9))
    loss = LocalNCCLoss(2, 5)
    swapped = gradient(lambda x: loss(x, pred), target)
    torch.testing.assert_close(gradient(lambda x: loss(pred, x), target), swapped, rtol=1e-10, atol=1e-12)


def flat_bright_region(shape: tuple[int, ...], value: float, dark: str) -> tuple[Tensor, Tensor]:
    """Two images of ``value`` with noise of 1e-4, float32; ``dark``: the half that is 0."""
    generator = torch.Generator().manual_seed(1)
    pair = value + 1e-4 * torch.randn(2, 1, 1, *shape, generator=generator)
    if dark in ("both", "fixed"):
        pair[1, :, :, : shape[0] // 2] = 0
    if dark == "both":
        pair[0, :, :, : shape[0] // 2] = 0
    return pair[0], pair[1]


@pytest.mark.parametrize("dark", ["none", "fixed", "both"])
@pytest.mark.parametrize("value", [1.0, 5.0, 1000.0])
@pytest.mark.parametrize("window", [9, 21])
@pytest.mark.parametrize("shape", [(47, 53), (23, 25, 27)])
def test_ncc_stays_in_range_on_flat_bright_regions(shape, window, value, dark):
    fixed, moving = flat_bright_region(shape, value, dark)
    for pred in (moving, fixed, 2 * fixed + 1, 3 - fixed):
        cc = 1 - LocalNCCLoss(len(shape), window, "none")(pred, fixed)
        assert cc.min() >= 0
        assert cc.max() <= 1
        loss = LocalNCCLoss(len(shape), window)(pred.requires_grad_(), fixed)
        assert 0 <= loss <= 1
        loss.backward()
        assert pred.grad.isfinite().all()
        pred.requires_grad_(False)


@pytest.mark.parametrize("change", [lambda x: 3 * x, lambda x: x + 2, lambda x: 0.5 * x - 1, lambda x: 1 - x])
@pytest.mark.parametrize("shape", [(31, 37), (17, 19, 21)])
def test_ncc_ignores_brightness_contrast_and_its_sign(shape, change):
    pred, target = (smooth_image(shape, seed)[None] for seed in (0, 1))
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        p, t = pred.to(dtype), target.to(dtype)
        loss = LocalNCCLoss(len(shape), 9)
        assert loss(p, t).item() == pytest.approx(loss(pred.double(), target.double()).item(), rel=1e-4)
        torch.testing.assert_close(loss(change(p), t), loss(p, t), rtol=0, atol=tolerance)
        torch.testing.assert_close(loss(p, change(t)), loss(p, t), rtol=0, atol=tolerance)


def test_ncc_follows_its_target():
    pred, target = images((11, 9))
    other = images((11, 9), seed=1)[1]
    loss = LocalNCCLoss(2, 5)

    def fresh() -> Tensor:
        return LocalNCCLoss(2, 5)(pred, target)

    first = loss(pred, target)
    assert torch.equal(first, fresh())
    assert torch.equal(loss(pred, other), LocalNCCLoss(2, 5)(pred, other))
    assert torch.equal(loss(pred, target), first)
    target.copy_(other)  # changed in place
    assert torch.equal(loss(pred, target), fresh())
    assert loss(pred, target) != first
    target[..., 1:].mul_(other[..., 1:])  # through a view
    assert torch.equal(loss(pred, target), fresh())
    for seed in range(5):  # a dead tensor's place is taken by the next
        del target
        target = images((11, 9), seed=seed)[1]
        assert torch.equal(loss(pred, target), fresh())
    pred, target = images((13, 7))
    assert torch.equal(loss(pred, target), fresh())
    pred, target = pred.float(), target.float()
    assert torch.equal(loss(pred, target), fresh())


def test_ncc_of_a_constant_image_is_one():
    image, flat = smooth_image((25, 21))[None], torch.full((1, 1, 25, 21), 0.3, requires_grad=True)
    loss = LocalNCCLoss(2, 9)(flat, image)
    loss.backward()
    assert loss == 1
    assert flat.grad.isfinite().all()
    empty = torch.cat([image, torch.zeros_like(image)], 1)  # say, a label that is not there
    assert LocalNCCLoss(2, 9)(empty, empty).isfinite()


def test_ncc_refuses_what_it_cannot_compare():
    for size in (0, 4, -3):
        with pytest.raises(ValueError, match=f"positive odd number of voxels, got {size}"):
            LocalNCCLoss(2, size)
    with pytest.raises(ValueError, match="average"):
        LocalNCCLoss(2, 9, "average")
    pred, target = images((11, 9))
    with pytest.raises(ValueError, match=r"2 spatial axes.*\(1, 1, 11, 9\) and \(1, 1, 11, 8\)"):
        LocalNCCLoss(2)(pred, target[..., 1:])
    with pytest.raises(ValueError, match="3 spatial axes"):
        LocalNCCLoss(3)(pred, target)
    with pytest.raises(ValueError, match=r"weight \(1, 2, 11, 9\) does not fit images \(1, 1, 11, 9\)"):
        LocalNCCLoss(2)(pred, target, torch.ones(1, 2, 11, 9))
