"""Fine-tune a net on your own images and masks."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fcnproto.cli import _files, _nets, _options, _output, _preprocessing
from fcnproto.errors import UsageError

if TYPE_CHECKING:
    from fcnproto.solver.listeners import Listener

_OPTIMIZATIONS = ("heavy", "accumulated", "adam")


@click.command("finetune")
@click.option("--model", required=True, metavar="NAME|FILE", help="A net of the zoo (voc-fcn8s) or a prototxt.")
@click.option(
    "--weights",
    metavar="[STREAM=]FILE",
    multiple=True,
    help="Weights to begin with: of this net, a coarser one, or the classifier; one for each stream: color=A, hha=B.",
)
@click.option("--from-scratch", is_flag=True, help="Begin with random weights instead.")
@click.option(
    "--images", metavar="[BLOB=]DIR", multiple=True, required=True, help="Folder of images; repeat for further inputs."
)
@click.option(
    "--masks",
    metavar="[BLOB=]DIR",
    multiple=True,
    required=True,
    help="Folder of masks with the images' names; repeat for further labellings (sem=A, geo=B).",
)
@click.option(
    "--classes",
    metavar="[BLOB=]FILE",
    multiple=True,
    help="Class names, one a line, label 0 first; for each labelling.",
)
@click.option(
    "--colours", metavar="[BLOB=]FILE", multiple=True, help="Table of classes and colours, for colour-coded masks."
)
@click.option("-o", "--output", type=_files.OutputFolder(), required=True, help="Folder for the results.")
@_options.binary_masks_option
@_options.empty_classes_option
@click.option(
    "--optimization", type=click.Choice(_OPTIMIZATIONS), default="heavy", show_default=True, help="See below."
)
@click.option("--base-lr", type=float, help="Another learning rate than the optimization's.")
@click.option("--lr-finder", is_flag=True, help="Find the learning rate by a short training in which it grows.")
@click.option("--momentum", type=float, help="Another momentum.")
@click.option("--iter-size", type=click.IntRange(min=1), help="Another number of images a step.")
@click.option("--iterations", type=click.IntRange(min=1), help="Steps.  [default: 20 for each image, at least 2000]")
@click.option("--interval", type=click.IntRange(min=1), help="Validate every N steps.  [default: a tenth of all]")
@click.option("--staged", is_flag=True, help="Train the coarser nets first: 32s, 16s, 8s (each with --iterations).")
@click.option("--augment", default="none", help="mirror,scale=0.25,crop=300x400,colour=0.2 or parts of it.")
@click.option("--class-weights", type=click.Choice(["none", "balanced"]), default="none", show_default=True)
@click.option(
    "--validation",
    metavar="SHARE|FILE|DIR",
    default="0.15",
    show_default=True,
    help="Images for choosing the best weights: their share, a list of their names, or a folder of further images.",
)
@click.option(
    "--held-out",
    metavar="SHARE|FILE|DIR",
    default="0.15",
    show_default=True,
    help="Images for the final score, likewise.",
)
@click.option("--validation-masks", metavar="DIR", help="Masks of the folder of --validation, if not in --masks.")
@click.option("--held-out-masks", metavar="DIR", help="Masks of the folder of --held-out, if not in --masks.")
@_preprocessing.kinds_options
@click.option("--seed", type=int, default=1337, show_default=True, help="Of the split and all random numbers.")
@_options.json_option
@click.option("--dry-run", is_flag=True, help="Print the plan and write nothing.")
@_nets.net_options(None, shapes=False, writes=True)
def command(
    weights: Sequence[str],
    from_scratch: bool,
    images: Sequence[str],
    masks: Sequence[str],
    classes: Sequence[str],
    colours: Sequence[str],
    nets: _nets.NetOptions,
    staged: bool,
    dry_run: bool,
    as_json: bool,
    augment: str,
    **settings: Any,
) -> None:
    """Fine-tune a net on your own images: nets and solver for your classes, surgery, training, scores.

    heavy trains as the published VGG nets were (one image a step, momentum 0.99, summed loss), accumulated as
    FCN-AlexNet (20 images, mean loss), adam suits slim nets. The output folder gets weights.caffemodel (the best by
    mean IU on the validation images), deploy.prototxt, classes.txt, curves.png, samples.png, scores.json, and all that
    `fcnproto train` needs to do it again. Classes that the old net knows by the same name keep their weights.

    Nets of several images (colour and HHA) or labellings (semantic and geometric) take one folder for each:
    --images color=A --images hha=B, --masks sem=A --masks geo=B. What is given without a name is the first one's.

    After an interruption (Ctrl-C, a crash) the same command goes on from the last validation.
    """
    from fcnproto import zoo
    from fcnproto.data.augmentation import parse_augmentation
    from fcnproto.finetune import Settings, plan, run, run_staged
    from fcnproto.finetune import staged as stages
    from fcnproto.solver.signals import SignalRequests

    if bool(weights) == from_scratch:
        raise UsageError("give either --weights or --from-scratch")
    names, tables = _options.classes_and_colours(classes, colours)
    if not names:
        raise UsageError("say the classes with --classes (one name a line) or --colours")
    fields = {key: settings.pop(key) for key in ("base_lr", "momentum", "iter_size")}
    chosen = Settings(
        weights={name: Path(zoo.located(file, "weights")) for name, file in _paths(weights, "--weights").items()}
        or None,
        preprocessing=_preprocessing.chosen(settings),
        images=_paths(images, "--images"),
        masks=_paths(masks, "--masks"),
        classes=names,
        colours=tables or None,
        augmentation=parse_augmentation(augment),
        solver={key: value for key, value in fields.items() if value is not None},
        device=str(nets.device),
        reading={"level": nets.level, "stages": nets.stages, **nets.reading},
        **_parts(settings),
        **{name: value for name, value in settings.items() if name not in _OWN},
    )
    if dry_run:
        # Of stages, the last one's net begins with the first one's weights here.
        steps = stages(chosen) if staged else [chosen]
        lines = [line for number, step in enumerate(steps) for line in plan(step, verify=number == 0).lines()]
        if as_json:
            _output.print_json({"plan": lines})
        else:
            for line in lines:
                _output.print_line(line)
        return
    with SignalRequests() as asked:
        if staged:
            with _bar(None) as listeners:
                outcome = run_staged(chosen, _output.note, asked, listeners)
        else:
            made = plan(chosen)
            for line in made.lines():
                _output.note(line)
            with _bar(made.solver.max_iter) as listeners:
                outcome = run(made, _output.note, asked, listeners)
    if as_json:
        _output.print_json(
            {
                "best iteration": outcome.best,
                "validation": [list(pair) for pair in outcome.validations],
                "held out": [scored.as_dict() for scored in outcome.scores],
                "weights": chosen.output / "weights.caffemodel",
            }
        )
    for scored in outcome.scores if not as_json else ():
        if len(outcome.scores) > 1:
            _output.print_line(f"{scored.blob}:")
        for line in scored.metrics.lines():
            _output.print_line(line)
    _output.note(
        f"best weights, of iteration {outcome.best}: {chosen.output / 'weights.caffemodel'}; the metrics are those on "
        f"{outcome.scores[0].images} held-out images"
    )


_OWN = ("kinds", "means", "scales", "validation", "held_out", "validation_masks", "held_out_masks")
"""Settings that are read on their own."""


def _parts(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What says which images validate and score: a share each, or the path of a list or a folder; and their masks."""
    found: dict[str, Any] = {}
    for name in ("validation", "held_out"):
        try:
            found[name] = float(settings[name])
        except ValueError:
            found[name] = Path(settings[name])
        masks = settings[f"{name}_masks"]
        found[f"{name}_masks"] = None if masks is None else Path(masks)
    return found


@contextlib.contextmanager
def _bar(end: int | None) -> Iterator[list[Listener]]:
    """A bar with the time left on a terminal, in place of the solver's log lines; elsewhere these alone."""
    from fcnproto.solver.log import LOGGER
    from fcnproto.solver.progress import LiveLine

    if not _output.stderr().is_terminal:
        yield []
        return
    line, quiet, propagate = LiveLine(_output.stderr(), end), logging.NullHandler(), LOGGER.propagate
    LOGGER.propagate = False
    LOGGER.addHandler(quiet)
    try:
        yield [line]
    finally:
        line.close()
        LOGGER.removeHandler(quiet)
        LOGGER.propagate = propagate


def _paths(texts: Sequence[str], option: str) -> dict[str, Path]:
    return {name: Path(value) for name, value in _options.named(texts, option).items()}
