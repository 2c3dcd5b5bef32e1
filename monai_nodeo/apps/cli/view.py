# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""``monai-nodeo view``: the volumes of finished registrations in the browser."""

from __future__ import annotations

from pathlib import Path

import click

from monai_nodeo.extras import extra

__all__ = ["command"]


@click.command()
@click.argument("folder", metavar="OUT", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the page of a pair there, open nothing.",
)
def command(folder: Path, output: Path | None) -> None:
    """Look at the registrations in OUT: planes, 3D, labels, Jacobian, grid and the way of the flow.

    Of one pair, OUT/view.html is written and opened in the browser: one file that asks for nothing. Of a run, the page
    over its pairs is opened, and a click opens a pair; the pages come from this command, for this machine alone, until
    ctrl-C. The images that were registered have to be where they were.
    """
    import webbrowser

    from monai_nodeo.registration.folder import FIGURES

    with extra("view", "viewers"):
        from monai_nodeo.report import write_view
        from monai_nodeo.report.server import RunServer

    if output is not None or (folder / FIGURES).exists():
        page = write_view(folder, output).absolute()
        click.echo(page)
        if output is None:
            webbrowser.open(page.as_uri())
        return
    with RunServer(folder) as server:
        click.echo(f"{server.url} (ctrl-C ends it)")
        webbrowser.open(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            click.echo("ended.")
