"""`Net`: a Caffe net as a `torch.nn.Module`, and `load`, which makes one from files."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fcnproto.data
import fcnproto.layers  # noqa: F401  registers the layer types
from fcnproto import binding, precision
from fcnproto.errors import FcnprotoWarning, GraphError, WeightsError
from fcnproto.graph import Graph, build_graph
from fcnproto.layers.base import Layer
from fcnproto.layers.registry import lookup
from fcnproto.plan import Plan, make_plan, source_blob
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import read_net
from fcnproto.transfer import CopyReport, copy_weights, save_weights

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class LearnableParam:
    """One parameter blob that a solver sees, with its training multipliers (Caffe: ParamSpec)."""

    layer: str
    index: int
    tensor: Tensor
    lr_mult: float
    decay_mult: float


class Outputs(dict[str, Tensor]):
    """The blobs of one call by Caffe's names, and (in `weighted`) the terms of the net's loss.

    `weighted` is a tuple of (value, loss weight, whether the gradient starts at it), or None for a plain dict.
    """

    weighted: tuple[tuple[Tensor, float, bool], ...] = ()


class Net(nn.Module):
    """A Caffe net: call it with tensors for its input blobs, get a dict of its output blobs.

    Made by `load`. `params` lists each layer's blobs, `inputs` and `outputs` are Caffe's names, `graph` is the layer
    graph. Submodules go by layer name, so that `state_dict` has entries such as `conv1_1.weight`; dots and slashes in a
    layer's name become underscores, and one more underscore is added where the name is taken (a layer called
    `loss` is the submodule `loss_`, because `Net.loss` is a method).

    Args:
        param: the upgraded definition.
        phase: "train" or "test" (or Caffe's 0 and 1); with `level` and `stages` selects the layers (Caffe: NetState).
        allow_python: permit the import of modules that Python layers name.
        base_dir: folder from which relative file names are looked up after the working directory.
        shapes: shapes of data tops that nothing else tells, by name.
        fill: give the parameters their fillers' values at once; else they stay uninitialised until `fill_params`.

    Raises:
        GraphError, LayerError, UnsupportedLayerError: the net can't be built.
    """

    def __init__(
        self,
        param: caffe_pb2.NetParameter,
        phase: str | int = "test",
        *,
        level: int = 0,
        stages: Sequence[str] = (),
        allow_python: bool = False,
        base_dir: PathLike | None = None,
        shapes: Mapping[str, Sequence[int]] | None = None,
        fill: bool = True,
    ) -> None:
        super().__init__()
        self.graph: Graph = build_graph(param, lookup, phase, level, stages)
        layers = binding.make_layers(self.graph, None if base_dir is None else Path(base_dir), allow_python)
        self.source_shapes = {
            blob.name: shape for blob, shape in binding.set_up(self.graph, layers, shapes or {}).items()
        }
        self._param_refs, self._shared = binding.share_params(self.graph, layers)
        binding.give_memory(layers, self._param_refs, self.graph.force_backward)
        self._unfilled = {(ref.layer, ref.index) for ref in self._param_refs}
        self._module_names = binding.module_names(layers, lambda name: hasattr(self, name))
        for name, layer in zip(self._module_names, layers, strict=True):
            self.add_module(name, layer)
        self._tie()
        self._plans: dict[tuple[tuple[str, ...], tuple[str, ...]], Plan] = {}
        self.train(self.graph.state.phase == caffe_pb2.TRAIN)
        if fill:
            self.fill_params()

    # What the net consists of.

    @property
    def layers(self) -> list[Layer]:
        """The layer modules in order, parallel to `graph.nodes` (Caffe's automatic Split layers included)."""
        return [self._modules[name] for name in self._module_names]  # type: ignore[misc]

    @property
    def inputs(self) -> list[str]:
        """The tops of the Input layers."""
        return list(self.graph.inputs)

    @property
    def outputs(self) -> list[str]:
        """The blobs that no layer reads, in Caffe's order (by the bytes of their names)."""
        return list(self.graph.outputs)

    @property
    def phase(self) -> str:
        """The phase the net was built for, "train" or "test"."""
        return "train" if self.graph.state.phase == caffe_pb2.TRAIN else "test"

    @property
    def params(self) -> dict[str, list[Tensor]]:
        """The live parameter blobs of every layer that has any, in Caffe's order.

        Of layers that share a name the first one is listed, as in loading weights.
        """
        table: dict[str, list[Tensor]] = {}
        for layer in self.layers:
            if layer.blob_names:
                table.setdefault(layer.name, [getattr(layer, name) for name in layer.blob_names])
        return table

    @property
    def learnable(self) -> list[LearnableParam]:
        """The owned parameter blobs in Caffe's order of learnable parameters, those with lr_mult 0 included."""
        layers = self.layers
        return [
            LearnableParam(
                layers[ref.layer].name,
                ref.index,
                getattr(layers[ref.layer], layers[ref.layer].blob_names[ref.index]),
                ref.lr_mult,
                ref.decay_mult,
            )
            for ref in self._param_refs
        ]

    def layer(self, name: str) -> Layer:
        """The first layer with this Caffe name; `GraphError` if there is none."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise GraphError(f"no layer {name!r} in net {self.graph.name!r}")

    def data_layers(self) -> list[Layer]:
        """The layers that read data by themselves, in order (Input layers left out)."""
        return [layer for layer in self.layers if layer.is_data and layer.type != "Input"]

    # Calling.

    def forward(
        self, /, *args: Tensor | Mapping[str, Tensor], blobs: Sequence[str] | None = None, **inputs: Tensor
    ) -> Outputs:
        """Run the layers that can be run and return the net's outputs, by Caffe's names.

        Args:
            args: one tensor where the net has one input, or one mapping of input names to tensors.
            blobs: names of further blobs to return, with the value that Caffe keeps (after the last in-place layer).
            inputs: a tensor (or array) for each input blob; tops of data layers count as inputs, and naming one
                bypasses its layer. Other data layers read their next batch. Any dtype; computed in the net's.

        Layers whose bottoms are neither given nor computable are left out.

        Raises:
            GraphError: an unknown input or blob, or nothing that can be computed; the message names what is missing.
        """
        given = self._given(args, inputs)
        values = {name: self._cast(name, value) for name, value in given.items()}
        self._read_data(values)
        if any(value.is_cuda for value in values.values()):
            precision.apply()
        plan = self._find_plan(tuple(sorted(values)), tuple(blobs or ()))
        results = plan.module(*(values[name] for name in plan.inputs))
        outputs = Outputs((name, results[position]) for name, position in plan.keys.items())
        outputs.weighted = tuple((results[position], weight, starts) for position, weight, starts in plan.weighted)
        return outputs

    def _find_plan(self, inputs: tuple[str, ...], blobs: tuple[str, ...]) -> Plan:
        """The plan for a call, made at the first call of its kind."""
        key = (inputs, blobs)
        plan = self._plans.get(key)
        if plan is None:
            plan = self.plan(inputs, blobs)
            if self.transform is not None:
                plan = replace(plan, module=self.transform(plan.module))
            self._plans[key] = plan
        return plan

    def plan(self, inputs: Sequence[str], blobs: Sequence[str] = ()) -> Plan:
        """The layers run for a set of inputs, as a `torch.fx.GraphModule` with its inputs and outputs named."""
        targets = dict(zip(self.graph.nodes, self._module_names, strict=True))
        return make_plan(self, targets, self.graph, sorted(inputs), tuple(blobs))

    def loss(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """Caffe's weighted loss of one call's outputs, a scalar; its gradient is the one Caffe computes.

        A loss that another layer reads counts in the value, but sends no gradient of its own, as in Caffe.
        The loss of a net without loss weights is 0. Raises `GraphError` where the loss could not be computed,
        because a label was not given.
        """
        terms = outputs.weighted if isinstance(outputs, Outputs) else self._terms(outputs)
        weighted = self.graph.weighted()
        if weighted and not terms:
            names = ", ".join(repr(blob.producer.name) for blob, _ in weighted)
            raise GraphError(
                f"net {self.graph.name!r}: the loss ({names}) was not computed; give its label as an input"
            )
        total = torch.zeros((), dtype=self.dtype, device=terms[0][0].device if terms else None)
        for value, weight, starts_gradient in terms:
            term = value.sum() * weight
            total = total + (term if starts_gradient else term.detach())
        return total

    def set_input_arrays(self, data: Any, labels: Any) -> None:
        """Give the net's MemoryData layer its rows (arrays or tensors); batches are taken in order, wrapping around.

        Raises `GraphError` if there is no MemoryData layer, `DataError` if the arrays don't fit it.
        """
        for layer in self.layers:
            if layer.type == "MemoryData":
                layer.set_input_arrays(data, labels)  # type: ignore[operator]
                return
        raise GraphError(f"net {self.graph.name!r}: no MemoryData layer to set arrays for")

    def _given(self, args: Sequence[Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
        given = dict(inputs)
        if len(args) > 1:
            raise GraphError(f"net {self.graph.name!r}: {len(args)} positional inputs; give inputs by name")
        for value in args:
            if isinstance(value, Mapping):
                given.update(value)
            elif len(self.graph.inputs) == 1:
                given[self.graph.inputs[0]] = value
            else:
                known = ", ".join(map(repr, self.source_shapes)) or "none"
                raise GraphError(f"net {self.graph.name!r}: give inputs by name; they are {known}")
        for name in given:
            source_blob(self.graph, name)
        return given

    def _cast(self, name: str, value: Any) -> Tensor:
        tensor = value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value), device=self.device)
        if tensor.device != self.device:
            raise GraphError(f"input {name!r} is on {tensor.device}, the net on {self.device}; move one with .to()")
        if tensor.is_floating_point() or self.dtype == torch.float64:
            return tensor.to(self.dtype)
        return tensor.to(torch.float32)  # labels: half precision can't hold them

    def _read_data(self, values: dict[str, Tensor]) -> None:
        """Add the next batch of every data layer none of whose tops is given."""
        for node, layer in zip(self.graph.nodes, self.layers, strict=True):
            if not node.is_data or node.type == "Input" or any(blob.name in values for blob in node.tops):
                continue
            for blob, value in zip(node.tops, layer(), strict=True):
                values[blob.name] = self._cast(blob.name, value.to(self.device))

    def _terms(self, outputs: Mapping[str, Tensor]) -> tuple[tuple[Tensor, float, bool], ...]:
        return tuple(
            (outputs[blob.name], weight, blob.consumer is None)
            for blob, weight in self.graph.weighted()
            if blob.name in outputs
        )

    # Weights.

    def fill_params(self) -> None:
        """Give every parameter that has no values yet those of its filler (reproducible from `torch.manual_seed`)."""
        layers = self.layers
        for ref in self._param_refs:
            if (ref.layer, ref.index) in self._unfilled:
                binding.fill_blob(layers[ref.layer], ref.index)
        self._unfilled.clear()

    def copy_from(self, path: PathLike) -> CopyReport:
        """Copy weights from a .caffemodel or .caffemodel.h5 by layer name, by Caffe's rules.

        Layers that the file lacks keep their values; a warning names them. Returns what was copied, left and ignored.

        Raises:
            WeightsError: the file is damaged or of another kind; a layer's blobs differ in number or shape (both are
                named); or the file fills no layer at all.
        """
        report = copy_weights(self, Path(path))
        names = [layer.name for layer in self.layers]
        copied = set(report.copied)
        self._unfilled = {(i, k) for i, k in self._unfilled if names[i] not in copied}
        if report.missing:
            warnings.warn(
                f"{os.fspath(path)}: has no values for {', '.join(report.missing)}; these layers keep what they have",
                FcnprotoWarning,
                stacklevel=2,
            )
        return report

    def save(self, path: PathLike) -> None:
        """Write the weights by suffix: .caffemodel, .caffemodel.h5 (or .h5), .safetensors.

        The file appears under its name only when it is complete. Raises `WeightsError` for another suffix.
        """
        save_weights(self, Path(path))

    # What torch calls.

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the parameters (float32 for a net without any)."""
        return next((tensor.dtype for tensor in self._tensors() if tensor.is_floating_point()), torch.float32)

    @property
    def device(self) -> torch.device:
        """The device of the parameters (of the first one)."""
        return next((tensor.device for tensor in self._tensors()), self._idle_device)

    _idle_device = torch.device("cpu")

    transform: Callable[[nn.Module], Any] | None = None
    """Applied to the module of every new plan before it is run; the solver's compiling goes this way."""

    def _tensors(self) -> Iterator[Tensor]:
        layers = self.layers
        for ref in self._param_refs:
            yield getattr(layers[ref.layer], layers[ref.layer].blob_names[ref.index])

    def _tie(self) -> None:
        layers = self.layers
        for (i, k), (j, m) in self._shared.items():
            binding.set_blob(layers[i], k, getattr(layers[j], layers[j].blob_names[m]))

    def _apply(self, fn: Any, recurse: bool = True) -> Net:
        super()._apply(fn, recurse)
        self._tie()  # shared buffers become separate objects when moved
        self._plans.clear()
        self._idle_device = fn(torch.empty(0, device=self._idle_device)).device
        return self

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        state["_plans"] = {}
        return state

    def __deepcopy__(self, memo: dict[int, Any]) -> Net:
        import copy

        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return twin


def load(
    net: PathLike | caffe_pb2.NetParameter,
    weights: PathLike | Sequence[PathLike] | None = None,
    *,
    phase: str | int = "test",
    level: int = 0,
    stages: Sequence[str] = (),
    device: str | torch.device | None = None,
    allow_python: bool = False,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Net:
    """Read a net from a prototxt, with its weights.

    Args:
        net: path of the .prototxt (any version of the format), or an upgraded `NetParameter`.
        weights: path of a .caffemodel or .caffemodel.h5, or several (later ones overwrite). Without, and for
            layers that the file lacks, parameters hold their fillers' values.
        phase: "train" or "test"; with `level` and `stages` it selects the layers (Caffe: NetState).
        device: where the parameters go; the CPU by default.
        allow_python: permit the import of modules that Python layers name (they run with your rights).
        shapes: shapes of data tops, by name, for data layers whose source is not at hand.

    No data source is opened, except that the shape of a HDF5Data, Data or ImageData layer's tops is looked up where a
    parameter's shape depends on it.

    Raises:
        PrototxtError: the text does not follow the schema (file, line and column).
        GraphError: the layers don't fit together.
        WeightsError: the weights are damaged, don't fit, or fill nothing.
    """
    base_dir: Path | None = None
    if not isinstance(net, caffe_pb2.NetParameter):
        path = Path(net)
        net, base_dir = read_net(path), path.resolve().parent
    result = Net(
        net, phase, level=level, stages=stages, allow_python=allow_python, base_dir=base_dir, shapes=shapes, fill=False
    )
    for source in [weights] if isinstance(weights, (str, os.PathLike)) else weights or []:
        if not os.fspath(source):
            raise WeightsError("the path of the weights is empty")
        result.copy_from(source)
    result.fill_params()
    return result if device is None else result.to(device)
