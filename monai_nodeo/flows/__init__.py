# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Velocity models: ``forward(phi, t) -> d phi / dt``."""

from __future__ import annotations

from monai_nodeo.flows.eulerian import EulerianVelocity
from monai_nodeo.flows.nodeo import NODEONet
from monai_nodeo.flows.parametrisations import Coordinates, Decoder, Lattice, Parametrisation
from monai_nodeo.flows.velocity import Flow, VelocityBatch, VelocityModel

__all__ = [
    "Coordinates",
    "Decoder",
    "EulerianVelocity",
    "Flow",
    "Lattice",
    "NODEONet",
    "Parametrisation",
    "VelocityBatch",
    "VelocityModel",
]
