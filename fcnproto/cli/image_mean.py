"""Compute the mean image of a database or a folder, for mean_file.

As Caffe's compute_image_mean, and for folders of images too.
"""

from __future__ import annotations

from pathlib import Path

import click

from fcnproto.cli import _files, _options, _output
from fcnproto.cli._caffe_flags import CaffeCommand


@click.command("image-mean", cls=CaffeCommand)
@click.argument("source", type=click.Path())
@click.argument("output", type=_files.OutputFile(), required=False)
@click.option(
    "--backend", type=click.Choice(["lmdb", "leveldb"]), help="As Caffe's tool has it; the kind is seen anyway."
)
@_options.json_option
@click.option("--gray", is_flag=True, help="Read a folder's images as grey ones.")
@click.option("--resize", metavar="HxW", callback=_options.size, help="Resize a folder's images first.")
def command(
    source: str, output: Path | None, backend: str | None, gray: bool, resize: tuple[int, int] | None, as_json: bool
) -> int:
    """Average the records of SOURCE, a database (LMDB, LevelDB), or the images in it, a folder; all need one size.

    The mean image goes to OUTPUT (.binaryproto), the mean of each channel to stdout. Images that can't be read are
    reported and left out; the exit status is 1 then.
    """
    from fcnproto.data.tools import image_mean, write_mean

    with _output.progress("averaging") as bar:
        task = bar.add_task("", total=None)
        report = image_mean(
            source,
            gray=gray,
            resize=resize,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    for failure in report.failures:
        _output.error(failure)
    if output is not None:
        write_mean(str(output), report.mean)
    if as_json:
        _output.print_json({"mean": list(map(float, report.values)), "failures": list(report.failures), "file": output})
        return 1 if report.failures else 0
    for channel, value in enumerate(report.values):
        _output.print_line(f"mean_value channel {channel}: {value:g}")
    return 1 if report.failures else 0
