"""Command lines written for the `caffe` tool: `-solver s.prototxt`, `--sighup_effect=none`."""

from __future__ import annotations

from typing import Any

import click

from fcnproto.errors import UsageError


class CaffeCommand(click.Command):
    """A command that takes its long options as gflags does, too: with one dash, with underscores."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Bring the options into this program's spelling, then parse them."""
        known = {option for parameter in self.params for option in parameter.opts if option.startswith("--")}
        return super().parse_args(ctx, [self._spelling(argument, known) for argument in args])

    @staticmethod
    def _spelling(argument: str, known: set[str]) -> str:
        name, equals, value = argument.partition("=")
        wanted = "--" + name.lstrip("-").replace("_", "-")
        is_option = name.startswith("-") and len(name) > 2 and wanted in known
        return wanted + equals + value if is_option else argument


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


def phase_option(context: click.Context, parameter: click.Parameter, value: str | None) -> Any:
    """A click callback: "train" or "test" from Caffe's TRAIN (the default) and TEST."""
    name = (value or "TRAIN").upper()
    if name not in ("TRAIN", "TEST"):
        raise click.BadParameter(f"{value!r} is neither TRAIN nor TEST")
    return name.lower()
