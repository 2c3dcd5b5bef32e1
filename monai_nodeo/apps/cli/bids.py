# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""``monai-nodeo bids``: a BIDS dataset to an atlas, with the command line of a BIDS-App."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from monai_nodeo.apps.cli._options import configure_logging
from monai_nodeo.apps.cli.cohort import run, run_options, settings_of_run
from monai_nodeo.data.lists import ATLAS_NAMES

__all__ = ["command"]

_LISTS = ("--participant-label", "--participant_label", "--session-label", "--session_label")
_TEMPLATE = re.compile(r"tpl-([0-9a-zA-Z]+)")


class _WithLists(click.Command):
    """Takes ``--participant-label 01 02``, as BIDS-Apps do, for ``--participant-label 01 --participant-label 02``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, list(_one_by_one(args)))


def _one_by_one(args: list[str]) -> Iterator[str]:
    name, values = "", 0
    for word in args:
        if word.startswith("-"):
            name, values = (word if word in _LISTS else ""), 0
        elif name:
            values += 1
            if values > 1:
                yield name
        yield word


@click.command(cls=_WithLists)
@click.argument("bids_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("output_dir", type=click.Path(path_type=Path))
@click.argument("analysis_level", type=click.Choice(["participant"]))
@click.option(
    "--atlas", required=True, metavar="IMAGE|DIR", help=f"The fixed image, or a folder with {', '.join(ATLAS_NAMES)}."
)
@click.option("--atlas-labels", metavar="FILE", help="Its label map, which is brought to each subject.")
@click.option("--space", metavar="NAME", help="What it is called in names; by default after its file or folder.")
@click.option("--suffix", default="T1w", show_default=True, help="Which images.")
@click.option(*_LISTS[:2], multiple=True, metavar="LABEL...", help="These subjects only; last on the line.")
@click.option(*_LISTS[2:], multiple=True, metavar="LABEL...", help="These sessions only.")
@click.option("--skull-stripped", is_flag=True, help="The images show brains alone; noted in the JSON files.")
@run_options
def command(bids_dir: Path, output_dir: Path, **given: Any) -> None:
    """Register the images of a BIDS dataset to an atlas; OUTPUT_DIR becomes a BIDS derivative.

    ANALYSIS_LEVEL is participant. Each image of the suffix is registered by itself, with every run and session of its
    own. Images that are done are skipped, as in `cohort`, so jobs may share one OUTPUT_DIR, each with its
    --participant-label. The exit status is 3 if images failed.
    """
    from monai_nodeo.apps.bids.dataset import check_label, chosen, find_images
    from monai_nodeo.apps.bids.derivatives import REGISTRATIONS, BidsDerivatives
    from monai_nodeo.apps.cohort.inputs import fingerprints
    from monai_nodeo.apps.cohort.storage import usable_folder
    from monai_nodeo.files import ImageGrid, no_empty_folder, open_stored

    configure_logging(given["quiet"])
    dataset, output = bids_dir.resolve(), output_dir.resolve()
    images = find_images(dataset, check_label("--suffix", given["suffix"]))
    wanted = chosen(chosen(images, "sub", given["participant_label"]), "ses", given["session_label"])
    atlas, labels, space = _atlas(given["atlas"], given["atlas_labels"], given["space"])
    ImageGrid.from_file(str(atlas))
    if labels is not None:
        open_stored(labels)
    derivatives = BidsDerivatives(dataset, output, atlas, space, labels, given["skull_stripped"])
    rows = [{"fixed": str(atlas), "moving": str(image.path), "id": image.name(image.suffix)} for image in images]
    paths = {str(image.path) for image in wanted}
    settings = settings_of_run(rows, given)
    content = fingerprints({"fixed": str(labels)})["fixed"] if labels else None
    with no_empty_folder(output):
        usable_folder(output)
        derivatives.begin()
        run(
            usable_folder(output / REGISTRATIONS / f"{given['suffix']}_to_{space}"),
            rows,
            [row for row in rows if row["moving"] in paths],
            settings,
            given,
            content and content["sha256"],
            given["skull_stripped"],
            derivatives=derivatives,
        )


def _atlas(atlas: str, labels: str | None, space: str | None) -> tuple[Path, Path | None, str]:
    """Image, label map and name of the atlas."""
    from monai_nodeo.apps.bids.dataset import check_label

    place = Path(atlas).expanduser().resolve()
    image, beside = place, None
    if place.is_dir() and (place / ATLAS_NAMES[0]).is_file():
        image, beside = (place / name for name in ATLAS_NAMES)
    if labels is not None:
        beside = Path(labels).expanduser().resolve()
    elif beside is not None and not beside.is_file():
        beside = None
    if space is not None:
        return image, beside, check_label("--space", space)
    template = _TEMPLATE.search(place.name)
    stem = place.name if place.is_dir() else place.name.partition(".")[0]
    name = template[1] if template else re.sub("[^0-9a-zA-Z]", "", stem)
    return image, beside, check_label("the name of the atlas", name)
