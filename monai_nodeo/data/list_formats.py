# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Files that list pairs, read as one list of entries: JSON lists, JSON objects of several lists, CSV tables.

A JSON object is a MONAI data list (``{"validation": [{"fixed": ..., "moving": ...}, ...], ...}``) or the dataset.json
of a Learn2Reg task, which names labels and masks not with its pairs but with its images.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_nodeo.data.keys import images_of

__all__ = ["EXAMPLE", "DataListError", "json_type", "read_entries"]

EXAMPLE = '{"fixed": "a.nii.gz", "moving": "b.nii.gz"}'
_SIDES = ("fixed", "moving")
_LEARN2REG = {"label": "label", "mask": "mask"}  # what it says of an image -> ending of our key


class DataListError(ValueError):
    """A data list that cannot be used. The message names the file."""


def read_entries(file: Path, key: str | None = None) -> list[Any]:
    """The entries of a list of pairs, not yet checked one by one.

    Args:
        file: JSON, or a table whose name ends in .csv, with a line of column names; empty cells are left out.
        key: which list of a JSON object; may be left out where only one of them holds pairs.

    Raises:
        DataListError: when the file is missing, of another kind, or empty, or has no such key.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no text in UTF-8"
        raise DataListError(f"{file}: the data list cannot be read ({reason}); check the path.") from error
    entries = _read_table(file, text) if file.suffix.lower() == ".csv" else _read_json(file, text, key)
    if not entries:
        raise DataListError(f"{file}: the list is empty; expected at least one {EXAMPLE}.")
    return entries


def json_type(value: Any) -> str:
    """What JSON calls the type of a value."""
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def _read_table(file: Path, text: str) -> list[dict[str, str]]:
    try:
        rows = list(csv.DictReader(text.splitlines(), strict=True, restkey=""))
    except csv.Error as error:
        raise DataListError(f"{file}: not CSV ({error}); the first line names the columns, fixed,moving.") from error
    # Cells beyond the last column come as a list, under the name "", which makes their row a bad one.
    return [{column.strip(): "".join(cell).strip() for column, cell in row.items() if cell} for row in rows]


def _read_json(file: Path, text: str, key: str | None) -> list[Any]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise DataListError(f"{file}: not JSON ({error}); expected a list of {EXAMPLE}.") from error
    if isinstance(content, dict):
        return _read_object(file, content, key)
    if not isinstance(content, list):
        raise DataListError(f"{file}: a JSON {json_type(content)}; expected a list of {EXAMPLE}.")
    if key is not None:
        raise DataListError(f"{file}: one list without keys; leave the key {key!r} out.")
    return content


def _read_object(file: Path, content: Mapping[str, Any], key: str | None) -> list[Any]:
    lists = [name for name, value in content.items() if isinstance(value, list)]
    if key is None:
        pairs = [name for name in lists if content[name] and _is_pair(content[name][0])]
        if len(pairs) != 1:
            found = f"several lists of pairs, {', '.join(pairs)}" if pairs else "no list of pairs"
            raise DataListError(
                f"{file}: a JSON object with {found}; name one with its key, or give a list of {EXAMPLE}."
            )
        (key,) = pairs
    if key not in lists:
        raise DataListError(f"{file}: there is no list {key!r}; there are {', '.join(lists) or 'none'}.")
    known = _images(content)
    return [_with_labels(entry, known) if _is_pair(entry) else entry for entry in content[key]]


def _is_pair(entry: Any) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(side), str | list) for side in _SIDES)


def _images(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Image -> what a Learn2Reg dataset says of it."""
    entries = [entry for value in content.values() if isinstance(value, list) for entry in value]
    return {
        os.path.normpath(entry["image"]): entry
        for entry in entries
        if isinstance(entry, dict) and isinstance(entry.get("image"), str)
    }


def _with_labels(entry: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The entry with the labels and masks of its images; labels are taken if both images have one."""
    about = {side: known.get(os.path.normpath(images_of(entry[side])[0]), {}) for side in _SIDES}
    found = {
        f"{side}_{ours}": about[side][theirs]
        for theirs, ours in _LEARN2REG.items()
        for side in _SIDES
        if theirs in about[side] and (theirs != "label" or all(theirs in other for other in about.values()))
    }
    return {**found, **entry}
