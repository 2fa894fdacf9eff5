"""The options of every command that loads a net, and the loading: one decorator, one `NetOptions` that it hands on.

What can be checked without the net (the device, modules of one's own, shapes) is checked before the command begins.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from fcnproto.cli import _options
from fcnproto.cli._caffe_flags import one_gpu

if TYPE_CHECKING:
    import torch

    from fcnproto.net import Net
    from fcnproto.schema import caffe_pb2

_PHASES = click.Choice(["test", "train"], case_sensitive=False)
_BY_NAME = "fcnproto.by_name"
"""The deploy files that were given by the names of their nets, and these names."""


class ZooName(click.ParamType):
    """The name of a net of the zoo."""

    name = "name"

    def shell_complete(
        self, context: click.Context, parameter: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The names that begin so."""
        from fcnproto import zoo

        return [CompletionItem(name) for name in zoo.names() if name.startswith(incomplete)]


class ZooFile(click.Path):
    """A file, or the name of a net of the zoo where there is no such file: then its file of a kind (`zoo.path`)."""

    def __init__(self, kind: str) -> None:
        super().__init__(path_type=Path)
        self.kind = kind

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        """The path. `UsageError` where the zoo's net has no such file."""
        from fcnproto import zoo

        found = zoo.located(value, self.kind)
        if found != value and self.kind == "deploy" and context is not None:
            context.meta.setdefault(_BY_NAME, {})[Path(found)] = value
        return super().convert(found, parameter, context)

    def shell_complete(
        self, context: click.Context, parameter: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The zoo's names that begin so, and files."""
        names = ZooName().shell_complete(context, parameter, incomplete)
        return [*names, *super().shell_complete(context, parameter, incomplete)]


class ZooWeights(ZooName):
    """Files of weights in one word, separated by commas; each may be the name of a net of the zoo."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        """The same with paths for names. `UsageError` where the zoo's net has no weights here."""
        from fcnproto import zoo

        return ",".join(os.fspath(zoo.located(name, "weights")) for name in _options.names(context, parameter, value))

    def shell_complete(
        self, context: click.Context, parameter: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The zoo's names that begin so, and files."""
        return WEIGHTS.shell_complete(context, parameter, incomplete)


MODEL, VAL, TRAIN, SOLVER, WEIGHTS = (ZooFile(kind) for kind in ("deploy", "val", "train", "solver", "weights"))


@dataclass(frozen=True)
class NetOptions:
    """How the command line wants its net: what `fcnproto.load` takes, and the device."""

    phase: str
    level: int
    stages: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]]
    crop: str
    dialect: str | None
    strict: bool
    caffe_proto: Path | None
    allow_python: bool
    allow_writes: bool
    device_name: str | None

    @property
    def device(self) -> torch.device:
        """The device of `--device`, or the best one of this machine."""
        return _options.device(self.device_name)

    @property
    def reading(self) -> dict[str, Any]:
        """How a definition is read, whatever its phase: arguments of `load`, `Net`, `Solver` and the like."""
        return {
            "allow_python": self.allow_python,
            "crop": self.crop,
            "dialect": self.dialect,
            "strict": self.strict,
            "caffe_proto": self.caffe_proto,
        }

    @property
    def state(self) -> dict[str, Any]:
        """What says which layers there are and how they are read: arguments of `load`, `Net` and `summarise`."""
        rules = {"phase": self.phase, "level": self.level, "stages": self.stages, "allow_writes": self.allow_writes}
        return rules | self.reading

    def load(
        self,
        model: Path | caffe_pb2.NetParameter,
        weights: Path | Sequence[str | Path] | None = None,
        device: str | None = None,
    ) -> Net:
        """The net of a prototxt (or of a definition), with its weights, on the device, or on another one."""
        import fcnproto

        return fcnproto.load(model, weights, device=device or self.device, shapes=self.shapes, **self.state)


def layers_option(function: _options.Function) -> _options.Function:
    """`--layers` alone, for commands that read a definition without making a net of it."""
    return click.option(
        "--layers",
        "modules",
        metavar="FILE.py|MODULE",
        multiple=True,
        expose_value=False,
        callback=_import,
        is_eager=True,
        help="Import (run) a module of yours that registers layer types; repeat for more.",
    )(function)


def _import(context: click.Context, parameter: click.Parameter, values: Sequence[str]) -> None:
    """A click callback: import modules of layers, in the order given."""
    if values and not context.resilient_parsing:
        from fcnproto.cli._modules import import_layers

        for value in values:
            import_layers(value)


def shape_option(function: _options.Function) -> _options.Function:
    """`--shape`: read it with `_options.shapes`."""
    return click.option(
        "--shape",
        "shapes",
        metavar="BLOB=N,C,H,W",
        multiple=True,
        help="Shape of an input or a data layer's top.",
    )(function)


def net_options(
    phase: str | None = "test",
    *,
    gpu: bool = False,
    cuts_images: bool = False,
    writes: bool = False,
    shapes: bool = True,
    device: str = "cuda where there is one, else cpu",
) -> Callable[[_options.Function], _options.Function]:
    """Decorator: the options of a net; the command gets them as its argument `nets`.

    Args:
        phase: the default of `--phase`; None where there is no choice (a solver's nets).
        gpu: take Caffe's `--gpu N` too.
        cuts_images: `--crop` is the size of a cut as well; the command gets it as its argument `crop`.
        writes: layers that write files do so in any case, as Caffe's do; `--allow-writes` is accepted.
        shapes: whether the command has a use for `--shape`.
        device: the default of `--device` in words; "cpu" is that one, others are left to `NetOptions.device`.
    """

    def decorate(function: _options.Function) -> _options.Function:
        @functools.wraps(function)
        def command(**values: Any) -> Any:
            crop = values.pop("crop")
            if cuts_images:
                crop, values["crop"] = crop
            name = values.pop("device") or ("cpu" if device == "cpu" else None)
            wanted = values.pop("phase", "test").lower()
            if wanted == "train" and "model" in values:
                values["model"] = other_file(values["model"], "train")
            nets = NetOptions(
                phase=wanted,
                level=values.pop("level"),
                stages=tuple(values.pop("stages")),
                shapes=_options.shapes(values.pop("shapes", ())),
                crop=crop,
                dialect=values.pop("dialect"),
                strict=values.pop("strict"),
                caffe_proto=values.pop("caffe_proto"),
                allow_python=values.pop("allow_python"),
                allow_writes=values.pop("allow_writes", True),
                device_name=one_gpu(values.pop("gpu"), name) if gpu else name,
            )
            if nets.device_name not in (None, "cpu"):
                _options.device(nets.device_name)
            return function(nets=nets, **values)

        wrapped: Any = command
        for option in reversed(_options_of(phase, gpu, cuts_images, writes, shapes, device)):
            wrapped = option(wrapped)
        return wrapped  # type: ignore[no-any-return]

    return decorate


def other_file(model: Path, kind: str) -> Path:
    """The file of this kind of a net that was given by its name; else what was given."""
    from fcnproto import zoo

    name = click.get_current_context().meta.get(_BY_NAME, {}).get(model)
    return model if name is None else zoo.path(name, kind)


def _options_of(
    phase: str | None, gpu: bool, cuts_images: bool, writes: bool, shapes: bool, device: str
) -> list[Callable[[Any], Any]]:
    """The decorators of the single options, in the order in which `--help` lists them."""
    help_device = f"cpu, cuda, cuda:1, ...  [default: {device}]"
    return [
        *([shape_option] if shapes else []),
        *([click.option("--phase", type=_PHASES, default=phase, show_default=True, help=_PHASE)] if phase else []),
        _options.state_options,
        _options.crops_option if cuts_images else _options.crop_option,
        _options.dialect_option,
        _options.strict_option,
        _options.caffe_proto_option,
        _options.writes_anyway_option if writes else _options.writes_option,
        layers_option,
        *([click.option("--gpu", metavar="N", help="The number of a GPU (as in Caffe).")] if gpu else []),
        click.option("--device", metavar="NAME", help=help_device),
        _options.threads_option,
    ]


_PHASE = "Whether it is for training or testing."
