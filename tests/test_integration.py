# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchdiffeq import odeint

from monai_nodeo.flows.solver import METHODS, ODESolver
from monai_nodeo.geometry.coordinates import identity_grid

SHAPES = [(5, 7), (3, 5, 4)]
ORDERS = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}
MULTISTEP = ["explicit_adams", "implicit_adams"]
ADAPTIVE = ["dopri8", "dopri5", "bosh3", "fehlberg2", "adaptive_heun"]
FIXED = [*ORDERS, *MULTISTEP]
every_shape = pytest.mark.parametrize("shape", SHAPES)
every_fixed_method = pytest.mark.parametrize("method", FIXED)


class LinearVelocity(nn.Module):
    """``v = A phi``, the same at all times: the flow is the matrix exponential."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix = nn.Parameter(matrix)

    def forward(self, phi: Tensor, t: Tensor) -> Tensor:
        return torch.einsum("ij,bj...->bi...", self.matrix, phi)

    def flow(self, phi: Tensor, time: float) -> Tensor:
        return torch.einsum("ij,bj...->bi...", torch.linalg.matrix_exp(self.matrix.detach() * time), phi)


class PulsedVelocity(nn.Module):
    """``v = c t phi``: the flow is ``exp(c t^2 / 2)``."""

    def __init__(self, rate: float = 0.8) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate, dtype=torch.float64))

    def forward(self, phi: Tensor, t: Tensor) -> Tensor:
        assert t.ndim == 0
        return self.rate * t * phi

    def flow(self, phi: Tensor, time: float) -> Tensor:
        return phi * math.exp(self.rate.item() * time**2 / 2)


def grid(shape: tuple[int, ...], batch: int = 1) -> Tensor:
    return identity_grid(shape, dtype=torch.float64).expand(batch, -1, *shape)


def rotation(dims: int, angle: float = 1.0) -> LinearVelocity:
    """Rotation from axis 0 towards axis 1, by ``angle`` in unit time."""
    matrix = torch.zeros(dims, dims, dtype=torch.float64)
    matrix[1, 0], matrix[0, 1] = angle, -angle
    return LinearVelocity(matrix)


def shear(dims: int) -> LinearVelocity:
    return LinearVelocity(0.5 * torch.randn(dims, dims, dtype=torch.float64))


VELOCITIES: dict[str, Callable[[int], Any]] = {
    "rotation": rotation,
    "linear": shear,
    "time-dependent": lambda dims: PulsedVelocity(),
}
every_velocity = pytest.mark.parametrize("make", VELOCITIES.values(), ids=VELOCITIES.keys())


def error(solver: ODESolver, velocity: Any, phi: Tensor) -> float:
    with torch.no_grad():
        return float((solver(velocity, phi)[-1] - velocity.flow(phi, 1.0)).abs().max())


# Accuracy


def test_every_method_is_tried() -> None:
    assert set(METHODS) == {*FIXED, *ADAPTIVE}


@every_shape
@every_velocity
@pytest.mark.parametrize(("method", "order"), ORDERS.items())
def test_error_falls_with_the_order_of_the_method(
    shape: tuple[int, ...], make: Callable[[int], Any], method: str, order: int
) -> None:
    velocity, phi = make(len(shape)), grid(shape)

    coarse, fine = (error(ODESolver(method, num_steps=n), velocity, phi) for n in (16, 32))

    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.25)


@every_shape
@every_velocity
@pytest.mark.parametrize("method", MULTISTEP)
def test_multistep_methods_find_the_flow(shape: tuple[int, ...], make: Callable[[int], Any], method: str) -> None:
    # torchdiffeq's default order of 12 makes explicit_adams unstable.
    solver = ODESolver(method, num_steps=32, max_order=4, rtol=1e-6, atol=1e-7)

    assert error(solver, make(len(shape)), grid(shape)) < 2e-4


@every_shape
@every_velocity
@pytest.mark.parametrize("method", ADAPTIVE)
def test_adaptive_methods_find_the_flow(shape: tuple[int, ...], make: Callable[[int], Any], method: str) -> None:
    # The end lies within the last step, where torchdiffeq interpolates: with long steps that is the larger error.
    solver = ODESolver(method, rtol=1e-5, atol=1e-6, max_step=0.05)

    assert error(solver, make(len(shape)), grid(shape)) < 3e-3


@every_shape
def test_tolerance_governs_an_adaptive_method(shape: tuple[int, ...]) -> None:
    loose, tight = (
        error(ODESolver("dopri5", rtol=r, atol=r), rotation(len(shape), 3.0), grid(shape)) for r in (1e-2, 1e-9)
    )

    assert tight < 1e-7 < loose


@every_shape
def test_one_euler_step_adds_the_velocity(shape: tuple[int, ...]) -> None:
    velocity, phi = shear(len(shape)), grid(shape, batch=2)

    trajectory = ODESolver()(velocity, phi)

    assert trajectory.shape == (2, 2, len(shape), *shape)
    assert torch.equal(trajectory[0], phi)
    torch.testing.assert_close(trajectory[1], phi + velocity(phi, torch.tensor(0.0)))


@every_shape
def test_rotating_there_and_back_is_the_identity(shape: tuple[int, ...]) -> None:
    solver, phi = ODESolver("rk4", num_steps=16), grid(shape)

    there = solver(rotation(len(shape)), phi)[-1]
    back = solver(rotation(len(shape), -1.0), there)[-1]

    torch.testing.assert_close(back, phi, rtol=0, atol=1e-5)


# Times


@every_shape
@every_velocity
@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_trajectory_has_phi_at_each_time_time_first(
    shape: tuple[int, ...], make: Callable[[int], Any], method: str
) -> None:
    velocity, phi = make(len(shape)), grid(shape, batch=2)
    times = (0.0, 0.25, 0.5, 0.75, 1.0)

    trajectory = ODESolver(method, num_steps=16, rtol=1e-7, atol=1e-8)(velocity, phi, times)

    assert trajectory.shape == (5, 2, len(shape), *shape)
    torch.testing.assert_close(trajectory[0], phi, rtol=0, atol=0)
    for state, time in zip(trajectory, times, strict=True):
        torch.testing.assert_close(state, velocity.flow(phi, time), rtol=0, atol=1e-5)


@every_fixed_method
@every_shape
def test_more_times_do_not_change_the_end(method: str, shape: tuple[int, ...]) -> None:
    solver, velocity, phi = ODESolver(method, num_steps=6), shear(len(shape)), grid(shape)

    assert torch.equal(solver(velocity, phi, (0.0, 0.1, 0.37, 0.9, 1.0))[-1], solver(velocity, phi)[-1])


@every_shape
def test_times_between_the_steps_are_interpolated(shape: tuple[int, ...]) -> None:
    velocity, phi = rotation(len(shape)), grid(shape)

    _, first, middle, _ = ODESolver("midpoint", num_steps=2)(velocity, phi, (0.0, 0.25, 0.5, 1.0))

    torch.testing.assert_close(first, (phi + middle) / 2)
    cubic = ODESolver("midpoint", num_steps=2, interp="cubic")(velocity, phi, (0.0, 0.25, 0.5, 1.0))[1]
    exact = velocity.flow(phi, 0.25)
    assert (cubic - exact).abs().max() < 0.5 * (first - exact).abs().max()


@every_shape
@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_integration_starts_at_the_first_time(shape: tuple[int, ...], method: str) -> None:
    velocity, phi = PulsedVelocity(), grid(shape)

    end = ODESolver(method, num_steps=32, rtol=1e-8, atol=1e-9)(velocity, phi, (0.5, 1.5))[-1]

    torch.testing.assert_close(end, phi * math.exp(0.8 * (1.5**2 - 0.5**2) / 2), rtol=1e-5, atol=0)


@pytest.mark.parametrize("times", [(0.0,), (), (0.0, 0.0), (1.0, 0.0), (0.0, 0.6, 0.4, 1.0), (0.0, 0.5, 0.5)])
def test_times_that_do_not_increase_are_refused(times: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="times must be at least two and increase, got"):
        ODESolver()(PulsedVelocity(), grid((5, 7)), times)


# Against torchdiffeq called directly


@every_shape
@every_velocity
@every_fixed_method
@pytest.mark.parametrize("num_steps", [1, 5])
def test_fixed_steps_are_torchdiffeqs_in_value_and_gradient(
    shape: tuple[int, ...], make: Callable[[int], Any], method: str, num_steps: int
) -> None:
    velocity, phi = make(len(shape)), grid(shape).clone().requires_grad_()
    weight = torch.randn_like(phi)
    steps = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)

    ours = ODESolver(method, num_steps)(velocity, phi)[-1]
    theirs = odeint(lambda t, y: velocity(y, t), phi, steps, method=method, rtol=1e-3, atol=1e-4)[-1]

    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    wanted = [phi, *velocity.parameters()]
    for a, b in zip(*(torch.autograd.grad((y * weight).sum(), wanted) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@every_shape
@pytest.mark.parametrize("method", ADAPTIVE)
def test_adaptive_steps_are_torchdiffeqs(shape: tuple[int, ...], method: str) -> None:
    velocity, phi = shear(len(shape)), grid(shape)
    times = (0.0, 0.4, 1.0)

    ours = ODESolver(method, rtol=1e-4, atol=1e-5, first_step=0.05)(velocity, phi, times)

    t = torch.tensor(times, dtype=torch.float64)
    theirs = odeint(
        lambda t, y: velocity(y, t), phi, t, method=method, rtol=1e-4, atol=1e-5, options={"first_step": 0.05}
    )
    assert torch.equal(ours, theirs)


@every_shape
@pytest.mark.parametrize("method", ["euler", "rk4"])
def test_single_precision_stays_single(shape: tuple[int, ...], method: str) -> None:
    velocity, phi = shear(len(shape)), grid(shape)
    solver = ODESolver(method, num_steps=7)
    exact = solver(velocity, phi)

    trajectory = solver(velocity.float(), phi.float())

    assert trajectory.dtype == torch.float32
    torch.testing.assert_close(trajectory.double(), exact, rtol=0, atol=1e-5)


# Gradient


@every_shape
@every_velocity
@pytest.mark.parametrize(
    "solver", [{"method": "rk4", "num_steps": 32}, {"method": "dopri5", "rtol": 1e-8, "atol": 1e-9}]
)
def test_adjoint_gradient_is_the_direct_one_when_steps_are_small(
    shape: tuple[int, ...], make: Callable[[int], Any], solver: dict[str, Any]
) -> None:
    velocity, phi = make(len(shape)), grid(shape).clone().requires_grad_()
    wanted = [phi, *velocity.parameters()]
    weight = torch.randn_like(phi)

    direct, adjoint = (ODESolver(**solver, adjoint=flag)(velocity, phi)[-1] for flag in (False, True))

    torch.testing.assert_close(adjoint, direct, rtol=0, atol=1e-12)
    for a, b in zip(*(torch.autograd.grad((y * weight).sum(), wanted) for y in (adjoint, direct)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@every_shape
def test_gradient_through_one_step_is_exact_only_without_the_adjoint(shape: tuple[int, ...]) -> None:
    # One Euler step: phi + A phi, of which the gradient for A is phi at the start; the adjoint takes phi at the end.
    velocity, phi = shear(len(shape)), grid(shape)
    weight = torch.randn_like(phi)

    direct, adjoint = (
        torch.autograd.grad((ODESolver(adjoint=flag)(velocity, phi)[-1] * weight).sum(), velocity.matrix)[0]
        for flag in (False, True)
    )

    exact = torch.einsum("bi...,bj...->ij", weight, phi)
    torch.testing.assert_close(direct, exact)
    assert (adjoint - exact).abs().max() > 1e-3


@pytest.mark.parametrize("adjoint", [False, True])
@every_shape
def test_gradient_comes_from_every_time(shape: tuple[int, ...], adjoint: bool) -> None:
    velocity, phi = shear(len(shape)), grid(shape)
    solver = ODESolver("rk4", num_steps=16, adjoint=adjoint)
    times = (0.0, 0.25, 0.75, 1.0)

    loss = solver(velocity, phi, times).square().sum()
    (gradient,) = torch.autograd.grad(loss, velocity.matrix)

    def exact(matrix: Tensor) -> Tensor:
        flows = [torch.linalg.matrix_exp(matrix * time) for time in times]
        return sum((torch.einsum("ij,bj...->bi...", f, phi).square().sum() for f in flows), torch.tensor(0.0))

    matrix = velocity.matrix.detach().clone().requires_grad_()
    torch.testing.assert_close(gradient, torch.autograd.grad(exact(matrix), matrix)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_solver_keeps_nothing_between_calls(method: str) -> None:
    velocity, phi = shear(2), grid((5, 7))
    solver = ODESolver(method, num_steps=8)
    alone = solver(velocity, phi)

    solver(PulsedVelocity(), grid((3, 5, 4)))

    assert torch.equal(solver(velocity, phi), alone)


# Options


@pytest.mark.parametrize("method", ["Euler", "rk5", "scipy_solver", "", "fixed_adams"])
def test_unknown_method_lists_the_methods(method: str) -> None:
    with pytest.raises(ValueError, match="'euler'") as caught:
        ODESolver(method)
    for name in METHODS:
        assert f"'{name}'" in str(caught.value)


@pytest.mark.parametrize(
    ("method", "option", "valid"),
    [
        ("euler", "interpolation", "interp"),
        ("rk4", "first_step", "interp"),
        ("euler", "step_size", "interp"),
        ("midpoint", "grid_constructor", "interp"),
        ("dopri5", "firststep", "first_step"),
        ("dopri5", "interp", "max_num_steps"),
        ("implicit_adams", "max_iter", "max_iters"),
    ],
)
def test_unknown_option_lists_the_options_of_the_method(method: str, option: str, valid: str) -> None:
    with pytest.raises(ValueError, match=option) as caught:
        ODESolver(method, **{option: 1})
    assert f"'{valid}'" in str(caught.value)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("euler", {"interp": "cubic"}),
        ("dopri5", {"first_step": 0.01, "max_step": 0.02, "safety": 0.8}),
        ("implicit_adams", {"max_order": 4, "max_iters": 8}),
    ],
)
def test_options_change_the_solution(method: str, options: dict[str, Any]) -> None:
    velocity, phi, times = PulsedVelocity(), grid((5, 7)), (0.0, 0.33, 1.0)

    plain, other = (ODESolver(method, num_steps=8, **more)(velocity, phi, times) for more in ({}, options))

    assert not torch.equal(plain, other)
    torch.testing.assert_close(plain, other, rtol=0, atol=1e-2)


@pytest.mark.parametrize("interp", ["bogus", "quadratic"])
def test_unknown_interpolation_is_refused(interp: str) -> None:
    with pytest.raises(ValueError, match=interp):
        ODESolver(interp=interp)(PulsedVelocity(), grid((5, 7)))


@pytest.mark.parametrize("num_steps", [0, -4])
def test_fewer_than_one_step_is_refused(num_steps: int) -> None:
    with pytest.raises(ValueError, match=f"num_steps must be a whole number from 1, got {num_steps}"):
        ODESolver(num_steps=num_steps)


@pytest.mark.parametrize(
    ("options", "waits"),
    [({"method": "rk4"}, False), ({"method": "euler", "adjoint": True}, True), ({"method": "dopri5"}, True)],
)
def test_solvers_that_look_at_what_is_computed_wait_for_the_device(options, waits):
    assert ODESolver(**options).waits_for_device is waits
