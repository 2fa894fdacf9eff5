"""Show what a net makes of images on a page in the browser, on this machine alone unless told"""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fcnproto.cli import _naming, _nets, _options, _output, _preprocessing
from fcnproto.errors import UsageError

if TYPE_CHECKING:
    from fcnproto.serving.desk import Served

_LOCAL = ("127.0.0.1", "localhost", "::1")


@click.command("serve", cls=_naming.NetCommand)
@click.argument("model", type=_nets.MODEL)
@click.argument("weights", type=_nets.WEIGHTS)
@click.option(
    "--against",
    nargs=2,
    type=(_nets.MODEL, _nets.WEIGHTS),
    metavar="MODEL WEIGHTS",
    multiple=True,
    help="A further net to show beside it.",
)
@click.option("--host", default="127.0.0.1", show_default=True, metavar="H", help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8080, show_default=True, metavar="N", help="0: any that is free."
)
@click.option(
    "--name", "names", multiple=True, metavar="H", help="A further name under which browsers may ask for the page."
)
@click.option("--max-megapixels", type=click.FloatRange(0, min_open=True), default=8, show_default=True, metavar="X")
@click.option("--max-megabytes", type=click.FloatRange(0, min_open=True), default=20, show_default=True, metavar="X")
@click.option(
    "--max-images", type=click.IntRange(1), default=16, show_default=True, metavar="N", help="Images kept at a time."
)
@click.option(
    "--classes", metavar="FILE", type=click.Path(path_type=Path), help="Class names, one a line, label 0 first."
)
@click.option("--max-side", type=click.IntRange(min=1), metavar="N", help="Shrink larger images for the net.")
@_preprocessing.preprocessing_options
@_options.json_option
@_nets.net_options()
def command(
    model: Path,
    weights: Path,
    against: tuple[tuple[Path, Path], ...],
    host: str,
    port: int,
    names: tuple[str, ...],
    max_megapixels: float,
    max_megabytes: float,
    max_images: int,
    as_json: bool,
    nets: _nets.NetOptions,
    **settings: Any,
) -> None:
    """Serve a page for the net in the prototxt MODEL with its WEIGHTS: drop an image on it, and see its overlay, the
    probabilities at each pixel, what a pixel sees, and every blob.

    Only this machine can reach the page unless --host names another address; there is no password, so say one only
    where everybody may use the net. Images are held in memory and are nowhere written. With --json the address and the
    nets are printed as soon as the page can be reached.
    """
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise UsageError(f"the page needs {error.name}: pip install 'fcnproto[serve]'") from None
    from fcnproto.serving.app import application
    from fcnproto.serving.desk import Desk, Limits

    pairs = ((model, weights), *against)
    served = [_served(*pair, nets, settings) for pair in pairs]
    if len({one.title for one in served}) < len(served):  # nets of one name: their files tell them apart
        for one, (file, values) in zip(served, pairs, strict=True):
            one.title = f"{one.title} ({Path(file.parent.name, file.name)}, {values.name})"
    desk = Desk(served, Limits(max_megabytes, max_megapixels, max_images))
    listening, address = _listen(host, port)
    anywhere = host in ("0.0.0.0", "::")
    hosts = ["*"] if anywhere and not names else [*_LOCAL, "[::1]", host, *names]
    if as_json:
        _output.print_json({"address": f"http://{address}/", "nets": [one.title for one in served]})
        sys.stdout.flush()  # a program that has started this one waits for it
    _output.note(f"http://{address}/  (Ctrl-C ends it)")
    server = uvicorn.Server(uvicorn.Config(application(desk, hosts), log_level="warning", lifespan="off"))
    with listening:
        server.run(sockets=[listening])


def _listen(host: str, port: int) -> tuple[socket.socket, str]:
    """A socket that listens, and its address for the browser. Raises `UsageError` where it can't be had."""
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(place)
        listening.listen(64)
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"can't listen on {host}, port {port}: {reason}; choose others with --host, --port") from None
    shown = f"[{host}]" if ":" in host else host
    return listening, f"{shown}:{listening.getsockname()[1]}"


def _served(model: Path, weights: Path, nets: _nets.NetOptions, settings: dict[str, Any]) -> Served:
    import fcnproto
    from fcnproto.preprocessing import read_class_names
    from fcnproto.serving.desk import served

    net, classes = nets.load(model, weights), settings["classes"]
    found = served(
        net.graph.name or _options.title(model),
        net,
        fcnproto.optimize(net),
        classes=None if classes is None else read_class_names(classes),
        longest_side=settings["max_side"],
        fixed_size=_preprocessing.fixed_size(settings["resize"], net),
    )
    segmenter = found.segmenter
    segmenter.preprocessing = {
        name: _preprocessing.override(how, name, segmenter.inputs, settings)
        for name, how in segmenter.preprocessing.items()
    }
    _preprocessing.tell_assumptions(segmenter.preprocessing)
    return found
