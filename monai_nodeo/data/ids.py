# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Ids for pairs that have none: short, readable, each only once. Needs neither torch nor MONAI."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["readable_names", "unique_id"]

_LONGEST_NAME = 50  # of one image: two of them fit in an id


def readable_names(paths: Sequence[str]) -> dict[str, str]:
    """The shortest name for each path that points to no other one: its stem, else its folder, else more of both."""
    candidates = {path: _name_candidates(path) for path in set(paths)}
    uses = Counter(name for names in candidates.values() for name in set(names))
    # The last, the whole path, is alone unless its characters were replaced: then unique_id numbers the ids.
    return {
        path: next((name for name in names if uses[name] == 1), names[0])[-_LONGEST_NAME:].lstrip(".+=@ -")
        for path, names in candidates.items()
    }


def _name_candidates(path: str) -> list[str]:
    full = Path(os.path.abspath(path))
    stem = re.sub(r"\.nii(\.gz)?$", "", full.name) if ".nii" in full.name else full.stem
    folders = full.parts[1:-1]
    names = [stem]
    for depth in range(1, len(folders) + 1):
        names += ["_".join(folders[-depth:]), "_".join((*folders[-depth:], stem))]
    return [re.sub(r"[^\w.+=@-]+", "_", name).strip(".+=@-") or "image" for name in names]


def unique_id(id: str, taken: Mapping[str, int]) -> str:
    """The id, with the first number behind it that makes it none of those that are taken, which are without case."""
    numbered = (f"{id}_{count}" for count in range(2, len(taken) + 3))
    return id if id.casefold() not in taken else next(name for name in numbered if name.casefold() not in taken)
