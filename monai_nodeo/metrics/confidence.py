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
_CONSTANT = -11.95
_COEFFICIENTS = {"shared": -2.62, "aside": 13.74, "strayed": 184.98}
ALIGNED = 0.09  # at most, to be called aligned
NOT_ALIGNED = 0.95  # at least, to be called not aligned: large real motions that are right reach .9
_LEAST = 1e-4  # of shared information


def signs(evidence: Evidence) -> dict[str, float]:
    """What the model looks at; none of it depends on the anatomy or the loss.

    Returns:
        "shared": logarithm of the information that the images share; "aside": share of the information within windows
        that is told only a little aside; "strayed": how far points were moved otherwise than by an affine map, as a
        share of the side of what is seen, times the logarithm of one more than how far they were moved, in limits.
    """
    return {
        "shared": math.log(max(evidence.shared_after, _LEAST)),
        "aside": evidence.aside,
        "strayed": evidence.bent * math.log1p(evidence.moved),
    }


def wrong_probability(evidence: Evidence) -> float:
    """Probability that points are wrong by more than 5 mm or 3 voxels on average, whichever is less.

    It is that among registrations of which 4 of 10 are wrong, as those were that the model was fitted to.
    """
    score = _CONSTANT + sum(_COEFFICIENTS[name] * value for name, value in signs(evidence).items())
    return 1 / (1 + math.exp(-score))
