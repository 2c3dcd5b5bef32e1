# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""``monai-nodeo register``: one pair."""

from __future__ import annotations

import sys
import time
from os.path import expanduser
from pathlib import Path
from typing import Any

import click

from monai_nodeo.apps.cli._options import (
    DEVICE,
    MEMORY,
    NUMBERS,
    PRESET,
    SET,
    SMOOTHNESS,
    STARTS,
    check_files,
    configure_logging,
    settings_of,
)
from monai_nodeo.apps.cli._status import INTERRUPTED
from monai_nodeo.data.keys import IMAGE_KEYS, LABEL_KEYS, MASK_KEYS, images_of
from monai_nodeo.extras import check_tensorboard, report_or_not

__all__ = ["command"]

_NOT_DEFENDED = 4


@click.command()
@click.argument("images", nargs=-1, metavar="FIXED MOVING")
@click.option("-f", "--fixed", multiple=True, help="Image whose grid stays; repeat it for its contrasts.")
@click.option("-m", "--moving", multiple=True, help="Image that is warped; as many as fixed ones.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Folder for the results; by default a new one with the names of both images.",
)
@PRESET
@click.option("--init", "initial_transform", metavar=f"[{'|'.join(STARTS)}|FILE]", help="Affine start.")
@click.option("--similarity", metavar="NAME[,NAME...]", help="Instead of what the images choose; see Settings.")
@click.option(
    "--channel-weights", type=NUMBERS, metavar="W,W,...", help="How much each contrast or colour counts; 0: not at all."
)
@click.option(
    "--smoothness",
    "sd_log_jacobian",
    type=SMOOTHNESS,
    help="SDlogJ of the result, instead of what the images choose: from stiff (.1) over medium (.25) to free (.45).",
)
@click.option("--symmetric", is_flag=True, help="Prefer neither image: for visits of one person.")
@click.option("--fixed-mask", help="Where the fixed image counts.")
@click.option("--moving-mask", help="Where the moving image counts.")
@click.option("--fixed-label", help="Label map of the fixed image, for Dice and HD95.")
@click.option("--moving-label", help="Label map of the moving image.")
@click.option("--use-labels", is_flag=True, help="Let the labels that both have pull, too: label_weight 1.")
@click.option("--fixed-landmarks", help="CSV of points, x,y,z in LPS mm.")
@click.option("--moving-landmarks", help="The same points in the moving image.")
@DEVICE
@MEMORY
@click.option("--seed", type=int, help="Seed of the weights.")
@click.option(
    "--uncertainty",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Register N more times, with other noise, voxels and starts, and write how far the results differ.",
)
@click.option("--report/--no-report", default=True, help="Make report.html, the page of the pair.")
@click.option("--tensorboard", metavar="FOLDER", help="Write the loss curves there while they grow.")
@click.option(
    "--on-interrupt",
    type=click.Choice(["drop", "save"]),
    default="drop",
    show_default=True,
    help="What ctrl-C does to the flow so far.",
)
@click.option(
    "--strict", is_flag=True, help="End with status 4 if no deformation can be defended, or the result is not aligned."
)
@click.option("--quiet", is_flag=True, help="Print warnings and errors only.")
@SET
def command(
    images: tuple[str, ...],
    output: Path | None,
    preset: str | None,
    initial_transform: str | None,
    similarity: str | None,
    channel_weights: tuple[float, ...] | None,
    sd_log_jacobian: float | None,
    symmetric: bool,
    use_labels: bool,
    device: str | None,
    memory: int | None,
    seed: int | None,
    uncertainty: int,
    report: bool,
    tensorboard: str | None,
    on_interrupt: str,
    strict: bool,
    quiet: bool,
    changes: tuple[tuple[str, Any], ...],
    fixed: tuple[str, ...],
    moving: tuple[str, ...],
    **others: str | None,
) -> None:
    """Register the image MOVING to the image FIXED and write the results to a folder.

    The two may be named by -f and -m instead. Several contrasts of one side, such as T1 and T2, are
    -f t1.nii.gz -f t2.nii.gz -m t1.nii.gz -m t2.nii.gz.
    --set changes any setting, as in --set learning_rate=0.2. Whether the images are volumes or slices is read from
    the fixed image's header.
    """
    started = time.perf_counter()
    configure_logging(quiet)
    if images:
        fixed, moving = _fixed_and_moving(images, fixed + moving)
    if not fixed or not moving:
        raise click.UsageError("two images are needed: monai-nodeo register FIXED MOVING, or -f FIXED -m MOVING.")
    paths: dict[str, Any] = {"fixed": _one_or_all(fixed), "moving": _one_or_all(moving), **others}
    check_files(**paths, init=None if initial_transform in STARTS else initial_transform)
    if use_labels and None in (others["fixed_label"], others["moving_label"]):
        raise click.UsageError("--use-labels needs --fixed-label and --moving-label.")
    if tensorboard:
        check_tensorboard()
    report = report_or_not(report)
    if not quiet:
        click.echo(f"registering {', '.join(moving)} to {', '.join(fixed)}")
    from monai_nodeo.data.lists import single_pair
    from monai_nodeo.files import ImageGrid, check_no_file, check_output_dir, no_empty_folder

    (row,) = single_pair(**paths)
    if output is None:
        output = _new_folder(row)
    check_no_file(output)  # before torch is imported, by `needed_room`
    _check_headers(paths)
    grid = ImageGrid.from_file(fixed[0])
    settings = settings_of(
        grid.spatial_dims,
        preset,
        changes,
        seed=seed,
        initial_transform=initial_transform,
        similarity=similarity,
        channel_weights=channel_weights,
        sd_log_jacobian=sd_log_jacobian,
        symmetric=symmetric or None,
        label_weight=1.0 if use_labels else None,
    )
    from monai_nodeo.registration.needed_memory import fitting_settings, needed_room

    if memory is not None:
        settings, cost = fitting_settings(settings, grid.spatial_shape, memory, len(fixed))
        if cost:
            click.echo(f"to stay within {memory / 1e9:.3g} GB: {cost}.", err=True)
    with no_empty_folder(output):
        folder = check_output_dir(output, needed_room([row]))
        registration, figures, interrupted = _register(
            row, settings, folder, device, uncertainty, tensorboard, on_interrupt, quiet, started, memory is not None
        )
    if report:
        _report(registration, figures, folder)
    if interrupted:
        click.echo(f"interrupted: the flow is saved as far as it came, in {folder}.", err=True)
        sys.exit(INTERRUPTED)
    if strict and not _to_be_trusted(registration, figures):
        sys.exit(_NOT_DEFENDED)


def _fixed_and_moving(images: tuple[str, ...], named: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if named:
        raise click.UsageError(f"{images[0]!r}: images are named by their place or by -f and -m, not by both.")
    if len(images) != 2:
        raise click.UsageError(
            f"{len(images)} of 2 images: monai-nodeo register FIXED MOVING. Several contrasts are named by -f and -m."
        )
    return images[:1], images[1:]


def _new_folder(row: dict[str, Any]) -> Path:
    """In the working directory, with the names of both images.

    Raises:
        FileExistsError: the user did not name it, so what is there stays.
    """
    folder = Path(row["id"])
    if folder.exists():
        raise FileExistsError(f"{folder} is there already; name a folder for the results with -o.")
    return folder


def _to_be_trusted(registration: Any, figures: dict[str, Any]) -> bool:
    """Whether there is a deformation, and the verdict is not that the images are not aligned."""
    from monai_nodeo.metrics.confidence import NOT_ALIGNED

    return bool(registration.accepted and figures["wrong_probability"] < NOT_ALIGNED)


def _register(
    row: dict[str, Any],
    settings: Any,
    folder: Path,
    device: str | None,
    uncertainty: int,
    tensorboard: str | None,
    on_interrupt: str,
    quiet: bool,
    started: float,
    limited: bool,
) -> tuple[Any, dict[str, Any], bool]:
    """The registration, its figures, and whether it was asked to end early."""
    from functools import partial

    from monai_nodeo.data.load import load_pair
    from monai_nodeo.metrics.confidence import ALIGNED
    from monai_nodeo.registration import OnInterrupt, PairInferer, ProgressBar, TensorBoardCurves
    from monai_nodeo.registration.malloc import give_freed_memory_back, keep_freed_memory
    from monai_nodeo.registration.metrics_table import row_of, summary_of, write_table

    interrupt = OnInterrupt(on_interrupt)
    handlers: list[Any] = [] if quiet else [ProgressBar]
    handlers += [partial(TensorBoardCurves, tensorboard)] if tensorboard else []
    inferer = PairInferer(settings, handlers=(*handlers, lambda: interrupt), uncertainty=uncertainty)
    pair = load_pair(row, settings.spatial_dims, inferer.components.velocity.min_size)
    try:
        with interrupt.listening(), give_freed_memory_back() if limited else keep_freed_memory():
            registration = inferer.register([pair], device)[0]
            figures = registration.save(folder, seconds_total=time.perf_counter() - started)
    except KeyboardInterrupt:
        advice = "" if on_interrupt == "save" else " --on-interrupt save keeps the flow so far."
        raise KeyboardInterrupt(f"interrupted: nothing is half-written in {folder}.{advice}") from None
    write_table(folder, [row_of(figures)])
    if figures["wrong_probability"] > ALIGNED:
        click.echo(
            f"warning: perhaps not aligned: points are wrong by more than 5 mm or 3 voxels with a probability of "
            f"{figures['wrong_probability']:.0%}; look at the images.",
            err=True,
        )
    if not quiet:
        click.echo(f"{figures['id']}: {summary_of(figures)}")
        click.echo(registration.certificate.verdict)
        if spread := figures.get("uncertainty_mm"):
            click.echo(f"uncertainty: median {spread['median']:.2g} mm, 99 % within {spread['quantile_99']:.2g} mm")
        click.echo(f"results are in {folder}")
    return registration, figures, interrupt.requested


def _report(registration: Any, figures: dict[str, Any], folder: Path) -> None:
    from monai_nodeo.report import write_report

    try:
        write_report(registration, figures, folder)
    except (OSError, ValueError) as error:  # the registration is there
        click.echo(f"warning: no report: {error}", err=True)


def _one_or_all(paths: tuple[str, ...]) -> str | list[str]:
    return paths[0] if len(paths) == 1 else list(paths)


def _check_headers(paths: dict[str, Any]) -> None:
    """Of all images in one file, before torch is imported; folders are read once, by `data.load`."""
    from monai_nodeo.files import ImageFileError, open_stored

    for key in (*IMAGE_KEYS, *LABEL_KEYS, *MASK_KEYS):
        for path in images_of(paths[key]):
            if path is not None and Path(expanduser(path)).is_file():
                try:
                    open_stored(path)
                except ImageFileError as error:
                    raise ImageFileError(f"{key} {error}") from error
