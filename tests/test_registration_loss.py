# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from loss_inputs import folded_field, images, random_weight
from monai.losses import GlobalMutualInformationLoss, LocalNormalizedCrossCorrelationLoss, SSIMLoss
from synthetic import deformed_pair
from torch import Tensor, nn

from monai_nodeo.flows import NODEONet, ODESolver, VelocityBatch
from monai_nodeo.losses import FoldingLoss, IntensityLoss, LocalNCCLoss, RegistrationLoss, SmoothnessLoss, landmark_loss
from monai_nodeo.registration.optimisation.levels import PairBatch
from monai_nodeo.registration.optimisation.trainer import PairTrainer

SHAPES = [(11, 9), (9, 7, 5)]


class _Fails(nn.Module):
    def forward(self, *_: Tensor) -> Tensor:
        raise AssertionError("a term of weight 0 was worked out")


def test_registration_loss_is_the_weighted_sum_of_its_terms():
    """Each with the weights, spacings and landmarks that it takes."""
    shape, spacing, ddf_spacing = (9, 7), (1.0, 2.0), (3.0, 1.0)
    warped, fixed = images(shape)
    weight, (ddf, *velocities) = random_weight(shape), torch.randn(3, 1, 2, 5, 6).double()
    landmarks = 4 * torch.rand(1, 3, 2, 2, dtype=torch.float64)
    loss = RegistrationLoss(
        LocalNCCLoss(2, 5),
        image_terms={"intensity": (10.0, IntensityLoss()), "idle": (0, _Fails())},
        ddf_terms={"folding": (2.0, FoldingLoss())},
        velocity_terms={"smoothness": (0.3, SmoothnessLoss()), "idle too": (0.0, _Fails())},
        landmark_weight=0.1,
    )
    terms = loss(warped, fixed, ddf, velocities, weight, spacing, ddf_spacing, 4.0, landmarks)
    expected = {
        "similarity": LocalNCCLoss(2, 5)(warped, fixed, weight, spacing),
        "intensity": IntensityLoss()(warped, fixed, weight),
        "folding": FoldingLoss()(ddf),
        "smoothness": sum(SmoothnessLoss()(v, ddf_spacing) for v in velocities) / 2,
        "landmarks": landmark_loss(ddf, landmarks, [4 * side for side in ddf_spacing]),  # of finest voxels
    }
    assert list(terms) == ["loss", *expected]
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value.expand(1))
    factors = {"similarity": 1, "intensity": 10, "folding": 2, "smoothness": 4 * 0.3, "landmarks": 0.1}
    torch.testing.assert_close(
        terms["loss"].sum(), sum(factors[name] * value for name, value in expected.items()).sum()
    )
    without = loss(warped, fixed, ddf, velocities)
    assert list(without) == ["loss", "similarity", "intensity", "folding", "smoothness"]


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


def test_the_times_of_the_trajectory_are_asked_for_where_a_term_counts():
    for factor, times in ((0.5, (0.0, 0.5, 1.0)), (0.0, (0.0, 1.0))):
        terms = {"term": (factor, nn.MSELoss())}
        loss = RegistrationLoss(nn.MSELoss(), trajectory_terms=terms, trajectory_times=(0.0, 0.5, 1.0))
        assert loss.times == times


@pytest.mark.parametrize("kind", ["image_terms", "ddf_terms", "velocity_terms", "trajectory_terms"])
@pytest.mark.parametrize("name", ["loss", "ddf", "level", "similarity", "landmarks", "same"])
def test_a_name_that_is_taken_is_refused(kind, name):
    term = {name: (1.0, FoldingLoss())}
    others = {other: term for other in ("image_terms", "ddf_terms") if name == "same" and other != kind}
    with pytest.raises(ValueError, match=f"'{name}' of a loss term is taken"):
        RegistrationLoss(nn.MSELoss(), **{kind: term}, **others)


def test_a_loss_tells_before_the_work_whether_it_takes_masks():
    image = torch.rand(1, 1, 5, 7)
    unused, used = (
        RegistrationLoss(LocalNCCLoss(2, 5), image_terms={"difference": (factor, nn.L1Loss())}) for factor in (0.0, 1.0)
    )
    unused.check_masks()
    with pytest.raises(ValueError, match=r"L1Loss cannot take masks.*LocalNCCLoss"):
        used.check_masks()
    with pytest.raises(ValueError, match="L1Loss cannot take masks"):
        used(image, image, torch.zeros(1, 2, 5, 7), [], weight=torch.ones(1, 1, 5, 7))


def fitted(shape: tuple[int, ...], loss: RegistrationLoss) -> dict[str, Tensor]:
    """The history of a few iterations."""
    fixed, moving, _ = deformed_pair(shape)
    network = VelocityBatch([NODEONet(len(shape), shape)])
    optimizer = torch.optim.Adam(network.parameters(), lr=0.005, amsgrad=True)
    trainer = PairTrainer(PairBatch(fixed[None], moving[None]), network, optimizer, loss, ODESolver(), iterations=5)
    trainer.run()
    return trainer.state.history


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
    curve = fitted(shape, RegistrationLoss(similarity(len(shape))))["similarity"]
    assert curve.shape == (5, 1)
    assert (curve.diff(dim=0) < 0).all()
