"""Say why a net does not learn, before an hour of training is wasted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fcnproto.cli import _files, _naming, _nets, _options, _output
from fcnproto.escaping import printable

if TYPE_CHECKING:
    from fcnproto.diagnosis import Finding


@click.command("check", cls=_naming.NetCommand)
@click.argument("net", metavar="NET_OR_SOLVER", type=_nets.MODEL)
@click.argument("weights", type=_nets.WEIGHTS, nargs=-1)
@click.option("--images", metavar="DIR", type=click.Path(path_type=Path), help="Images, instead of the net's own data.")
@click.option(
    "--masks",
    metavar="[BLOB=]DIR",
    multiple=True,
    help="Their masks, of the same names; repeat for further labellings.",
)
@click.option(
    "--classes", metavar="[BLOB=]FILE", multiple=True, help="The classes' names, one a line; for each labelling."
)
@click.option("--steps", type=click.IntRange(0), default=0, metavar="N", help="Train a copy for N steps and watch it.")
@click.option("--overfit", is_flag=True, help="Try to learn one batch by heart (in --steps steps, 100 by default).")
@_options.binary_masks_option
@_options.empty_classes_option
@click.option("--caffe", "for_caffe", is_flag=True, help="Also what the original Caffe refuses or computes otherwise.")
@_options.json_option
@click.option("--html", metavar="FILE", type=_files.OutputFile(), help="Write a page to look at.")
@_nets.net_options(None)
def command(
    net: Path,
    weights: Sequence[Path],
    images: Path | None,
    masks: Sequence[str],
    classes: Sequence[str],
    steps: int,
    overfit: bool,
    binary_masks: bool,
    allow_empty_classes: bool,
    for_caffe: bool,
    as_json: bool,
    html: Path | None,
    nets: _nets.NetOptions,
) -> int:
    """List what keeps a net from learning: its prototxt's, its solver's, its weights' and its data's faults.

    A net is examined in phase TRAIN. A fault certainly spoils training or output, a suspect depends on what is meant, a
    note is good to know: the manual's page `check` lists all kinds. The exit status is 1 where there is a fault.
    """
    from fcnproto.diagnosis import examine

    report = examine(
        net,
        weights,
        images=images,
        masks=_options.named(masks, "--masks") or None,
        classes=_options.named(classes, "--classes") or None,
        steps=steps,
        overfit=overfit,
        binary_masks=binary_masks,
        allow_empty_classes=allow_empty_classes,
        for_caffe=for_caffe,
        level=nets.level,
        stages=nets.stages,
        shapes=nets.shapes,
        allow_writes=nets.allow_writes,
        device=nets.device,
        **nets.reading,
    )
    if html is not None:
        from fcnproto.atomic import atomic_write
        from fcnproto.diagnosis.page import to_html

        with atomic_write(html, "w") as file:
            file.write(to_html(report))
    if as_json:
        _output.print_json(report.as_dict())
    else:
        _print(report.findings)
        if report.course is not None and report.course.overfit is not None:
            done, before, after = report.course.overfit
            _output.print_text(
                f"one batch by heart: {done} steps, the loss of a label went from {before:.4g} to {after:.4g}"
            )
    return 1 if report.failed else 0


def _print(findings: Sequence[Finding]) -> None:
    for finding in findings:
        _output.print_text(f"{finding.level}: {printable(finding.where)} [{finding.code}]")
        _output.print_text(f"  {printable(finding.seen)},")
        _output.print_text(f"  so {printable(finding.why)}")
        _output.print_text(f"  -> {printable(finding.remedy)}")
    counts = [
        f"{count} {level}{'s' if count != 1 else ''}"
        for level in ("fault", "suspect", "note")
        if (count := sum(finding.level == level for finding in findings))
    ]
    _output.print_text(", ".join(counts) or "nothing found")
