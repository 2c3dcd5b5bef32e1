# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.losses import (
    BendingEnergyLoss,
    DiffusionLoss,
    GlobalMutualInformationLoss,
    LocalNormalizedCrossCorrelationLoss,
    SSIMLoss,
)
from synthetic import deformed_pair, smooth_ddf, smooth_image
from torch import Tensor, nn
from torch.autograd import gradcheck

from monai_nodeo.flows import NODEONet
from monai_nodeo.geometry import _slabs as slabs
from monai_nodeo.geometry.coordinates import identity_grid, phi_to_ddf
from monai_nodeo.geometry.jacobian import jacobian_determinant
from monai_nodeo.losses import (
    FoldingLoss,
    ImageLoss,
    IntensityLoss,
    LocalNCCLoss,
    RegistrationLoss,
    SmoothnessLoss,
    VelocityMagnitudeLoss,
    local_correlation,
)
from monai_nodeo.losses.correlation_ratio import LocalCorrelationRatioLoss, MappedIntensityLoss
from monai_nodeo.losses.landmarks import landmark_loss
from monai_nodeo.losses.mind import MINDSSCLoss
from monai_nodeo.registration.inferer import PairInferer

SHAPES = [(11, 9), (9, 7, 5)]
PLANES = [1, 4, 100]  # of a slab: one, some with a remainder, all


@pytest.fixture(params=PLANES, ids=lambda planes: f"planes{planes}")
def slab_of(request, monkeypatch: pytest.MonkeyPatch) -> Callable[[tuple[int, ...]], None]:
    """Call it with a spatial shape: the losses then work through slabs of a few planes."""

    def limit(shape: tuple[int, ...]) -> None:
        monkeypatch.setattr(slabs, "SLAB_VOXELS", request.param * math.prod(shape[1:]))
        expected = math.ceil(shape[0] / request.param)
        assert len(list(slabs.slabs(torch.empty(1, 1, *shape)))) == expected

    return limit


def images(shape: tuple[int, ...], batch: int = 1, channels: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two correlated noisy images, float64."""
    generator = torch.Generator().manual_seed(seed)
    pred, noise = torch.rand(2, batch, channels, *shape, generator=generator, dtype=torch.float64)
    return pred, pred * 0.7 + noise


def folded_field(shape: tuple[int, ...], batch: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    """A rough field with folds, (B, D, *shape)."""
    ddf = torch.randn(batch, len(shape), *shape, dtype=dtype)
    determinant = jacobian_determinant(ddf)
    assert determinant.min() < 0 < determinant.max()
    return ddf


def linear_field(matrix: Tensor, shape: tuple[int, ...]) -> Tensor:
    """ddf(x) = matrix @ x, (1, D, *shape)."""
    voxels = torch.stack(torch.meshgrid(*[torch.arange(n, dtype=matrix.dtype) for n in shape], indexing="ij"))
    return torch.einsum("ij,j...->i...", matrix, voxels)[None]


def gradient(loss: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.detach().clone().requires_grad_()
    (loss(x) * 3).backward()  # a factor: the incoming gradient must not be taken for one
    return x.grad


# LocalNCCLoss


def brute_force_cc(pred: np.ndarray, target: np.ndarray, window: int, eps: float) -> np.ndarray:
    """Window by window, from the definition."""
    reach = window // 2
    cc = np.empty_like(pred)
    for index in np.ndindex(pred.shape):
        box = tuple(slice(max(0, i - reach), i + reach + 1) for i in index)
        x, y = pred[box], target[box]
        cov = ((x - x.mean()) * (y - y.mean())).mean()
        cc[index] = cov**2 / ((x.var() + eps * pred.var()) * (y.var() + eps * target.var()))
    return cc


@pytest.mark.parametrize("window", [3, 5, 21])
@pytest.mark.parametrize("eps", [1e-5, 0.1])
@pytest.mark.parametrize("shape", SHAPES)
def test_ncc_is_that_of_its_definition(shape, window, eps):
    pred, target = images(shape, batch=2, channels=3)
    expected = 1 - np.stack([[brute_force_cc(p.numpy(), t.numpy(), window, eps) for p, t in zip(*pair, strict=True)]
                             for pair in zip(pred, target, strict=True)])  # fmt: skip
    dims = len(shape)
    np.testing.assert_allclose(LocalNCCLoss(dims, window, "none", eps)(pred, target), expected, atol=1e-12)
    assert LocalNCCLoss(dims, window, "mean", eps)(pred, target).item() == pytest.approx(expected.mean(), abs=1e-12)
    assert LocalNCCLoss(dims, window, "sum", eps)(pred, target).item() == pytest.approx(expected.sum(), abs=1e-9)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("window", [3, 21])
@pytest.mark.parametrize("shape", SHAPES)
def test_ncc_gradient_is_that_of_autograd(shape, window, reduction, slab_of):
    slab_of(shape)
    pred, target = images(shape, batch=2, channels=3)
    by_hand, plain = LocalNCCLoss(len(shape), window, reduction), LocalNCCLoss(len(shape), window, "none")

    def reduced(x: Tensor) -> Tensor:
        return getattr(plain(x, target), reduction)()

    torch.testing.assert_close(by_hand(pred, target), reduced(pred), rtol=0, atol=1e-11)
    found, expected = gradient(lambda x: by_hand(x, target), pred), gradient(reduced, pred)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("eps", [1e-5, 0.1])
@pytest.mark.parametrize("shape", [(5, 7), (3, 4, 5)])
def test_ncc_passes_gradcheck(shape, eps, monkeypatch):
    monkeypatch.setattr(slabs, "SLAB_VOXELS", 2 * math.prod(shape[1:]))
    pred, target = images(shape, channels=2)
    loss = LocalNCCLoss(len(shape), 3, eps=eps)
    assert gradcheck(lambda x: loss(x, target), pred.requires_grad_())
    assert gradcheck(loss, (pred, target.requires_grad_()))


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


@pytest.mark.parametrize("shape", [(31, 37), (17, 19, 21)])
def test_ncc_of_an_image_and_itself_is_zero(shape):
    image = smooth_image(shape)[None]
    assert LocalNCCLoss(len(shape), 9)(image, image).item() == pytest.approx(0, abs=2e-4)  # eps


@pytest.mark.parametrize("change", [lambda x: 3 * x, lambda x: x + 2, lambda x: 0.5 * x - 1, lambda x: 1 - x])
@pytest.mark.parametrize("shape", [(31, 37), (17, 19, 21)])
def test_ncc_ignores_brightness_contrast_and_its_sign(shape, change):
    pred, target = (smooth_image(shape, seed)[None] for seed in (0, 1))
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        p, t = pred.to(dtype), target.to(dtype)
        loss = LocalNCCLoss(len(shape), 9)
        torch.testing.assert_close(loss(change(p), t), loss(p, t), rtol=0, atol=tolerance)
        torch.testing.assert_close(loss(p, change(t)), loss(p, t), rtol=0, atol=tolerance)


@pytest.mark.parametrize("shape", [(47, 53), (23, 25, 27)])
def test_ncc_in_float32_is_near_float64(shape):
    fixed, moving, _ = deformed_pair(shape)
    loss = LocalNCCLoss(len(shape), 9)
    values, gradients = [], []
    for dtype in (torch.float64, torch.float32):
        pred, target = moving[None].to(dtype), fixed[None].to(dtype)
        values.append(loss(pred, target).item())
        gradients.append(gradient(lambda x, target=target: loss(x, target), pred))
    assert values[1] == pytest.approx(values[0], rel=1e-4)
    assert (gradients[1] - gradients[0]).norm() < 1e-3 * gradients[0].norm()


def test_ncc_swaps_axes_with_its_images():
    pred, target = images((9, 7, 5))
    loss = LocalNCCLoss(3, 5)
    torch.testing.assert_close(loss(pred.permute(0, 1, 4, 2, 3), target.permute(0, 1, 4, 2, 3)), loss(pred, target))


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


def test_ncc_works_out_its_target_once(monkeypatch):
    pred, target = images((11, 9))
    loss, calls, of = LocalNCCLoss(2, 5), [], local_correlation._LocalStatistics.of
    monkeypatch.setattr(local_correlation._LocalStatistics, "of", lambda *args: calls.append(args) or of(*args))
    for _ in range(3):
        loss(pred, target)
    assert len(calls) == 1


@pytest.mark.parametrize("make_copy", [copy.deepcopy, copy.copy, lambda x: pickle.loads(pickle.dumps(x))])
def test_ncc_can_be_copied_after_use(make_copy):
    pred, target = images((11, 9))
    loss = LocalNCCLoss(2, 5, "sum", eps=0.1)
    expected = loss(pred, target)
    assert torch.equal(make_copy(loss)(pred, target), expected)
    assert torch.equal(make_copy(nn.ModuleList([loss]))[0](pred, target), expected)


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


# FoldingLoss


def determinants(ddf: Tensor) -> Tensor:
    """By torch.linalg, cell by cell, (B, *(spatial - 1))."""
    dims = ddf.ndim - 2
    cells = (..., *[slice(0, -1)] * dims)
    columns = [ddf.diff(dim=2 + axis)[(..., *[slice(0, n - 1) for n in ddf.shape[2:]])] for axis in range(dims)]
    jacobian = torch.stack(columns, -1).movedim(1, -2) + torch.eye(dims, dtype=ddf.dtype)
    assert jacobian.shape[:-2] == ddf[:, 0][cells].shape
    return torch.linalg.det(jacobian)


@pytest.mark.parametrize("margin", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_folding_value_and_gradient_are_those_of_autograd(shape, margin, slab_of):
    slab_of(shape)
    ddf = folded_field(shape, batch=2)

    def plain(x: Tensor) -> Tensor:
        return (margin - determinants(x)).relu().square()

    torch.testing.assert_close(FoldingLoss(margin, "none")(ddf), plain(ddf))
    for reduction in ("mean", "sum"):
        loss = FoldingLoss(margin, reduction)

        def reduced(x: Tensor, reduction: str = reduction) -> Tensor:
            return getattr(plain(x), reduction)()

        torch.testing.assert_close(loss(ddf), reduced(ddf))
        torch.testing.assert_close(gradient(loss, ddf), gradient(reduced, ddf))


@pytest.mark.parametrize("shape", [(5, 4), (4, 3, 5)])
def test_folding_passes_gradcheck(shape, monkeypatch):
    monkeypatch.setattr(slabs, "SLAB_VOXELS", 2 * math.prod(shape[1:]))
    assert gradcheck(FoldingLoss(), folded_field(shape).requires_grad_())


@pytest.mark.parametrize("shape", SHAPES)
def test_folding_of_linear_fields_is_analytic(shape):
    dims = len(shape)
    eye = torch.eye(dims, dtype=torch.float64)
    loss = FoldingLoss(0.5)
    assert loss(0 * linear_field(eye, shape)) == 0  # identity
    assert loss(0 * linear_field(eye, shape) + 7) == 0  # translation
    for factor in (0.3, 0.6, 1.2):
        expected = max(0.5 - factor**dims, 0) ** 2
        assert loss(linear_field((factor - 1) * eye, shape)).item() == pytest.approx(expected, abs=1e-12)
    factors = torch.tensor([0.4, 0.9, 1.1][:dims], dtype=torch.float64)
    sheared = torch.diag(factors - 1) + 0.7 * eye.roll(1, 0).tril()  # below the diagonal: the determinant is the same
    expected = (0.5 - factors.prod().item()) ** 2
    assert loss(linear_field(sheared, shape)).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("shape", "axis"), [(shape, axis) for shape in SHAPES for axis in range(len(shape))])
def test_folding_is_positive_for_a_fold(shape, axis):
    ddf = torch.zeros(1, len(shape), *shape)
    ddf[0, axis].select(axis, 2).fill_(1.5)  # passes its neighbour, det -0.5
    assert FoldingLoss(0.0)(ddf) > 0
    ddf[0, axis].select(axis, 2).fill_(0.8)  # close to it, det 0.2: no fold, only within the margin
    assert FoldingLoss(0.0)(ddf) == 0
    assert FoldingLoss(0.5)(ddf).item() == pytest.approx(0.3**2 / (shape[axis] - 1), rel=1e-5)


def test_folding_of_a_slice_is_that_of_a_slab():
    ddf = folded_field((11, 9))
    slab = torch.cat([ddf, torch.zeros_like(ddf[:, :1])], 1)[..., None].expand(-1, -1, -1, -1, 5)
    torch.testing.assert_close(FoldingLoss()(slab), FoldingLoss()(ddf))


def test_folding_and_smoothness_swap_axes_with_their_field():
    ddf = folded_field((9, 7, 5))
    swapped = ddf.permute(0, 1, 4, 2, 3)
    torch.testing.assert_close(FoldingLoss()(swapped[:, [2, 0, 1]]), FoldingLoss()(ddf))
    torch.testing.assert_close(SmoothnessLoss()(swapped), SmoothnessLoss()(ddf))


# SmoothnessLoss and VelocityMagnitudeLoss


@pytest.mark.parametrize("shape", SHAPES)
def test_smoothness_value_and_gradient_are_those_of_autograd(shape, slab_of):
    slab_of(shape)
    ddf = torch.randn(2, len(shape), *shape, dtype=torch.float64)

    def plain(x: Tensor) -> Tensor:
        return sum(x.diff(dim=axis).square().mean() for axis in range(2, x.ndim))

    torch.testing.assert_close(SmoothnessLoss()(ddf), plain(ddf))
    torch.testing.assert_close(gradient(SmoothnessLoss(), ddf), gradient(plain, ddf))


@pytest.mark.parametrize("loss", [SmoothnessLoss(), VelocityMagnitudeLoss()])
@pytest.mark.parametrize("shape", [(5, 4), (4, 3, 5)])
def test_quadratic_penalties_pass_gradcheck(shape, loss, monkeypatch):
    monkeypatch.setattr(slabs, "SLAB_VOXELS", 2 * math.prod(shape[1:]))
    assert gradcheck(loss, torch.randn(2, len(shape), *shape, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_smoothness_of_a_linear_field_is_analytic(shape):
    dims = len(shape)
    matrix = torch.randn(dims, dims, dtype=torch.float64)
    expected = matrix.square().sum() / dims  # mean over the components, sum over the axes
    torch.testing.assert_close(SmoothnessLoss()(linear_field(matrix, shape)), expected)
    assert SmoothnessLoss()(0 * linear_field(matrix, shape) + 7) == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_velocity_magnitude_is_the_mean_squared_length(shape):
    phi = torch.randn(2, len(shape), *shape, dtype=torch.float64)  # in [-1, 1] per unit time
    velocity = phi_to_ddf(phi, torch.zeros_like(phi))
    torch.testing.assert_close(VelocityMagnitudeLoss()(velocity), phi.square().sum(1).mean())
    still = torch.zeros_like(velocity)
    assert VelocityMagnitudeLoss()(still) == 0
    assert torch.equal(gradient(VelocityMagnitudeLoss(), still), still)  # the norm itself has no gradient there


@pytest.mark.parametrize("loss", [FoldingLoss(), SmoothnessLoss(), VelocityMagnitudeLoss()])
@pytest.mark.parametrize("shape", [(31, 37), (17, 19, 21)])
def test_penalties_in_float32_are_near_float64(shape, loss):
    ddf = 3 * torch.randn(1, len(shape), *shape, dtype=torch.float64)
    assert loss(ddf.float()).item() == pytest.approx(loss(ddf).item(), rel=1e-5)
    expected = gradient(loss, ddf)
    assert (gradient(loss, ddf.float()) - expected).norm() < 1e-5 * expected.norm()


# RegistrationLoss


class _Fails(nn.Module):
    def forward(self, *_: Tensor) -> Tensor:
        raise AssertionError("a term of weight 0 was worked out")


@pytest.mark.parametrize("shape", SHAPES)
def test_registration_loss_is_the_weighted_sum_of_its_terms(shape):
    warped, fixed = images(shape)
    ddf = folded_field(shape)
    velocities = [torch.randn_like(ddf) for _ in range(3)]
    similarity, folding, smoothness, magnitude = (
        LocalNCCLoss(len(shape), 5),
        FoldingLoss(),
        SmoothnessLoss(),
        VelocityMagnitudeLoss(),
    )
    loss = RegistrationLoss(
        similarity,
        ddf_terms={"folding": (2.5, folding), "smoothness": (0.05, smoothness), "unused": (0, _Fails())},
        velocity_terms={"magnitude": (5e-2, magnitude), "idle": (0.0, _Fails())},
    )
    terms = loss(warped, fixed, ddf, velocities)
    expected = {
        "similarity": similarity(warped, fixed),
        "folding": folding(ddf),
        "smoothness": smoothness(ddf),
        "magnitude": sum(magnitude(v) for v in velocities) / 3,
    }
    assert list(terms) == ["loss", *expected]
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value.expand(1))
    total = expected["similarity"] + 2.5 * expected["folding"] + 0.05 * expected["smoothness"]
    torch.testing.assert_close(terms["loss"].sum(), total + 5e-2 * expected["magnitude"])
    assert all(term.shape == (1,) for term in terms.values())


def test_registration_loss_of_a_similarity_alone():
    terms = RegistrationLoss(nn.MSELoss())(torch.ones(1, 1, 5, 7), torch.zeros(1, 1, 5, 7), torch.zeros(1, 2, 5, 7), [])
    assert terms == {"loss": 1, "similarity": 1}


@pytest.mark.parametrize("shape", SHAPES)
def test_certainty_is_a_weight_for_those_that_take_weights(shape):
    warped, fixed = images(shape)
    ddf = folded_field(shape)
    weight, certainty = torch.rand(2, 1, 1, *shape, dtype=warped.dtype)
    own = RegistrationLoss(LocalNCCLoss(len(shape), 5), image_terms={"intensity": (1.0, IntensityLoss())})

    assert own(warped, fixed, ddf, [], weight, certainty=certainty) == own(warped, fixed, ddf, [], weight * certainty)
    assert own(warped, fixed, ddf, [], certainty=certainty) == own(warped, fixed, ddf, [], certainty)
    other = RegistrationLoss(nn.MSELoss())
    assert other(warped, fixed, ddf, [], certainty=certainty) == other(warped, fixed, ddf, [])
    with pytest.raises(ValueError, match="MSELoss cannot take masks"):
        other(warped, fixed, ddf, [], weight, certainty=certainty)


@pytest.mark.parametrize(
    ("ddf_terms", "velocity_terms", "name"),
    [
        ({"loss": (1, FoldingLoss())}, {}, "loss"),
        ({}, {"similarity": (1, VelocityMagnitudeLoss())}, "similarity"),
        ({"same": (1, FoldingLoss())}, {"same": (1, VelocityMagnitudeLoss())}, "same"),
    ],
)
def test_registration_loss_refuses_a_name_twice(ddf_terms, velocity_terms, name):
    with pytest.raises(ValueError, match=f"'{name}' of a loss term is taken"):
        RegistrationLoss(nn.MSELoss(), ddf_terms, velocity_terms)


ONE_LEVEL: dict[str, Any] = {"iterations": (5,), "shrink_factors": (1,), "point_spacing": 1}
gently = partial(torch.optim.Adam, lr=0.005, amsgrad=True)


@pytest.mark.parametrize(
    "similarity",
    [
        lambda dims: LocalNormalizedCrossCorrelationLoss(dims, kernel_size=9),
        lambda dims: GlobalMutualInformationLoss(num_bins=16),
        lambda dims: SSIMLoss(dims, win_size=7),
        lambda dims: nn.MSELoss(),
        lambda dims: LocalNCCLoss(dims, 9),
    ],
    ids=["LNCC", "MI", "SSIM", "MSE", "own LNCC"],
)
@pytest.mark.parametrize("shape", [(33, 29), (17, 19, 15)])
def test_image_losses_drop_in(shape, similarity):
    fixed, moving, _ = deformed_pair(shape)
    dims = len(shape)
    inferer = PairInferer(dims, RegistrationLoss(similarity(dims)), optimizer=gently, **ONE_LEVEL)
    inferer(fixed[None], NODEONet(dims), moving[None])
    curve = inferer.registrations[0].history["similarity"]
    assert curve.shape == (5,)
    assert (curve.diff() < 0).all()


# MONAI's finite differences index with a list
@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence for multidimensional indexing")
@pytest.mark.parametrize("penalty", [BendingEnergyLoss, DiffusionLoss])
@pytest.mark.parametrize("shape", [(33, 29), (17, 19, 15)])
def test_field_losses_drop_in(shape, penalty):
    fixed, moving, _ = deformed_pair(shape)
    dims = len(shape)
    rough = {}
    for weight in (1e-3, 1e3):
        loss = RegistrationLoss(LocalNCCLoss(dims, 9), ddf_terms={"rough": (weight, penalty())})
        inferer = PairInferer(dims, loss, optimizer=gently, **ONE_LEVEL)
        inferer(fixed[None], NODEONet(dims), moving[None])
        history = inferer.registrations[0].history
        assert list(history) == ["level", "loss", "similarity", "rough"]
        rough[weight] = history["rough"][-1]
        if weight < 1:
            assert (history["loss"].diff() < 0).all()
    assert rough[1e3] < rough[1e-3]  # it acts


def test_the_displacement_of_a_shrinking_cloud_is_penalised():
    # the units that the losses are told: phi in [-1, 1] halved is a scaling by one half in voxels
    identity = identity_grid((11, 9), dtype=torch.float64)
    assert FoldingLoss(0.5)(phi_to_ddf(identity / 2, identity)).item() == pytest.approx(0.25**2)


def test_smooth_fields_do_not_fold():
    assert FoldingLoss(0.0)(smooth_ddf((31, 37))[None]) == 0


SMALL_SHAPE = (25, 21)


def test_ncc_of_a_constant_image_is_one():
    image, flat = smooth_image(SMALL_SHAPE)[None], torch.full((1, 1, *SMALL_SHAPE), 0.3, requires_grad=True)
    loss = LocalNCCLoss(2, 9)(flat, image)
    loss.backward()
    assert loss == 1
    assert flat.grad.isfinite().all()
    empty = torch.cat([image, torch.zeros_like(image)], 1)  # say, a label that is not there
    assert LocalNCCLoss(2, 9)(empty, empty).isfinite()


def test_ddf_is_no_name_of_a_term():
    with pytest.raises(ValueError, match="ddf"):
        RegistrationLoss(nn.MSELoss(), ddf_terms={"ddf": (1.0, SmoothnessLoss())})


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("shape", [(11, 9), (9, 7, 5)])
def test_images_and_fields_of_monai_transforms_are_taken(shape, reduction):
    """MetaTensors, with the same values and gradients as plain ones."""
    pred, target = (x.float() for x in images(shape))
    field = smooth_ddf(shape)[None]
    losses = [
        (LocalNCCLoss(len(shape), 5, reduction), (pred, target)),
        (LocalCorrelationRatioLoss(len(shape), 5, reduction), (pred, target)),
        (IntensityLoss(), (pred, target)),
        (MappedIntensityLoss(), (pred, target)),
        (MINDSSCLoss(len(shape)), (pred, target)),
        (FoldingLoss(reduction=reduction), (field,)),
        (SmoothnessLoss(), (field,)),
        (VelocityMagnitudeLoss(), (field,)),
    ]
    for loss, (first, *others) in losses:
        expected = gradient(lambda x, loss=loss, others=others: loss(x, *others).sum(), first)
        meta = [MetaTensor(x.clone()) for x in others]
        found = gradient(lambda x, loss=loss, meta=meta: loss(x, *meta).sum(), MetaTensor(first.clone()))
        assert torch.equal(torch.as_tensor(found), expected), type(loss).__name__


@pytest.mark.parametrize("loss", [LocalNCCLoss(2, 5), FoldingLoss(), SmoothnessLoss()])
def test_second_derivatives_are_refused(loss):
    x = torch.randn(1, 2, 9, 7, dtype=torch.float64, requires_grad=True)
    other = torch.randn(1, 2, 9, 7, dtype=torch.float64)
    value = loss(x, other) if isinstance(loss, LocalNCCLoss) else loss(x)
    (gradient,) = torch.autograd.grad(value * x.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()  # once a wrong number, in silence


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("shape", [(1, 4, 5, 7, 9), (1, 3, 5, 7), (1, 2, 5, 7, 9), (1, 1, 5, 7)])
def test_folding_refuses_fields_with_other_channels(shape, reduction):
    with pytest.raises(ValueError, match="ddf must be"):
        FoldingLoss(reduction=reduction)(torch.zeros(shape))


def test_reductions_that_do_nothing_are_refused():
    with pytest.raises(TypeError):
        SmoothnessLoss(reduction="none")


# Weights and voxel sizes


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_intensities_are_compared_after_the_best_linear_fit(shape, weighted):
    generator = torch.Generator().manual_seed(3)
    pred, target = (torch.rand(2, 2, *shape, generator=generator, dtype=torch.float64) for _ in range(2))
    weight = torch.rand(2, 1, *shape, generator=generator, dtype=torch.float64) if weighted else None
    found = IntensityLoss().of_each(pred, target, weight)
    for item in range(2):
        residuals, counts = [], []
        for channel in range(2):
            x, y = (image[item, channel].flatten().numpy() for image in (pred, target))
            w = np.ones_like(x) if weight is None else weight[item, 0].flatten().numpy()
            residuals.append((w * (np.polyval(np.polyfit(x, y, 1, w=np.sqrt(w)), x) - y) ** 2).sum())
            counts.append(w.sum())
        assert found[item].item() == pytest.approx(sum(residuals) / sum(counts))
    torch.testing.assert_close(IntensityLoss().of_each(5 - 0.3 * pred, target, weight), found)
    # of a constant image nothing can be made but the mean
    flat = IntensityLoss()(torch.ones_like(pred[:1, :1]), target[:1, :1])
    torch.testing.assert_close(flat, target[:1, :1].var(correction=0))


WEIGHTED = [lambda dims: LocalNCCLoss(dims, 5), lambda dims: IntensityLoss()]
every_weighted = pytest.mark.parametrize("make", WEIGHTED, ids=["NCC", "intensity"])


def random_weight(shape: tuple[int, ...], batch: int = 1) -> Tensor:
    """Some voxels do not count, the others more or less, float64."""
    weight = torch.rand(batch, 1, *shape, dtype=torch.float64)
    return torch.where(weight < 0.3, 0, weight)


def brute_force_weighted_cc(
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


@pytest.mark.parametrize(("shape", "spacing", "window"), [((11, 9), (1, 1), (5, 5)), ((9, 7, 5), (2, 1, 4), (3, 5, 1))])
def test_weighted_ncc_is_that_of_its_definition(shape, spacing, window):
    pred, target = images(shape)
    weight = random_weight(shape)
    cc = brute_force_weighted_cc(*(x[0, 0].numpy() for x in (pred, target, weight)), window, 1e-5)
    expected = 1 - (cc * weight[0, 0].numpy()).sum() / weight.sum().item()
    found = LocalNCCLoss(len(shape), 5)(pred, target, weight, spacing)
    assert found.item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("shape", SHAPES)
def test_weighted_ncc_gradient_is_that_of_autograd(shape, reduction, slab_of):
    slab_of(shape)
    pred, target = images(shape, batch=2, channels=3)
    weight, spacing = random_weight(shape, batch=2), (1.0, 1.7, 3.1)[: len(shape)]
    by_hand, plain = LocalNCCLoss(len(shape), 5, reduction), LocalNCCLoss(len(shape), 5, "none")

    def reduced(x: Tensor) -> Tensor:
        total = plain(x, target, weight, spacing).sum()
        return total / (3 * weight.sum()) if reduction == "mean" else total

    def found(x: Tensor) -> Tensor:
        return by_hand(x, target, weight, spacing)

    torch.testing.assert_close(found(pred), reduced(pred), rtol=0, atol=1e-9)
    torch.testing.assert_close(gradient(found, pred), gradient(reduced, pred), rtol=1e-9, atol=1e-11)


@every_weighted
@pytest.mark.parametrize("shape", [(5, 7), (3, 4, 5)])
def test_weighted_losses_pass_gradcheck(shape, make, monkeypatch):
    monkeypatch.setattr(slabs, "SLAB_VOXELS", 2 * math.prod(shape[1:]))
    pred, target = images(shape, channels=2)
    weight, loss = random_weight(shape), make(len(shape))
    spacing = (1.0, 2.0, 1.5)[: len(shape)]
    assert gradcheck(lambda x: loss(x, target, weight, spacing), pred.requires_grad_())
    assert gradcheck(lambda x, y: loss(x, y, weight, spacing), (pred, target.requires_grad_()))


@every_weighted
@pytest.mark.parametrize("shape", SHAPES)
def test_what_does_not_count_changes_nothing(shape, make):
    pred, target = images(shape)
    weight, loss = random_weight(shape), make(len(shape))
    expected, slope = loss(pred, target, weight), gradient(lambda x: loss(x, target, weight), pred)
    assert (slope[weight == 0] == 0).all()
    for value in (-5.0, 100.0):
        p, t = (torch.where(weight > 0, image, value * torch.rand_like(image)) for image in (pred, target))
        torch.testing.assert_close(loss(p, t, weight), expected)
        torch.testing.assert_close(gradient(lambda x, t=t: loss(x, t, weight), p), slope)


@every_weighted
@pytest.mark.parametrize("shape", SHAPES)
def test_one_weight_for_all_is_no_weight(shape, make):
    pred, target = images(shape, batch=2, channels=2)
    loss = make(len(shape))
    expected, slope = loss(pred, target), gradient(lambda x: loss(x, target), pred)
    for value in (1.0, 0.2, 30.0):
        weight = torch.full((2, 1, *shape), value, dtype=torch.float64)
        torch.testing.assert_close(loss(pred, target, weight), expected)
        torch.testing.assert_close(gradient(lambda x, w=weight: loss(x, target, w), pred), slope)


@every_weighted
def test_weights_are_followed_and_get_no_gradient(make):
    pred, target = images((11, 9))
    loss, (first, second) = make(2), (random_weight((11, 9)) for _ in range(2))
    for weight in (first, second, None, first):  # statistics of the target are kept without weights only
        torch.testing.assert_close(loss(pred, target, weight), make(2)(pred, target, weight), rtol=0, atol=0)
    weight = first.clone().requires_grad_()
    pred.requires_grad_()
    loss(pred, target, weight).backward()
    assert weight.grad is None


@every_weighted
def test_no_weight_anywhere_is_a_number(make):
    pred, target = images((11, 9))
    pred.requires_grad_()
    loss = make(2)(pred, target, torch.zeros(1, 1, 11, 9, dtype=torch.float64))
    loss.backward()
    assert loss.isfinite()
    assert (pred.grad == 0).all()


def test_weights_of_another_shape_are_refused():
    pred, target = images((11, 9), channels=2)
    with pytest.raises(ValueError, match=r"weight \(1, 2, 11, 9\) does not fit"):
        LocalNCCLoss(2, 5)(pred, target, torch.ones(1, 2, 11, 9))


@pytest.mark.parametrize("shape", [(12, 9), (10, 8, 6)])
def test_windows_are_as_long_in_mm_along_every_axis(shape):
    """On an image that repeats each voxel, voxels half as long need twice the window."""
    pred, target = images(shape)
    dims = len(shape)
    long = LocalNCCLoss(dims, 9, eps=1e-9)(pred, target, spacing=(1.0, *[3.0] * (dims - 1)))
    window = (9, *[3] * (dims - 1))
    ones = np.ones(shape)
    cc = brute_force_weighted_cc(pred[0, 0].numpy(), target[0, 0].numpy(), ones, window, 1e-9)
    assert long.item() == pytest.approx(1 - cc.mean(), abs=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_smoothness_of_long_voxels_is_in_mm_per_mm(shape, slab_of):
    slab_of(shape)
    dims = len(shape)
    sides = torch.tensor([1.0, 2.5, 0.7][:dims], dtype=torch.float64)
    ddf = torch.randn(2, dims, *shape, dtype=torch.float64)

    def plain(x: Tensor) -> Tensor:
        mm = x * sides.view(1, -1, *[1] * dims)
        return sum((mm.diff(dim=2 + a) / sides[a]).square().mean() for a in range(dims))

    def loss(x: Tensor) -> Tensor:
        return SmoothnessLoss()(x, tuple(sides.tolist()))

    torch.testing.assert_close(loss(ddf), plain(ddf))
    torch.testing.assert_close(gradient(loss, ddf), gradient(plain, ddf))
    # the unit does not matter, only the proportions do
    torch.testing.assert_close(SmoothnessLoss()(ddf, (3.0,) * dims), SmoothnessLoss()(ddf))
    torch.testing.assert_close(SmoothnessLoss()(ddf, tuple((2 * sides).tolist())), loss(ddf))


@pytest.mark.parametrize("shape", [(5, 4), (4, 3, 5)])
def test_smoothness_of_long_voxels_passes_gradcheck(shape):
    spacing = (1.0, 2.0, 0.5)[: len(shape)]
    ddf = torch.randn(2, len(shape), *shape, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x: SmoothnessLoss()(x, spacing), ddf)


@pytest.mark.parametrize("loss", [FoldingLoss(), VelocityMagnitudeLoss()])
def test_determinant_and_phi_do_not_depend_on_voxel_sizes(loss):
    ddf = folded_field((9, 7, 5))
    assert torch.equal(loss(ddf, (1.0, 2.0, 3.0)), loss(ddf))


def test_registration_loss_passes_on_weights_spacings_and_landmarks():
    shape, spacing, ddf_spacing = (9, 7), (1.0, 2.0), (3.0, 1.0)
    warped, fixed = images(shape)
    weight, ddf, velocity = random_weight(shape), torch.randn(1, 2, 5, 6).double(), torch.randn(1, 2, 5, 6).double()
    landmarks = 4 * torch.rand(1, 3, 2, 2, dtype=torch.float64)
    loss = RegistrationLoss(
        LocalNCCLoss(2, 5),
        image_terms={"intensity": (10.0, IntensityLoss()), "idle": (0, _Fails())},
        ddf_terms={"folding": (2.0, FoldingLoss())},
        velocity_terms={"smoothness": (0.3, SmoothnessLoss())},
        landmark_weight=0.1,
    )
    terms = loss(warped, fixed, ddf, [velocity], weight, spacing, ddf_spacing, 4.0, landmarks)
    expected = {
        "similarity": LocalNCCLoss(2, 5)(warped, fixed, weight, spacing),
        "intensity": IntensityLoss()(warped, fixed, weight),
        "folding": FoldingLoss()(ddf),
        "smoothness": SmoothnessLoss()(velocity, ddf_spacing),
        "landmarks": landmark_loss(ddf, landmarks, ddf_spacing),
    }
    assert list(terms) == ["loss", *expected]
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value.expand(1))
    factors = {"similarity": 1, "intensity": 10, "folding": 2, "smoothness": 4 * 0.3, "landmarks": 0.1}
    torch.testing.assert_close(
        terms["loss"].sum(), sum(factors[name] * value for name, value in expected.items()).sum()
    )
    without = loss(warped, fixed, ddf, [velocity])
    assert list(without) == ["loss", "similarity", "intensity", "folding", "smoothness"]


def test_a_loss_that_knows_no_masks_refuses_them():
    image = torch.rand(1, 1, 5, 7)
    with pytest.raises(ValueError, match=r"MSELoss cannot take masks.*LocalNCCLoss"):
        RegistrationLoss(nn.MSELoss())(image, image, torch.zeros(1, 2, 5, 7), [], weight=torch.ones(1, 1, 5, 7))


def test_a_loss_tells_before_the_work_whether_it_takes_masks():
    unused, used = (
        RegistrationLoss(LocalNCCLoss(2, 5), image_terms={"difference": (factor, nn.L1Loss())}) for factor in (0.0, 1.0)
    )
    unused.check_masks()
    with pytest.raises(ValueError, match="L1Loss cannot take masks"):
        used.check_masks()


@pytest.mark.parametrize("name", ["level", "landmarks"])
def test_names_of_the_history_are_no_names_of_terms(name):
    with pytest.raises(ValueError, match=f"'{name}' of a loss term is taken"):
        RegistrationLoss(nn.MSELoss(), image_terms={name: (1.0, nn.MSELoss())})


def test_image_losses_say_how_to_be_called():
    with pytest.raises(TypeError, match="forward"):
        ImageLoss()
