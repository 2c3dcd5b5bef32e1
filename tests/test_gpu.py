# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The same on CUDA as on a CPU, without waiting for the device. All of it is skipped without a CUDA device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator
from monai.utils import CommonKeys
from synthetic import deformed_pair

from monai_nodeo.engines import PairTrainer
from monai_nodeo.handlers import BestField
from monai_nodeo.inferers import PairInferer, prepare_pair
from monai_nodeo.integration import ODESolver
from monai_nodeo.levels import ImagePair, make_levels
from monai_nodeo.networks import EulerianVelocity
from monai_nodeo.transforms import RegisterPair, WarpWithDDF

pytestmark = pytest.mark.gpu

SHAPES = [(61, 73), (33, 29, 41)]


@pytest.fixture(autouse=True)
def _float32_is_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions in TF32, cuDNN's default, round to 10 bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@contextmanager
def waits_are_errors() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("shape", SHAPES)
def test_registration_differs_from_the_cpus_by_rounding_only(shape):
    dims = len(shape)
    fixed, moving, _ = deformed_pair(shape)
    results = {}
    for device in ("cpu", "cuda"):
        register = RegisterPair(dims, PairInferer(dims, iterations=(10, 10), shrink_factors=(2, 1), handlers=()))
        results[device] = register(fixed.to(device), moving.to(device))
    cpu, cuda = results["cpu"], results["cuda"]
    assert cuda.ddf.device.type == "cuda"
    largest = cpu.ddf.abs().max()
    assert largest > 0.05
    # Adam divides by the size of a gradient, so rounding of small gradients shows: a hundredth of the displacement.
    assert (cuda.ddf.cpu() - cpu.ddf).abs().max() < 0.01 * largest
    for name, curve in cpu.history.items():
        assert cuda.history[name].device.type == "cpu"
        torch.testing.assert_close(cuda.history[name], curve, rtol=1e-2, atol=1e-5)
    torch.testing.assert_close(cuda.history["loss"][0], cpu.history["loss"][0], rtol=1e-4, atol=0)


@pytest.mark.parametrize(("method", "num_steps"), [("euler", 1), ("euler", 3), ("midpoint", 2), ("rk4", 2)])
@pytest.mark.parametrize("shape", SHAPES)
def test_no_iteration_waits_for_the_device(shape, method, num_steps):
    dims = len(shape)
    fixed, moving, _ = deformed_pair(shape)
    level = make_levels(shape, (1.0, 1.5, 2.0)[:dims], point_spacing=2)[0]
    masks = torch.rand(2, 1, 1, *shape, device="cuda")
    landmarks = 9 * torch.rand(1, 4, 2, dims, device="cuda")
    pair = ImagePair(fixed[None].cuda(), moving[None].cuda(), *masks, landmarks=landmarks)
    network = EulerianVelocity(dims, level.cloud_size, spacing=level.cloud_spacing).cuda()
    trainer = PairTrainer(
        pair,
        network=network,
        optimizer=torch.optim.Adam(network.parameters(), lr=0.4),
        loss_function=PairInferer(dims).loss_function,
        solver=ODESolver(method, num_steps),
        iterations=3,
        level=level,
    )
    best = BestField(window=None)
    best.attach(trainer)
    trainer.run()  # the first iteration sends matrices to the device and makes the optimiser's state
    with waits_are_errors():
        trainer.state.output = trainer._iteration(trainer, pair)
        best(trainer)
    assert trainer.state.best_ddf.isfinite().all()
    with pytest.raises(RuntimeError, match="synchroniz"), waits_are_errors():
        trainer.state.output["loss"].item()  # and the mode works


@pytest.mark.parametrize("shape", SHAPES)
def test_evaluator_and_warp_on_the_device(shape):
    dims = len(shape)
    fixed, moving, _ = deformed_pair(shape)
    evaluator = SupervisedEvaluator(
        device=torch.device("cuda"),
        val_data_loader=DataLoader([{"fixed_input": fixed, "moving_input": moving}], batch_size=1),
        network=EulerianVelocity(dims),
        inferer=PairInferer(dims, iterations=(3, 2), shrink_factors=(2, 1)),
        prepare_batch=prepare_pair,
    )
    evaluator.run()
    (output,) = evaluator.state.output
    ddf = output[CommonKeys.PRED]
    assert ddf.device.type == "cuda"
    warped = WarpWithDDF()(moving, ddf)  # an image from the host joins the field
    assert warped.device.type == "cuda"
    torch.testing.assert_close(warped.cpu(), WarpWithDDF()(moving, ddf.cpu()), rtol=0, atol=1e-4)


def test_the_random_state_of_the_device_is_left_alone():
    fixed, moving, _ = deformed_pair(SHAPES[0])
    torch.cuda.manual_seed(5)
    state = torch.cuda.get_rng_state()
    RegisterPair(2, PairInferer(2, iterations=(2,), shrink_factors=(1,)))(fixed.cuda(), moving.cuda())
    assert torch.equal(torch.cuda.get_rng_state(), state)
