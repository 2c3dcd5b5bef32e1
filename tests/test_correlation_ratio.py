# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from synthetic import smooth_image

from monai_nodeo.geometry.sampling import warp
from monai_nodeo.losses import LocalNCCLoss, MINDSSCLoss
from monai_nodeo.losses.correlation_ratio import LocalCorrelationRatioLoss, MappedIntensityLoss

SHAPES = [(25, 21), (13, 17, 11)]


def pair(shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = (smooth_image(shape, seed)[None].double() for seed in (0, 1))
    return first, second


@pytest.mark.parametrize("shape", SHAPES)
def test_an_inner_window_is_the_r_squared_of_a_parabola(shape):
    pred, target = pair(shape)
    found = LocalCorrelationRatioLoss(len(shape), 7, reduction="none", eps=1e-9)(pred, target)
    assert found.shape == pred.shape
    middle = tuple(n // 2 for n in shape)
    window = tuple(slice(m - 3, m + 4) for m in middle)
    x, y = (image[0, 0][window].flatten().numpy() for image in (target, pred))
    residual = y - np.polyval(np.polyfit(x, y, 2), x)
    np.testing.assert_allclose(found[(0, 0, *middle)], residual.var() / y.var(), rtol=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("change", [lambda x: 1 - x, lambda x: (2 * x - 1).square(), lambda x: 40 * x * x - 7 * x])
def test_any_parabola_of_the_target_is_the_target(shape, change):
    image, other = pair(shape)
    loss = LocalCorrelationRatioLoss(len(shape), 9, eps=1e-6)
    assert loss(change(image), image) < 1e-3
    assert loss(other, image) > 0.3


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_below_the_loss_of_a_line_and_stays_in_range(shape):
    pred, target = pair(shape)
    ratio = LocalCorrelationRatioLoss(len(shape), 9, reduction="none", eps=1e-9)(pred, target)
    line = LocalNCCLoss(len(shape), 9, reduction="none", eps=1e-9)(pred, target)
    assert (ratio <= line + 1e-5).all()
    flat = 1e4 + 1e-3 * torch.randn(1, 1, *shape)
    flat[:, :, : shape[0] // 2] = 0
    for a, b in ((flat, target.float()), (pred.float(), flat), (flat, flat), (torch.zeros_like(flat), flat)):
        values = LocalCorrelationRatioLoss(len(shape), 9, reduction="none")(a, b)
        assert values.isfinite().all()
        assert -1e-3 < values.min() <= values.max() < 1 + 1e-3


@pytest.mark.parametrize("shape", SHAPES)
def test_weights_leave_out_what_they_exclude(shape):
    pred, target = pair(shape)
    weight = torch.ones(1, 1, *shape, dtype=torch.float64)
    weight[:, :, 8:] = 0
    spoilt = pred.clone()
    spoilt[:, :, 8:] = 50 * torch.rand_like(spoilt[:, :, 8:])
    loss = LocalCorrelationRatioLoss(len(shape), 7)
    assert loss(spoilt, target, weight).item() == pytest.approx(loss(pred, target, weight).item())
    assert loss(pred, target, torch.ones_like(weight)).item() == pytest.approx(loss(pred, target).item())
    total = LocalCorrelationRatioLoss(len(shape), 7, reduction="sum")(pred, target, weight)
    assert total.item() == pytest.approx(loss(pred, target, weight).item() * weight.sum().item())


@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradient_is_right(shape):
    pred, target = (image[(..., *[slice(0, 5)] * len(shape))] for image in pair(shape))
    loss = LocalCorrelationRatioLoss(len(shape), 5)
    assert torch.autograd.gradcheck(lambda p: loss(p, target), pred.clone().requires_grad_())


@pytest.mark.parametrize("make", [lambda dims: LocalCorrelationRatioLoss(dims, 5), MINDSSCLoss])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradient_leads_another_contrast_home(shape, make):
    loss = make(len(shape))
    moving = smooth_image(shape, sigma=1.5)[None]
    fixed = (1 - moving).square()
    offset = torch.full((1, len(shape), *[1] * len(shape)), 0.8, requires_grad=True)
    optimizer = torch.optim.Adam([offset], lr=0.1)
    for _ in range(40):
        optimizer.zero_grad()
        loss(warp(moving, offset.expand(1, -1, *shape)), fixed).backward()
        optimizer.step()
    assert offset.abs().max() < 0.15


def test_images_that_do_not_fit():
    image = smooth_image(SHAPES[0])[None]
    with pytest.raises(ValueError, match="2 spatial axes and one shape"):
        LocalCorrelationRatioLoss(2)(image, image[:, :, 1:])
    with pytest.raises(ValueError, match="positive odd"):
        LocalCorrelationRatioLoss(2, 8)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("change", [lambda x: 1 - x, lambda x: (x > 0.5).to(x), lambda x: torch.sin(9 * x)])
def test_a_function_of_the_target_is_the_target(shape, change):
    image, other = pair(shape)
    steps = (image * 31).round() / 31  # at the values where the function is free
    steps = (steps - steps.min()) / (steps.max() - steps.min())
    bins = round(1 / float(torch.unique(steps).diff().min())) + 1
    loss = MappedIntensityLoss(bins)
    assert loss(change(steps), steps).item() == pytest.approx(0, abs=1e-12)
    assert loss(change(other), steps) > 1e-3


@pytest.mark.parametrize("shape", SHAPES)
def test_what_the_target_does_not_explain_is_left(shape):
    pred, _ = pair(shape)
    target = torch.zeros_like(pred)
    target[:, :, shape[0] // 2 :] = 1  # two values: the best function is the mean of either part
    parts = pred[:, :, : shape[0] // 2], pred[:, :, shape[0] // 2 :]
    expected = sum(((part - part.mean()) ** 2).sum() for part in parts) / pred.numel()
    torch.testing.assert_close(MappedIntensityLoss()(pred, target), expected)
    constant = torch.zeros_like(target)
    torch.testing.assert_close(MappedIntensityLoss()(pred, constant), pred.var(correction=0))


def test_mapped_intensities_are_weighted_and_differentiable():
    pred, target = (image[..., :8, :8] for image in pair(SHAPES[0]))
    weight = torch.rand(1, 1, 8, 8, dtype=torch.float64)
    weight[:, :, 5:] = 0
    spoilt = pred.clone()
    spoilt[:, :, 5:] = 7
    loss = MappedIntensityLoss(4)
    assert loss(spoilt, target, weight).item() == pytest.approx(loss(pred, target, weight).item())
    assert torch.autograd.gradcheck(lambda p: loss(p, target, weight), pred.clone().requires_grad_())
    two = [torch.cat([x, 1 - x], dim=1) for x in (pred, target)]
    torch.testing.assert_close(loss(*two), loss(pred, target))  # a function for each channel
    with pytest.raises(ValueError, match="expected one"):
        loss(pred, target[:, :, 1:])
    with pytest.raises(ValueError, match="2 or more"):
        MappedIntensityLoss(1)
