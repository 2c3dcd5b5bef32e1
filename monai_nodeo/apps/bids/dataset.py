# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""A BIDS dataset: its images, and the names of what is made of them. Needs neither torch nor MONAI."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

__all__ = ["DESCRIPTION", "BidsImage", "check_label", "chosen", "find_images"]

DESCRIPTION = "dataset_description.json"
_LABEL = re.compile(r"[0-9a-zA-Z]+")
_NIFTI = (".nii.gz", ".nii")
# Entities that BIDS puts at the end of a name, in its order; the others come before these.
_LAST = ("from", "to", "mode", "space", "split", "recording", "chunk", "seg", "res", "den", "label", "desc")


@dataclass(frozen=True)
class BidsImage:
    """An image by its name.

    Attributes:
        path: where it is.
        entities: "sub", "ses", "run", ... -> label, in the order of the name.
        suffix: such as "T1w".

    Example:
        >>> image = BidsImage.of(Path("sub-01/anat/sub-01_run-2_T1w.nii.gz"))
        >>> image.name("T1w", space="MNI", desc="warped")
        'sub-01_run-2_space-MNI_desc-warped_T1w'
    """

    path: Path
    entities: dict[str, str]
    suffix: str

    @classmethod
    def of(cls, path: Path) -> BidsImage:
        *parts, suffix = path.name.partition(".")[0].split("_")
        pairs = (part.partition("-") for part in parts)
        return cls(path, {key: label for key, _, label in pairs}, suffix)

    def name(self, suffix: str, **entities: str) -> str:
        """Name without extension of a file that is made of this one; its description is not passed on."""
        kept = {key: label for key, label in self.entities.items() if key != "desc"} | entities
        keys = sorted(kept, key=lambda key: _LAST.index(key) + 1 if key in _LAST else 0)
        return "_".join([*(f"{key}-{kept[key]}" for key in keys), suffix])


def find_images(dataset: Path, suffix: str) -> list[BidsImage]:
    """The images of a suffix of all subjects and sessions, without those that were brought to another space.

    Args:
        dataset: folder with `DESCRIPTION`.
        suffix: such as "T1w".

    Raises:
        ValueError: when it is no BIDS dataset, there is no such image, or two of them would give one result.
    """
    if not (dataset / DESCRIPTION).is_file():
        raise ValueError(f"{dataset} holds no {DESCRIPTION}, so it is no BIDS dataset; give the folder that has it.")
    found: dict[str, BidsImage] = {}
    for pattern in ("sub-*/*/", "sub-*/ses-*/*/"):
        for path in sorted(dataset.glob(f"{pattern}sub-*_{suffix}.nii*")):
            image = BidsImage.of(path)
            if not path.name.endswith(_NIFTI) or "space" in image.entities:
                continue
            first = found.setdefault(image.name(suffix), image)
            if first is not image:
                raise ValueError(f"{first.path} and {path.name} would have results of one name; take one of them away.")
    if not found:
        raise ValueError(f"{dataset} holds no image sub-*_{suffix}.nii.gz; give another --suffix.")
    return sorted(found.values(), key=lambda image: image.path)


def chosen(images: Collection[BidsImage], key: str, labels: Collection[str]) -> list[BidsImage]:
    """The images with one of some labels, or all if none are given.

    Args:
        images: of a dataset.
        key: entity, "sub" or "ses".
        labels: with or without the key before them, as in "sub-01".

    Raises:
        ValueError: when no image has one of the labels.
    """
    wanted = {label.removeprefix(f"{key}-") for label in labels}
    known = {image.entities.get(key, "") for image in images}
    if wanted - known:
        missing = ", ".join(f"{key}-{label}" for label in sorted(wanted - known))
        there = ", ".join(sorted(known - {""})[:10]) or "none"
        raise ValueError(f"the dataset has no such image of {missing}; there are: {there}.")
    return [image for image in images if not wanted or image.entities.get(key) in wanted]


def check_label(name: str, label: str) -> str:
    """The label of an entity as BIDS allows it.

    Raises:
        ValueError: when there are other characters than letters and digits.
    """
    if not _LABEL.fullmatch(label):
        raise ValueError(f"{name} {label!r}: BIDS allows letters and digits alone in names.")
    return label
