# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
import math
import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.inferers import Inferer
from monai.losses import GlobalMutualInformationLoss
from monai.utils import CommonKeys
from synthetic import deformed_pair, quick_settings, quickly, smooth_ddf, smooth_image
from torch import Tensor

from monai_nodeo.data import PairError, load_pair
from monai_nodeo.flows import Coordinates, EulerianVelocity
from monai_nodeo.geometry.folds import folded_cells
from monai_nodeo.geometry.jacobian import jacobian_determinant
from monai_nodeo.geometry.sampling import warp
from monai_nodeo.losses import LocalNCCLoss, RegistrationLoss, SmoothnessLoss, landmark_errors
from monai_nodeo.registration import EarlyStop, PairInferer, ProgressBar, Registration, Settings
from monai_nodeo.registration.inferer import pair_of_tensors

SHAPES = [(25, 21), (13, 17, 11)]
ONE: dict[str, Any] = {"iterations": (5,), "shrink_factors": (1,)}
TERMS = ["level", "loss", "similarity", "intensity", "log_jacobian", "smoothness"]


def noisy(dims: int) -> EulerianVelocity:
    """Weights that are not 0 at the start, so that the seed shows."""
    return EulerianVelocity(dims, 8, Coordinates((8,) * dims, channels=8, frequencies=4))


def ddf_of(fixed: Tensor, moving: Tensor, settings: Settings, components: Any = (), **masks: Tensor) -> Tensor:
    """ddf (D, *spatial) of one pair by the call of the inferer."""
    inferer = PairInferer(settings, **{"handlers": (), **dict(components)})
    return inferer(fixed[None], None, moving[None], **{name: mask[None] for name, mask in masks.items()})[0]


@pytest.mark.parametrize(
    ("shape", "spacing", "start", "error"),
    [((61, 73), 1, "auto", 0.15), ((17, 21, 13), 1, "auto", 0.18), ((17, 21, 13), 2, "none", 0.2)],
)
def test_a_known_deformation_is_recovered_by_default(shape, spacing, start, error):
    fixed, moving, ddf = deformed_pair(shape)
    settings = Settings.preset(spatial_dims=len(shape), point_spacing=spacing, initial_transform=start)
    (result,) = PairInferer(settings, handlers=()).register([pair_of_tensors(fixed, moving)])
    assert result.similarity[1] < 0.15 * result.similarity[0]  # equal images have some, by similarity_floor
    inside = (slice(None), *[slice(4, -4)] * len(shape))  # what lies at the border may have left the image
    found, true = result.ddf[inside], ddf[inside]
    assert torch.corrcoef(torch.stack([found.flatten(), true.flatten()]))[0, 1] > (0.96 if spacing == 1 else 0.95)
    assert (found - true).norm() < error * true.norm()
    assert jacobian_determinant(result.ddf[None]).min() > 0


NODEO = {"velocity": "nodeo", "bottleneck": 8, "solver": "euler", "num_steps": 1, "unfold": False}


def test_at_the_end_every_voxel_follows_the_flow():
    """Straight lines between the points of the cloud are not what the finished flow does.

    The first look of the last level is at the flow as it is, so that one look is at the flow that is given.
    """
    fixed, moving, _ = deformed_pair((25, 29, 21))
    levels = {"iterations": (10, 20), "point_spacing": 3.0, "unfold": False, "crop_air": False}

    def gap(result: Registration) -> float:
        """Between the similarity that was optimised at last, and that of the flow."""
        return abs(float(result.history["similarity"][-1]) - result.similarity[1])

    lines, look, voxels = (quickly(fixed, moving, dense_iterations=n, **levels) for n in (0, 1, 5))
    assert voxels.history["level"].tolist() == [0] * 10 + [1] * 20 + [2] * 5
    assert gap(look) < 1e-6 < 1e-4 < gap(lines)
    assert voxels.similarity[1] < lines.similarity[1]


@pytest.mark.parametrize("shape", [(41, 33), (17, 21, 13)])
def test_the_network_of_nodeo_recovers_it_at_one_level(shape):
    fixed, moving, ddf = deformed_pair(shape)
    one = {"iterations": (60,), "shrink_factors": (1,), "point_spacing": 1, "learning_rate": 0.005, "amsgrad": True}
    found = quickly(fixed, moving, **NODEO, **one).ddf
    assert torch.corrcoef(torch.stack([found.flatten(), ddf.flatten()]))[0, 1] > 0.9


def test_the_network_of_nodeo_does_not_go_on_from_a_coarser_level():
    with pytest.raises(ValueError, match=r"NODEONet cannot go on from a coarser level.*shrink_factors \[1\]"):
        quickly(*deformed_pair(SHAPES[0])[:2], **NODEO)


@pytest.mark.parametrize("shape", SHAPES)
def test_result(shape):
    fixed, moving, _ = deformed_pair(shape)
    dims = len(shape)
    network = noisy(dims)
    inferer = PairInferer(quick_settings(dims), network, handlers=())
    assert isinstance(inferer, Inferer)
    weights = [p.clone() for p in network.parameters()]
    ddf = inferer(fixed.expand(2, 1, *shape), network, moving=moving.expand(2, 1, *shape))
    assert type(ddf) is Tensor
    assert ddf.shape == (2, dims, *shape)
    assert ddf.dtype == torch.float32
    assert not ddf.requires_grad
    results = inferer.register([pair_of_tensors(fixed, moving)] * 2)
    for found, result in zip(ddf, results, strict=True):
        assert torch.equal(found, result.ddf)
        assert result.iterations == 5
        assert result.seconds > 0
        assert result.interrupted is None
        assert list(result.history) == TERMS
        assert all(curve.shape == (5,) and curve.device.type == "cpu" for curve in result.history.values())
        assert result.history["level"].tolist() == [0, 0, 0, 1, 1]
        assert all(curve.isfinite().all() for curve in result.history.values())
        assert result.similarity[1] < result.similarity[0]
    assert all(torch.equal(*pair) for pair in zip(weights, network.parameters(), strict=True))
    assert network.image_size == (8,) * dims


@pytest.mark.parametrize("shape", [(41, 33), (17, 21, 13)])
def test_a_level_goes_on_where_the_coarser_one_ended(shape):
    fixed, moving, _ = deformed_pair(shape)
    two, one = (
        quickly(fixed, moving, iterations=iterations, shrink_factors=factors, point_spacing=1).history["similarity"]
        for iterations, factors in (((40, 1), (2, 1)), ((1,), (1,)))
    )
    assert two[-1] < 0.2 * one[-1]


@pytest.mark.parametrize("shape", SHAPES)
def test_same_seed_same_result(shape):
    fixed, moving, _ = deformed_pair(shape)
    random_weights = {"velocity": noisy(len(shape))}
    first = quickly(fixed, moving, random_weights, seed=3)
    torch.manual_seed(99)  # whatever the caller did before
    second, other = (quickly(fixed, moving, random_weights, seed=seed) for seed in (3, 4))
    assert torch.equal(first.ddf, second.ddf)
    assert all(torch.equal(first.history[name], second.history[name]) for name in first.history)
    assert not torch.equal(first.ddf, other.ddf)


@pytest.mark.parametrize("shape", SHAPES)
def test_an_image_stays_where_it_is_when_registered_to_itself(shape):
    fixed, moving, _ = deformed_pair(shape)
    inferer = PairInferer(quick_settings(len(shape), iterations=(10, 5)), handlers=())
    same, pair = inferer(torch.stack([fixed, fixed]), None, torch.stack([fixed, moving]))
    assert same.abs().max() < 1e-4
    alone = inferer(fixed[None], None, moving[None])[0]
    torch.testing.assert_close(pair, alone, rtol=0, atol=2e-3)  # sums of a batch are rounded in another order
    assert pair.abs().max() > 0.5


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("stop", [False, True])
def test_nothing_leaks_from_pair_to_pair(shape, stop):
    dims = len(shape)
    a, b = (pair_of_tensors(*deformed_pair(shape, seed)[:2]) for seed in (0, 5))
    settings = quick_settings(dims, iterations=(7, 5), best_window=50)
    handlers = (lambda: EarlyStop(threshold=1, window=2),) if stop else ()
    (alone,) = PairInferer(settings, noisy(dims), handlers=handlers).register([b])
    assert (alone.iterations == 12) == (not stop)
    reused = PairInferer(settings, noisy(dims), handlers=handlers)
    reused.register([a])
    (after,) = reused.register([b])
    # another shape in between, and the very same tensors changed in place
    larger = [n + 4 for n in shape]
    reused.register([pair_of_tensors(smooth_image(larger), smooth_image(larger, 1))])
    for side in ("fixed", "moving"):
        getattr(a, side).image.copy_(getattr(b, side).image)
    (changed,) = reused.register([a])
    for result in (after, changed):
        assert torch.equal(result.ddf, alone.ddf)
        assert all(torch.equal(result.history[name], alone.history[name]) for name in alone.history)


def test_the_process_of_the_caller_is_left_alone(monkeypatch):
    """No memory policy, signal or log of the process, no random state: those are the caller's."""
    import ctypes
    import logging
    import signal

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("a library call changes the process")

    for owner, name in ((ctypes, "CDLL"), (signal, "signal"), (logging, "disable"), (logging, "basicConfig")):
        monkeypatch.setattr(owner, name, refused)
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    levels = logging.root.level, logging.root.manager.disable, torch.get_num_threads()
    fixed, moving, _ = deformed_pair(SHAPES[0])
    registration = PairInferer(quick_settings(2, initial_transform="moments"), handlers=(ProgressBar,)).register(
        [pair_of_tensors(fixed, moving)]
    )[0]
    registration.warp(registration.pair.moving.image)
    assert (logging.root.level, logging.root.manager.disable, torch.get_num_threads()) == levels
    assert torch.equal(torch.get_rng_state(), state[0])
    assert random.getstate() == state[1]
    now = np.random.get_state()  # noqa: NPY002
    assert all(np.array_equal(x, y) for x, y in zip(now, state[2], strict=True))


@pytest.mark.parametrize(
    "context",
    [torch.no_grad, torch.inference_mode, partial(torch.autocast, "cpu", torch.bfloat16)],
    ids=["no_grad", "inference", "autocast"],
)
def test_the_context_of_the_caller_does_not_reach_the_registration(context: Callable[[], AbstractContextManager]):
    # a shape of its own: matrices are kept by shape, and must not be those of inference mode afterwards
    fixed, moving, _ = deformed_pair((27, 23))
    with context():
        found = quickly(fixed, moving).ddf
    assert torch.equal(found, quickly(fixed, moving).ddf)


def test_the_best_iteration_of_the_last_level_is_the_result():
    fixed, moving, _ = deformed_pair(SHAPES[0])
    last = quickly(fixed, moving, **ONE, learning_rate=0.01)
    assert (last.history["loss"].diff() < 0).all()
    assert torch.equal(quickly(fixed, moving, **ONE, learning_rate=0.01, best_window=5).ddf, last.ddf)
    too_far = quickly(fixed, moving, **ONE, learning_rate=3.0, best_window=5, unfold=False)
    best = int(too_far.history["loss"].argmin())
    assert best < 4
    shorter = {**ONE, "iterations": (best + 1,)}
    expected = quickly(fixed, moving, **shorter, learning_rate=3.0, unfold=False)
    torch.testing.assert_close(too_far.ddf, expected.ddf, rtol=0, atol=1e-5)


def test_optimiser_and_loss_are_the_given_ones_at_every_level():
    fixed, moving, _ = deformed_pair(SHAPES[0])
    made = []

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        made.append(torch.optim.SGD(parameters, lr=0.0))
        return made[-1]

    loss = RegistrationLoss(LocalNCCLoss(2, 9))
    result = quickly(fixed, moving, {"loss": loss, "optimizer": optimizer, "velocity": noisy(2)})
    assert len(made) == 2
    assert list(result.history) == ["level", "loss", "similarity"]
    for level in (0, 1):
        curve = result.history["loss"][result.history["level"] == level]
        assert curve.unique().numel() == 1  # a learning rate of 0


def test_an_image_loss_alone_is_refused():
    with pytest.raises(ValueError, match=r"loss is a LocalNCCLoss; put it in a RegistrationLoss\("):
        PairInferer(loss=LocalNCCLoss(3, 9))


def test_a_handler_is_made_for_every_level_and_knows_it():
    seen = []

    class Notes:
        def attach(self, engine):
            engine.add_event_handler(Events.STARTED, lambda e: seen.append((self, e.state.level)))

    quickly(*deformed_pair(SHAPES[0])[:2], {"handlers": (Notes,)})
    assert [level.index for _, level in seen] == [0, 1]
    assert len({id(notes) for notes, _ in seen}) == 2
    assert seen[0][1].image_size == (12, 12)
    assert seen[1][1].image_size == SHAPES[0]


def test_a_handler_that_is_made_already_is_refused():
    with pytest.raises(TypeError, match=r"handlers are factories.*got <.*ProgressBar.*give a class or a function"):
        PairInferer(handlers=[ProgressBar()])


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
    settings = Settings.preset(spatial_dims=dims, initial_transform="none")
    cubes = ddf_of(fixed, moving, settings)[every]
    thin = MetaTensor(fixed[every], affine=affine)
    long = ddf_of(thin, moving[every], settings) * sides  # a plain moving tensor is on the fixed grid
    ones = (1.0,) * dims
    assert mm_error(cubes, ddf[every], ones) < 0.25
    assert mm_error(long, ddf[every], ones) < 0.35
    assert mm_error(long, cubes, ones) < 0.4


@pytest.mark.parametrize("shape", [(41, 49), (21, 23, 19)])
@pytest.mark.parametrize("side", ["fixed", "moving"])
def test_a_lesion_under_a_mask_changes_little(shape, side):
    fixed, moving, ddf = deformed_pair(shape)
    inside = (..., *[slice(n // 2 - 4, n // 2 + 4) for n in shape])
    images = {"fixed": fixed.clone(), "moving": moving.clone()}
    images[side][inside] = 1.5
    mask = torch.ones(1, *shape)
    mask[inside] = 0
    settings = quick_settings(len(shape), iterations=(20, 15))
    healthy, blind = ddf_of(fixed, moving, settings), ddf_of(**images, settings=settings)
    masked = ddf_of(**images, settings=settings, **{f"{side}_mask": mask})
    assert (masked - ddf).norm() < 0.5 * (blind - ddf).norm()
    assert (masked - healthy).norm() < 0.5 * (blind - healthy).norm()


@pytest.mark.parametrize("shape", [(41, 33), (17, 21, 13)])
def test_landmarks_pull(shape):
    image = smooth_image(shape)  # the images say: stay
    dims = len(shape)
    middle = torch.tensor([(n - 1) / 2 for n in shape])
    landmarks = torch.stack([middle, middle + torch.tensor([2.0, -1.5, 1.0][:dims])])[None, None]
    points = [torch.nn.functional.pad(x, (0, 3 - dims)) for x in landmarks[0].unbind(1)]
    marks = {"fixed_landmarks": points[0], "moving_landmarks": points[1]}
    pair = load_pair({"fixed": image, "moving": image, **marks})
    far = landmark_errors(torch.zeros(1, dims, *shape), landmarks).norm()
    errors = {}
    for weight in (0.0, 10.0):
        loss = RegistrationLoss(
            LocalNCCLoss(dims, 9), velocity_terms={"smoothness": (0.05, SmoothnessLoss())}, landmark_weight=weight
        )
        inferer = PairInferer(Settings.preset(spatial_dims=dims, initial_transform=None), loss=loss, handlers=())
        (found,) = inferer.register([pair])
        errors[weight] = landmark_errors(found.ddf[None], landmarks).norm()
        assert ("landmarks" in found.history) == (weight > 0)
    assert errors[0.0] > 0.9 * far
    assert errors[10.0] < 0.3 * far


@pytest.mark.parametrize(("shape", "tolerance"), [((81, 74), 0.2), ((45, 49, 53), 0.5)])
def test_without_the_air_the_result_is_nearly_the_same(shape, tolerance):
    dims = len(shape)
    centre, radius = torch.tensor(shape) * 0.55, min(shape) * 0.2
    index = torch.from_numpy(np.indices(shape)).float()
    ball = (index - centre.view(-1, *[1] * dims)).norm(dim=0, keepdim=True) < radius
    moving = (smooth_image(shape, sigma=3) + 1) * ball
    true = smooth_ddf(shape, 1, largest=2 if dims == 2 else 5)
    fixed = warp(moving[None], true[None])[0]
    sizes, found = {}, {}

    class Look:
        def attach(self, engine: Any) -> None:
            engine.add_event_handler(Events.STARTED, lambda e: sizes.update({crop: e.state.level.image_size}))

    for crop in (False, True):
        settings = quick_settings(dims, crop_air=crop, iterations=(30, 40) if dims == 2 else (20, 15))
        found[crop] = ddf_of(fixed, moving, settings, {"handlers": (Look,)})
    assert sizes[False] == shape
    assert math.prod(sizes[True]) < 0.95 * math.prod(shape)
    assert found[True].shape == found[False].shape
    inside = fixed[0] > 0

    def length(ddf: Tensor) -> float:
        return float(ddf.norm(dim=0)[inside].mean())

    assert length(true) > 1
    errors = {crop: length(field - true) for crop, field in found.items()}
    assert errors[False] < tolerance * length(true)
    assert errors[True] < errors[False] + 0.15
    assert length(found[True] - found[False]) < tolerance * length(true)


@pytest.mark.parametrize("shape", [(31, 25), (13, 17, 11)])
def test_what_folds_between_voxels_is_unfolded_as_a_flow(shape):
    fixed, moving = smooth_image(shape, 0, 1.0), smooth_image(shape, 7, 1.0)  # nothing in common
    folding = {"iterations": (20,), "shrink_factors": (1,), "point_spacing": 1, "folding_weight": 0.0}
    folding |= {"smoothness_weight": 0.0, "kernel_size": 0.7}
    rough = quickly(fixed, moving, unfold=False, **folding)
    assert rough.certificate.folded_cells == folded_cells(rough.ddf[None]).sum() > 0
    assert not rough.certificate.invertible
    clean = quickly(fixed, moving, **folding)
    assert clean.certificate.folded_cells == folded_cells(clean.ddf[None]).sum() == 0
    assert torch.equal(clean.flow.displacement(), clean.displacement)


@pytest.mark.parametrize("shapes", [[(25, 21), (17, 29)], [(13, 17, 11), (9, 15, 13)]])
def test_a_stock_evaluator_registers_a_list(shapes):
    dims = len(shapes[0])
    pairs = [deformed_pair(shape, seed)[:2] for seed, shape in enumerate(shapes)]
    rows = [{"a": fixed, "b": moving, "id": str(i)} for i, (fixed, moving) in enumerate(pairs)]
    found = []
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(rows, batch_size=1),
        network=noisy(dims),
        inferer=PairInferer(quick_settings(dims), handlers=()),
        prepare_batch=lambda batch, *_, **__: (batch["a"], None, (batch["b"],), {}),
        postprocessing=lambda data: found.append(data) or data,
    )
    evaluator.run()
    for data, (fixed, moving) in zip(found, pairs, strict=True):
        assert torch.equal(data[CommonKeys.PRED], quickly(fixed, moving, {"velocity": noisy(dims)}).ddf)
        assert torch.equal(data[CommonKeys.IMAGE], fixed)


@pytest.mark.parametrize(
    ("dims", "fixed", "moving", "message"),
    [
        (2, (1, 1, 25, 21), (1, 1, 25, 20), r"moving: a plain array or tensor of shape \(25, 20\).*or MetaTensors"),
        (2, (1, 1, 25, 21), (1, 2, 25, 21), r"moving has 2 channels and fixed has 1"),
        (2, (2, 1, 25, 21), (1, 1, 25, 21), r"2 fixed images and 1 moving ones"),
        (3, (1, 1, 25, 21), (1, 1, 25, 21), r"is 2D and the settings are for 3D; take Settings.preset\(spatial_dims=2"),
        (2, (1, 25, 21), (1, 25, 21), r"a tensor of shape \(25, 21\); expected channels first and no batch axis"),
        (2, (1, 1, 1, 25, 21, 7), (1, 1, 1, 25, 21, 7), r"expected channels first and no batch axis"),
    ],
)
def test_images_that_do_not_fit_are_refused(dims, fixed, moving, message):
    with pytest.raises(PairError, match=message):
        PairInferer(Settings.preset(spatial_dims=dims))(torch.rand(fixed), None, torch.rand(moving))


@pytest.mark.parametrize(("shape", "least"), [((25, 7), 8), ((9, 13, 5), 8)])
def test_images_too_small_for_the_network_are_refused(shape, least):
    with pytest.raises(PairError, match=f"has {shape[-1]} voxels along an axis, the velocity needs {least}"):
        quickly(torch.rand(1, *shape), torch.rand(1, *shape), **NODEO, **ONE)


@pytest.mark.parametrize("key", ["fixed_mask", "moving_mask"])
@pytest.mark.parametrize("loss", [torch.nn.MSELoss(), GlobalMutualInformationLoss()], ids=["MSE", "MI"])
def test_a_mask_that_the_loss_cannot_take_is_refused_before_a_start_is_searched_for(key, loss, monkeypatch):
    monkeypatch.setattr("monai_nodeo.registration.preparation.prepared_pair.find_start", pytest.fail)
    fixed, moving, _ = deformed_pair(SHAPES[0])
    settings = quick_settings(2, initial_transform="moments")
    with pytest.raises(PairError, match=f"{key}: {type(loss).__name__} cannot take masks; register without them"):
        ddf_of(fixed, moving, settings, {"loss": RegistrationLoss(loss)}, **{key: torch.ones_like(fixed)})
