# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Whether the images bear out a deformation; where they do not, the start alone is the result."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch

from monai_nodeo.data.pair import Pair, source_name
from monai_nodeo.flows import Flow, VelocityField
from monai_nodeo.geometry.coordinates import lengths
from monai_nodeo.geometry.sampling import warp
from monai_nodeo.metrics.certificate import certify_flow
from monai_nodeo.registration.choice import Choice, coarse_level, information
from monai_nodeo.registration.result import Registration
from monai_nodeo.registration.task import Task

__all__ = ["UNDEFENDED", "defended", "start_alone"]

logger = logging.getLogger(__name__)

UNDEFENDED = "no deformation can be defended: the images may not fit together."  # who needs the flow goes without

_KEPT = 0.99  # share of what the images say about one another that is no less than all of it
_MOVED = 0.25  # how far a place is moved that counts, in voxels of the coarse grid


@torch.no_grad()
def defended(task: Task, choice: Choice, flow: Flow) -> bool:
    """Whether the images agree that a deformation does no harm.

    Registrations there and back do not contradict each other, and where the flow moves something the images say no less
    about one another than before, but for rounding. Elsewhere it can do no harm, and frames of one series lose a little
    of what they say there by interpolation alone.
    """
    level = coarse_level(task.tensors, task.prepared.spacing)
    ways = [(task.tensors, flow)]
    if task.settings.symmetric:
        one, masks = task.tensors, (task.tensors.moving_mask, task.tensors.fixed_mask)
        other = replace(one, fixed=one.moving, moving=one.fixed, fixed_mask=masks[0], moving_mask=masks[1])
        ways.append((other, flow.inverse))
    kept = []
    for tensors, way in ways:
        seen = tensors.at(level)
        ddf = way.displacement(task.domain(level))[None].to(seen.moving)
        far = (lengths(ddf, 1)[:, None] > _MOVED).to(seen.fixed)
        before = replace(seen, fixed_mask=far if seen.fixed_mask is None else far * seen.fixed_mask)
        mask = None if seen.moving_mask is None else warp(seen.moving_mask, ddf)
        after = replace(before, moving=warp(seen.moving, ddf), moving_mask=mask)
        kept.append(information(after)[0] >= _KEPT * information(before)[0])
    return not choice.hopeless and all(kept)


def start_alone(registration: Registration, pair: Pair) -> Registration:
    """The same with a flow that moves nothing, and a warning that says so."""
    logger.warning(
        "%s and %s: no deformation can be defended, so the start alone is the result; check the images, or choose "
        "similarity and smoothness_weight yourself.",
        source_name("fixed", pair.fixed.image),
        source_name("moving", pair.moving.image),
    )
    flow, ddf = registration.flow, torch.zeros_like(registration.displacement)
    still = VelocityField(len(ddf), flow.velocity.image_size).to(ddf)
    flow = Flow(still, flow.solver, flow.domain, flow.grid)
    return replace(
        registration,
        flow=flow,
        displacement=ddf,
        certificate=certify_flow(flow, ddf),
        similarity=(registration.similarity[0],) * 2,
        accepted=False,
    )
