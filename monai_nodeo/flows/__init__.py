# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Velocity models, solvers and the flow that they make."""

from __future__ import annotations

from monai_nodeo.flows.eulerian import EulerianVelocity
from monai_nodeo.flows.flow import Flow, FlowFileError
from monai_nodeo.flows.inversion import invert
from monai_nodeo.flows.nodeo import NODEONet
from monai_nodeo.flows.parametrisations import Coordinates, Decoder, Lattice, Parametrisation
from monai_nodeo.flows.runge_kutta import RungeKutta
from monai_nodeo.flows.solver import ODESolver
from monai_nodeo.flows.squaring import ScalingAndSquaring
from monai_nodeo.flows.velocity import (
    CloudModel,
    NodeVelocity,
    Solver,
    Velocity,
    VelocityBatch,
    VelocityField,
    VelocityModel,
)

__all__ = [
    "CloudModel",
    "Coordinates",
    "Decoder",
    "EulerianVelocity",
    "Flow",
    "FlowFileError",
    "Lattice",
    "NODEONet",
    "NodeVelocity",
    "ODESolver",
    "Parametrisation",
    "RungeKutta",
    "ScalingAndSquaring",
    "Solver",
    "Velocity",
    "VelocityBatch",
    "VelocityField",
    "VelocityModel",
    "invert",
]
