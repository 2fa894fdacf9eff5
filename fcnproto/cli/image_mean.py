"""Compute the mean image of a database or a folder, for mean_file.

As Caffe's compute_image_mean, and for folders of images too.
"""

from __future__ import annotations

import os
from pathlib import Path

import click

from fcnproto.cli import _files, _options, _output
from fcnproto.cli._caffe_flags import CaffeCommand
from fcnproto.errors import DataError, UsageError


@click.command("image-mean", cls=CaffeCommand)
@click.argument("source", type=click.Path())
@click.argument("output", type=_files.OutputFile(), required=False)
@click.option(
    "--backend", type=click.Choice(["lmdb", "leveldb"]), help="As Caffe's tool has it; the kind is seen anyway."
)
@_options.json_option
@click.option(
    "--bands",
    is_flag=True,
    help="Mean and scale of each band of a folder's images, values as they are.  [default: where images have more than "
    "3 bands or are .npy files]",
)
@click.option("--gray", is_flag=True, help="Read a folder's images as grey ones.")
@click.option("--resize", metavar="HxW", callback=_options.size, help="Resize a folder's images first.")
def command(
    source: str,
    output: Path | None,
    backend: str | None,
    bands: bool,
    gray: bool,
    resize: tuple[int, int] | None,
    as_json: bool,
) -> int:
    """Average the records of SOURCE, a database (LMDB, LevelDB), or the images in it, a folder; all need one size.

    The mean image goes to OUTPUT (.binaryproto), the mean of each channel to stdout. Images that can't be read are
    reported and left out; the exit status is 1 then.

    Of images of N bands (TIFF, .npy) in a folder, of any sizes, it is the mean and the scale (1 through the standard
    deviation) of each band: on stdout, and as OUTPUT.json for --mean.
    """
    if os.path.isdir(source) and not gray and resize is None and (bands or _has_bands(source)):
        return _of_bands(source, output, as_json)
    if bands:
        raise UsageError("--bands: is for folders of images, and goes without --gray and --resize")
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


def _has_bands(folder: str) -> bool:
    """Whether the first image of a folder is no picture: an array, or of more than three bands."""
    from fcnproto.bands import TIFF
    from fcnproto.data.records import is_leveldb, is_lmdb
    from fcnproto.image_files import find_images
    from fcnproto.images import read_bands

    if is_lmdb(folder) or is_leveldb(folder):
        return False
    first = next((path for path, _ in find_images([folder], recursive=True, arrays=True)), None)
    if first is None or first.suffix.lower() not in (*TIFF, ".npy"):
        return False
    try:
        return first.suffix.lower() == ".npy" or read_bands(first).count > 3
    except DataError:
        return False


def _of_bands(folder: str, output: Path | None, as_json: bool) -> int:
    from fcnproto.data.statistics import band_statistics, write_statistics
    from fcnproto.image_files import find_images

    if output is not None and output.suffix.lower() != ".json":
        raise UsageError(f"{output}: mean and scale of bands are written as .json")
    paths = [path for path, _ in find_images([folder], recursive=True, arrays=True)]
    with _output.progress("averaging") as bar:
        task = bar.add_task("", total=len(paths))
        found = band_statistics(paths, told=lambda done: bar.update(task, completed=done))
    for failure in found.failures:
        _output.error(failure)
    if output is not None:
        write_statistics(output, found)
    if as_json:
        _output.print_json({"mean": found.mean.tolist(), "scale": found.scale, "failures": found.failures})
    else:
        for name, values in (("mean_value", found.mean), ("scale", found.scale)):
            for band, value in enumerate(values):
                _output.print_line(f"{name} channel {band}: {value:g}")
    return 1 if found.failures else 0
