"""Commands whose MODEL and WEIGHTS may be given by option too: `--model M` means the same in every command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click
from click.core import ParameterSource

_FLAGS = {"model": "--model", "net": "--model", "weights": "--weights"}
"""By the name of an argument the option that stands for it."""
_GIVEN = "fcnproto.given_by_option"


class NetCommand(click.Command):
    """A command that takes its arguments `model` (or `net`) and `weights` as options `--model` and `--weights`, too.

    What is given by option is no longer expected among the arguments: `segment --model M --weights W cat.jpg`.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        taken = {name for parameter in self.params if isinstance(parameter, click.Option) for name in parameter.opts}
        for place, parameter in enumerate(self.params):
            flag = _FLAGS.get(parameter.name or "")
            if isinstance(parameter, click.Argument) and flag is not None and flag not in taken:
                self.params[place] = _Either(parameter, flag)
                self.params.append(_twin(parameter, flag))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Note which arguments are given by option, then parse."""
        before = args[: args.index("--")] if "--" in args else args
        ctx.meta[_GIVEN] = {word.partition("=")[0] for word in before if word.startswith("--")}
        return super().parse_args(ctx, args)


def _twin(argument: click.Argument, flag: str) -> click.Option:
    """The option that stands for an argument."""
    title = argument.human_readable_name
    return click.Option(
        [flag, _key(argument)],
        metavar=title,
        type=argument.type,
        multiple=argument.nargs == -1,
        expose_value=False,
        help=f"{title}, which may be given without this word as well.",
    )


def _key(argument: click.Argument) -> str:
    return f"{argument.name}_by_option"


class _Either(click.Argument):
    """An argument that may be given by an option."""

    def __init__(self, like: click.Argument, flag: str) -> None:
        super().__init__(
            [like.name or ""],
            type=like.type,
            nargs=like.nargs,
            required=like.required,
            metavar=like.metavar,
            default=like.default,
            callback=like.callback,
        )
        self.flag = flag

    def _is_given(self, ctx: click.Context) -> bool:
        return self.flag in ctx.meta.get(_GIVEN, ())

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        """Expect it among the arguments only where no option gives it."""
        if not self._is_given(ctx):
            super().add_to_parser(parser, ctx)

    def consume_value(self, ctx: click.Context, opts: Mapping[str, Any]) -> tuple[Any, ParameterSource]:
        """The option's value where that is given."""
        if not self._is_given(ctx):
            return super().consume_value(ctx, opts)
        value: str | Sequence[str] | None = opts.get(_key(self))
        return value, ParameterSource.COMMANDLINE
