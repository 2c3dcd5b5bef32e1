# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""How probable it is that a registration is wrong.

A logistic model, fitted to registrations whose error is known: docs/verdict.md.
"""

from __future__ import annotations

import math

from monai_nodeo.metrics.evidence import Evidence

__all__ = ["ALIGNED", "NOT_ALIGNED", "signs", "wrong_probability"]

# ``python benchmarks/verdict.py fit`` prints them; what it was given is in benchmarks/verdict.json.
_CONSTANT = -7.18
_COEFFICIENTS = {"shared": -3.55, "gain": 1.3, "elsewhere": 1.25, "stretched": 1.97, "turned": 2.23}
ALIGNED = 0.08  # at most, to be called aligned
NOT_ALIGNED = 0.85  # at least, to be called not aligned


def signs(evidence: Evidence) -> dict[str, float]:
    """What the model looks at; none of it depends on the anatomy, the loss or the size of the images.

    Returns:
        "shared": logarithm of the information that the images share; "gain": of how many times more they have about
        each other within windows than before; "elsewhere": log odds of a point that fits better elsewhere;
        "stretched": decimal logarithm of the share of points whose surroundings grow more than four times, per cent;
        "turned": logarithm of how many times more the images would share if one were turned over.
    """

    def ratio(one: float, other: float) -> float:
        return math.log(max(one, 1e-4) / max(other, 1e-4))

    return {
        "shared": ratio(evidence.shared_after, 1.0),
        "gain": ratio(evidence.local_after, evidence.local_before),
        "elsewhere": math.log((evidence.elsewhere + 0.01) / (1.01 - evidence.elsewhere)),
        "stretched": math.log10(evidence.stretched + 0.01),
        "turned": max(0.0, ratio(evidence.shared_turned, evidence.shared_before)),
    }


def wrong_probability(evidence: Evidence) -> float:
    """Probability that points are wrong by more than 5 mm or 3 voxels on average, whichever is less.

    It is that among registrations of which 4 of 10 are wrong, as those were that the model was fitted to.
    """
    score = _CONSTANT + sum(_COEFFICIENTS[name] * value for name, value in signs(evidence).items())
    return 1 / (1 + math.exp(-score))
