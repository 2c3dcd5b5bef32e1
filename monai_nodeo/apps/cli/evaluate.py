# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""``monai-nodeo evaluate``: how good a transform is, by labels, landmarks and its field."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from monai_nodeo.apps.cli._numbers import echo_figures
from monai_nodeo.apps.cli._options import file_of, is_registration

if TYPE_CHECKING:
    from monai_nodeo.metrics.certificate import Certificate

__all__ = ["command"]


@click.command()
@click.option("-t", "--transform", "transforms", required=True, multiple=True, help="As for apply.")
@click.option("--fixed-label", help="Label map of the fixed image.")
@click.option("--moving-label", help="Label map of the moving image, as it is before registration.")
@click.option("--fixed-landmarks", help="CSV of points, x,y,z in LPS mm.")
@click.option("--moving-landmarks", help="The same points in the moving image, in the same order.")
@click.option("-o", "--output", help="File for the figures, JSON.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of lines.")
def command(transforms: tuple[str, ...], output: str | None, as_json: bool, **files: str | None) -> None:
    """Judge a transform before and after: labels, landmarks, field; of any tool.

    Dice and HD95 (mm) are over the labels of the fixed image, the moving ones warped with nearest neighbours. The
    target registration error (mm) is the distance of landmarks. "Before" trusts the headers alone.
    """
    from monai_nodeo.files import atomic_path, check_folder
    from monai_nodeo.files.resampling import read_chain
    from monai_nodeo.metrics.evaluation import label_figures, landmark_figures
    from monai_nodeo.metrics.transform_figures import transform_figures

    for kind in ("label", "landmarks"):
        if (files[f"fixed_{kind}"] is None) != (files[f"moving_{kind}"] is None):
            raise click.UsageError(f"--fixed-{kind} and --moving-{kind} come together; give both or none.")
    if output:
        check_folder(output)
    fixed_label, moving_label = files["fixed_label"], files["moving_label"]
    maps = (fixed_label, moving_label) if fixed_label and moving_label else None
    transform = read_chain([file_of(name) for name in transforms], maps)
    figures: dict[str, Any] = {}
    if maps:
        figures["labels"] = label_figures(transform, *maps)
    if files["fixed_landmarks"] and files["moving_landmarks"]:
        figures["landmarks"] = landmark_figures(transform, files["fixed_landmarks"], files["moving_landmarks"])
    figures["step"] = transform_figures(transform)
    figures["certificate"] = [proof.to_dict() for name in transforms for proof in _certificates(name)]
    if output:
        with atomic_path(output) as partial:
            partial.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    echo_figures(figures, as_json)


def _certificates(name: str) -> list[Certificate]:
    """Of the flow of a registration, or of each field in a file."""
    from monai_nodeo.files.resampling import read_chain
    from monai_nodeo.metrics.certificate import certify_transform

    if not is_registration(name):
        return certify_transform(read_chain([name]))
    from monai_nodeo.registration.folder_transform import certificate_of_folder

    return [certificate_of_folder(name)]
