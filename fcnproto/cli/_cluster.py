"""`--cluster` and what goes with it, shared by the commands that work on corpora; progress and last words of a run."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from fcnproto.cli import _options, _output
from fcnproto.errors import UsageError

if TYPE_CHECKING:
    from fcnproto.cli._nets import NetOptions
    from fcnproto.cluster import Cluster, Summary
    from fcnproto.cluster.engine import Told

_SHOWN = 20
_ONLY_WITH = ("workers", "gpus_per_worker", "resume", "item_timeout", "part", "column", "format")


def cluster_options(column: bool = True) -> Callable[[_options.Function], _options.Function]:
    """`--cluster`, `--workers`, `--gpus-per-worker`, `--resume`, `--item-timeout`, `--part`, `--column`: the command
    gets their values with its others, and reads them with `cluster_of`. `column`: images may be in Parquet files."""

    def decorate(function: _options.Function) -> _options.Function:
        for option in (
            *(
                [click.option("--column", metavar="NAME", help="With --cluster: the Parquet column of images.")]
                if column
                else []
            ),
            click.option(
                "--part", type=click.IntRange(min=1), metavar="N", help="With --cluster: most images in a part."
            ),
            click.option(
                "--item-timeout", type=float, metavar="S", help="With --cluster: give an image up after S seconds."
            ),
            click.option("--resume", is_flag=True, help="With --cluster: go on where an earlier run has ended."),
            click.option(
                "--gpus-per-worker",
                type=float,
                metavar="N",
                help="With --cluster: GPUs (or a part of one) of each worker.",
            ),
            click.option(
                "--workers", type=click.IntRange(min=1), metavar="N", help="With --cluster: computing processes."
            ),
            click.option(
                "--cluster",
                metavar="ADDRESS|local",
                is_eager=True,  # what else there may be depends on it
                help="Work through Ray: local processes, or the cluster at an address; sources may be lists, tar and "
                "Parquet files, and fsspec's addresses.",
            ),
        ):
            function = option(function)
        return function

    return decorate


def refuse_without(settings: Mapping[str, Any]) -> None:
    """UsageError for options that mean nothing without `--cluster`."""
    for name in _ONLY_WITH:
        if settings.get(name):
            raise UsageError(f"--{name.replace('_', '-')} goes with --cluster")


def cluster_of(settings: Mapping[str, Any], nets: NetOptions | None = None) -> Cluster:
    """What the options say. UsageError where Ray is missing, before a net is loaded for nothing."""
    from fcnproto.cli import _modules
    from fcnproto.cluster import Cluster
    from fcnproto.cluster.chunks import PART
    from fcnproto.cluster.engine import need_ray

    need_ray()
    gpus = settings["gpus_per_worker"]
    if gpus is None:
        gpus = 1.0 if nets is not None and (nets.device_name or "").startswith("cuda") else 0.0
    return Cluster(
        settings["cluster"],
        workers=settings["workers"],
        gpus_per_worker=gpus,
        threads=click.get_current_context().params.get("count") or 1,  # of --threads
        resume=settings["resume"],
        item_timeout=settings["item_timeout"],
        part=settings["part"] or PART,
        setup=functools.partial(_prepare, tuple(_modules.imported), os.getcwd()),
    )


def _prepare(modules: Sequence[str], folder: str) -> None:
    """In a worker: import the modules of `--layers`, with the driver's working directory to find others in."""
    from fcnproto.cli._modules import import_layers

    if os.path.isdir(folder) and folder not in sys.path:
        sys.path.insert(0, folder)
    for module in modules:
        import_layers(module)


@contextlib.contextmanager
def progress() -> Iterator[Told]:
    """One bar: items, images a second, failed, time left."""
    with _output.progress("images") as bar:
        task = bar.add_task("starting", total=None)

        def told(summary: Summary, total: int | None) -> None:
            failed = f", {len(summary.failed)} failed" if summary.failed else ""
            bar.update(
                task,
                completed=summary.items,
                total=total,
                description=f"{summary.images_per_second:.1f} images/s{failed}",
            )

        yield told


def report(summary: Summary, as_json: bool) -> int:
    """Say what a run came to: failed items, counts; the exit status."""
    for name, reason in sorted(summary.failed)[:_SHOWN]:
        _output.error(reason if name in reason else f"{name}: {reason}")
    if len(summary.failed) > _SHOWN:
        _output.note(f"and {len(summary.failed) - _SHOWN} more failed; the manifest has all")
    if as_json:
        _output.print_json(summary.as_dict())
    else:
        there = f", {summary.kept} were there" if summary.kept else ""
        _output.note(
            f"{summary.done} images done{there}, {len(summary.failed)} failed, in {summary.seconds:.1f} s "
            f"({summary.images_per_second:.1f} images/s) by {summary.workers} workers"
        )
    return 1 if summary.failed else 0
