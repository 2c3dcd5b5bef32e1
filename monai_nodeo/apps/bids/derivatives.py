# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""What a registration to an atlas gives, as files of a BIDS derivative.

=============================================  ====================================================================
``<image>_space-NAME_desc-warped_T1w.nii.gz``  the image on the grid of the atlas
``<image>_from-T1w_to-NAME_mode-image_xfm.h5`` brings images of the subject to the atlas
``<image>_from-NAME_to-T1w_mode-image_xfm.h5`` brings images of the atlas to the subject
``<image>_space-T1w_seg-NAME_dseg.nii.gz``     the labels of the atlas on the grid of the image
=============================================  ====================================================================

Each has a JSON file beside it. BIDS has no rule for transforms yet; the names are those of fMRIPrep.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import monai_nodeo
from monai_nodeo.apps.bids.dataset import DESCRIPTION, BidsImage
from monai_nodeo.files import atomic_path, write_transform
from monai_nodeo.files.resampling import apply_to_image

__all__ = ["REGISTRATIONS", "BidsDerivatives"]

REGISTRATIONS = "registrations"  # folders of the cohort, which BIDS does not know
_IGNORED = (REGISTRATIONS, "*_xfm.*")
_README = """# Registrations by monai_nodeo

`dataset_description.json` names the dataset that was registered. Beside each subject's files, `{registrations}/` holds
for every image the flow, figures and a page to look at; `index.html` there is about all of them.

The transforms `from-A_to-B_mode-image_xfm.h5` are ITK composites. As `-t` of `antsApplyTransforms` or
`monai-nodeo apply` they bring images of A on to the grid of B.
"""


@dataclass(frozen=True)
class BidsDerivatives:
    """Writes the files of images that were registered to an atlas; see `cohort.job.Derivatives`.

    Attributes:
        dataset: folder of the images, absolute.
        output: folder of the derivative, absolute.
        atlas: the fixed image, absolute.
        space: what it is called in names.
        labels: label map of the atlas, absolute; None: there is none.
        skull_stripped: whether the images show the brain alone; BIDS wants to know.
    """

    dataset: Path
    output: Path
    atlas: Path
    space: str
    labels: Path | None = None
    skull_stripped: bool = False

    def begin(self) -> None:
        """Describe the derivative; what is there stays.

        Raises:
            ValueError: when the output belongs to another dataset or tool.
        """
        source = self.dataset.as_uri()
        description = {
            "Name": f"Registrations of {self.dataset.name}",
            "BIDSVersion": "1.10.0",
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": "monai-nodeo", "Version": monai_nodeo.__version__}],
            "SourceDatasets": [{"URL": source}],
            "DatasetLinks": {"raw": source},
        }
        known = self.output / DESCRIPTION
        if known.exists():
            try:
                links = json.loads(known.read_text(encoding="utf-8")).get("DatasetLinks", {})
            except (ValueError, AttributeError):
                links = {}
            if links.get("raw") != source:
                raise ValueError(
                    f'{known} does not say "DatasetLinks": {{"raw": "{source}"}}, so the folder is of another dataset; '
                    "give another output folder, or change the link if the dataset has moved."
                )
        texts = {
            DESCRIPTION: json.dumps(description, indent=2) + "\n",
            "README.md": _README.format(registrations=REGISTRATIONS),
            ".bidsignore": "\n".join(_IGNORED) + "\n",
        }
        for name, text in texts.items():
            if not (self.output / name).exists():
                _write(self.output / name, text)

    def complete(self, row: Mapping[str, Any]) -> bool:
        """Whether all files of an image are there."""
        return all(path.is_file() for path in self._files(BidsImage.of(Path(row["moving"]))))

    def discard(self, row: Mapping[str, Any]) -> None:
        """Take the files of an image away."""
        for path in self._files(BidsImage.of(Path(row["moving"])), all_kinds=True):
            path.unlink(missing_ok=True)

    def write(self, row: Mapping[str, Any], registration: Any, folder: Path) -> None:
        """Write the files of an image.

        Raises:
            ValueError: when the labels do not lie in the place of the atlas.
        """
        image = BidsImage.of(Path(row["moving"]))
        warped, there, back, labels = self._targets(image)
        warped.parent.mkdir(parents=True, exist_ok=True)
        inverse = registration.inverse.transform
        _link(folder / "warped.nii.gz", warped)
        _link(folder / "transform.h5", there)
        write_transform(back, inverse)
        source = f"bids:raw:{image.path.relative_to(self.dataset).as_posix()}"
        atlas = self.atlas.as_uri()
        on_atlas = {"SpatialReference": atlas, "SkullStripped": self.skull_stripped}
        _describe(warped, f"The image on the grid of {self.space}.", source, atlas, **on_atlas)
        _describe(there, f"Brings images of the subject to {self.space}.", source, atlas)
        _describe(back, f"Brings images of {self.space} to the subject.", source, atlas)
        if self.labels is not None:
            apply_to_image(str(self.labels), row["moving"], inverse, str(labels), "label")
            text = f"Labels of {self.space} on the grid of the image."
            _describe(labels, text, source, self.labels.as_uri(), SpatialReference=source)

    def _files(self, image: BidsImage, all_kinds: bool = False) -> Iterator[Path]:
        targets = self._targets(image)
        for target in targets if all_kinds or self.labels else targets[:-1]:
            yield from (target, _sidecar(target))

    def _targets(self, image: BidsImage) -> tuple[Path, Path, Path, Path]:
        """The image on the atlas, the transforms there and back, the labels."""
        folder = self.output / image.path.parent.relative_to(self.dataset)
        kind, space = image.suffix, self.space
        return (
            folder / f"{image.name(kind, space=space, desc='warped')}.nii.gz",
            folder / f"{image.name('xfm', **{'from': kind, 'to': space, 'mode': 'image'})}.h5",
            folder / f"{image.name('xfm', **{'from': space, 'to': kind, 'mode': 'image'})}.h5",
            folder / f"{image.name('dseg', space=kind, seg=space)}.nii.gz",
        )


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name.partition(".")[0] + ".json")


def _describe(path: Path, description: str, *sources: str, **more: Any) -> None:
    values = {"Description": description, "Sources": sources, **more}
    _write(_sidecar(path), json.dumps(values, indent=2) + "\n")


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _link(file: Path, target: Path) -> None:
    """The same file under another name, or a copy where the disk has no links."""
    target.unlink(missing_ok=True)
    try:
        os.link(file, target)
    except OSError:
        with atomic_path(target) as partial:
            shutil.copyfile(file, partial)
