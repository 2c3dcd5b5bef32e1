# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The file of a flow: safetensors, numbers and a header of JSON. Models and solvers are named, nothing is run."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch.overrides import TorchFunctionMode

import monai_nodeo.flows.eulerian  # noqa: F401  # the models of this package make themselves known
from monai_nodeo.files import ImageGrid, atomic_path
from monai_nodeo.flows.solvers.protocol import Solver
from monai_nodeo.flows.solvers.runge_kutta import RungeKutta
from monai_nodeo.flows.solvers.trapezoidal import TrapezoidalRule
from monai_nodeo.flows.velocity import VelocityModel

__all__ = ["FlowFileError", "FlowParts", "read_flow", "write_flow"]

_FORMAT = "monai_nodeo.flow.1"
# numbers that may be made while a model is built: so many for each of it in the file, or as many as small models need
_NUMBERS_MADE = 64
_FEW_NUMBERS = 2**24

T = TypeVar("T")


class FlowFileError(ValueError):
    """A file that holds no flow. The message names the file, what was found and what to do."""


class FlowParts(NamedTuple):
    """What a :py:class:`monai_nodeo.flows.Flow` is made of, in the order of its arguments."""

    velocity: VelocityModel
    solver: Solver
    domain: ImageGrid
    grid: ImageGrid
    backward: bool
    span: tuple[float, float]


def write_flow(path: str | PathLike[str], flow: FlowParts) -> None:
    """Write a flow; the file appears whole or not at all.

    Raises:
        TypeError: when the velocity or the solver does not say its ``options()``.
    """
    if not hasattr(flow.solver, "options"):
        raise TypeError(f"{type(flow.solver).__name__} cannot be saved: give it a method options().")
    velocity = flow.velocity.kept()
    header = {
        "format": _FORMAT,
        "velocity": {"name": type(velocity).__name__, "options": velocity.options()},
        "solver": {"name": type(flow.solver).__name__, "options": flow.solver.options()},
        "domain": _grid_to_json(flow.domain),
        "grid": _grid_to_json(flow.grid),
        "backward": flow.backward,
        "span": list(flow.span),
    }
    state = {name: x.detach().cpu().contiguous() for name, x in velocity.state_dict().items()}
    data = save(state, {"flow": json.dumps(header)})
    with atomic_path(path) as partial:
        partial.write_bytes(data)


def read_flow(path: str | PathLike[str], make: Callable[..., T], solver: Solver | None = None) -> T:
    """Read a flow.

    Args:
        path: a file that :py:func:`write_flow` wrote.
        make: takes what a flow is made of, see :py:class:`FlowParts`; what it refuses is a damaged file.
        solver: instead of the one in the file.

    Raises:
        FileNotFoundError: when there is none.
        FlowFileError: when it is no flow, or of a model or solver that is not known here.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: there is no such file, expected a flow.")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("flow", "{}")
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = json.loads(text)
    except (SafetensorError, ValueError, OSError, RecursionError) as error:
        raise FlowFileError(f"{path}: no file of safetensors, or a damaged one ({_in_a_line(error)}).") from error
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise FlowFileError(f"{path}: no flow of this package; expected the format {_FORMAT!r}.")
    try:
        if header["velocity"]["name"] not in VelocityModel.known:  # perhaps the network, which takes MONAI
            import monai_nodeo.flows.nodeo_net  # noqa: F401
        with _AtMost(max(_FEW_NUMBERS, _NUMBERS_MADE * sum(x.numel() for x in state.values()))):
            velocity = _made(path, "velocity model", VelocityModel.known, header["velocity"])
        velocity.to(next(iter(state.values())).dtype).load_state_dict(state)
        velocity.requires_grad_(False)  # it is finished
        solver = solver or _made(path, "solver", _SOLVERS, header["solver"])
        domain, grid = (_grid_of_json(header[name]) for name in ("domain", "grid"))
        span = tuple(header.get("span", (0.0, 1.0)))
        return make(*FlowParts(velocity, solver, domain, grid, bool(header["backward"]), span))
    except FlowFileError:
        raise
    except Exception as error:  # whatever a model makes of options that are none
        raise FlowFileError(f"{path}: a damaged flow ({type(error).__name__}: {_in_a_line(error)}).") from error


class _AtMost(TorchFunctionMode):
    """Refuses to make tensors of more numbers in all: a damaged or made-up header must not ask for all memory."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.left = numbers

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.empty, torch.zeros, torch.ones, torch.eye):
            size = kwargs.get("size", args[0] if args and isinstance(args[0], Sequence) else args)
            self.left -= math.prod(size) ** (2 if func is torch.eye else 1)
            if self.left < 0:
                raise ValueError("too few numbers for a model of these options")
        return func(*args, **kwargs)


def _in_a_line(error: Exception) -> str:
    return textwrap.shorten(str(error), 200)


def _ode_solver(**options: Any) -> Solver:
    from monai_nodeo.flows.solvers.torchdiffeq_solver import ODESolver

    return ODESolver(**options)


_SOLVERS: dict[str, Any] = {"RungeKutta": RungeKutta, "ODESolver": _ode_solver, "TrapezoidalRule": TrapezoidalRule}


def _made(path: Any, what: str, known: dict[str, Any], described: dict[str, Any]) -> Any:
    name, options = str(described["name"]), dict(described["options"])
    if name not in known:
        remedy = "Import its class first" if known is VelocityModel.known else "Give one to Flow.load"
        raise FlowFileError(f"{path}: holds a {what} {name!r}; known are {', '.join(sorted(known))}. {remedy}.")
    return known[name](**options)


def _grid_to_json(grid: ImageGrid) -> dict[str, Any]:
    return {
        "affine": grid.affine.tolist(),
        "shape": list(grid.shape),
        "sform_code": grid.sform_code,
        "qform_code": grid.qform_code,
    }


def _grid_of_json(described: dict[str, Any]) -> ImageGrid:
    return ImageGrid(
        np.array(described["affine"], float),
        tuple(described["shape"]),
        described["sform_code"],
        described["qform_code"],
    )
