"""The check that a net in another form gives the numbers of the net itself, on inputs of several sizes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from fcnproto.errors import Error, first_line
from fcnproto.export.shapes import input_shapes
from fcnproto.inspect.running import run_with
from fcnproto.layers.base import Layer
from fcnproto.net import Net
from fcnproto.net.examples import draw_inputs
from fcnproto.parity.measures import measure

TOLERANCE = 1e-5
"""The largest deviation, as a share of an output's largest value."""

_ROUNDINGS = 4.0
"""A deviation of so many times what the net's own rounding makes is rounding, too: a softmax of scores in the thousands
turns the last digits of float32 into 1e-4 of a probability."""

_SIZES = ((96, 64), (67, 93), (130, 49))
"""Heights and widths: even, odd, and far from square."""

_BATCHES = (2, 1, 3)
"""Numbers of images; the first one, by which a net is traced, must be none of the special ones 0 and 1."""

Run = Callable[..., Any]
Module = TypeVar("Module", bound=nn.Module)


@dataclass
class Example:
    """Inputs by name, and what the net gives for them."""

    net: Net
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]

    def tolerance(self, name: str) -> float:
        """How far an output may depart: `TOLERANCE`, or some times what float32 itself departs from float64."""
        exact = copy.deepcopy(self.net).double()
        with torch.no_grad():
            results = run_with(exact, {key: value.double() for key, value in self.inputs.items()}, [name])
        rounding = measure(self.outputs[name].numpy(), results[name].numpy()).max_rel
        return max(TOLERANCE, _ROUNDINGS * rounding)

    @property
    def size(self) -> str:
        """The inputs' heights and widths, in words."""
        return " and ".join("x".join(map(str, value.shape[2:])) or "-" for value in self.inputs.values())

    @property
    def batch(self) -> int:
        """The first input's number of images."""
        return int(next(iter(self.inputs.values())).shape[0])


def independent(net: Module) -> Module:
    """A copy of a net or module that shares the parameters alone: what it remembers (statistics, states) is its own."""
    return copy.deepcopy(net, {id(value): value for value in net.parameters()})


def make_examples(
    net: Net,
    inputs: Sequence[str],
    outputs: Sequence[str],
    size: tuple[int, int] | None,
    *,
    vary: bool = True,
    batches: bool = False,
) -> list[Example]:
    """Examples of the sizes that the net can take: several with `vary`, if any; else that of the prototxt or `size`.

    With `batches` they have several numbers of images, and there are two at least. GraphError or another `Error` where
    the net can't be run.
    """
    found = []
    images = any(len(net.source_shapes.get(name) or ()) == 4 for name in inputs)
    for number, wanted in enumerate(_SIZES if vary and images else ()):
        try:
            found.append(_example(net, inputs, outputs, wanted, _BATCHES[number] if batches else None))
        except (Error, RuntimeError):  # too small for this net, or its weights suit another size alone
            continue
    if len(found) > 1:
        return found
    return [_example(net, inputs, outputs, size, batch) for batch in (_BATCHES[:2] if batches else (None,))]


def _example(
    net: Net,
    inputs: Sequence[str],
    outputs: Sequence[str],
    size: tuple[int, int] | None,
    batch: int | None = None,
) -> Example:
    shapes = input_shapes(net, inputs, size)
    if batch is not None:
        shapes = {name: (batch, *shape[1:]) for name, shape in shapes.items()}
    for positive in (False, True):  # logarithms and broken powers make no number of what is negative
        values = {name: torch.from_numpy(value) for name, value in draw_inputs(net, shapes, positive=positive).items()}
        with torch.no_grad():
            results = run_with(independent(net), values, list(outputs))
        example = Example(net, values, {name: results[name] for name in outputs})
        if all(bool(value.isfinite().all()) for value in example.outputs.values()):
            break
    return example


def without_chance(module: nn.Module) -> None:
    """Layers that draw random numbers, such as Dropout, do as in the TEST phase, also in training."""
    for part in module.modules():
        if isinstance(part, nn.Dropout) or (isinstance(part, Layer) and part.draws_numbers()):
            part.train(False)


def compare(run: Run, inputs: Sequence[str], examples: Sequence[Example]) -> str:
    """Run what was written on the examples; the text says how well it agrees. `Error` where it doesn't."""
    worst = 0.0
    for example in examples:
        try:
            with torch.no_grad():
                result = run(*(example.inputs[name] for name in inputs))
        except Exception as error:  # what a runtime of another kind may raise
            raise Error(f"the exported net can't be run on inputs of {example.size}: {first_line(error)}") from error
        found = result if isinstance(result, Mapping) else {next(iter(example.outputs)): result}
        for name, expected in example.outputs.items():
            ours, theirs = np.asarray(found[name]), expected.numpy()
            if ours.shape != theirs.shape:
                raise Error(f"the exported net gives {name!r} the shape {ours.shape} for {theirs.shape}")
            deviation = measure(ours, theirs).max_rel
            if not deviation <= TOLERANCE and not deviation <= example.tolerance(name):
                raise Error(
                    f"the exported net departs from this one in {name!r} by {deviation:.3g} of the largest value"
                )
            worst = max(worst, deviation)
    sizes = ", ".join(example.size for example in examples)
    counts = {example.batch for example in examples}
    batches = f" in batches of {', '.join(map(str, sorted(counts)))}" if len(counts) > 1 else ""
    return f"outputs on inputs of {sizes}{batches} compared, largest deviation {worst:.2g}"
