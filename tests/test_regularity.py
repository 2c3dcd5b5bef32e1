# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from loss_inputs import folded_field, gradient, linear_field
from synthetic import determinants
from torch import Tensor
from torch.autograd import gradcheck

from monai_nodeo.geometry.coordinates import phi_to_ddf
from monai_nodeo.losses import FoldingLoss, LogJacobianBound, LogJacobianLoss, SmoothnessLoss, VelocityMagnitudeLoss

SHAPES = [(11, 9), (9, 7, 5)]


@pytest.mark.parametrize("margin", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_folding_value_and_gradient_are_those_of_autograd(shape, margin):
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


@pytest.mark.parametrize("loss", [FoldingLoss(), LogJacobianLoss()])
@pytest.mark.parametrize("shape", [(5, 4), (4, 3, 5)])
def test_penalties_of_the_determinant_pass_gradcheck(shape, loss):
    assert gradcheck(loss, folded_field(shape).requires_grad_())


@pytest.mark.parametrize("shape", SHAPES)
def test_log_jacobian_of_scalings_is_analytic(shape):
    dims = len(shape)
    eye = torch.eye(dims, dtype=torch.float64)
    loss = LogJacobianLoss(floor=0.1)
    for factor in (1.0, 0.8, 1 / 0.8):
        expected = (dims * math.log(factor)) ** 2
        assert loss(linear_field((factor - 1) * eye, shape)).item() == pytest.approx(expected, abs=1e-12)
    mirror = torch.diag(torch.tensor([-2.0, 0, 0][:dims], dtype=torch.float64))  # det -1, on the tangent of .1
    expected = math.log(0.1) ** 2 + 2 * math.log(0.1) / 0.1 * -1.1
    assert loss(linear_field(mirror, shape)).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("shape", "axis"), [(shape, axis) for shape in SHAPES for axis in range(len(shape))])
def test_folding_is_positive_for_a_fold(shape, axis):
    ddf = torch.zeros(1, len(shape), *shape)
    ddf[0, axis].select(axis, 2).fill_(1.5)  # passes its neighbour, det -0.5
    assert FoldingLoss(0.0)(ddf) > 0
    ddf[0, axis].select(axis, 2).fill_(0.8)  # close to it, det 0.2: no fold, only within the margin
    assert FoldingLoss(0.0)(ddf) == 0
    assert FoldingLoss(0.5)(ddf).item() == pytest.approx(0.3**2 / (shape[axis] - 1), rel=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("shape", [(1, 4, 5, 7, 9), (1, 3, 5, 7), (1, 2, 5, 7, 9), (1, 1, 5, 7)])
def test_folding_refuses_fields_with_other_channels(shape, reduction):
    with pytest.raises(ValueError, match="ddf must be"):
        FoldingLoss(reduction=reduction)(torch.zeros(shape))


@pytest.mark.parametrize("sides", [None, (1.0, 2.5, 0.7)])
@pytest.mark.parametrize("shape", SHAPES)
def test_smoothness_value_and_gradient_are_those_of_autograd(shape, sides):
    """In mm per mm."""
    dims = len(shape)
    spacing = None if sides is None else sides[:dims]
    mm = torch.tensor(spacing or (1.0,) * dims, dtype=torch.float64)
    ddf = torch.randn(2, dims, *shape, dtype=torch.float64)

    def plain(x: Tensor) -> Tensor:
        lengths = x * mm.view(1, -1, *[1] * dims)
        return sum((lengths.diff(dim=2 + a) / mm[a]).square().mean() for a in range(dims))

    def loss(x: Tensor) -> Tensor:
        return SmoothnessLoss()(x, spacing)

    torch.testing.assert_close(loss(ddf), plain(ddf))
    torch.testing.assert_close(gradient(loss, ddf), gradient(plain, ddf))
    # the unit does not matter, only the proportions do
    torch.testing.assert_close(SmoothnessLoss()(ddf, tuple((3 * mm).tolist())), loss(ddf))


@pytest.mark.parametrize("shape", SHAPES)
def test_velocity_magnitude_is_the_mean_squared_length(shape):
    phi = torch.randn(2, len(shape), *shape, dtype=torch.float64)  # in [-1, 1] per unit time
    velocity = phi_to_ddf(phi, torch.zeros_like(phi))
    torch.testing.assert_close(VelocityMagnitudeLoss()(velocity), phi.square().sum(1).mean())
    still = torch.zeros_like(velocity)
    assert VelocityMagnitudeLoss()(still) == 0
    assert torch.equal(gradient(VelocityMagnitudeLoss(), still), still)  # the norm itself has no gradient there


@pytest.mark.parametrize("loss", [FoldingLoss(), VelocityMagnitudeLoss()])
def test_determinant_and_phi_do_not_depend_on_voxel_sizes(loss):
    ddf = folded_field((9, 7, 5))
    assert torch.equal(loss(ddf, (1.0, 2.0, 3.0)), loss(ddf))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_pull_of_a_bound_grows_beyond_it_and_falls_below_it(shape):
    eye = torch.eye(len(shape), dtype=torch.float64)
    change = 0.2
    fields = [linear_field((math.exp(factor * change / len(shape)) - 1) * eye, shape) for factor in (0.8, 1, 1.25)]
    ddf = torch.cat(fields)  # log det is .8, 1 and 1.25 times the bound
    bounded = LogJacobianBound(change)
    pulls = []
    for _ in range(4):
        values = bounded.of_each(ddf)
        assert values.sign().tolist()[::2] == [-1, 1]
        assert values[1].abs() < 1e-12
        pulls.append(gradient(lambda x: bounded.of_each(x).sum(), ddf).flatten(1).norm(dim=1))
    of_one = gradient(lambda x: LogJacobianLoss().of_each(x).sum(), ddf).flatten(1).norm(dim=1)
    growth = torch.stack(pulls) / of_one
    assert (growth.diff(dim=0)[:, 0] < 0).all()
    torch.testing.assert_close(growth[:, 1], growth[:1, 1].expand(4))
    assert (growth.diff(dim=0)[:, 2] > 0).all()
    with pytest.raises(ValueError, match="bound is 0"):
        LogJacobianBound(0)
