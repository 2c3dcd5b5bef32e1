# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.engines import Trainer
from monai.engines.utils import IterationEvents
from monai.handlers import StatsHandler
from synthetic import deformed_pair, quick_settings
from torch import Tensor, nn

from monai_nodeo.flows import EulerianVelocity, Lattice, NODEONet, ODESolver, ScalingAndSquaring, VelocityBatch
from monai_nodeo.geometry.coordinates import identity_grid, phi_to_ddf
from monai_nodeo.geometry.sampling import warp
from monai_nodeo.losses import ImageLoss, RegistrationLoss, VelocityMagnitudeLoss
from monai_nodeo.registration import BestFit, DivergedError, EarlyStop, Level, PairBatch, PairTrainer, make_levels
from monai_nodeo.registration.named_parts import make_loss
from monai_nodeo.registration.optimisation._cuda_graphs import RecordedStep

SHAPES = [(25, 21), (13, 17, 11)]
TERMS = ["loss", "similarity", "intensity", "log_jacobian", "smoothness"]


def two_keyframes(dims: int, image_size: Any) -> EulerianVelocity:
    return EulerianVelocity(dims, image_size, Lattice((8,) * dims, keyframes=2))


# model -> learning rate with which the loss of these small pairs falls in every step
MODELS: dict[Any, float] = {NODEONet: 0.005, EulerianVelocity: 0.02, two_keyframes: 0.02}
every_model = pytest.mark.parametrize("model", MODELS)


class CountingAdam(torch.optim.Adam):
    """Counts the steps that have a gradient to follow."""

    steps = 0

    def step(self, *args: Any, **kwargs: Any) -> Any:
        self.steps += all(p.grad is not None for group in self.param_groups for p in group["params"])
        return super().step(*args, **kwargs)


def trainer_of(
    fixed: Tensor, moving: Tensor, model: Any = EulerianVelocity, level: Level | None = None, **options: Any
) -> PairTrainer:
    """A trainer of images (1, C, *spatial), on their device, with the default loss."""
    dims = fixed.ndim - 2
    network = VelocityBatch([model(dims, level.cloud_size if level else fixed.shape[2:])]).to(fixed.device)
    settings = {
        "optimizer": CountingAdam(network.parameters(), lr=MODELS[model], amsgrad=True),
        "loss_function": make_loss(quick_settings(dims)),
        "solver": ODESolver("euler", 2),
        "iterations": 5,
        **options,
    }
    return PairTrainer(PairBatch(fixed, moving), network, level=level, **settings)


def batched_pair(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    fixed, moving, _ = deformed_pair(shape)
    return fixed[None], moving[None]


@every_model
@pytest.mark.parametrize("shape", SHAPES)
def test_one_iteration_is_one_look_at_the_loss_and_the_steps_lie_between(shape, model):
    trainer = trainer_of(*batched_pair(shape), model, iterations=7)
    assert isinstance(trainer, Trainer)
    before = [p.detach().clone() for p in trainer.network.parameters()]
    fired = []
    for event in (Events.ITERATION_COMPLETED, *IterationEvents):
        trainer.add_event_handler(event, lambda _, event: fired.append(event), event)
    trainer.run()
    assert trainer.optimizer.steps + 1 == trainer.state.iteration == 7
    for event in (
        IterationEvents.FORWARD_COMPLETED,
        IterationEvents.LOSS_COMPLETED,
        IterationEvents.BACKWARD_COMPLETED,
        IterationEvents.MODEL_COMPLETED,
        Events.ITERATION_COMPLETED,
    ):
        assert fired.count(event) == 7
    assert all((old != new).any() for old, new in zip(before, trainer.network.parameters(), strict=True))


@every_model
@pytest.mark.parametrize("shape", SHAPES)
def test_output_and_history(shape, model):
    fixed, moving = batched_pair(shape)
    outputs, seen = [], []
    stats = StatsHandler(
        iteration_print_logger=lambda engine: seen.append(engine.state.output["loss"].item()),
        epoch_print_logger=lambda engine: seen.append(engine.state.epoch),
    )
    trainer = trainer_of(fixed, moving, model, iterations=4, handlers=(stats,))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: outputs.append(engine.state.output))
    trainer.run()
    assert list(trainer.state.history) == TERMS
    for output in outputs:
        assert list(output) == [*TERMS, "ddf"]
        assert output["ddf"].shape == (1, len(shape), *shape)
        assert not any(value.requires_grad for value in output.values())
    for name, curve in trainer.state.history.items():
        assert curve.shape == (4, 1)
        assert torch.equal(curve, torch.stack([output[name] for output in outputs]))
    assert (trainer.state.history["loss"].diff(dim=0) < 0).all()
    assert seen == [*trainer.state.history["loss"][:, 0].tolist(), 1]


@every_model
def test_what_a_handler_sees_is_one_state(model):
    """Integrating the weights that a handler finds gives the displacement and the loss that it finds."""
    fixed, moving = batched_pair(SHAPES[0])
    solver = ODESolver("rk4", 2)
    seen, apart = [], []

    def look(engine: PairTrainer) -> None:
        with torch.no_grad():
            phi = solver(engine.network.velocity(), engine.identity)[-1]
        ddf = phi_to_ddf(phi, engine.identity)
        seen.append(engine.state.output["ddf"])
        apart.append((ddf - seen[-1]).abs().max())
        similarity = engine.loss_function.similarity(warp(moving, ddf), fixed)
        torch.testing.assert_close(engine.state.history["similarity"][engine.state.iteration - 1, 0], similarity)

    trainer = trainer_of(fixed, moving, model, solver=solver)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, look)
    trainer.run()
    steps = [(after - before).abs().max() for before, after in pairwise(seen)]
    assert max(apart) < 0.02 * min(steps)


@pytest.mark.parametrize("model", [NODEONet, EulerianVelocity])
def test_velocity_terms_see_the_velocity_in_voxels_over_unit_time(model):
    fixed, moving = batched_pair(SHAPES[0])
    loss = RegistrationLoss(nn.MSELoss(), velocity_terms={"magnitude": (1.0, VelocityMagnitudeLoss())})
    trainer = trainer_of(fixed, moving, model, iterations=1, loss_function=loss, solver=ODESolver())
    with torch.no_grad():
        for parameter in trainer.network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        velocity = trainer.network(trainer.identity, torch.tensor(0.0))
    trainer.run()
    expected = phi_to_ddf(identity_grid(SHAPES[0]) + velocity, trainer.identity)
    magnitude = VelocityMagnitudeLoss()(expected)
    assert magnitude > 0
    torch.testing.assert_close(trainer.state.output["magnitude"][0], magnitude, rtol=1e-3, atol=0)
    torch.testing.assert_close(trainer.state.output["ddf"], expected, rtol=0, atol=1e-5)


@every_model
@pytest.mark.parametrize("solver", [ODESolver("rk4", 2), ODESolver("midpoint", 3, adjoint=True), ODESolver("dopri5")])
def test_any_solver_drops_in(solver, model):
    trainer = trainer_of(*batched_pair(SHAPES[0]), model, solver=solver)
    trainer.run()
    assert (trainer.state.history["loss"].diff(dim=0) < 0).all()


@every_model
@pytest.mark.parametrize("shape", SHAPES)
def test_the_adjoint_is_the_direct_way_within_the_error_of_the_solver(shape, model):
    """Gradients of a real step, and what comes of some; the velocity is not frozen, and so more steps are others."""
    gradients, fields = {}, {}
    for name, steps, adjoint in (("direct", 4, False), ("adjoint", 4, True), ("few", 1, True)):
        torch.manual_seed(0)
        solver = ODESolver("euler" if name == "few" else "rk4", steps, adjoint=adjoint)
        trainer = trainer_of(*batched_pair(shape), model, solver=solver)
        for parameter in trainer.network.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        first = []
        trainer.add_event_handler(
            Events.ITERATION_COMPLETED(once=1),
            lambda engine, first=first: first.extend(p.grad.flatten() for p in engine.network.parameters()),
        )
        trainer.run()
        gradients[name], fields[name] = torch.cat(first), trainer.state.output["ddf"]
    assert (gradients["adjoint"] - gradients["direct"]).norm() < 0.02 * gradients["direct"].norm()
    error = (fields["adjoint"] - fields["direct"]).abs().max()
    assert error < 0.02 * fields["direct"].abs().max()
    assert (fields["few"] - fields["direct"]).abs().max() > 2 * error


class FarAtHalfTime(nn.Module):
    """A regulariser of somebody's own: the mean square of the displacement half way."""

    def forward(self, trajectory: Tensor) -> Tensor:
        assert trajectory.shape[0] == 3
        return trajectory[1].square().flatten(1).mean(1)


@every_model
@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_regulariser_of_the_trajectory_counts_and_its_gradient_arrives(shape, model, adjoint):
    loss = RegistrationLoss(
        nn.MSELoss(), trajectory_terms={"half way": (1e3, FarAtHalfTime())}, trajectory_times=(0, 0.5, 1)
    )
    trainer = trainer_of(
        *batched_pair(shape), model, loss_function=loss, solver=ODESolver("rk4", 2, adjoint=adjoint), iterations=8
    )
    for parameter in trainer.network.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    trainer.run()
    history = trainer.state.history
    assert (history["half way"].diff(dim=0) < 0).all()
    torch.testing.assert_close(history["loss"], history["similarity"] + 1e3 * history["half way"])
    # half of the way of a stationary velocity is half of its displacement, nearly
    if model is EulerianVelocity:
        whole = trainer.state.output["ddf"].square().mean()
        torch.testing.assert_close(history["half way"][-1, 0], whole / 4, rtol=0.2, atol=0)


@every_model
def test_several_channels(model):
    fixed, moving = batched_pair(SHAPES[0])
    trainer = trainer_of(torch.cat([fixed, 1 - fixed], 1), torch.cat([moving, 1 - moving], 1), model)
    trainer.run()
    assert (trainer.state.history["loss"].diff(dim=0) < 0).all()
    assert trainer.state.output["ddf"].shape == (1, 2, *SHAPES[0])


@pytest.mark.parametrize("unsure", [False, True])
def test_the_weight_is_the_product_of_the_masks_the_moving_one_where_it_is_taken(unsure):
    shape = SHAPES[0]
    seen = []

    class Sees(ImageLoss):
        def forward(self, pred, target, weight=None, spacing=None):
            seen.append(weight)
            return (pred - target).square().mean()

    fixed, moving = batched_pair(shape)
    fixed_mask, moving_mask, certainty = torch.rand(3, 1, 1, *shape)
    network = VelocityBatch([EulerianVelocity(2, shape)])
    trainer = PairTrainer(
        PairBatch(fixed, moving, fixed_mask, moving_mask, certainty if unsure else None),
        network,
        CountingAdam(network.parameters(), lr=0.1),
        RegistrationLoss(Sees()),
        ODESolver(),
        iterations=3,
    )
    trainer.run()
    fixed_mask = fixed_mask * certainty if unsure else fixed_mask
    torch.testing.assert_close(seen[0], fixed_mask * moving_mask, rtol=0, atol=1e-5)  # nothing has moved yet
    taken = warp(moving_mask, trainer.state.output["ddf"])
    torch.testing.assert_close(seen[2], fixed_mask * taken, rtol=0, atol=1e-5)
    assert not seen[2].requires_grad


@pytest.mark.parametrize(("fixed", "moving"), [((1, 1, 25, 21), (1, 1, 25, 20)), ((1, 1, 25, 21), (1, 1, 25, 21, 9))])
def test_images_on_different_grids_are_refused(fixed, moving):
    with pytest.raises(ValueError, match="differ in shape; resample the moving image"):
        trainer_of(torch.zeros(fixed), torch.zeros(moving))
    with pytest.raises(ValueError, match="and the level's .* differ in shape"):
        trainer_of(torch.zeros(fixed), torch.zeros(fixed), level=make_levels(SHAPES[0], (1.0, 1.0), (2,))[0])


@pytest.mark.parametrize("shape", SHAPES)
def test_positions_that_leave_the_finite_numbers_end_the_run_before_they_are_sampled(shape):
    trainer = trainer_of(*batched_pair(shape), iterations=50)
    trainer.optimizer.param_groups[0]["lr"] = 1e30
    with pytest.raises(DivergedError, match="lower learning_rate"):
        trainer.run()


# A tensor on the device "meta" has no values: whatever would make the host wait for a real device (item(), bool(),
# a copy to the host, a shape that depends on values) raises there.


def on_meta(shape: tuple[int, ...], model: Any = EulerianVelocity, **options: Any) -> PairTrainer:
    images = (torch.zeros(1, 1, *shape, device="meta") for _ in range(2))
    return trainer_of(*images, model, **options)


@pytest.mark.parametrize(
    ("model", "solver"),
    [
        *[(model, solver) for model in MODELS for solver in (ODESolver("euler", 3), ODESolver("rk4", 1))],
        (EulerianVelocity, ODESolver("midpoint", 2)),
        (EulerianVelocity, ScalingAndSquaring(2)),
    ],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_no_step_waits_for_the_device(shape, model, solver):
    trainer = on_meta(shape, model, solver=solver, iterations=3, handlers=(BestFit(window=2),))
    trainer.run()
    assert trainer.optimizer.steps + 1 == trainer.state.iteration == 3
    best = [x for of_model in trainer.state.best_weights for x in of_model]
    for tensor in (*best, *trainer.state.output.values(), *trainer.state.history.values()):
        assert tensor.device.type == "meta"


@pytest.mark.parametrize("shape", SHAPES)
def test_no_step_with_masks_and_landmarks_on_long_voxels_waits_either(shape):
    dims = len(shape)
    level = make_levels(shape, (1.0, 1.3, 1.7)[:dims], point_spacing=2)[0]
    on_grid = [torch.zeros(1, 1, *shape, device="meta") for _ in range(5)]  # images, masks and certainty
    landmarks = torch.zeros(1, 4, 2, dims, device="meta")
    network = VelocityBatch([EulerianVelocity(dims, level.cloud_size, spacing=level.cloud_spacing)]).to("meta")
    optimizer = CountingAdam(network.parameters())
    loss = make_loss(quick_settings(dims))
    PairTrainer(PairBatch(*on_grid, landmarks), network, optimizer, loss, ODESolver(), 3, level=level).run()
    assert optimizer.steps == 2


def test_early_stop_waits_only_when_it_looks():
    on_meta(SHAPES[0], handlers=(EarlyStop(window=6),), iterations=5).run()
    with pytest.raises(RuntimeError, match="meta"):
        on_meta(SHAPES[0], handlers=(EarlyStop(window=5),), iterations=5).run()


def test_a_step_of_an_optimiser_that_cannot_be_recorded_is_done_as_it_is():
    step = RecordedStep(iter(range(3)).__next__, torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1))
    assert [step() for _ in range(3)] == [0, 1, 2]
    assert not step.recordable


def test_a_recorded_step_finds_the_gradient_where_it_was(monkeypatch):
    """A graph knows addresses: the step at its start reads what the end of the last one has left."""

    class NotRecorded:
        recordable = True

        def __init__(self, step: Callable[[], Any], optimizer: torch.optim.Optimizer) -> None:
            self.step = step

        def __call__(self) -> Any:
            return self.step()

    monkeypatch.setattr("monai_nodeo.registration.optimisation.trainer.RecordedStep", NotRecorded)
    places, curves = set(), []
    for cuda_graph in (False, True):
        trainer = trainer_of(*batched_pair(SHAPES[0]), iterations=6)
        trainer.cuda_graph = cuda_graph
        trainer.add_event_handler(
            Events.ITERATION_COMPLETED,
            lambda engine, used=cuda_graph: used and places.add(next(engine.network.parameters()).grad.data_ptr()),
        )
        trainer.run()
        curves.append(trainer.state.history["loss"])
    assert len(places) == 1
    assert torch.equal(*curves)


def test_nothing_is_recorded_on_a_cpu():
    trainer = trainer_of(*batched_pair(SHAPES[0]), cuda_graph=True)
    trainer.run()
    assert not trainer.cuda_graph
    assert not any("capturable" in group and group["capturable"] for group in trainer.optimizer.param_groups)
