"""Options that several commands share, and the reading of their values."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fcnproto.errors import UsageError, first_line

if TYPE_CHECKING:
    import torch

Function = TypeVar("Function", bound=Callable[..., Any])

_THREADS = "Threads of torch's arithmetic.  [default: all cores]"
CROPS = ("caffe", "aligned")
"""`fcnproto.graph.crops.CHOICES`, written here so that `--help` need not load the graph."""


def device_option(function: Function) -> Function:
    """`--device`: read it with `device`."""
    return click.option(
        "--device", metavar="NAME", help="cpu, cuda, cuda:1, ...  [default: cuda where there is one, else cpu]"
    )(function)


def json_option(function: Function) -> Function:
    """`--json`: the argument `as_json` of a command, which then prints its results as JSON."""
    return click.option("--json", "as_json", is_flag=True, help="Print the results as JSON on stdout.")(function)


_AS_JSON = "fcnproto.as_json"


def json_flag(function: Function) -> Function:
    """`--json` of commands that share what prints their results: it asks `wants_json`."""

    def keep(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
        context.meta[_AS_JSON] = wanted

    return click.option(
        "--json", is_flag=True, expose_value=False, callback=keep, help="Print the results as JSON on stdout."
    )(function)


def wants_json() -> bool:
    """Whether the command that runs was given `--json`."""
    return bool(click.get_current_context().meta.get(_AS_JSON, False))


def binary_masks_option(function: Function) -> Function:
    """`--binary-masks`: how masks of 0 and 255 are read."""
    return click.option("--binary-masks", is_flag=True, help="Masks' values 0 and 255 are the labels 0 and 1.")(
        function
    )


def empty_classes_option(function: Function) -> Function:
    """`--allow-empty-classes`: masks in which classes are missing are not refused."""
    return click.option(
        "--allow-empty-classes", is_flag=True, help="Take masks that hold nothing of a class (or of any but the first)."
    )(function)


def state_options(function: Function) -> Function:
    """`--level`, `--stage` and `--allow-python`: which layers of the net there are (Caffe's NetState)."""
    for option in (
        click.option(
            "--allow-python", is_flag=True, help="Import the modules that Python layers name; they run as you."
        ),
        click.option(
            "--stage", "stages", metavar="A,B", multiple=True, help="Stages for the prototxt's rules.", callback=_stages
        ),
        click.option("--level", type=int, default=0, help="Level for the rules of the prototxt.", show_default=True),
    ):
        function = option(function)
    return function


def writes_option(function: Function) -> Function:
    """`--allow-writes`: whether layers of the net that write files may do so."""
    return click.option(
        "--allow-writes", is_flag=True, help="Let layers of the net that write files (HDF5Output) write them."
    )(function)


def writes_anyway_option(function: Function) -> Function:
    """`--allow-writes` where a net's layers write in any case, as Caffe's do: accepted, there is nothing to allow."""
    return click.option("--allow-writes", is_flag=True, expose_value=False, help="Layers that write files do so here.")(
        function
    )


def input_size_option(function: Function) -> Function:
    """`--input-size`: (height, width) of a net's image and label inputs."""
    return click.option(
        "--input-size",
        metavar="HxW",
        callback=size,
        help="Size of the image and label inputs.  [default: the prototxt's]",
    )(function)


def crop_option(function: Function) -> Function:
    """`--crop`: how Crop layers without an offset are read, for `load`."""
    return click.option(
        "--crop",
        type=click.Choice(CROPS),
        default=CROPS[0],
        show_default=True,
        help="Where Crop layers without an offset begin: at 0, or where the coordinate map says (nets of 2015).",
    )(function)


def dialect_option(function: Function) -> Function:
    """`--dialect`: the fork of Caffe that a net was written for, for `load`."""
    return click.option(
        "--dialect",
        metavar="NAME",
        help="The fork of Caffe that the net was written for (ssd, segnet, hed, ...), where its text doesn't say it.",
    )(function)


def strict_option(function: Function) -> Function:
    """`--strict`: refuse what nobody here knows, for `load`."""
    return click.option(
        "--strict",
        is_flag=True,
        help="Refuse fields and layer types that are unknown (and Python layers without --allow-python).",
    )(function)


def caffe_proto_option(function: Function) -> Function:
    """`--caffe-proto`: a fork's own schema, for `load` and `net_definition`."""
    return click.option(
        "--caffe-proto",
        metavar="FILE",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="The caffe.proto of the fork that the net is from, for fields that are unknown here.",
    )(function)


def crops_option(function: Function) -> Function:
    """`--crop` of a command that cuts images, too: the value is (how Crop layers are read, size of the cut or None)."""
    return click.option(
        "--crop",
        metavar="HxW|aligned",
        multiple=True,
        callback=_crops,
        help="Cut the middle out of the (scaled) image; `aligned` lets Crop layers without an offset begin where the "
        "coordinate map says (nets of 2015). Both may be given.",
    )(function)


def threads_option(function: Function) -> Function:
    """`--threads`: the command runs with so many."""

    @click.option("--threads", "count", type=click.IntRange(min=1), metavar="N", help=_THREADS)
    @functools.wraps(function)
    def command(count: int | None, **values: Any) -> Any:
        if count is None:
            return function(**values)
        with threads(count):
            return function(**values)

    return command  # type: ignore[return-value]


def precision_option(help: str) -> Callable[[Function], Function]:
    """`--precision`: a name of `fcnproto.precision.PRECISIONS`, given short or long; its short name."""
    return click.option(
        "--precision", metavar="fp32|tf32|bf16|fp16", default="fp32", show_default=True, callback=_precision, help=help
    )


def _precision(context: click.Context, parameter: click.Parameter, value: str) -> str:
    from fcnproto.precision import canonical

    return canonical(value)


def title(model: Path) -> str:
    """What a net without a name is called: its file, or the folder of a deploy.prototxt."""
    folder = model.resolve().parent.name
    return folder if model.stem == "deploy" and folder else model.stem


def device(name: str | None) -> torch.device:
    """The torch device of that name, the best one by default. UsageError if this machine hasn't got it."""
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        wanted = torch.device(name)
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = first_line(error).rstrip(".")
        raise UsageError(f"--device {name}: not a device of this machine ({reason})") from None
    return wanted


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Let torch compute with so many threads; None leaves their number alone."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def names(context: click.Context | None, parameter: click.Parameter | None, value: str | None) -> tuple[str, ...]:
    """A click callback: the parts of a list separated by commas."""
    return tuple(part.strip() for part in (value or "").split(",") if part.strip())


def _stages(context: click.Context, parameter: click.Parameter, values: Sequence[str]) -> tuple[str, ...]:
    """A click callback: all names, whether the option is repeated or they stand in one list."""
    return tuple(name for value in values for name in names(context, parameter, value))


def size(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """A click callback: (height, width) from "HxW"; see `parse_size`."""
    try:
        return None if value is None else parse_size(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _crops(
    context: click.Context, parameter: click.Parameter, values: Sequence[str]
) -> tuple[str, tuple[int, int] | None]:
    """A click callback: see `crops_option`."""
    words = [value for value in values if value in CROPS]
    sizes = [value for value in values if value not in CROPS]
    if len(words) > 1 or len(sizes) > 1:
        raise click.BadParameter("give one size, and at most one of " + " and ".join(CROPS))
    return (words or CROPS)[0], size(context, parameter, sizes[0] if sizes else None)


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) from "HxW"; one number stands for both. ValueError for anything else."""
    parts = text.lower().split("x")
    if len(parts) == 1:
        parts *= 2
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"{text!r}: expected HEIGHTxWIDTH, such as 500x375")
    return int(parts[0]), int(parts[1])


def assignments(texts: Sequence[str], option: str) -> dict[str, str]:
    """The pairs of an option given as BLOB=VALUE. UsageError for other texts and names given twice."""
    pairs: dict[str, str] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name or not value:
            raise UsageError(f"{option} {text}: expected BLOB=VALUE")
        if name in pairs:
            raise UsageError(f"{option}: {name!r} is given twice")
        pairs[name] = value
    return pairs


def named(texts: Sequence[str], option: str) -> dict[str, str]:
    """The values of an option given as VALUE (under the name "") or BLOB=VALUE. UsageError for names given twice.

    A text that is an existing path is a value, whatever signs it has.
    """
    pairs: dict[str, str] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or os.path.exists(text) or "/" in name:
            name, value = "", text
        if name in pairs:
            raise UsageError(
                f"{option}: {name!r} is given twice" if name else f"{option}: is given twice; say BLOB=..."
            )
        pairs[name] = value
    return pairs


def classes_and_colours(
    classes: Sequence[str], colours: Sequence[str]
) -> tuple[dict[str, tuple[str, ...]], dict[str, dict[tuple[int, int, int], int]]]:
    """The class names and the tables of colours in the files that `--classes` and `--colours` name, by blob.

    Where only colours are given, their names are the classes'.
    """
    from fcnproto.data.masks import read_colours
    from fcnproto.preprocessing import read_class_names

    names: dict[str, tuple[str, ...]] = {}
    tables = {}
    for blob, file in named(colours, "--colours").items():
        tables[blob], names[blob] = read_colours(file)
    for blob, file in named(classes, "--classes").items():
        wanted, known = read_class_names(file), names.get(blob)
        if known is not None and sorted(wanted) != sorted(known):
            raise UsageError(f"{file} has the classes {', '.join(wanted)}, but the colours are of {', '.join(known)}")
        if known is not None:
            # The order of --classes holds; labels that no class has stay (void).
            places = {label: wanted.index(name) for label, name in enumerate(known)}
            tables[blob] = {colour: places.get(label, label) for colour, label in tables[blob].items()}
        names[blob] = wanted
    return names, tables


def shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The shapes that `--shape BLOB=N,C,H,W` gives, by blob."""
    found = {}
    for name, text in assignments(texts, "--shape").items():
        parts = text.replace("x", ",").split(",")
        if not all(part.strip().isdecimal() for part in parts):
            raise UsageError(f"--shape {name}={text}: expected extents such as {name}=1,3,500,500")
        found[name] = tuple(int(part) for part in parts)
    return found
