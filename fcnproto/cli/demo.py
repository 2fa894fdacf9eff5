"""Draw new scenes, segment them with the net that comes with the package, and check the result.

One line per metric on stdout; the picture (image, truth, prediction, overlay with legend) goes to the folder.
"""

from __future__ import annotations

from pathlib import Path

import click

from fcnproto.cli import _files, _options


@click.command("demo", short_help="Segment newly drawn scenes.")
@click.option(
    "-o",
    "--output",
    type=_files.OutputFolder(),
    default=Path("demo-output"),
    show_default=True,
    help="Folder for the picture.",
)
@_options.device_option
def command(output: Path, device: str | None) -> None:
    """Draw new scenes, segment them with fcn-mini, the net that comes with the package, and check the result."""
    from fcnproto.demo import run_demo

    run_demo(output, device=_options.device(device))
