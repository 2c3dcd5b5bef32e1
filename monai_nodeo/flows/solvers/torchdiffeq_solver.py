# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Solvers of any velocity, by torchdiffeq."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from monai.utils import look_up_option
from torch import Tensor, nn
from torchdiffeq import odeint, odeint_adjoint
from torchdiffeq._impl.odeint import SOLVERS  # private: setup.cfg bounds the version, a test holds what is used of it
from torchdiffeq._impl.solvers import FixedGridODESolver

from monai_nodeo.flows.solvers.protocol import Velocity, check_times, steps_between

__all__ = ["METHODS", "ODESolver"]

# Aliases and wrappers that need another library are left out.
METHODS = tuple(name for name in SOLVERS if name not in ("fixed_adams", "scipy_solver"))


class _TimeFirst(nn.Module):
    """torchdiffeq calls ``func(t, y)`` with a growing t; ``sign`` is that of the direction of time."""

    def __init__(self, velocity: Velocity, sign: float) -> None:
        super().__init__()
        self.velocity = velocity
        self.sign = sign

    def forward(self, t: Tensor, phi: Tensor, perturb: Any = None) -> Tensor:
        return self.velocity(phi, t) if self.sign > 0 else -self.velocity(phi, -t)

    def callback_step(self, *_: Any) -> None:
        """Nothing to do: the solver classes ask for it."""


def _is_fixed_grid(method: str) -> bool:
    return issubclass(SOLVERS[method], FixedGridODESolver)


def _valid_options(method: str) -> list[str]:
    """Names that the solver's constructors take, less those that this module sets itself."""
    names = {
        name
        for cls in SOLVERS[method].__mro__
        if "__init__" in vars(cls)
        for name, p in inspect.signature(cls.__init__).parameters.items()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    owned = {"self", "func", "y0", "rtol", "atol", "dtype", "norm"}
    if _is_fixed_grid(method):
        owned |= {"step_size", "grid_constructor", "perturb", "interp"}  # each requested time ends a step
    return sorted(names - owned)


class ODESolver:
    """Solves ``d phi / dt = v(phi, t)``, forwards or backwards in time.

    Fixed-grid methods take ``num_steps`` equal steps a unit of time and never wait for the device; adaptive methods
    choose their own steps from ``rtol`` and ``atol``.

    Args:
        method: a torchdiffeq method, among them ``"euler"``, ``"midpoint"``, ``"rk4"`` (fixed grid) and ``"dopri5"``
            (adaptive).
        num_steps: steps of a fixed-grid method from t = 0 to t = 1.
        adjoint: solve backwards for the gradient (``odeint_adjoint``): memory does not grow with the number of steps,
            but the result is not the exact gradient of the discrete solution. The velocity has to be a module.
        rtol: relative tolerance of an adaptive method.
        atol: absolute tolerance of an adaptive method, in the units of phi.
        options: further options of the torchdiffeq solver.

    Raises:
        ValueError: for an unknown method or option (the valid ones are listed), or fewer than one step.

    Example:
        >>> solver = ODESolver("rk4", num_steps=4)
        >>> trajectory = solver(lambda phi, t: -phi, torch.rand(1, 3, 32, 40, 24))
        >>> trajectory.shape
        torch.Size([2, 1, 3, 32, 40, 24])
    """

    def __init__(
        self,
        method: str = "euler",
        num_steps: int = 1,
        adjoint: bool = False,
        rtol: float = 1e-3,
        atol: float = 1e-4,
        **options: Any,
    ) -> None:
        self.method: str = look_up_option(method, METHODS)
        if num_steps < 1 or num_steps != int(num_steps):
            raise ValueError(f"num_steps must be a whole number from 1, got {num_steps}.")
        valid = _valid_options(self.method)
        for name in options:
            look_up_option(name, ["num_steps", "adjoint", "rtol", "atol", *valid])
        self.num_steps = num_steps
        self.adjoint = adjoint
        self.rtol = rtol
        self.atol = atol
        self._options = options

    def options(self) -> dict[str, Any]:
        """Arguments that make the same solver."""
        names = ("method", "num_steps", "adjoint", "rtol", "atol")
        return {**{name: getattr(self, name) for name in names}, **self._options}

    def finer(self) -> ODESolver:
        """With half the steps and a sixteenth of the tolerances."""
        more = {"num_steps": 2 * self.num_steps, "rtol": self.rtol / 16, "atol": self.atol / 16}
        return ODESolver(**{**self.options(), **more})

    @property
    def waits_for_device(self) -> bool:
        """Whether the host looks at what has been computed before it goes on."""
        return self.adjoint or not _is_fixed_grid(self.method)

    def __call__(self, velocity: Velocity, phi0: Tensor, times: Sequence[float] = (0.0, 1.0)) -> Tensor:
        """Integrate.

        Args:
            velocity: (phi, t) -> velocity, a module for the adjoint method, all (B, D, *spatial); t is a scalar tensor,
                with a fixed-grid method on the CPU whatever the device of phi.
            phi0: positions at ``times[0]``, (B, D, *spatial).
            times: at least two, growing or falling.

        Returns:
            trajectory, (T, B, D, *spatial): phi at each of the times, the first is ``phi0``.

        Raises:
            ValueError: when the times do not go in one direction.
        """
        check_times(times)
        sign = 1.0 if times[1] > times[0] else -1.0
        func = _TimeFirst(velocity, sign)
        t = torch.tensor(times, dtype=phi0.dtype) * sign
        options = dict(self._options)
        if _is_fixed_grid(self.method):
            options["grid_constructor"] = self._time_grid
            if not self.adjoint:
                # odeint() would move the times to the device and compare them there: one wait of the host a step.
                solver = SOLVERS[self.method](func, phi0, rtol=self.rtol, atol=self.atol, **options)
                return solver.integrate(t)
        solve = odeint_adjoint if self.adjoint else odeint
        return solve(func, phi0, t.to(phi0.device), rtol=self.rtol, atol=self.atol, method=self.method, options=options)

    def _time_grid(self, _func: Callable, _y0: Tensor, t: Tensor) -> Tensor:
        """Equal steps between each two requested times."""
        parts = [
            torch.linspace(a, b, steps_between(a, b, self.num_steps) + 1, dtype=t.dtype)[:-1]
            for a, b in pairwise(t.tolist())
        ]
        return torch.cat([*parts, t[-1:].cpu()]).to(t.device)
