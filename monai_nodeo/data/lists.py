# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Data lists: which images are registered to which. Needs neither torch nor MONAI.

A list that cannot be used at all is a `DataListError`. A bad row is kept as a row with its `RowError`, so that the rows
around it are registered and it is reported as failed with the others. No image is opened, but by `spatial_dims_of`.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from glob import glob
from os.path import expanduser
from pathlib import Path
from typing import Any

from monai_nodeo.data.ids import readable_names, unique_id
from monai_nodeo.data.keys import IMAGE_KEYS, PATH_KEYS, START_KEY, images_of
from monai_nodeo.data.list_formats import EXAMPLE, DataListError, json_type, read_entries

__all__ = [
    "ATLAS_NAMES",
    "ERROR",
    "DataListError",
    "RowError",
    "absolute",
    "atlases_to_one",
    "check_best",
    "group",
    "load_datalist",
    "pairs_to_one",
    "requested_pairs",
    "single_pair",
    "spatial_dims_of",
]

PathLike = str | os.PathLike[str]

_PATH_KEYS = (*PATH_KEYS, START_KEY)
_KEYS = (*_PATH_KEYS, "id")
ATLAS_NAMES = ("image.nii.gz", "label.nii.gz")
_LISTS = (".json", ".csv")
_ATLAS_KEYS = ("moving", "moving_label")
_OF_ATLAS = {"image": "moving", "label": "moving_label", "mask": "moving_mask"}
_OF_FIXED = ("fixed", "fixed_label", "fixed_mask", "fixed_landmarks", "moving_landmarks")
ERROR = "error"  # where a bad row holds its RowError
# An id names a folder: one path component that means the same on every file system.
_ID = re.compile(r"\w(?:[\w.+=@ -]{0,118}\w)?")


class RowError(ValueError):
    """A row that says too little or the wrong thing. The message says what to put there."""


def load_datalist(path: PathLike, dataset_dir: PathLike | None = None, key: str | None = None) -> list[dict[str, Any]]:
    """Read a list of ``{"fixed", "moving"}``, each with the other keys of `data.keys` as it likes, and an "id".

    A row without an id gets a name built from its two paths, "<moving>_to_<fixed>", unique in the list.

    Args:
        path: a JSON list, a CSV table, a MONAI data list or the dataset.json of Learn2Reg, see `list_formats`.
        dataset_dir: folder that relative paths start from; the list's own folder by default.
        key: the list within a JSON object.

    Returns:
        One dict a row, in order: paths (str), "id". A bad row holds its id and, as "error", the `RowError` that
        `PairDataset` fails it with.

    Raises:
        DataListError: when the file is missing, no such list, or empty, or dataset_dir is no folder.
    """
    file = Path(expanduser(path))
    entries = read_entries(file, key)
    base = file.parent if dataset_dir is None else Path(expanduser(dataset_dir))
    if not base.is_dir():
        raise DataListError(
            f"dataset_dir {base}: there is no such folder; give the one that the paths in {file} start from."
        )
    return _make_rows(entries, base)


def single_pair(
    fixed: PathLike, moving: PathLike, id: str | None = None, **others: PathLike | None
) -> list[dict[str, Any]]:
    """The data list of one pair, as `load_datalist` returns it; relative paths start at the working directory.

    Args:
        fixed: the image whose grid stays, or a list of its contrasts.
        moving: the image that is warped, likewise.
        id: name of the pair; by default built from the paths.
        others: labels, masks and landmarks under the keys of `data.keys`.

    Example:
        >>> single_pair("0001/t1.nii.gz", "0002/t1.nii.gz")
        [{'fixed': '0001/t1.nii.gz', 'moving': '0002/t1.nii.gz', 'id': '0002_to_0001'}]
    """
    paths = {"fixed": fixed, "moving": moving, **others}
    entry = {
        key: _each(lambda x: os.fspath(x) if isinstance(x, os.PathLike) else x, path) for key, path in paths.items()
    }
    return _make_rows([entry | {"id": id}], Path())


def pairs_to_one(fixed: PathLike, moving: str) -> list[dict[str, Any]]:
    """The data list of many images to one, which may lie among them, as `load_datalist` returns it.

    Args:
        fixed: the image whose grid stays.
        moving: pattern of the images that are warped, as in ``"sub-*/anat/*_T1w.nii.gz"``, ``**`` for any folders.

    Raises:
        DataListError: when no file fits the pattern.
    """
    atlas = os.path.abspath(fixed)
    found = [
        path for path in sorted(glob(os.path.expanduser(moving), recursive=True)) if os.path.abspath(path) != atlas
    ]
    if not found:
        raise DataListError(f"{moving}: no file fits; check the pattern (it starts at {Path.cwd()}), and quote it.")
    return _make_rows([{"fixed": os.fspath(fixed), "moving": path} for path in found], Path())


def atlases_to_one(
    fixed: PathLike, atlases: PathLike, names: Sequence[str] = ATLAS_NAMES, key: str | None = None
) -> list[dict[str, Any]]:
    """The data list of atlases, images with a label map, to one image; where that is among them, it is left out.

    Args:
        fixed: the image that gets labels.
        atlases: a folder that holds a folder for each atlas; or a list, see `list_formats`, of ``{"image", "label"}``
            or of pairs, whose moving images are the atlases.
        names: of the image and the label map in the folder of an atlas.
        key: the list within a JSON object, such as "training".

    Returns:
        As `load_datalist`.

    Raises:
        DataListError: when there is no such folder or list, or no atlas in it.
    """
    place, base = Path(expanduser(atlases)), Path()
    entries: list[Any]
    if place.is_dir():
        folders = sorted(folder for folder in place.iterdir() if folder.is_dir() and folder.name[0] != ".")
        entries = [
            dict(zip(("id", *_ATLAS_KEYS), (f.name, *(str(f / n) for n in names)), strict=True)) for f in folders
        ]
    else:
        base, entries = place.parent, [_as_moving(entry) for entry in read_entries(place, key)]
    image = os.path.abspath(expanduser(fixed))
    rows = _make_rows([{**entry, "fixed": image} if isinstance(entry, dict) else entry for entry in entries], base)
    rows = [row for row in rows if ERROR in row or os.path.abspath(row["moving"]) != image]
    if not rows:
        raise DataListError(f"{place}: there is no atlas; expected folders with {' and '.join(names)}, or a list.")
    for row in rows:
        if ERROR not in row and "moving_label" not in row:
            row[ERROR] = RowError('there is no "label"; expected {"image": "a.nii.gz", "label": "a_seg.nii.gz"}.')
    return rows


def check_best(best: int | None, rows: Sequence[Any]) -> None:
    """Refuse to choose more atlases than there are.

    Args:
        best: how many are to be chosen; None: all.
        rows: of the atlases.

    Raises:
        ValueError: says both figures.
    """
    if best is not None and best > len(rows):
        raise ValueError(f"the best {best} of {len(rows)} atlases were asked for; give at most {len(rows)}.")


def group(images: Sequence[PathLike], key: str | None = None) -> list[dict[str, Any]]:
    """The images of a group, each as the moving one of a pair whose fixed image is yet to be made.

    Args:
        images: the files; or one list, see `list_formats`, of ``{"image"}``, with "label" and "mask" if there are any.
        key: the list within a JSON object, such as "training".

    Returns:
        As `load_datalist`, without "fixed".

    Raises:
        DataListError: when there are fewer than two.
    """
    base = Path()
    if len(images) == 1:
        place = Path(expanduser(images[0]))
        if place.is_dir():
            raise DataListError(f"{place} is a folder; give the images in it, as {place}/*.nii.gz, or a list.")
        if place.suffix.lower() not in _LISTS:
            raise DataListError(f"{place}: one image; expected two or more, or a list ({', '.join(_LISTS)}).")
        base, entries = place.parent, [_as_moving(entry) for entry in read_entries(place, key)]
    else:
        entries = [{"moving": os.fspath(path)} for path in images]
    whole = [{**entry, "fixed": entry.get("moving")} if isinstance(entry, dict) else entry for entry in entries]
    rows = _make_rows(whole, base, ("moving",))
    if len(rows) < 2:
        raise DataListError(
            f"{' '.join(os.fspath(image) for image in images)}: {len(rows)} image; expected two or more, or a list."
        )
    return [{name: value for name, value in row.items() if name != "fixed"} for row in rows]


def _as_moving(entry: Any) -> Any:
    """An entry of atlases with the keys of pairs, without what it says of another fixed image."""
    if not isinstance(entry, dict):
        return entry
    renamed = {_OF_ATLAS.get(key, key): value for key, value in entry.items()}
    return {key: value for key, value in renamed.items() if key not in _OF_FIXED}


def absolute(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows with absolute paths, for processes that work elsewhere."""
    return [{**row, **{key: _each(os.path.abspath, row[key]) for key in _PATH_KEYS if key in row}} for row in rows]


def spatial_dims_of(rows: Sequence[Mapping[str, Any]], key: str = "fixed") -> int:
    """Of the first fixed image whose header can be read; what is wrong with others is reported with their pairs.

    Args:
        rows: as from `load_datalist`.
        key: "moving" for a group that has no fixed image yet.

    Raises:
        DataListError: when there is none.
    """
    from monai_nodeo.files import ImageGrid  # reading a list shall not wait for numpy and ITK

    reasons = []
    for row in rows:
        try:
            return ImageGrid.from_file(images_of(row[key])[0]).spatial_dims
        except (KeyError, ValueError, OSError) as error:
            reasons.append(str(row.get(ERROR) or error))
    which = "fixed image" if key == "fixed" else "image"
    raise DataListError(f"no {which} of the list can be read: {reasons[0]}")


def requested_pairs(datalist: PathLike | None, dataset_dir: PathLike | None, **pair: Any) -> list[dict[str, Any]]:
    """Rows of a data list, or of the one pair that was named instead: what a command line asks for.

    Args:
        datalist: see `load_datalist`.
        dataset_dir: see `load_datalist`.
        pair: see `single_pair`; all None when a data list is given.

    Raises:
        DataListError: when neither or both are given, or only one image.
    """
    given = sorted(key for key, value in pair.items() if value is not None)
    if datalist is not None and given:
        raise DataListError(f"datalist {datalist} and {', '.join(given)} were both given; give a list or one pair.")
    if datalist is not None:
        return load_datalist(datalist, dataset_dir)
    missing = [key for key in IMAGE_KEYS if pair.get(key) is None]
    if missing:
        raise DataListError(f"no {' and no '.join(missing)} image was given; give fixed and moving, or a datalist.")
    return single_pair(**pair)


def _make_rows(
    entries: Sequence[Any], base: Path, named_by: Sequence[str] = ("moving", "fixed")
) -> list[dict[str, Any]]:
    rows = [_checked_row(entry, base) for entry in entries]
    taken: dict[str, int] = {}  # id without case, as some file systems compare, -> row
    for number, row in enumerate(rows, start=1):
        if "id" in row:
            first = taken.setdefault(row["id"].casefold(), number)
            if first != number:
                reason = f"the id {row['id']!r} is taken by row {first} (case does not count)"
                rows[number - 1] = {ERROR: RowError(f"{reason}; give each row its own, or none.")}
    firsts = [{key: images_of(row[key])[0] for key in IMAGE_KEYS if key in row} for row in rows]
    names = readable_names([path for first in firsts for path in first.values()])
    for number, row in enumerate(rows, start=1):
        if "id" not in row:
            id = f"row_{number}" if ERROR in row else "_to_".join(names[firsts[number - 1][key]] for key in named_by)
            row["id"] = unique_id(id, taken)
            taken[row["id"].casefold()] = number
    return rows


def _checked_row(entry: Any, base: Path) -> dict[str, Any]:
    try:
        return _parse(entry, base)
    except RowError as error:
        return {ERROR: error}


def _parse(entry: Any, base: Path) -> dict[str, Any]:
    """A row with its paths joined to the base, and its id if it gives one."""
    if not isinstance(entry, dict):
        raise RowError(f"the row is a JSON {json_type(entry)}; expected {EXAMPLE}.")
    for key in entry:
        if key not in _KEYS:
            nearest = difflib.get_close_matches(key, _KEYS, n=1, cutoff=0)[0]
            raise RowError(f'unknown key "{key}"; did you mean "{nearest}"? Known are {", ".join(_KEYS)}.')
    given = {key: entry[key] for key in _KEYS if entry.get(key) is not None}
    row: dict[str, Any] = {}
    for key, value in given.items():
        if key in IMAGE_KEYS and isinstance(value, list | tuple) and value:
            row[key] = [_path(key, item, base) for item in value]
        elif key != "id":
            row[key] = _path(key, value, base)
    for key in IMAGE_KEYS:
        if key not in row:
            raise RowError(f'there is no "{key}"; expected {EXAMPLE}.')
    if "id" in given:
        row["id"] = _checked_id(given["id"])
    return row


def _each(function: Callable[[Any], Any], value: Any) -> Any:
    """The function of a path, or of each of a list of them."""
    return [function(item) for item in value] if isinstance(value, list | tuple) else function(value)


def _path(key: str, value: Any, base: Path) -> str:
    if not isinstance(value, str) or not value.strip():
        raise RowError(f'"{key}" is {json.dumps(value, default=repr)}; expected the path of a file.')
    return os.fspath(base / Path(expanduser(value)))


def _checked_id(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise RowError(
            f'"id" is {json.dumps(value, default=repr)}; it names the output folder: expected up to 120 letters, '
            "digits, spaces or _ . + = @ -, beginning and ending with a letter, digit or _."
        )
    return value
