# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""How probable it is that a registration is wrong.

A logistic model, fitted to registrations whose error is known: docs/verdict.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from monai_nodeo.metrics.evidence import Evidence

__all__ = ["ALIGNED", "NOT_ALIGNED", "signs", "wrong_probability"]

# ``python benchmarks/verdict.py fit`` prints them; what it was given is in benchmarks/verdict.json.
_CONSTANT = -1.18
_COEFFICIENTS = {"local": -1.91, "gain": 1.0, "elsewhere": 1.73, "stretched": 2.03, "turned": 2.77}
ALIGNED = 0.10  # at most, to be called aligned
NOT_ALIGNED = 0.86  # at least, to be called not aligned


def signs(evidence: Evidence, large_percent: float) -> dict[str, float]:
    """What the model looks at; none of it depends on the anatomy, the loss or the contrasts.

    Args:
        evidence: of a registration.
        large_percent: of its certificate.

    Returns:
        "local": logarithm of the information within windows; "gain": of how many times more that is than before;
        "elsewhere": log odds of a point that fits better elsewhere; "stretched": decimal logarithm of the share of
        volumes that grow more than four times, per cent; "turned": logarithm of how many times more the images would
        share if one were turned over.
    """
    local, before = (math.log(max(x, 1e-3)) for x in (evidence.local_after, evidence.local_before))
    return {
        "local": local,
        "gain": local - before,
        "elsewhere": math.log((evidence.elsewhere + 0.01) / (1.01 - evidence.elsewhere)),
        "stretched": math.log10(large_percent + 0.01),
        "turned": max(0.0, math.log(max(evidence.shared_turned, 1e-4) / max(evidence.shared_before, 1e-4))),
    }


def wrong_probability(evidence: Evidence, certificate: Mapping[str, Any]) -> float:
    """Probability that points are wrong by more than 5 mm or 3 voxels on average, whichever is less.

    It is that among registrations of which 4 of 10 are wrong, as those were that the model was fitted to.

    Args:
        evidence: of the registration.
        certificate: of its flow, as JSON holds it.
    """
    found = signs(evidence, certificate["large_percent"])
    score = _CONSTANT + sum(_COEFFICIENTS[name] * value for name, value in found.items())
    return 1 / (1 + math.exp(-score)) if score > -700 else 0.0
