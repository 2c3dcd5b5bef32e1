# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
import random
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.inferers import Inferer
from monai.utils import CommonKeys
from synthetic import deformed_pair, smooth_ddf, smooth_image
from torch import Tensor

from monai_nodeo.flows import Coordinates, EulerianVelocity, NODEONet
from monai_nodeo.flows.solver import ODESolver
from monai_nodeo.geometry.coordinates import identity_grid, phi_to_ddf
from monai_nodeo.geometry.folding import folded_cells, unfold
from monai_nodeo.geometry.jacobian import jacobian_determinant
from monai_nodeo.geometry.sampling import warp
from monai_nodeo.geometry.smoothing import AveragingSmoothing
from monai_nodeo.losses import LocalNCCLoss, RegistrationLoss, SmoothnessLoss
from monai_nodeo.losses.landmarks import landmark_errors
from monai_nodeo.registration.handlers import BestField, EarlyStop
from monai_nodeo.registration.inferer import PairInferer, Registration, prepare_pair

SHAPES = [(25, 21), (13, 17, 11)]
FEW: dict[str, Any] = {"iterations": (3, 2), "shrink_factors": (2, 1)}
ONE: dict[str, Any] = {"iterations": (5,), "shrink_factors": (1,)}
TERMS = ["level", "loss", "similarity", "intensity", "folding", "smoothness"]


def network_of(dims: int, shape: tuple[int, ...] | None = None) -> EulerianVelocity:
    """Weights that are not 0 at the start, so that the seed shows."""
    return EulerianVelocity(dims, shape or 8, Coordinates((8,) * dims, channels=8, frequencies=4))


def register(fixed: Tensor, moving: Tensor, inferer: PairInferer | None = None, **options: Any) -> Registration:
    """One pair, (C, *spatial) each."""
    dims = fixed.ndim - 1
    inferer = inferer or PairInferer(dims, **{**FEW, **options})
    inferer(fixed[None], network_of(dims), moving[None])
    return inferer.registrations[0]


@pytest.mark.parametrize(
    ("shape", "spacing", "error"),
    [((61, 73), 1, 0.12), ((41, 33), 1, 0.12), ((17, 21, 13), 1, 0.12), ((17, 21, 13), 2, 0.2)],
)
def test_a_known_deformation_is_recovered_by_default(shape, spacing, error):
    fixed, moving, ddf = deformed_pair(shape)
    inferer = PairInferer(len(shape), point_spacing=spacing)
    inferer(fixed[None], EulerianVelocity(len(shape)), moving[None])
    (result,) = inferer.registrations
    similarity = result.history["similarity"]
    assert similarity[-1] < 0.1 * similarity[0]
    inside = (slice(None), *[slice(4, -4)] * len(shape))  # what lies at the border may have left the image
    found, true = result.ddf[inside], ddf[inside]
    assert torch.corrcoef(torch.stack([found.flatten(), true.flatten()]))[0, 1] > (0.97 if spacing == 1 else 0.95)
    assert (found - true).norm() < error * true.norm()
    assert jacobian_determinant(result.ddf[None]).min() > 0


@pytest.mark.parametrize("shape", [(41, 33), (17, 21, 13)])
def test_the_network_of_nodeo_recovers_it_at_one_level(shape):
    fixed, moving, ddf = deformed_pair(shape)
    dims = len(shape)
    settings = {"iterations": (60,), "shrink_factors": (1,), "point_spacing": 1}
    inferer = PairInferer(dims, optimizer=lambda p: torch.optim.Adam(p, lr=0.005, amsgrad=True), **settings)
    inferer(fixed[None], NODEONet(dims), moving[None])
    found = inferer.registrations[0].ddf
    assert torch.corrcoef(torch.stack([found.flatten(), ddf.flatten()]))[0, 1] > 0.9


def test_the_network_of_nodeo_does_not_go_on_from_a_coarser_level():
    fixed, moving, _ = deformed_pair(SHAPES[0])
    with pytest.raises(ValueError, match=r"NODEONet cannot go on from a coarser level.*shrink_factors \[1\]"):
        PairInferer(2, **FEW)(fixed[None], NODEONet(2), moving[None])


@pytest.mark.parametrize("shape", SHAPES)
def test_result(shape):
    fixed, moving, _ = deformed_pair(shape)
    dims = len(shape)
    inferer, network = PairInferer(dims, **FEW), network_of(dims)
    assert isinstance(inferer, Inferer)
    weights = [p.clone() for p in network.parameters()]
    ddf = inferer(fixed.expand(2, 1, *shape), network, moving=moving.expand(2, 1, *shape))
    assert type(ddf) is Tensor
    assert ddf.shape == (2, dims, *shape)
    assert ddf.dtype == torch.float32
    assert not ddf.requires_grad
    assert len(inferer.registrations) == 2
    for found, result in zip(ddf, inferer.registrations, strict=True):
        assert torch.equal(found, result.ddf)
        assert result.iterations == 5
        assert result.seconds > 0
        assert list(result.history) == TERMS
        assert all(curve.shape == (5,) and curve.device.type == "cpu" for curve in result.history.values())
        assert result.history["level"].tolist() == [0, 0, 0, 1, 1]
        assert all(curve.isfinite().all() for curve in result.history.values())
    assert all(torch.equal(*pair) for pair in zip(weights, network.parameters(), strict=True))
    assert network.image_size == (8,) * dims


@pytest.mark.parametrize("shape", [(41, 33), (17, 21, 13)])
def test_a_level_goes_on_where_the_coarser_one_ended(shape):
    fixed, moving, _ = deformed_pair(shape)
    similarity = {}
    for iterations, factors in (((40, 1), (2, 1)), ((1,), (1,))):
        inferer = PairInferer(len(shape), iterations=iterations, shrink_factors=factors, point_spacing=1)
        inferer(fixed[None], EulerianVelocity(len(shape)), moving[None])
        similarity[iterations] = inferer.registrations[0].history["similarity"][-1]
    assert similarity[40, 1] < 0.2 * similarity[1,]


@pytest.mark.parametrize("shape", SHAPES)
def test_same_seed_same_result(shape):
    fixed, moving, _ = deformed_pair(shape)
    first = register(fixed, moving, seed=3)
    torch.manual_seed(99)  # whatever the caller did before
    second, other = register(fixed, moving, seed=3), register(fixed, moving, seed=4)
    assert torch.equal(first.ddf, second.ddf)
    assert all(torch.equal(first.history[name], second.history[name]) for name in first.history)
    assert not torch.equal(first.ddf, other.ddf)


@pytest.mark.parametrize("shape", SHAPES)
def test_an_image_stays_where_it_is_when_registered_to_itself(shape):
    fixed, moving, _ = deformed_pair(shape)
    dims = len(shape)
    inferer = PairInferer(dims, iterations=(10, 5), shrink_factors=(2, 1), handlers=())
    same, pair = inferer(torch.stack([fixed, fixed]), network_of(dims), torch.stack([fixed, moving]))
    assert same.abs().max() < 1e-4
    torch.testing.assert_close(pair, inferer(fixed[None], network_of(dims), moving[None])[0])
    assert pair.abs().max() > 0.5


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("handlers", [(BestField,), (BestField, lambda: EarlyStop(threshold=1, window=2))])
def test_nothing_leaks_from_pair_to_pair(shape, handlers):
    a, b = (deformed_pair(shape, seed)[:2] for seed in (0, 5))
    options = {**FEW, "iterations": (7, 5), "handlers": handlers}
    alone = register(*b, **options)
    assert (alone.iterations == 12) == (len(handlers) == 1)
    dims = len(shape)

    reused = PairInferer(dims, **options)
    register(*a, reused)
    after = register(*b, reused)

    together = PairInferer(dims, **options)
    fixed, moving = (torch.stack(images) for images in zip(a, b, strict=True))
    together(fixed, network_of(dims), moving)

    # another shape in between, and the very same tensors changed in place
    fixed, moving = (image.clone() for image in a)
    register(fixed, moving, reused)
    register(smooth_image([n + 4 for n in shape]), smooth_image([n + 4 for n in shape], 1), reused)
    fixed.copy_(b[0])
    moving.copy_(b[1])
    changed = register(fixed, moving, reused)

    for result in (after, changed):
        assert torch.equal(result.ddf, alone.ddf)
        assert all(torch.equal(result.history[name], alone.history[name]) for name in alone.history)
    in_batch = together.registrations[1]  # sums of a batch are rounded in another order
    torch.testing.assert_close(in_batch.ddf, alone.ddf, rtol=0, atol=2e-3)
    torch.testing.assert_close(in_batch.history, alone.history, rtol=1e-3, atol=1e-6)
    assert {result.iterations for result in (after, in_batch, changed)} == {alone.iterations}


def test_the_random_state_of_the_caller_is_left_alone():
    fixed, moving, _ = deformed_pair(SHAPES[0])
    inferer, network = PairInferer(2, **FEW), network_of(2)
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    inferer(fixed[None], network, moving[None])
    assert torch.equal(torch.get_rng_state(), state[0])
    assert random.getstate() == state[1]
    now = np.random.get_state()  # noqa: NPY002
    assert all(np.array_equal(x, y) for x, y in zip(now, state[2], strict=True))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_gradients_are_on_for_the_registration_alone(mode):
    fixed, moving, _ = deformed_pair(SHAPES[0])
    expected = register(fixed, moving).ddf
    with mode():
        enabled = torch.is_grad_enabled()
        result = register(fixed, moving)
        assert torch.is_grad_enabled() == enabled
    assert torch.equal(result.ddf, expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_metatensors_and_other_types_of_number(shape):
    fixed, moving, _ = deformed_pair(shape)
    fixed, moving = ((255 * image).round().clamp(0, 255) for image in (fixed, moving))
    expected = register(fixed, moving).ddf
    affine = torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0]))  # cubes, as plain tensors
    for dtype in (torch.uint8, torch.int16, torch.float64):
        found = register(MetaTensor(fixed.to(dtype), affine=affine), MetaTensor(moving.to(dtype), affine=affine)).ddf
        assert type(found) is Tensor
        assert torch.equal(found, expected)


def test_the_images_are_not_changed():
    fixed, moving, _ = deformed_pair(SHAPES[0])
    copies = fixed.clone(), moving.clone().requires_grad_()
    register(fixed, copies[1])
    assert torch.equal(copies[0], fixed)
    assert torch.equal(copies[1], moving)
    assert copies[1].grad is None


def test_the_best_field_of_the_last_level_is_the_result():
    fixed, moving, _ = deformed_pair(SHAPES[0])
    options = {**ONE, "optimizer": lambda p: torch.optim.Adam(p, lr=0.01)}
    worst_first = {"handlers": (lambda: BestField(None, lambda terms: -terms["loss"]),)}
    first = register(fixed, moving, **{**options, "iterations": (1,)}, handlers=())
    last = register(fixed, moving, **options, handlers=())
    assert (last.history["loss"].diff() < 0).all()
    assert torch.equal(register(fixed, moving, **options, **worst_first).ddf, first.ddf)
    assert torch.equal(register(fixed, moving, **options, handlers=(BestField,)).ddf, last.ddf)
    assert not torch.equal(first.ddf, last.ddf)


def test_optimiser_and_loss_are_the_given_ones_at_every_level():
    fixed, moving, _ = deformed_pair(SHAPES[0])
    made = []

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        made.append(torch.optim.SGD(parameters, lr=0.0))
        return made[-1]

    loss = RegistrationLoss(LocalNCCLoss(2, 9))
    result = register(fixed, moving, loss_function=loss, optimizer=optimizer)
    assert len(made) == 2
    assert list(result.history) == ["level", "loss", "similarity"]
    for level in (0, 1):
        curve = result.history["loss"][result.history["level"] == level]
        assert curve.unique().numel() == 1  # a learning rate of 0


def test_a_handler_is_made_for_every_level_and_knows_it():
    fixed, moving, _ = deformed_pair(SHAPES[0])
    seen = []

    class Notes:
        def attach(self, engine):
            engine.add_event_handler(Events.STARTED, lambda e: seen.append((self, e.state.level)))

    register(fixed, moving, handlers=(Notes,))
    assert [level.index for _, level in seen] == [0, 1]
    assert len({id(notes) for notes, _ in seen}) == 2
    assert seen[0][1].image_size == (12, 12)
    assert seen[1][1].image_size == SHAPES[0]


# What a pair is registered with: voxel sizes, masks, landmarks, air


def mm_error(found: Tensor, true: Tensor, spacing: tuple[float, ...]) -> float:
    """Relative error of displacements (D, *spatial) in mm, away from the border."""
    sides = torch.tensor(spacing).view(-1, *[1] * len(spacing))
    inside = (slice(None), *[slice(2, -2)] * len(spacing))
    return float(((found - true) * sides)[inside].norm() / (true * sides)[inside].norm())


@pytest.mark.parametrize(("shape", "spacing"), [((49, 17), (1, 3)), ((21, 25, 9), (1, 1, 3))])
def test_long_voxels_give_the_same_field_in_millimetres(shape, spacing):
    fixed, moving, ddf = deformed_pair([(n - 1) * int(s) + 1 for n, s in zip(shape, spacing, strict=True)])
    dims = len(shape)
    affine = torch.eye(4)
    affine[:dims, :dims] = torch.diag(torch.tensor(spacing, dtype=torch.float32))
    every = (slice(None), *[slice(None, None, s) for s in spacing])
    sides = torch.tensor(spacing, dtype=torch.float32).view(-1, *[1] * dims)
    inferer, found = PairInferer(dims, handlers=()), {}
    inferer(fixed[None], EulerianVelocity(dims), moving[None])
    found["cubes"] = inferer.registrations[0].ddf[every]
    thin = [MetaTensor(image[every], affine=affine) for image in (fixed, moving)]
    inferer(MetaTensor(thin[0][None].as_tensor(), affine=affine), EulerianVelocity(dims), thin[1][None].as_tensor())
    found["long"] = inferer.registrations[0].ddf * sides
    true = ddf[every]
    ones = (1.0,) * dims
    assert mm_error(found["cubes"], true, ones) < 0.25
    assert mm_error(found["long"], true, ones) < 0.35
    assert mm_error(found["long"], found["cubes"], ones) < 0.4


@pytest.mark.parametrize("shape", [(61, 73), (25, 29, 21)])
@pytest.mark.parametrize("side", ["fixed", "moving"])
def test_a_lesion_under_a_mask_changes_little(shape, side):
    fixed, moving, ddf = deformed_pair(shape)
    dims = len(shape)
    inside = (..., *[slice(n // 2 - 4, n // 2 + 4) for n in shape])
    images = {"fixed": fixed[None].clone(), "moving": moving[None].clone()}
    images[side][inside] = 1.5
    mask = torch.ones(1, 1, *shape)
    mask[inside] = 0
    healthy, blind, masked = (
        PairInferer(dims, handlers=())(f, EulerianVelocity(dims), m, **extras)[0]
        for f, m, extras in (
            (fixed[None], moving[None], {}),
            (images["fixed"], images["moving"], {}),
            (images["fixed"], images["moving"], {f"{side}_mask": mask}),
        )
    )
    errors = {name: float((ddf_ - ddf).norm()) for name, ddf_ in (("blind", blind), ("masked", masked))}
    assert errors["masked"] < 0.5 * errors["blind"]
    assert (masked - healthy).norm() < 0.5 * (blind - healthy).norm()


@pytest.mark.parametrize("shape", SHAPES)
def test_what_a_mask_of_the_fixed_image_leaves_out_does_not_count_at_one_level(shape):
    fixed, moving, _ = deformed_pair(shape)
    mask = torch.ones(1, 1, *shape)
    mask[..., shape[-1] // 2 :] = 0
    found = []
    for value in (0.0, 0.7):
        changed = torch.where(mask[0] > 0, fixed, value * torch.rand_like(fixed))
        inferer = PairInferer(len(shape), **ONE, point_spacing=1, crop_air=False)
        found.append(inferer(changed[None], network_of(len(shape)), moving[None], fixed_mask=mask))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-4)
    assert found[0].abs().max() > 0.01


@pytest.mark.parametrize("shape", [(41, 33), (17, 21, 13)])
def test_landmarks_pull(shape):
    image = smooth_image(shape)[None]  # the images say: stay
    dims = len(shape)
    middle = torch.tensor([(n - 1) / 2 for n in shape])
    landmarks = torch.stack([middle, middle + torch.tensor([2.0, -1.5, 1.0][:dims])])[None, None]
    far = landmark_errors(torch.zeros(1, dims, *shape), landmarks).norm()
    errors = {}
    for weight in (0.0, 10.0):
        loss = RegistrationLoss(
            LocalNCCLoss(dims, 9), velocity_terms={"smoothness": (0.05, SmoothnessLoss())}, landmark_weight=weight
        )
        inferer = PairInferer(dims, loss, handlers=())
        ddf = inferer(image, EulerianVelocity(dims), image, landmarks=landmarks)
        errors[weight] = landmark_errors(ddf, landmarks).norm()
        assert ("landmarks" in inferer.registrations[0].history) == (weight > 0)
    assert errors[0.0] > 0.9 * far
    assert errors[10.0] < 0.3 * far


@pytest.mark.parametrize(("shape", "tolerance"), [((81, 74), 0.2), ((45, 49, 53), 0.5)])
def test_without_the_air_the_result_is_nearly_the_same(shape, tolerance):
    dims = len(shape)
    centre, radius = torch.tensor(shape) * 0.55, min(shape) * 0.2
    index = torch.from_numpy(np.indices(shape)).float()
    ball = (index - centre.view(-1, *[1] * dims)).norm(dim=0, keepdim=True) < radius
    moving = ((smooth_image(shape, sigma=3) + 1) * ball)[None]
    true = smooth_ddf(shape, 1, largest=2 if dims == 2 else 5)[None]
    fixed = warp(moving, true)
    sizes, found = {}, {}
    for crop in (False, True):
        inferer = PairInferer(dims, crop_air=crop, handlers=(Sizes,))
        Sizes.seen = []
        found[crop] = inferer(fixed, EulerianVelocity(dims), moving)
        sizes[crop] = Sizes.seen[-1]
    assert sizes[False] == shape
    assert math.prod(sizes[True]) < 0.95 * math.prod(shape)
    assert found[True].shape == found[False].shape
    inside = (fixed > 0)[:, 0]

    def length(ddf: Tensor) -> float:
        return float(ddf.norm(dim=1)[inside].mean())

    assert length(true) > 1
    errors = {crop: length(field - true) for crop, field in found.items()}
    assert errors[False] < tolerance * length(true)
    assert errors[True] < errors[False] + 0.15
    assert length(found[True] - found[False]) < tolerance * length(true)


class Sizes:
    """Notes the shape of the images of each level."""

    seen: ClassVar[list[tuple[int, ...]]] = []

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(Events.STARTED, lambda e: self.seen.append(e.state.level.image_size))


@pytest.mark.parametrize("key", ["fixed_mask", "moving_mask"])
def test_a_mask_that_the_loss_cannot_take_is_refused_before_the_first_level(key):
    fixed, moving, _ = deformed_pair(SHAPES[0])
    made = []
    inferer = PairInferer(2, RegistrationLoss(torch.nn.MSELoss()), handlers=[lambda: made.append("a handler")])
    with pytest.raises(ValueError, match=r"MSELoss cannot take masks; register without them"):
        inferer(fixed[None], network_of(2), moving[None], **{key: torch.ones_like(fixed[None])})
    assert not made


@pytest.mark.parametrize("shape", [(31, 25), (13, 17, 11)])
def test_what_folds_is_unfolded_unless_told_otherwise(shape):
    fixed, moving = smooth_image(shape, 0, 1.0), smooth_image(shape, 7, 1.0)  # nothing in common
    folding = {
        "loss_function": RegistrationLoss(torch.nn.MSELoss()),
        "solver": ODESolver("euler", 1),
        "iterations": (20,),
        "shrink_factors": (1,),
        "point_spacing": 1,
    }
    rough = register_plainly(fixed, moving, unfold=False, **folding)
    assert folded_cells(rough).any()
    clean = register_plainly(fixed, moving, **folding)
    assert not folded_cells(clean).any()
    assert torch.equal(clean, unfold(rough))


def register_plainly(fixed: Tensor, moving: Tensor, **options: Any) -> Tensor:
    """ddf (1, D, *spatial) by a lattice."""
    dims = fixed.ndim - 1
    return PairInferer(dims, handlers=(), **options)(fixed[None], EulerianVelocity(dims), moving[None])


# A stock evaluator


@pytest.mark.parametrize("shapes", [[(25, 21), (17, 29), (23, 19)], [(13, 17, 11), (9, 15, 13), (11, 9, 17)]])
def test_a_stock_evaluator_registers_a_list(shapes):
    dims = len(shapes[0])
    pairs = [deformed_pair(shape, seed)[:2] for seed, shape in enumerate(shapes)]
    affine = torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0]))
    rows = [
        {
            "fixed_input": MetaTensor(fixed, affine=affine),
            "moving_input": MetaTensor(moving, affine=affine),
            "id": str(i),
        }
        for i, (fixed, moving) in enumerate(pairs)
    ]
    found = []
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(rows, batch_size=1),
        network=network_of(dims),
        inferer=PairInferer(dims, **FEW),
        prepare_batch=prepare_pair,
        postprocessing=lambda data: found.append(data) or data,
    )
    evaluator.run()
    assert [data["id"] for data in found] == ["0", "1", "2"]
    for data, (fixed, moving) in zip(found, pairs, strict=True):
        assert data[CommonKeys.PRED].shape == (dims, *fixed.shape[1:])
        assert torch.equal(data[CommonKeys.PRED], register(fixed, moving).ddf)
        assert torch.equal(data[CommonKeys.IMAGE], fixed)


def test_prepare_pair_passes_on_where_and_how():
    data = {"fixed_input": torch.zeros(1, 1, 9, 11), "moving_input": torch.ones(1, 1, 9, 11)}
    fixed, label, (moving,), kwargs = prepare_pair(data, "meta", non_blocking=True, dtype=torch.float64)
    assert label is None
    assert kwargs == {}
    assert fixed.device == moving.device == torch.device("meta")
    assert fixed.dtype == moving.dtype == torch.float64
    fixed, _, (moving,), _ = prepare_pair(data)
    assert fixed is data["fixed_input"]
    assert moving is data["moving_input"]


# Errors


@pytest.mark.parametrize(
    ("dims", "fixed", "moving"),
    [
        (2, (1, 1, 25, 21), (1, 1, 25, 20)),
        (2, (1, 1, 25, 21), (1, 2, 25, 21)),
        (2, (2, 1, 25, 21), (1, 1, 25, 21)),
        (3, (1, 1, 25, 21), (1, 1, 25, 21)),
        (2, (1, 1, 25, 21, 13), (1, 1, 25, 21, 13)),
        (2, (1, 25, 21), (1, 25, 21)),
    ],
)
def test_images_that_do_not_fit_are_refused(dims, fixed, moving):
    with pytest.raises(ValueError, match=f"with {dims} spatial axes and one shape, got ") as error:
        PairInferer(dims)(torch.zeros(fixed), EulerianVelocity(dims), torch.zeros(moving))
    assert f"{fixed} and {moving}" in str(error.value)


@pytest.mark.parametrize("shape", [(25, 7), (9, 13, 5)])
def test_images_too_small_for_the_network_are_refused(shape):
    image = torch.rand(1, 1, *shape)
    with pytest.raises(ValueError, match="too small for downsample=4: each side needs at least 8 voxels"):
        PairInferer(len(shape), **ONE)(image, NODEONet(len(shape)), image)


@pytest.mark.parametrize(
    ("iterations", "factors"), [((0,), (1,)), ((5, -1), (2, 1)), ((5, 5), (4, 2, 1)), ((5, 5), (1,))]
)
def test_a_number_of_iterations_for_every_level_is_needed(iterations, factors):
    with pytest.raises(ValueError, match="one number a level, iterations at least 1, got"):
        PairInferer(2, iterations=iterations, shrink_factors=factors)


SMALL_SHAPE = (25, 21)


def plainly(fixed, moving):
    """Thirty iterations, as the caller's torch context has it."""
    inferer = PairInferer(2, iterations=(20, 10), handlers=())
    inferer(fixed[None], EulerianVelocity(2), moving[None])
    return inferer.registrations[0]


def test_autocast_of_the_caller_does_not_reach_the_registration():
    fixed, moving, _ = deformed_pair(SMALL_SHAPE)
    expected = plainly(fixed, moving).ddf
    with torch.autocast("cpu", torch.bfloat16):
        found = plainly(fixed, moving).ddf
    assert torch.equal(found, expected)


def test_inference_mode_leaves_nothing_behind():
    shape = (27, 23)  # its own: the matrices are kept by shape
    with torch.inference_mode():
        grid = identity_grid(shape)
        phi_to_ddf(grid, grid)
        AveragingSmoothing(2, 7)(torch.zeros(1, 1, *shape))
    x = torch.zeros(1, 1, *shape, requires_grad=True)
    AveragingSmoothing(2, 7)(x).sum().backward()
    plainly(*deformed_pair(shape)[:2])


def test_registration_under_inference_mode():
    fixed, moving, _ = deformed_pair(SMALL_SHAPE)
    expected = plainly(fixed, moving).ddf
    with torch.inference_mode():
        assert torch.equal(plainly(fixed, moving).ddf, expected)


def test_ncc_under_inference_mode():
    with torch.inference_mode():
        image = smooth_image(SMALL_SHAPE)[None]
        assert LocalNCCLoss(2, 9)(image, image) < 1e-3
