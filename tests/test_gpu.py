# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The same on CUDA as on a CPU, without waiting for the device. All of it is skipped without a CUDA device."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents
from monai.utils import CommonKeys
from synthetic import deformed_pair, quick_settings, quickly
from torch import Tensor

from monai_nodeo import PairInferer, Registration, Settings, WarpWithDDF
from monai_nodeo.flows import EulerianVelocity, ODESolver, ScalingAndSquaring, Solver, VelocityBatch
from monai_nodeo.losses import IntensityLoss, RegistrationLoss
from monai_nodeo.registration import BestFit, PairBatch, PairTrainer, make_levels
from monai_nodeo.registration.named_parts import make_loss
from monai_nodeo.registration.presets import preset_names

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
def test_registration_differs_from_the_cpus_by_rounding_only(shape, tmp_path):
    images = deformed_pair(shape)[:2]
    cpu, cuda = (
        quickly(*(image.to(device) for image in images), iterations=(10, 10), unfold=False)
        for device in ("cpu", "cuda")
    )
    assert cuda.ddf.device.type == "cuda"
    largest = cpu.ddf.abs().max()
    assert largest > 0.05
    # Adam divides by the size of a gradient, so rounding of small gradients shows: a hundredth of the displacement. And
    # each integrates the finished flow with steps of its own.
    solvers = cpu.certificate.solver_error.voxels_max + cuda.certificate.solver_error.voxels_max
    assert (cuda.ddf.cpu() - cpu.ddf).abs().max() < 0.01 * largest + 2 * solvers
    for name, curve in cpu.history.items():
        assert cuda.history[name].device.type == "cpu"
        torch.testing.assert_close(cuda.history[name], curve, rtol=1e-2, atol=1e-5)
    torch.testing.assert_close(cuda.history["loss"][0], cpu.history["loss"][0], rtol=1e-4, atol=0)
    # a registration of CUDA is loaded and used on a CPU
    cuda.save(tmp_path)
    loaded = Registration.load(tmp_path)
    assert loaded.ddf.device.type == "cpu"
    tolerance = 1e-3 + 2 * solvers
    torch.testing.assert_close(loaded.ddf, cuda.ddf.cpu(), rtol=0, atol=tolerance)
    torch.testing.assert_close(
        loaded.warp(images[1]).as_tensor(), cuda.warp(images[1]).as_tensor().cpu(), rtol=0, atol=0.05 + tolerance
    )
    points = torch.rand(9, 3, dtype=torch.float64) * torch.tensor((*shape, 1)[:3])
    torch.testing.assert_close(cuda.points(points), loaded.points(points), rtol=0, atol=tolerance)


def test_the_default_has_no_folds_and_a_proof_on_the_device_too():
    fixed, moving, _ = deformed_pair(SHAPES[1])
    found = quickly(fixed.cuda(), moving.cuda())
    assert found.certificate.folded_cells == 0
    assert found.certificate.solver_error.voxels_max < 0.05
    assert found.certificate.inverse.voxels_mean < 0.01


def trainer_of(shape: tuple[int, ...], solver: Solver, **options: Any) -> PairTrainer:
    """A trainer of a pair with all that a pair may have."""
    dims = len(shape)
    fixed, moving, _ = deformed_pair(shape)
    level = make_levels(shape, (1.0, 1.5, 2.0)[:dims], point_spacing=2)[0]
    generator = torch.Generator().manual_seed(0)  # the same each time
    masks = torch.rand(3, 1, 1, *shape, generator=generator).cuda()
    landmarks = (9 * torch.rand(1, 4, 2, dims, generator=generator)).cuda()
    pair = PairBatch(fixed[None].cuda(), moving[None].cuda(), *masks, landmarks=landmarks)
    model = EulerianVelocity(dims, level.cloud_size, spacing=level.cloud_spacing)
    network = VelocityBatch([model]).cuda()
    settings = {"loss_function": make_loss(quick_settings(dims)), "iterations": 12, **options}
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    return PairTrainer(pair, network, optimizer, solver=solver, level=level, **settings)


def weights_of(trainer: PairTrainer) -> list[Tensor]:
    return [x.detach().clone() for x in trainer.network.parameters()]


class HalvedRate:
    """A schedule of the learning rate, as a handler."""

    def __init__(self, every: int) -> None:
        self.every = every

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=self.every), self)

    def __call__(self, engine: PairTrainer) -> None:
        engine.optimizer.param_groups[0]["lr"] /= 2


@pytest.mark.parametrize("handlers", [(), (HalvedRate(4),), (HalvedRate(1),)], ids=["plain", "some", "every"])
@pytest.mark.parametrize("solver", [ODESolver("euler", 2), ScalingAndSquaring(1)], ids=["euler", "squaring"])
@pytest.mark.parametrize("shape", SHAPES)
def test_recorded_iterations_are_the_same_iterations(shape, solver, handlers):
    results = {}
    for cuda_graph in (False, True):
        trainer = trainer_of(shape, solver, handlers=(*handlers, BestFit(window=None)), cuda_graph=cuda_graph)
        trainer.run()
        assert trainer.cuda_graph == cuda_graph
        results[cuda_graph] = (trainer.state.history, trainer.state.output["ddf"], weights_of(trainer))
    assert results[True][1].abs().max() > 0.1
    # where several threads add to one place, the last digit is by chance; Adam makes it seen
    torch.testing.assert_close(results[True], results[False], rtol=1e-3, atol=1e-3)


def test_what_a_handler_sees_of_a_recorded_iteration_is_one_state():
    solver = ScalingAndSquaring(1)
    trainer = trainer_of(SHAPES[0], solver, cuda_graph=True)
    apart = []

    def look(engine: PairTrainer) -> None:
        with torch.no_grad():
            phi = solver(engine.network.velocity(), engine.identity)[-1]
        size = torch.tensor(engine.identity.shape[2:], device=phi.device).view(1, -1, 1, 1)
        apart.append(((phi - engine.identity) * (size - 1) / 2 - engine.state.output["ddf"]).abs().max())

    trainer.add_event_handler(Events.ITERATION_COMPLETED, look)
    trainer.run()
    assert trainer.cuda_graph
    assert max(apart) < 1e-3


def test_handlers_inside_an_iteration_are_called_each_time():
    trainer = trainer_of(SHAPES[0], ODESolver("euler", 2), cuda_graph=True)
    calls = []
    trainer.add_event_handler(IterationEvents.BACKWARD_COMPLETED, lambda engine: calls.append(engine.state.iteration))
    trainer.run()
    assert calls == list(range(1, 13))


class WaitingLoss(IntensityLoss):
    """Cannot be recorded."""

    def of_each(self, pred: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return super().of_each(pred, *args, **kwargs) * (1 + 0 * pred.max().item())


def test_an_iteration_that_waits_for_the_device_is_done_without_recording(caplog):
    caplog.set_level("INFO", "monai_nodeo")
    fields = []
    for similarity in (IntensityLoss(), WaitingLoss(), IntensityLoss()):  # the last: nothing is left behind
        trainer = trainer_of(
            SHAPES[0], ODESolver("euler", 2), loss_function=RegistrationLoss(similarity), cuda_graph=True
        )
        trainer.run()
        fields.append(trainer.state.output["ddf"])
    assert caplog.text.count("without a CUDA graph") == 1
    assert fields[0].abs().max() > 0.1
    torch.testing.assert_close(fields[1:], fields[:1] * 2, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("preset", [None, *preset_names()])
@pytest.mark.parametrize("shape", [(64, 48), (32, 40, 34)])
def test_presets_are_recorded(shape, preset, caplog):
    caplog.set_level("INFO", "monai_nodeo")
    settings = Settings.preset(preset, len(shape))
    fixed, moving, _ = deformed_pair(shape)
    quick = settings.replace(iterations=[4] * len(settings.iterations))
    ddf = PairInferer(quick, handlers=())(fixed[None].cuda(), None, moving[None].cuda())
    assert ddf.device.type == "cuda"
    assert ddf.isfinite().all()
    # MONAI's mutual information sends the centres of its bins to the device each time
    assert caplog.text.count("without") == (preset == "mutual_information")


@pytest.mark.parametrize(
    "solver",
    [
        ODESolver("euler", 1),
        ODESolver("euler", 3),
        ODESolver("midpoint", 2),
        ODESolver("rk4", 2),
        ScalingAndSquaring(2),
    ],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_no_iteration_waits_for_the_device(shape, solver):
    trainer = trainer_of(shape, solver, iterations=4)
    best = BestFit(window=None)
    best.attach(trainer)
    trainer.run()  # the first iterations send matrices to the device and make the optimiser's state
    with waits_are_errors():
        trainer.state.output = trainer._iteration(trainer, trainer.data_loader[0])
        best(trainer)
    assert all(x.isfinite().all() for x in trainer.network.parameters())
    with pytest.raises(RuntimeError, match="synchroniz"), waits_are_errors():
        trainer.state.output["loss"].item()  # and the mode works


@pytest.mark.parametrize("shape", SHAPES)
def test_evaluator_and_warp_on_the_device(shape):
    fixed, moving, _ = deformed_pair(shape)
    evaluator = SupervisedEvaluator(
        device=torch.device("cuda"),
        val_data_loader=DataLoader([{"a": fixed, "b": moving}], batch_size=1),
        network=EulerianVelocity(len(shape)),
        inferer=PairInferer(quick_settings(len(shape)), handlers=()),
        prepare_batch=lambda batch, device, *_, **__: (batch["a"].to(device), None, (batch["b"].to(device),), {}),
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
    quickly(fixed.cuda(), moving.cuda())
    assert torch.equal(torch.cuda.get_rng_state(), state)
