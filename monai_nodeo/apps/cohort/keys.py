# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The key of what the results of a cohort depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import monai_nodeo
from monai_nodeo.apps.cohort.inputs import fingerprints

__all__ = ["settings_key"]

_WITHOUT_EFFECT = ("cuda_graph",)  # on the result


def settings_key(settings: Mapping[str, Any], *more: Any) -> str:
    """Key of settings: equal where the results are.

    It covers the version of this package and the content of a file with the affine start.

    Args:
        settings: as a dict.
        more: what else results depend on, as JSON holds it.
    """
    relevant = {name: value for name, value in settings.items() if name not in _WITHOUT_EFFECT}
    start = settings.get("initial_transform")
    content = fingerprints({"fixed": start})["fixed"] if start else None  # None for a word
    values = [relevant, monai_nodeo.__version__, content and content["sha256"], *more]
    return hashlib.sha256(json.dumps(values, default=str).encode()).hexdigest()
