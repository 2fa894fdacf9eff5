"""Command lines written for the `caffe` tool: `-solver s.prototxt`, `--sighup_effect=none`."""

from __future__ import annotations

from collections.abc import Mapping

import click

from fcnproto.errors import UsageError

_TRUE, _FALSE = ("true", "t", "yes", "y", "1"), ("false", "f", "no", "n", "0")


class CaffeCommand(click.Command):
    """A command that takes its long options as gflags does, too: with one dash, with underscores, switches by value."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Bring the options into this program's spelling, then parse them."""
        options = [parameter for parameter in self.params if isinstance(parameter, click.Option)]
        known = {name: option.is_flag for option in options for name in option.opts if name.startswith("--")}
        spelt = [self._spelling(argument, known) for argument in args]
        return super().parse_args(ctx, [argument for argument in spelt if argument is not None])

    @staticmethod
    def _spelling(argument: str, known: Mapping[str, bool]) -> str | None:
        """The argument as click takes it; None for a switch that is set to false."""
        name, equals, value = argument.partition("=")
        wanted = "--" + name.lstrip("-").replace("_", "-")
        if not name.startswith("-") or len(name) < 3 or wanted not in known:
            return argument
        if known[wanted] and value.lower() in _TRUE + _FALSE:
            return wanted if value.lower() in _TRUE else None
        return wanted + equals + value


def one_gpu(gpu: str | None, device: str | None) -> str | None:
    """The device that Caffe's `--gpu` or this program's `--device` names; None where neither is given.

    Raises `UsageError` for both, and for several GPUs, which take one process each.
    """
    if not gpu:
        return device
    if device is not None:
        raise UsageError("--gpu and --device say the same; give one")
    ids = [part.strip() for part in gpu.split(",") if part.strip()]
    if gpu == "all" or len(ids) > 1:
        count = "<number of GPUs>" if gpu == "all" else str(len(ids))
        raise UsageError(
            f"--gpu {gpu}: each GPU takes a process: torchrun --nproc-per-node {count} -m fcnproto train ..."
            + ("" if gpu == "all" else f" (with CUDA_VISIBLE_DEVICES={','.join(ids)})")
        )
    if not ids or not ids[0].isdigit():
        raise UsageError(f"--gpu {gpu}: give the number of a GPU")
    return f"cuda:{ids[0]}"
