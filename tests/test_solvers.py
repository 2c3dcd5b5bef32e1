# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from synthetic import smooth_ddf
from torch import Tensor, nn
from torch.autograd import gradcheck
from torchdiffeq import odeint

from monai_nodeo.flows import NodeVelocity, ODESolver, RungeKutta, ScalingAndSquaring, Solver, TrapezoidalRule
from monai_nodeo.flows.solvers import runge_kutta as runge_kutta_module
from monai_nodeo.flows.solvers.torchdiffeq_solver import METHODS
from monai_nodeo.geometry import sampling
from monai_nodeo.geometry.coordinates import identity_grid, voxels_per_unit

SHAPES = [(5, 7), (3, 5, 4)]
ORDERS = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}
MULTISTEP = ["explicit_adams", "implicit_adams"]
ADAPTIVE = ["dopri8", "dopri5", "bosh3", "fehlberg2", "adaptive_heun"]
every_shape = pytest.mark.parametrize("shape", SHAPES)


class LinearVelocity(nn.Module):
    """``v = A phi``, the same at all times: the flow is the matrix exponential."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix = nn.Parameter(matrix)

    def forward(self, phi: Tensor, t: Tensor) -> Tensor:
        return torch.einsum("ij,bj...->bi...", self.matrix, phi)

    def flow(self, phi: Tensor, start: float, end: float) -> Tensor:
        return torch.einsum("ij,bj...->bi...", torch.linalg.matrix_exp(self.matrix.detach() * (end - start)), phi)


class PulsedVelocity(nn.Module):
    """``v = c t phi``: the flow is ``exp(c t^2 / 2)``."""

    def __init__(self, rate: float = 0.8) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate, dtype=torch.float64))

    def forward(self, phi: Tensor, t: Tensor) -> Tensor:
        assert t.ndim == 0
        return self.rate * t * phi

    def flow(self, phi: Tensor, start: float, end: float) -> Tensor:
        return phi * math.exp(self.rate.item() * (end**2 - start**2) / 2)


def grid(shape: tuple[int, ...], batch: int = 1) -> Tensor:
    return identity_grid(shape, dtype=torch.float64).expand(batch, -1, *shape)


def linear(dims: int) -> LinearVelocity:
    return LinearVelocity(0.5 * torch.randn(dims, dims, dtype=torch.float64))


VELOCITIES: dict[str, Callable[[int], Any]] = {"linear": linear, "time-dependent": lambda dims: PulsedVelocity()}
every_velocity = pytest.mark.parametrize("make", VELOCITIES.values(), ids=VELOCITIES.keys())


@torch.no_grad()
def error(solver: Solver, velocity: Any, phi: Tensor, times: tuple[float, ...] = (0.0, 1.0)) -> float:
    """Largest difference from the exact flow, at any of the times."""
    states = solver(velocity, phi, times)
    assert len(states) == len(times)
    assert torch.equal(states[0], phi)
    exact = [velocity.flow(phi, times[0], time) for time in times]
    return max(float((state - flow).abs().max()) for state, flow in zip(states, exact, strict=True))


FIXED = {name: (lambda n, name=name: ODESolver(name, num_steps=n), order) for name, order in ORDERS.items()}
FIXED |= {"runge_kutta": (RungeKutta, 3), "trapezoidal": (TrapezoidalRule, 2)}


@every_shape
@every_velocity
@pytest.mark.parametrize("times", [(0.0, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize(("solver", "order"), FIXED.values(), ids=FIXED)
def test_error_falls_with_the_order_of_the_method(shape, make, solver, order, times):
    velocity, phi = make(len(shape)), grid(shape)
    coarse, fine = (error(solver(n), velocity, phi, times) for n in (16, 32))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.3)


OTHERS = {
    # torchdiffeq's default order of 12 makes explicit_adams unstable
    **{name: (ODESolver(name, 32, max_order=4, rtol=1e-6, atol=1e-7), 2e-4) for name in MULTISTEP},
    # the end lies within the last step, where torchdiffeq interpolates: with long steps that is the larger error
    **{name: (ODESolver(name, rtol=1e-5, atol=1e-6, max_step=0.05), 3e-3) for name in ADAPTIVE},
}


@every_shape
@every_velocity
@pytest.mark.parametrize("times", [(0.0, 0.25, 0.5, 0.75, 1.0), (1.0, 0.6, 0.0), (0.3, 0.8)])
@pytest.mark.parametrize(("solver", "tolerance"), OTHERS.values(), ids=OTHERS)
def test_other_methods_find_the_flow(shape, make, solver, tolerance, times):
    assert error(solver, make(len(shape)), grid(shape), times) < tolerance


ROUGH = {
    **{name: ODESolver(name, num_steps=6) for name in ORDERS},
    "runge_kutta": RungeKutta(6),
    "trapezoidal": TrapezoidalRule(6),
}


@every_shape
@every_velocity
@pytest.mark.parametrize("solver", ROUGH.values(), ids=ROUGH)
def test_more_times_do_not_cost_accuracy(shape, make, solver):
    velocity, phi = make(len(shape)), grid(shape)
    alone = solver(velocity, phi)[-1]
    torch.testing.assert_close(solver(velocity, phi, (0.0, 0.5, 1.0))[-1], alone, rtol=0, atol=1e-12)
    for times in ((0.0, 0.1, 0.37, 0.9, 1.0), (1.0, 0.95, 0.5, 0.0)):
        assert error(solver, velocity, phi, times) < 1.3 * error(solver, velocity, phi, (times[0], times[-1]))


ALL = {
    **{name: ODESolver(name, num_steps=8) for name in METHODS},
    "runge_kutta": RungeKutta(),
    "trapezoidal": TrapezoidalRule(8),
}
every_solver = pytest.mark.parametrize("solver", [*ALL.values(), ScalingAndSquaring()], ids=[*ALL, "squaring"])


@every_solver
@pytest.mark.parametrize("times", [(0.0,), (), (0.0, 0.0), (0.0, 0.6, 0.4, 1.0), (1.0, 0.5, 0.5)])
def test_times_that_do_not_go_one_way_are_refused(solver, times):
    velocity = NodeVelocity([torch.zeros(1, 2, 5, 7, dtype=torch.float64)])
    with pytest.raises(ValueError, match=r"times must be at least two and go in one direction, got \("):
        solver(velocity, grid((5, 7)), times)


@every_shape
@every_velocity
@pytest.mark.parametrize("method", [*ORDERS, *MULTISTEP])
@pytest.mark.parametrize("num_steps", [1, 5])
def test_fixed_steps_are_torchdiffeqs_in_value_and_gradient(shape, make, method, num_steps):
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
def test_adaptive_steps_are_torchdiffeqs(shape, method):
    velocity, phi, times = linear(len(shape)), grid(shape), (0.0, 0.4, 1.0)
    ours = ODESolver(method, rtol=1e-4, atol=1e-5, first_step=0.05)(velocity, phi, times)
    t = torch.tensor(times, dtype=torch.float64)
    theirs = odeint(
        lambda t, y: velocity(y, t), phi, t, method=method, rtol=1e-4, atol=1e-5, options={"first_step": 0.05}
    )
    assert torch.equal(ours, theirs)


@every_shape
@every_velocity
@pytest.mark.parametrize("options", [{"method": "rk4", "num_steps": 32}, {"method": "dopri5", "rtol": 1e-8}])
@pytest.mark.parametrize("times", [(0.0, 1.0), (0.0, 0.25, 0.75, 1.0), (1.0, 0.0)])
def test_adjoint_gradient_is_the_direct_one_when_steps_are_small(shape, make, options, times):
    velocity, phi = make(len(shape)), grid(shape).clone().requires_grad_()
    weight = torch.randn(len(times), *phi.shape, dtype=phi.dtype)
    wanted = [phi, *velocity.parameters()]
    direct, adjoint = (ODESolver(**options, atol=1e-9, adjoint=flag)(velocity, phi, times) for flag in (False, True))
    torch.testing.assert_close(adjoint, direct, rtol=0, atol=1e-12)
    for a, b in zip(*(torch.autograd.grad((y * weight).sum(), wanted) for y in (adjoint, direct)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["Euler", "rk5", "scipy_solver", "", "fixed_adams"])
def test_unknown_method_lists_the_methods(method):
    with pytest.raises(ValueError, match="'euler'") as caught:
        ODESolver(method)
    for name in METHODS:
        assert f"'{name}'" in str(caught.value)


@pytest.mark.parametrize(
    ("method", "option", "valid"),
    [
        ("rk4", "first_step", "num_steps"),
        ("euler", "step_size", "num_steps"),
        ("midpoint", "grid_constructor", "num_steps"),
        ("rk4", "interp", "num_steps"),
        ("dopri5", "firststep", "first_step"),
        ("dopri5", "interp", "max_num_steps"),
        ("implicit_adams", "max_iter", "max_iters"),
    ],
)
def test_unknown_option_lists_the_options_of_the_method(method, option, valid):
    with pytest.raises(ValueError, match=option) as caught:
        ODESolver(method, **{option: 1})
    assert f"'{valid}'" in str(caught.value)


@pytest.mark.parametrize("solver", [ODESolver("dopri5", rtol=1e-2, atol=1e-3, first_step=0.2), ODESolver("rk4", 3)])
def test_a_finer_solver_has_the_same_options_and_a_smaller_error(solver):
    velocity = LinearVelocity(torch.tensor([[0.0, -3.0], [3.0, 0.0]], dtype=torch.float64))
    assert vars(ODESolver(**solver.options())) == vars(solver)
    assert solver.finer().options().get("first_step") == solver.options().get("first_step")
    assert error(solver.finer(), velocity, grid((5, 7))) < 0.3 * error(solver, velocity, grid((5, 7)))


@pytest.mark.parametrize("steps", [0, -4, 1.5])
def test_steps_are_counted_in_whole_numbers(steps):
    for make in (ODESolver, RungeKutta):
        with pytest.raises(ValueError, match=f"num_steps must be a whole number from 1.*, got {steps}"):
            make(num_steps=steps)
    for stretch in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="stretch greater than 0"):
            RungeKutta(stretch=stretch)


# RungeKutta for velocities at nodes

NODES = [(9, 13), (7, 9, 12), (7, 1, 9), (9, 5, 1), (7, 1)]
every_nodes = pytest.mark.parametrize("shape", NODES)


def node_velocity(
    shape: tuple[int, ...], keyframes: int = 1, batch: int = 1, largest: float = 2.0, dtype: torch.dtype = torch.float64
) -> NodeVelocity:
    """Smooth velocities of up to ``largest`` nodes."""
    scale = voxels_per_unit(shape, dtype, torch.device("cpu"))
    images = []
    for seed in range(keyframes):
        fields = [smooth_ddf(shape, 10 * seed + item, largest, sigma=2.0).to(dtype) for item in range(batch)]
        images.append(torch.stack(fields) / scale.clamp(min=0.5) * (scale > 0))
    return NodeVelocity(images)


def cloud(shape: tuple[int, ...], batch: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    """Points in general position, some of them outside, in a cloud of another shape than the nodes."""
    return 2.4 * torch.rand(batch, len(shape), *(4, 5, 6)[: len(shape)], dtype=dtype) - 1.2


def nodes_apart(shape: tuple[int, ...], a: Tensor, b: Tensor) -> float:
    """The largest distance of positions along an axis, in nodes."""
    return float(((a - b) * voxels_per_unit(shape, a.dtype, a.device)).abs().max())


@every_nodes
@pytest.mark.parametrize("keyframes", [1, 3])
@pytest.mark.parametrize("times", [(0.0, 1.0), (1.0, 0.4, 0.0), (0.2, 0.9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kernels_and_plain_operations_agree(shape, keyframes, times, dtype, monkeypatch):
    velocity, phi = node_velocity(shape, keyframes, batch=2, dtype=dtype), cloud(shape, 2, dtype)
    solver = RungeKutta(16, 0.02)
    by_kernels = solver(velocity, phi, times)
    monkeypatch.setattr(runge_kutta_module, "kernels_for", lambda *_: None)
    plain = solver(velocity, phi, times)
    assert [state.dtype for state in by_kernels] == [dtype] * len(times)
    for a, b in zip(by_kernels, plain, strict=True):
        assert nodes_apart(shape, a, b) < 1e-3
    assert nodes_apart(shape, by_kernels[-1], phi) > 0.3


@every_nodes
@pytest.mark.parametrize("largest", [1.0, 6.0])
def test_a_finer_solver_tells_the_error(shape, largest):
    velocity, phi = node_velocity(shape, largest=largest), cloud(shape)
    solver = RungeKutta()
    found = solver(velocity, phi)[-1]
    exact = RungeKutta(64, 0.005)(velocity, phi)[-1]
    told, true = (nodes_apart(shape, found, x) for x in (solver.finer()(velocity, phi)[-1], exact))
    assert solver.finer().options() == {"num_steps": 4, "stretch": 0.125}
    assert true < 0.02
    assert true / 3 < told < 3 * true


@pytest.mark.parametrize("kernels", [True, False])
def test_no_keyframe_is_jumped_over(kernels, monkeypatch):
    if not kernels:
        monkeypatch.setattr(runge_kutta_module, "kernels_for", lambda *_: None)
    frames = torch.zeros(10, 1, 2, 5, 6)
    frames[3] = 0.9  # everywhere, so the way is the area under a hat that is 2/9 wide
    for times, way in (((0.0, 1.0), 0.1), ((1.0, 0.0), -0.1), ((0.0, 1 / 3), 0.05)):
        found = RungeKutta()(NodeVelocity(tuple(frames)), torch.zeros(1, 2, 3, 3), times)[-1]
        torch.testing.assert_close(found, torch.full_like(found, way), atol=1e-5, rtol=0)


def test_gradients_through_runge_kutta():
    velocity, phi = node_velocity((5, 6), 2), cloud((5, 6))[..., :2, :2].clone().requires_grad_()
    images = [image.requires_grad_() for image in velocity.keyframes]
    assert gradcheck(lambda p, *frames: RungeKutta()(NodeVelocity(frames), p)[-1], (phi, *images))


@every_nodes
def test_a_point_that_is_no_number_stays_alone(shape):
    velocity, phi = node_velocity(shape), cloud(shape)
    expected = RungeKutta()(velocity, phi)[-1]
    spoilt = phi.clone()
    spoilt[0, 0].view(-1)[3] = torch.nan
    found = RungeKutta()(velocity, spoilt)[-1].flatten(2)
    assert found[0, 0, 3].isnan()
    others = [n for n in range(found.shape[2]) if n != 3]
    torch.testing.assert_close(found[..., others], expected.flatten(2)[..., others])


SQUARED = [(17, 21), (13, 15, 12), (17, 1, 21), (17, 21, 1)]
every_squared = pytest.mark.parametrize("shape", SQUARED)


@every_squared
@pytest.mark.parametrize("times", [(0.0, 1.0), (1.0, 0.0), (0.5, 0.75)])
def test_squaring_agrees_with_small_steps(shape, times):
    velocity = node_velocity(shape, batch=2, largest=1.0)
    nodes = grid(shape, 2)
    start, found = ScalingAndSquaring(4)(velocity, nodes, times)
    assert torch.equal(start, nodes)
    for solver in (ODESolver("rk4", 16), ODESolver("midpoint", 32)):
        assert nodes_apart(shape, found, solver(velocity, nodes, times)[-1]) < 0.03
    assert nodes_apart(shape, found, nodes) > 0.2


@every_squared
@pytest.mark.parametrize("squarings", [0, 1, 5])
def test_squaring_of_a_constant_velocity_is_a_translation(shape, squarings):
    step = torch.tensor([0.3, -0.2, 0.1][: len(shape)], dtype=torch.float64).view(1, -1, *[1] * len(shape))
    velocity, nodes = NodeVelocity([step.expand(1, -1, *shape)]), grid(shape)
    torch.testing.assert_close(ScalingAndSquaring(squarings)(velocity, nodes)[-1], nodes + step)
    half = 2**squarings
    torch.testing.assert_close(
        ScalingAndSquaring(squarings)(NodeVelocity([-0.1 * nodes]), nodes)[-1],
        nodes * (1 - 0.1 / half + 0.005 / half**2) ** half,  # steps of the midpoint rule
    )


@every_squared
def test_the_gradient_of_squaring_is_that_of_plain_operations(shape, monkeypatch):
    image = node_velocity(shape, batch=2).keyframes[0].requires_grad_()
    weight = torch.randn_like(image)

    def gradient() -> Tensor:
        arrived = ScalingAndSquaring(3)(NodeVelocity([image]), grid(shape, 2))[-1]
        return torch.autograd.grad((arrived * weight).sum(), image)[0]

    by_kernels = gradient()
    monkeypatch.setattr(sampling, "kernels_for", lambda *_: None)
    torch.testing.assert_close(by_kernels, gradient(), rtol=1e-9, atol=1e-11)


def test_what_cannot_be_squared_is_refused():
    nodes, velocity = grid((9, 13)), node_velocity((9, 13))
    cases = [
        (velocity, nodes, (0.0, 0.5, 1.0)),
        (node_velocity((9, 13), 2), nodes, (0.0, 1.0)),
        (lambda phi, t: phi, nodes, (0.0, 1.0)),
        (linear(2), nodes, (0.0, 1.0)),
    ]
    for case in cases:
        with pytest.raises(
            ValueError, match="scaling and squaring needs one velocity at the nodes.* take an ODESolver"
        ):
            ScalingAndSquaring()(*case)
    with pytest.raises(ValueError, match=r"\(9, 12\) points differ from the \(9, 13\) nodes"):
        ScalingAndSquaring()(velocity, grid((9, 12)))
    with pytest.raises(ValueError, match="num_squarings must be 0 or more, got -1"):
        ScalingAndSquaring(-1)


@pytest.mark.parametrize("times", [(0.0, 0.13, 0.14, 0.5, 1.0), (0.9, 0.4, 0.35, 0.05)])
def test_the_trapezoidal_rule_looks_at_the_velocity_once_a_step(times):
    inner, seen = PulsedVelocity(), []

    def velocity(phi: Tensor, t: Tensor) -> Tensor:
        seen.append(float(t))
        return inner(phi, t)

    TrapezoidalRule(4)(velocity, grid((5, 7)), times)
    low, high = sorted((times[0], times[-1]))
    expected = [low, *[t for t in (0.25, 0.5, 0.75) if low < t < high], high]
    assert sorted(seen) == pytest.approx(expected)
    with pytest.raises(ValueError, match="num_steps must be a whole number from 1, got 0"):
        TrapezoidalRule(0)
