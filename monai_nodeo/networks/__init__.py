# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Velocity models: ``forward(phi, t) -> d phi / dt``."""

from __future__ import annotations

from monai_nodeo.networks.base import Flow, VelocityBatch, VelocityModel
from monai_nodeo.networks.eulerian import EulerianVelocity
from monai_nodeo.networks.nodeo import NODEONet
from monai_nodeo.networks.parametrisations import Coordinates, Decoder, Lattice, Parametrisation

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
