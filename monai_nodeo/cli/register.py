# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""``monai-nodeo register``: the bundle's config, filled in from the command line and run."""

from __future__ import annotations

from typing import Any

import click

from monai_nodeo.cli.settings import parse_setting
from monai_nodeo.resources import bundle_dir, config_files, preset_names

__all__ = ["command"]

_START = ("none", "moments", "rigid", "affine")


@click.command()
@click.option("-f", "--fixed", required=True, help="Image whose grid stays.")
@click.option("-m", "--moving", required=True, help="Image that is warped.")
@click.option("-o", "--output", required=True, help="Folder for the results; made if it does not exist.")
@click.option("--preset", type=click.Choice(preset_names()), help="Settings laid over the bundle's.")
@click.option("--init", "initial_transform", metavar=f"[{'|'.join(_START)}|FILE]", help="Affine start.")
@click.option("--fixed-mask", help="Where the fixed image counts.")
@click.option("--moving-mask", help="Where the moving image counts.")
@click.option("--fixed-label", help="Label map of the fixed image, for Dice and HD95.")
@click.option("--moving-label", help="Label map of the moving image.")
@click.option("--fixed-landmarks", help="CSV of points, x,y,z in LPS mm.")
@click.option("--moving-landmarks", help="The same points in the moving image.")
@click.option("--device", help="cpu, cuda, cuda:1; by default a GPU if there is one.")
@click.option("--seed", type=int, help="Seed of the weights.")
@click.option("--report/--no-report", default=True, help="Make report.html, the page of the pair.")
@click.option("--tensorboard", metavar="FOLDER", help="Write the loss curves there while they grow.")
@click.option("--on-interrupt", type=click.Choice(["drop", "save"]), help="What ctrl-C does to the field so far.")
@click.option("--quiet", is_flag=True, help="Print errors only.")
@click.option("--set", "settings", multiple=True, metavar="ID=VALUE", help="Any id of the config; may be repeated.")
def command(output: str, preset: str | None, settings: tuple[str, ...], quiet: bool, **ids: Any) -> None:
    """Register MOVING to FIXED and write the results to a folder.

    Every option is an id of the bundle's config, and --set sets any other, as in --set solver::num_steps=4. Whether
    the images are volumes or slices is read from the fixed image's header.
    """
    overrides: dict[str, Any] = {"output_dir": output, "pair_folder": ".", "quiet": quiet}
    overrides |= {id: value for id, value in ids.items() if value is not None}
    if overrides.get("initial_transform") == "none":
        overrides["initial_transform"] = None
    overrides |= dict(parse_setting(text) for text in settings)
    _run(_config_files(ids["fixed"], preset), overrides, quiet)


def _config_files(fixed: str, preset: str | None) -> list[str]:
    """The bundle's config and what lies over it."""
    from monai_nodeo.files import ImageGrid

    return [str(path) for path in config_files(ImageGrid.from_file(fixed).spatial_dims, preset)]


def _run(files: list[str], overrides: dict[str, Any], quiet: bool) -> None:
    """What ``monai.bundle run`` does, without its notice about configs of strangers: these are our own."""
    import logging

    from monai.bundle import ConfigWorkflow

    # It remarks that the preset lies in another folder than the bundle, and that it found the logging file.
    logging.getLogger(ConfigWorkflow.__module__).setLevel(logging.ERROR)
    if quiet:
        logging.disable(logging.WARNING)
    workflow = ConfigWorkflow(config_file=files, bundle_root=str(bundle_dir()), **overrides)
    workflow.initialize()
    workflow.run()
    workflow.finalize()
