"""Draw new scenes, segment them with the net that comes with the package, and check the result.

One line per metric on stdout; the picture (image, truth, prediction, overlay with legend) goes to the folder.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import click

from fcnproto.cli import _files, _options, _output


@click.command("demo", short_help="Segment newly drawn scenes.")
@click.option(
    "-o",
    "--output",
    type=_files.OutputFolder(),
    default=Path("demo-output"),
    show_default=True,
    help="Folder for the picture.",
)
@_options.json_option
@_options.device_option
def command(output: Path, as_json: bool, device: str | None) -> None:
    """Draw new scenes, segment them with fcn-mini, the net that comes with the package, and check the result."""
    from fcnproto.demo import run_demo

    with contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout):
        found = run_demo(output, device=_options.device(device))
    if as_json:
        _output.print_json({**dict(found.named()), "picture": output / "demo.png"})
