"""Make a database (LMDB) of the images in a list, for Data layers.

Named and meant as Caffe's own tool, whose flags are taken as they are (`-resize_height 256`): lines of `path label`,
keys of the line's number and the path.
"""

from __future__ import annotations

from pathlib import Path

import click

from fcnproto.cli import _files, _options, _output
from fcnproto.cli._caffe_flags import CaffeCommand
from fcnproto.errors import UsageError


@click.command("convert-imageset", cls=CaffeCommand)
@click.argument("root")
@click.argument("list_file", metavar="LIST", type=click.Path(dir_okay=False))
@click.argument("database", type=_files.OutputFolder())
@click.option("--gray", is_flag=True, help="Read the images as grey ones.")
@click.option("--shuffle", is_flag=True, help="Write the lines in random order.")
@click.option("--seed", type=int, metavar="N", help="Seed of the random order, to have it again.")
@click.option("--resize", metavar="HxW", callback=_options.size, help="Resize the images (as OpenCV does, bilinear).")
@click.option("--resize-height", type=click.IntRange(0), default=0, metavar="N", help="Caffe's way to say --resize,")
@click.option(
    "--resize-width", type=click.IntRange(0), default=0, metavar="N", help="both together; 0 leaves the size."
)
@click.option("--backend", type=click.Choice(["lmdb", "leveldb"]), default="lmdb", show_default=True)
@click.option("--encoded", is_flag=True, help="Store image files rather than pixels.")
@click.option(
    "--encode-type", default="", metavar="SUFFIX", help="Their format, such as png or jpg [default: as it is]."
)
@_options.json_option
@click.option("--check-size", is_flag=True, help="Stop at an image whose data differ in size from the first one's.")
def command(
    root: str,
    list_file: str,
    database: Path,
    gray: bool,
    shuffle: bool,
    seed: int | None,
    resize: tuple[int, int] | None,
    resize_height: int,
    resize_width: int,
    backend: str,
    encoded: bool,
    encode_type: str,
    check_size: bool,
    as_json: bool,
) -> int:
    """Make DATABASE of the images that LIST names, one `path label` a line; ROOT is put before each path as it stands.

    Images that can't be read are reported and left out; the exit status is 1 then.
    """
    from fcnproto.data.tools import ImageOptions, convert_imageset

    if (resize_height > 0) != (resize_width > 0) or (resize is not None and resize_height):
        raise UsageError("give --resize HxW, or both of --resize-height and --resize-width")
    resize = (resize_height, resize_width) if resize_height else resize
    with _output.progress("converting") as bar:
        task = bar.add_task("", total=None)
        report = convert_imageset(
            root,
            list_file,
            str(database),
            ImageOptions(gray, resize, encoded, encode_type, check_size),
            shuffle=shuffle,
            seed=seed,
            backend=backend,  # type: ignore[arg-type]
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    for failure in report.failures:
        _output.error(failure)
    if as_json:
        failures = list(report.failures)
        _output.print_json({"database": database, "records": report.written, "failures": failures})
    else:
        _output.print_line(f"{report.written} records in {database}")
    return 1 if report.failures else 0
