"""The options that say how images become a net's inputs, shared by the commands that read images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fcnproto.cli import _options, _output
from fcnproto.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from fcnproto.images import Preprocessing
    from fcnproto.net import Net
    from fcnproto.preprocessing import Chosen

_KINDS = ("bgr", "rgb", "grey", "depth", "bands")


def input_options(function: _options.Function) -> _options.Function:
    """`--image` (a picture, made ready for the net) and `--input` (arrays, given as they are): `images` and `arrays`.

    Read both with `input_values`.
    """
    for option in (
        click.option(
            "--input",
            "arrays",
            metavar="[BLOB=]FILE",
            multiple=True,
            help="Inputs as they are (labels too): .npz by blob, or .npy.",
        ),
        click.option("--image", "images", metavar="[BLOB=]FILE", multiple=True, help="An image as an input."),
    ):
        function = option(function)
    return function


def input_values(
    net: Net,
    images: Sequence[str],
    arrays: Sequence[str],
    settings: Mapping[str, Any],
) -> dict[str, Tensor]:
    """The inputs that `--image`, `--input` and the preprocessing options (with resize and crop) in `settings` name.

    A picture after `--input` counts as one after `--image`. Raises `UsageError` and `DataError`.
    """
    from fcnproto.image_files import SUFFIXES
    from fcnproto.inspect.running import read_array, read_arrays

    pictures = [text for text in arrays if Path(text).suffix.lower() in SUFFIXES]
    values = _image_values(net, [*images, *pictures], settings) if images or pictures else {}
    for text in arrays:
        if text in pictures:
            continue
        name, sign, path = text.partition("=")
        if sign and name in net.source_shapes and not Path(text).exists():
            found = {name: read_array(path, name)}
        else:
            found = read_arrays(text, net)
        twice = next((name for name in found if name in values), None)
        if twice is not None:
            raise UsageError(f"--input {text}: input {twice!r} is given twice")
        values |= found
    return values


def _image_values(net: Net, images: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Tensor]:
    from fcnproto.inspect.running import image_value
    from fcnproto.net.roles import fixed_image_size
    from fcnproto.preprocessing import preprocessing_of

    inputs = list(net.source_shapes)
    if not inputs:
        raise UsageError("the net has no inputs")
    hows, values = {}, {}
    for text in images:
        name, sign, path = text.partition("=")
        if not sign or name not in inputs:
            name, path = inputs[0], text
        if name in values:
            raise UsageError(f"--image: input {name!r} is given twice; name the other as BLOB=FILE")
        hows[name] = override(preprocessing_of(net, name), name, inputs, settings)
        size = (
            fixed_image_size(net, name)
            if settings["resize"] is None and settings["crop"] is None
            else fixed_size(settings["resize"], net)
        )
        values[name] = image_value(path, hows[name], size, settings["crop"])
    tell_assumptions(hows)
    return values


def preprocessing_options(function: _options.Function) -> _options.Function:
    """`--mean`, `--scale`, `--channels` and `--resize`: the first three are read with `override`."""
    return kinds_options(
        click.option(
            "--resize", metavar="HxW|net", help="Scale every image for the net; net: to the size in its Input layer."
        )(function)
    )


def kinds_options(function: _options.Function) -> _options.Function:
    """`--mean`, `--scale` and `--channels`: read with `override` or `chosen`."""
    for option in (
        click.option(
            "--channels",
            "kinds",
            metavar="[BLOB=]KIND",
            multiple=True,
            help=f"One of {', '.join(_KINDS)}; bands: the file's values as they are, of any number of bands.",
        ),
        click.option(
            "--scale",
            "scales",
            metavar="[BLOB=]X",
            multiple=True,
            help="Factor after the mean is taken off, or one for each channel; or a .json file of image-mean.",
        ),
        click.option(
            "--mean",
            "means",
            metavar="[BLOB=]MEAN",
            multiple=True,
            help="Mean in the net's order of channels (104,117,123), a .binaryproto or .npy file, or none; or a .json "
            "file of image-mean, with its scale.",
        ),
    ):
        function = option(function)
    return function


def override(how: Preprocessing, name: str, inputs: Sequence[str], settings: Mapping[str, Any]) -> Preprocessing:
    """The preprocessing of input `name` with what the options say. UsageError for values that make no sense."""
    return chosen(settings).apply(how, name, inputs)


def chosen(settings: Mapping[str, Any]) -> Chosen:
    """What the options `--channels`, `--mean` and `--scale` say."""
    from fcnproto.preprocessing import Chosen

    return Chosen(*(tuple(settings[key]) for key in ("kinds", "means", "scales")))


def tell_assumptions(preprocessing: Mapping[str, Preprocessing]) -> None:
    """Say on stderr what nobody has said about the inputs, and how to say it."""
    for name, how in preprocessing.items():
        if how.why == "assumed":
            plain = replace(how, why="")
            _output.note(f"input {name!r}: assumed {plain} (change it with --channels, --mean, --scale)")


def fixed_size(text: str | None, net: Net) -> tuple[int, int] | None:
    """(height, width) that `--resize` names; "net" is the size that the net's first image input has in the prototxt."""
    if text is None:
        return None
    if text != "net":
        try:
            return _options.parse_size(text)
        except ValueError as error:
            raise UsageError(f"--resize {error}, or net") from None
    for shape in net.source_shapes.values():
        if shape is not None and len(shape) == 4 and shape[2] is not None and shape[3] is not None:
            return shape[2], shape[3]
    raise UsageError("--resize net: the prototxt does not say the size of an image input; give HEIGHTxWIDTH")
