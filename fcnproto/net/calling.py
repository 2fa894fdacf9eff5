"""What goes into a call of a net and what comes out: inputs of any kind as tensors, outputs with their loss, errors.

Internal to `fcnproto.net`, but for `Outputs`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from inspect import CO_VARARGS
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fcnproto.errors import Error, GraphError, LayerError, UsageError, first_line
from fcnproto.graph import Graph
from fcnproto.layers.base import Layer
from fcnproto.net.plan import source_blob

if TYPE_CHECKING:
    from fcnproto.net.net import Net

Context = tuple[tuple[str, ...], tuple[tuple[float, bool], ...], tuple[tuple[str, str], ...]]
"""Of outputs, all but the tensors: their names, weight and start of each term of the loss, what was left out and
why."""
Term = tuple[Tensor, float, bool]
"""A term of the loss: the value, its weight, and whether the gradient starts at it."""


class Outputs(dict[str, Tensor]):
    """The blobs of one call by Caffe's names, and (in `weighted`) the terms of the net's loss.

    `weighted` is a tuple of (value, loss weight, whether the gradient starts at it), or None for a plain dict.
    """

    weighted: tuple[Term, ...] = ()
    left_out: Mapping[str, str] = {}
    """The net's outputs that can't be computed for a layer's sake, each with why; asking for one raises that."""

    def __missing__(self, name: str) -> Tensor:
        if name in self.left_out:
            raise GraphError(self.left_out[name])
        raise KeyError(name)


def _flatten(outputs: Outputs) -> tuple[list[Tensor], Context]:
    """The tensors of `outputs`, and last those of its loss; and what else is in it."""
    values = [*outputs.values(), *(value for value, _, _ in outputs.weighted)]
    terms = tuple((weight, starts) for _, weight, starts in outputs.weighted)
    return values, (tuple(outputs), terms, tuple(outputs.left_out.items()))


def _flatten_with_keys(outputs: Outputs) -> tuple[list[tuple[Any, Tensor]], Context]:
    values, context = _flatten(outputs)
    terms = [f"loss {index}" for index in range(len(context[1]))]
    return [(pytree.MappingKey(key), value) for key, value in zip([*context[0], *terms], values, strict=True)], context


def _unflatten(values: Iterable[Any], context: Context) -> Outputs:
    names, terms, left_out = context
    found = list(values)
    outputs = Outputs(zip(names, found, strict=False))
    outputs.weighted = tuple((value, *how) for value, how in zip(found[len(names) :], terms, strict=True))
    outputs.left_out = dict(left_out)
    return outputs


def _tuples(value: Any) -> Any:
    """Lists from JSON as tuples again."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


# So torch.export, torch.func and their like see the tensors in it.
pytree.register_pytree_node(
    Outputs,
    _flatten,
    _unflatten,
    flatten_with_keys_fn=_flatten_with_keys,
    serialized_type_name="fcnproto.net.Outputs",
    to_dumpable_context=lambda context: context,
    from_dumpable_context=_tuples,
)


def traced(net: Net, args: Any, blobs: Any, inputs: Any) -> Any:
    """What `torch.fx.symbolic_trace` records of a call: the plan for the net's inputs (of a net without Input layers,
    the tops of its data layers), which the traced module takes by name, or one by its place."""
    tracer: Any = args.tracer
    if isinstance(blobs, fx.Proxy):
        tracer.graph.erase_node(blobs.node)
    extra = () if isinstance(blobs, fx.Proxy) or blobs is None else blobs
    plan = net.plan(net.inputs or list(net.source_shapes), extra)
    given = tracer.create_proxy("call_function", inputs_of, (plan.inputs, args, inputs), {})
    places = [node for node in plan.module.graph.nodes if node.op == "placeholder"]
    values = {node: given[index].node for index, node in enumerate(places)}
    results: Any = tracer.graph.graph_copy(plan.module.graph, values)
    return {name: fx.Proxy(results[position], tracer) for name, position in plan.keys.items()}


def inputs_of(names: Sequence[str], args: Sequence[Any], inputs: Mapping[str, Any]) -> list[Tensor]:
    """The inputs of a call of a traced net in the order of `names`, as floating-point tensors."""
    first = args[0] if args and isinstance(args[0], Mapping) else dict(zip(names, args, strict=False))
    given = {**first, **inputs}
    missing = [name for name in names if name not in given]
    if missing:
        raise GraphError(f"input {missing[0]!r} is missing; the traced net takes {', '.join(map(repr, names))}")
    return [given[name] if given[name].is_floating_point() else given[name].float() for name in names]


def gather(graph: Graph, sources: Sequence[str], args: Sequence[Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of a call by name: keywords, one mapping, or one value for a net with one input.

    `sources` are the names that may be given. Raises `GraphError` for unknown names and for one given twice.
    """
    where = graph.title
    if len(args) > 1:
        raise GraphError(f"{where}: {len(args)} positional inputs; give inputs by name")
    first: Mapping[str, Any] = {}
    for value in args:
        if isinstance(value, Mapping):
            first = value
        elif len(graph.inputs) == 1:
            first = {graph.inputs[0]: value}
        else:
            raise GraphError(f"{where}: give inputs by name; they are {', '.join(map(repr, sources)) or 'none'}")
    for name in first:
        if name in inputs:
            raise GraphError(f"{where}: input {name!r} is given twice")
    given = {**first, **inputs}
    for name in given:
        source_blob(graph, name)
    return given


def as_tensor(name: str, value: Any, device: torch.device) -> Tensor:
    """An input as a dense tensor of real numbers on the net's device.

    Tensors must lie there already; arrays (of any byte order and strides) and nested lists are copied to it. Raises
    `GraphError` for anything else.
    """
    if not isinstance(value, Tensor):
        return _from_array(name, value).to(device)
    if value.layout != torch.strided or value.is_complex() or value.is_quantized:
        raise GraphError(f"input {name!r} is of {value.dtype}, {value.layout}; give a dense tensor of real numbers")
    if value.device != device:
        raise GraphError(f"input {name!r} is on {value.device}, the net on {device}; move one with .to()")
    return value


def _from_array(name: str, value: Any) -> Tensor:
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise GraphError(f"input {name!r}: can't be made a tensor: {first_line(error)}") from error
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind not in "fiub":
        raise GraphError(f"input {name!r} is a {type(value).__name__} of type {array.dtype}; give a tensor of numbers")
    if kind == "u" and size > 1:
        array = array.astype(np.int64)
    elif kind == "f" and size > 8:
        array = array.astype(np.float64)
    elif not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()  # torch takes no such arrays
    return torch.from_numpy(array)


def in_dtype(tensor: Tensor, dtype: torch.dtype, is_index: bool) -> Tensor:
    """An input in the net's dtype; whole numbers and class numbers (`is_index`) in float32 at least.

    Half precision can't hold class numbers above 256 (bfloat16) or 2048 (float16).
    """
    if dtype == torch.float64 or (tensor.is_floating_point() and not is_index):
        return tensor.to(dtype)
    return tensor.to(torch.float32)


def usable_device(device: str | torch.device) -> torch.device:
    """A device that tensors can be put on; `UsageError` for others."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        raise UsageError(f"device {str(device)!r} can't be used: {first_line(error)}") from error


def total_loss(terms: Sequence[Term], dtype: torch.dtype) -> Tensor:
    """The sum of the weighted terms, a scalar."""
    total = torch.zeros((), dtype=dtype, device=terms[0][0].device if terms else None)
    for value, weight, starts_gradient in terms:
        term = value.sum() * weight
        total = total + (term if starts_gradient else term.detach())
    return total


def layer_error(error: Exception) -> LayerError | None:
    """What torch raised inside one of the package's own layers as an error that names the layer; None for others.

    Errors of users' own layers, and of memory that is used up, are left as they are.
    """
    if isinstance(error, (Error, torch.OutOfMemoryError)):
        return None
    layer, frame = _innermost(error)
    if layer is None or frame is None or not is_own(layer):
        return None
    return LayerError(f"layer {layer.name!r} ({layer.type}): can't work on {_shapes(frame)}: {first_line(error)}")


def failing_layer(error: BaseException) -> Layer | None:
    """The layer in whose `forward` an error was raised, the innermost; None outside of layers."""
    return _innermost(error)[0]


def _innermost(error: BaseException) -> tuple[Layer | None, FrameType | None]:
    layer, found, trace = None, None, error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        owner = frame.f_locals.get("self")
        if isinstance(owner, Layer) and frame.f_code.co_name == "forward":
            layer, found = owner, frame
        trace = trace.tb_next
    return layer, found


def _shapes(frame: FrameType) -> str:
    """The shapes of the tensors that a function was given."""
    code = frame.f_code
    names = code.co_varnames[: code.co_argcount + bool(code.co_flags & CO_VARARGS)]
    arguments = [frame.f_locals[name] for name in names]
    values = [item for value in arguments for item in (value if isinstance(value, tuple) else [value])]
    shapes = [str(tuple(value.shape)) for value in values if isinstance(value, Tensor)]
    return f"tensors of shape {', '.join(shapes)}" if shapes else "what it is given"


def is_own(layer: Layer) -> bool:
    """Whether the layer is one of the package's, whose errors are about its bottoms and not about its code."""
    return type(layer).__module__.startswith(("fcnproto.layers.", "fcnproto.dialects."))
