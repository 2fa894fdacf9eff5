"""Encode depth images as HHA: disparity, height above the ground, angle with gravity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fcnproto.cli import _files, _options, _output
from fcnproto.errors import DataError, UsageError

if TYPE_CHECKING:
    from fcnproto.data.hha import Intrinsics


@click.command("hha")
@click.argument("depths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="DEPTH_OR_FOLDER...")
@click.option("-o", "--output", required=True, type=_files.OutputFolder(), help="Folder for the HHA images.")
@click.option("--camera", required=True, metavar="FX,FY,CX,CY|nyud", help="Focal lengths and middle, in pixels.")
@click.option("--unit", type=float, default=0.001, show_default=True, help="Metres that a pixel value of 1 stands for.")
@_options.json_option
@click.option("--radius", type=click.IntRange(min=1), default=3, show_default=True, help="Of the windows for normals.")
def command(depths: Sequence[Path], output: Path, camera: str, unit: float, as_json: bool, radius: int) -> None:
    """Encode depth images (one channel of 8, 16 or 32 bits) as HHA images of the same names (.png).

    Pixels that are 0 are holes and are filled. "nyud" is the camera of NYUDv2's images of 560x425.
    """
    import numpy as np
    from PIL import Image

    from fcnproto.atomic import atomic_write
    from fcnproto.data.hha import hha
    from fcnproto.image_files import find_images
    from fcnproto.images import read_depth

    intrinsics = _camera(camera)
    if not unit > 0:
        raise UsageError(f"--unit {unit:g}: must be above 0")
    output.mkdir(parents=True, exist_ok=True)
    files, written = find_images(depths), list[Path]()
    with _output.progress("encoding") as progress:
        for path, name in progress.track(files):
            try:
                image = hha(np.asarray(read_depth(path)) * unit, intrinsics, radius)
            except DataError as error:
                raise DataError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
            target = output / f"{name}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(target) as file:
                Image.fromarray(image).save(file, "PNG")
            written.append(target)
            if not as_json:
                _output.print_line(str(target))
    if as_json:
        _output.print_json({"files": written})


def _camera(text: str) -> Intrinsics:
    from fcnproto.data import hha

    if text.lower() == "nyud":
        return hha.KINECT_NYUD
    try:
        values = [float(part) for part in text.split(",")]
        fx, fy, cx, cy = values
    except ValueError:
        raise UsageError(f"--camera {text}: expected four numbers FX,FY,CX,CY, or nyud") from None
    return hha.Intrinsics(fx, fy, cx, cy)
