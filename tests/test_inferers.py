# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import DataLoader, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.inferers import Inferer
from monai.utils import CommonKeys
from synthetic import deformed_pair, smooth_image
from torch import Tensor

from monai_nodeo.fields import identity_grid, jacobian_determinant, phi_to_ddf
from monai_nodeo.handlers import BestField, EarlyStop
from monai_nodeo.inferers import PairInferer, Registration, prepare_pair
from monai_nodeo.layers import AveragingSmoothing
from monai_nodeo.losses import LocalNCCLoss, RegistrationLoss
from monai_nodeo.networks import NODEONet

SHAPES = [(25, 21), (13, 17, 11)]


def register(fixed: Tensor, moving: Tensor, inferer: PairInferer | None = None, **options: Any) -> Registration:
    """One pair, (C, *spatial) each."""
    dims = fixed.ndim - 1
    inferer = inferer or PairInferer(dims, **{"iterations": 5, **options})
    inferer(fixed[None], NODEONet(dims), moving[None])
    return inferer.registrations[0]


@pytest.mark.parametrize(
    ("shape", "iterations", "error"), [((61, 73), 100, 0.1), ((41, 33), 100, 0.1), ((17, 21, 13), 40, 0.25)]
)
def test_a_known_deformation_is_recovered(shape, iterations, error):
    fixed, moving, ddf = deformed_pair(shape)
    result = register(fixed, moving, iterations=iterations)
    similarity = result.history["similarity"]
    assert similarity[-1] < 0.1 * similarity[0]
    inside = (slice(None), *[slice(4, -4)] * len(shape))  # what lies at the border may have left the image
    found, true = result.ddf[inside], ddf[inside]
    assert torch.corrcoef(torch.stack([found.flatten(), true.flatten()]))[0, 1] > 0.97
    assert (found - true).norm() < error * true.norm()
    assert jacobian_determinant(result.ddf[None]).min() > 0


@pytest.mark.parametrize("shape", SHAPES)
def test_result(shape):
    fixed, moving, _ = deformed_pair(shape)
    dims = len(shape)
    inferer, network = PairInferer(dims, iterations=3), NODEONet(dims)
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
        assert result.iterations == 3
        assert result.seconds > 0
        assert list(result.history) == ["loss", "similarity", "folding", "smoothness", "magnitude"]
        assert all(curve.shape == (3,) and curve.device.type == "cpu" for curve in result.history.values())
    assert all(torch.equal(*pair) for pair in zip(weights, network.parameters(), strict=True))
    assert network.image_size == (32,) * dims


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
@pytest.mark.parametrize("handlers", [(BestField,), (BestField, lambda: EarlyStop(patience=1, min_delta=1, every=2))])
def test_nothing_leaks_from_pair_to_pair(shape, handlers):
    a, b = (deformed_pair(shape, seed)[:2] for seed in (0, 5))
    options = {"iterations": 12, "handlers": handlers}
    alone = register(*b, **options)
    assert (alone.iterations == 12) == (len(handlers) == 1)
    dims = len(shape)

    reused = PairInferer(dims, **options)
    register(*a, reused)
    after = register(*b, reused)

    together = PairInferer(dims, **options)
    fixed, moving = (torch.stack(images) for images in zip(a, b, strict=True))
    together(fixed, NODEONet(dims), moving)

    # another shape in between, and the very same tensors changed in place
    fixed, moving = (image.clone() for image in a)
    register(fixed, moving, reused)
    register(smooth_image([n + 4 for n in shape]), smooth_image([n + 4 for n in shape], 1), reused)
    fixed.copy_(b[0])
    moving.copy_(b[1])
    changed = register(fixed, moving, reused)

    for result in (after, together.registrations[1], changed):
        assert torch.equal(result.ddf, alone.ddf)
        assert result.iterations == alone.iterations
        assert all(torch.equal(result.history[name], alone.history[name]) for name in alone.history)
    assert not torch.equal(together.registrations[0].ddf, alone.ddf)


def test_the_random_state_of_the_caller_is_left_alone():
    fixed, moving, _ = deformed_pair(SHAPES[0])
    inferer, network = PairInferer(2, iterations=3), NODEONet(2)
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
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0]))
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


def test_the_best_field_is_the_result():
    fixed, moving, _ = deformed_pair(SHAPES[0])
    worst_first = {"handlers": (lambda: BestField(None, lambda terms: -terms["loss"]),)}
    first, last = register(fixed, moving, iterations=1, handlers=()), register(fixed, moving, handlers=())
    assert torch.equal(register(fixed, moving, **worst_first).ddf, first.ddf)
    assert torch.equal(register(fixed, moving).ddf, last.ddf)  # the loss falls: the last is the best
    assert not torch.equal(first.ddf, last.ddf)


def test_optimiser_and_loss_are_the_given_ones():
    fixed, moving, _ = deformed_pair(SHAPES[0])
    made = []

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        made.append(torch.optim.SGD(parameters, lr=0.0))
        return made[-1]

    loss = RegistrationLoss(LocalNCCLoss(2, 9))
    result = register(fixed, moving, loss_function=loss, optimizer=optimizer)
    assert len(made) == 1
    assert list(result.history) == ["loss", "similarity"]
    assert result.history["loss"].unique().numel() == 1  # a learning rate of 0


# A stock evaluator


@pytest.mark.parametrize("shapes", [[(25, 21), (17, 29), (23, 19)], [(13, 17, 11), (9, 15, 13), (11, 9, 17)]])
def test_a_stock_evaluator_registers_a_list(shapes):
    dims = len(shapes[0])
    pairs = [deformed_pair(shape, seed)[:2] for seed, shape in enumerate(shapes)]
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0]))
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
        network=NODEONet(dims),
        inferer=PairInferer(dims, iterations=5),
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
        PairInferer(dims)(torch.zeros(fixed), NODEONet(dims), torch.zeros(moving))
    assert f"{fixed} and {moving}" in str(error.value)


@pytest.mark.parametrize("shape", [(25, 7), (9, 13, 5)])
def test_images_too_small_for_the_network_are_refused(shape):
    image = torch.rand(1, 1, *shape)
    with pytest.raises(ValueError, match="too small for downsample=4: each side needs at least 8 voxels"):
        PairInferer(len(shape))(image, NODEONet(len(shape)), image)


@pytest.mark.parametrize("iterations", [0, -1])
def test_no_iterations_are_refused(iterations):
    with pytest.raises(ValueError, match=f"iterations must be at least 1, got {iterations}"):
        PairInferer(2, iterations=iterations)


SMALL_SHAPE = (25, 21)


def plainly(fixed, moving):
    """Thirty iterations, as the caller's torch context has it."""
    inferer = PairInferer(2, iterations=30, handlers=())
    inferer(fixed[None], NODEONet(2), moving[None])
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
