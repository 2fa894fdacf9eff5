"""`Net`: a Caffe net as a `torch.nn.Module`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

import fcnproto.data
import fcnproto.dialects
import fcnproto.layers
import fcnproto.scenes  # noqa: F401  these register the layer types
from fcnproto import precision
from fcnproto.data.alignment import warn_unaligned
from fcnproto.errors import FcnprotoWarning, GraphError, LayerError
from fcnproto.graph import Graph, Node, build_graph
from fcnproto.graph.crops import read_offsets
from fcnproto.graph.dialect import ALIGNED_CROPS, checked
from fcnproto.graph.evidence import dialect_of, warn_undecided
from fcnproto.graph.facts import TypeFacts
from fcnproto.layers.base import Layer
from fcnproto.layers.placeholder import class_for
from fcnproto.layers.registry import lookup
from fcnproto.layers.source import SourceLayer
from fcnproto.net import caffe_memory, calling
from fcnproto.net import params as binding
from fcnproto.net import shapes as sizing
from fcnproto.net.calling import Outputs, Term
from fcnproto.net.described import Described, take_meta, with_new_names
from fcnproto.net.locking import Lock
from fcnproto.net.making import make_layers
from fcnproto.net.params import LearnableParam
from fcnproto.net.plan import Plan, make_plan, runnable, why_missing
from fcnproto.net.setting_up import set_up
from fcnproto.net.stored_shapes import StoredShapes
from fcnproto.net.unknown import Unknown, refuse_unknown, warn_unknown
from fcnproto.net.waiting import settle, size_by_weights
from fcnproto.net.weights import CopyReport, copy_weights, save_with_meta, warn_missing
from fcnproto.schema import caffe_pb2
from fcnproto.schema.fork_schema import ForkSchema
from fcnproto.schema.upgrade import needs_upgrade, upgrade_net

__all__ = ["LearnableParam", "Net", "Outputs"]

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Batch:
    """What a data layer gave: its tops, and where they came from, for messages."""

    tops: tuple[Tensor, ...]
    origin: str


def read_batch(layer: Layer) -> Batch:
    """The next batch of a data layer, as it gives it."""
    tops = tuple(layer())
    return Batch(tops, layer.origin() if isinstance(layer, SourceLayer) else "")


class Net(Described, nn.Module):
    """A Caffe net: call it with tensors for its input blobs, get a dict of its output blobs.

    Made by `load`. `params` lists each layer's blobs, `inputs` and `outputs` are Caffe's names, `graph` is the layer
    graph. Submodules go by layer name, so that `state_dict` has entries such as `conv1_1.weight`; dots, slashes, quotes
    and what is not printable in a layer's name become underscores, and one more underscore is added where the name is
    taken (a layer called `loss` is the submodule `loss_`, because `Net.loss` is a method).

    Args:
        param: the definition, of any version of the format.
        phase: "train" or "test" (or Caffe's 0 and 1); with `level` and `stages` selects the layers (Caffe: NetState).
        allow_python: permit the import of modules that Python layers name.
        allow_writes: let layers that write files (HDF5Output) do so; otherwise they do nothing, and a warning tells.
        base_dir: folder from which relative file names are looked up after the working directory.
        file: what it was read from, for messages.
        shapes: shapes of data tops that nothing else tells, by name.
        fill: give the parameters their fillers' values at once; else they stay uninitialised until `fill_params`.
        crop: where a Crop without offset begins: "caffe" at 0, "aligned" where the coordinate map says.
        dialect: the fork of Caffe that the net was written for, as for `load`.
        caffe_exact: compute Caffe's gradient also where its layers' shared memory makes it another than the true one.
        sized_by: weight files that say the number of channels where neither the prototxt nor the data do; nothing is
            copied from them.
        strict: refuse fields and layer types that nobody here knows, and Python layers that may not be imported. Else
            they are kept, one warning tells of them all, and such layers hold their places: see `unknown`.
        caffe_proto: a fork's own schema, as for `load`.

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
        allow_writes: bool = False,
        base_dir: PathLike | None = None,
        file: PathLike | None = None,
        shapes: Mapping[str, Sequence[int]] | None = None,
        fill: bool = True,
        crop: str = "caffe",
        dialect: str | None = None,
        caffe_exact: bool = False,
        sized_by: Sequence[PathLike] = (),
        strict: bool = False,
        caffe_proto: PathLike | None = None,
    ) -> None:
        super().__init__()
        if needs_upgrade(param):
            original, param = param, caffe_pb2.NetParameter()
            param.CopyFrom(original)
            upgrade_net(param)
        file = None if file is None else os.fspath(file)
        schema = None if caffe_proto is None else ForkSchema(caffe_proto)
        if strict:
            refuse_unknown(param, file, schema)
        self.graph: Graph = build_graph(param, lookup_facts if strict else type_facts, phase, level, stages)
        self.dialect = dialect = checked(dialect) or dialect_of(param)
        warn_undecided(param, dialect)
        read_offsets(self.graph, "aligned" if dialect in ALIGNED_CROPS else crop)
        folder = None if base_dir is None else Path(base_dir)
        layers = make_layers(self.graph, folder, allow_python, file, allow_writes, dialect, strict)
        warn_unknown(param, self.graph, file, schema)
        sources, self._assumed = set_up(self.graph, layers, shapes or {}, StoredShapes(sized_by))
        self._source_shapes = {blob.name: shape for blob, shape in sources.items()}
        self._looked = False
        self._given_shapes = {name: tuple(shape) for name, shape in (shapes or {}).items()}
        self._copied: list[Path] = []
        self._param_refs, self._shared = binding.share_params(self.graph, layers)
        binding.give_memory(layers, self._param_refs, self.graph.force_backward)
        places = caffe_memory.find_places(self.graph, layers, self._param_refs, self._shared)
        self._places = places if caffe_exact else {}
        for layer in layers:
            layer.caffe_exact = caffe_exact
        if caffe_exact:
            caffe_memory.prepare(layers, places)
        elif self.graph.state.phase == caffe_pb2.TRAIN and (said := caffe_memory.warning(self.graph, places)):
            warnings.warn(said, FcnprotoWarning, stacklevel=3)
        self._unfilled = {(ref.layer, ref.index) for ref in self._param_refs}
        self._index_inputs = binding.index_inputs(self.graph, layers)
        # What every call asks for; nodes are held from the beginning or never.
        self._held_places = [i for i, node in enumerate(self.graph.nodes) if node.held]
        self._data_places = [i for i, node in enumerate(self.graph.nodes) if node.is_data and node.type != "Input"]
        self._plans: dict[tuple[tuple[str, ...], tuple[str, ...]], Plan] = {}
        self._planning = Lock()
        # Of the class and not of the object: a property that can't be computed yet counts as taken.
        self._module_names: list[str] = []
        self._module_names = binding.module_names(layers, lambda name: name in self.__dict__ or hasattr(Net, name))
        for name, layer in zip(self._module_names, layers, strict=True):
            self.add_module(name, layer)
        self._tie()
        self.train(self.graph.state.phase == caffe_pb2.TRAIN)
        warn_unaligned(layers)
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
    def source_shapes(self) -> dict[str, sizing.PartialShape | None]:
        """The shapes of the data layers' tops as far as they are known, None for an unknown extent or shape.

        Asking for them looks into the sources of data layers that are there, where the prototxt leaves something open.
        """
        if not self._looked:
            self._looked = True
            if any(shape is None or None in shape for shape in self._source_shapes.values()):
                found = sizing.source_shapes(self.graph, self.layers, self._given_shapes, look=True)
                self._source_shapes = {blob.name: shape for blob, shape in found.items()}
        return dict(self._source_shapes)

    @property
    def unknown(self) -> list[Unknown]:
        """The layers that can't be computed for now, in order: place-holders of unknown types and of Python layers that
        may not be imported, and layers that wait for a size that nobody has said yet (layers without parameters behind
        those are not listed). Calling for a blob that needs one raises a `GraphError` that says what to do."""
        pairs = zip(self.graph.nodes, self.layers, strict=True)
        return [Unknown(node.name, node.type) for node, layer in pairs if node.held and not layer.follows]

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

    @property
    def caffe_places(self) -> dict[int, caffe_memory.Place]:
        """The layers, by index, whose gradient is Caffe's and not the true one; none without `caffe_exact`."""
        return dict(self._places)

    def parameter_places(self) -> list[binding.ParamRef]:
        """The owned parameter blobs in the order of `learnable`, by the places of their layers in `layers`."""
        return list(self._param_refs)

    @property
    def shared_blobs(self) -> dict[tuple[int, int], tuple[int, int]]:
        """The parameter blobs that layers share by name, (layer, blob), each with its owner's place."""
        return dict(self._shared)

    def layer(self, name: str) -> Layer:
        """The first layer with this Caffe name; `GraphError` if there is none."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise GraphError(f"no layer {name!r} in {self.graph.title}")

    def data_layers(self) -> list[Layer]:
        """The layers that read data by themselves, in order (Input layers left out)."""
        return [layer for _, layer in self._data_nodes()]

    def _data_nodes(self) -> list[tuple[Node, Layer]]:
        return [(self.graph.nodes[i], self._modules[self._module_names[i]]) for i in self._data_places]  # type: ignore[misc]

    # Calling.

    def forward(
        self, /, *args: Tensor | Mapping[str, Tensor], blobs: Sequence[str] | str | None = None, **inputs: Tensor
    ) -> Outputs:
        """Run the layers that can be run and return the net's outputs, by Caffe's names.

        Args:
            args: one tensor where the net has one input, or one mapping of input names to tensors.
            blobs: names of further blobs to return, with the value that Caffe keeps (after the last in-place layer).
            inputs: a tensor (or array) for each input blob; tops of data layers count as inputs, and naming one
                bypasses its layer. Other data layers read their next batch. Any dtype; computed in the net's.

        Layers whose bottoms are neither given nor computable are left out. Where that leaves none of the net's outputs,
        and no `blobs` are asked for, the blobs that end what is left are returned (the scores, if labels are missing).

        Raises:
            GraphError: an unknown input or blob, or nothing that can be computed; the message names what is missing.
            LayerError: a layer can't work on the shapes it is given.
        """
        if type(args) is not tuple:  # torch.fx traces
            return cast("Outputs", calling.traced(self, args, blobs, inputs))
        given = calling.gather(self.graph, list(self._source_shapes), args, inputs)
        values = {name: self._cast(name, value) for name, value in given.items()}
        origins = self._read_data(values)
        if self._waits:
            self._settle({name: tuple(value.shape) for name, value in values.items()})
        plan = self._find_plan(tuple(sorted(values)), (blobs,) if isinstance(blobs, str) else tuple(blobs or ()))
        try:
            with precision.in_force(self.device) as in_force_backward:
                results = plan.module(*(values[name] for name in plan.inputs))
                in_force_backward(results)
        except LayerError as error:
            remarks = [f"the batch is {', '.join(origins)}"] if origins else []
            remarks += [self._assumed] if self._assumed else []
            if not remarks:
                raise
            raise LayerError("; ".join([str(error), *remarks])) from error
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            known = calling.layer_error(error)
            if known is None:
                raise
            raise known from error
        outputs = Outputs((name, results[position]) for name, position in plan.keys.items())
        outputs.left_out = plan.left_out
        outputs.weighted = tuple((results[position], weight, starts) for position, weight, starts in plan.weighted)
        return outputs

    def _find_plan(self, inputs: tuple[str, ...], blobs: tuple[str, ...]) -> Plan:
        """The plan for a call, made at the first call of its kind."""
        key = (inputs, blobs)
        plan = self._plans.get(key)
        if plan is None:
            with self._planning:  # several threads may call; torch's tracers see no lock where the plan is there
                plan = self._plans.get(key)
                if plan is None:
                    plan = self.plan(inputs, blobs)
                    if self.transform is not None:
                        plan = replace(plan, module=self.transform(plan.module))
                    self._plans[key] = plan
        return plan

    def plan(self, inputs: Sequence[str] | str, blobs: Sequence[str] | str = ()) -> Plan:
        """The layers run for a set of inputs, as a `torch.fx.GraphModule` with its inputs and outputs named."""
        inputs, blobs = ([names] if isinstance(names, str) else names for names in (inputs, blobs))
        targets = dict(zip(self.graph.nodes, self._module_names, strict=True))
        return make_plan(self, targets, self.graph, sorted(inputs), tuple(blobs), self._places)

    def loss(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """Caffe's weighted loss of one call's outputs, a scalar; its gradient is the one Caffe computes.

        A loss that another layer reads counts in the value, but sends no gradient of its own, as in Caffe.
        The loss of a net without loss weights is 0. Raises `GraphError` where the loss could not be computed,
        because a label was not given.
        """
        terms = outputs.weighted if isinstance(outputs, Outputs) else self._terms(outputs)
        weighted = self.graph.weighted()
        if any(node.held for node in self.graph.nodes):
            everything = runnable(self.graph, list(self._source_shapes))
            for blob, _ in weighted:
                if not everything[blob]:
                    why = why_missing(self.graph, blob, everything)
                    raise GraphError(f"{self.graph.title}: its loss can't be computed: {why}")
        if weighted and not terms:
            names = ", ".join(repr(blob.producer.name) for blob, _ in weighted)
            raise GraphError(f"{self.graph.title}: the loss ({names}) was not computed; give its label as an input")
        return calling.total_loss(terms, self.dtype)

    def set_input_arrays(self, data: Any, labels: Any) -> None:
        """Give the net's MemoryData layer its rows (arrays or tensors); batches are taken in order, wrapping around.

        Raises `GraphError` if there is no MemoryData layer, `DataError` if the arrays don't fit it.
        """
        for layer in self.layers:
            if layer.type == "MemoryData":
                layer.set_input_arrays(data, labels)  # type: ignore[operator]
                return
        raise GraphError(f"{self.graph.title}: no MemoryData layer to set arrays for")

    @property
    def _waits(self) -> bool:
        """Whether any layer waits for a size that nobody has said yet."""
        nodes, modules = self.graph.nodes, self._modules
        return any(nodes[i].held and not modules[self._module_names[i]].holds_place for i in self._held_places)  # type: ignore[union-attr]

    def give_sizes(self, shapes: Mapping[str, Sequence[int]] | None = None) -> list[str]:
        """Set up the layers that wait for the sizes of data tops, by these `shapes`, else by a batch of the net's own
        data (which comes again). Returns why layers go on waiting, for people; empty where none does.

        Calls do so by themselves. Whoever counts the parameters beforehand, as a solver does, needs it earlier.
        """
        if self._waits:
            known = {name: tuple(shape) for name, shape in (shapes or {}).items()}
            sources = [layer for layer in self.data_layers() if isinstance(layer, SourceLayer)]
            positions = [layer.get_position() for layer in sources]
            values = {name: torch.empty(shape, device="meta") for name, shape in known.items()}
            self._read_data(values)
            for layer, position in zip(sources, positions, strict=True):
                layer.set_position(position)
            self._settle({name: tuple(value.shape) for name, value in values.items()})
        pairs = zip(self.graph.nodes, self.layers, strict=True)
        return [node.held for node, layer in pairs if node.held and not layer.holds_place and not layer.follows]

    def _settle(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Set up the layers that waited for the sizes of data tops, now that these are given."""
        with self._planning:
            layers = self.layers
            try:
                settled = settle(self.graph, layers, shapes)
            except LayerError as error:
                raise LayerError(f"{error}; {self._assumed}" if self._assumed else str(error)) from error
            self._replace(layers, settled)
        if settled:
            for path in self._copied:
                self._unfilled -= copy_weights(self, path, only=set(settled))[1]
            self.fill_params()

    def take_sizes(self, stored: StoredShapes) -> None:
        """Give place-holders the blobs of a weight file, and set up waiting layers by it, as far as it says enough."""
        layers = self.layers
        self._replace(layers, size_by_weights(self.graph, layers, stored))

    def _replace(self, layers: list[Layer], indices: Sequence[int]) -> None:
        """Take in layers that have just been set up, at these places, with their parameters."""
        if not indices:
            return
        for index in indices:
            self._modules[self._module_names[index]] = layers[index]
        device, dtype, before = self.device, self.dtype, {(ref.layer, ref.index) for ref in self._param_refs}
        self._param_refs, self._shared = binding.share_params(self.graph, layers)
        new = [ref for ref in self._param_refs if (ref.layer, ref.index) not in before]
        binding.give_memory(layers, new, self.graph.force_backward)
        for ref in new:
            binding.move_blob(layers[ref.layer], ref.index, device, dtype)
        self._unfilled |= {(ref.layer, ref.index) for ref in new}
        self._index_inputs = binding.index_inputs(self.graph, layers)
        if self._places:
            self._places = caffe_memory.find_places(self.graph, layers, self._param_refs, self._shared)
            caffe_memory.prepare(layers, self._places)
        self._tie()
        self._plans.clear()

    def _cast(self, name: str, value: Any) -> Tensor:
        return calling.in_dtype(calling.as_tensor(name, value, self.device), self.dtype, name in self._index_inputs)

    def _read_data(self, values: dict[str, Tensor]) -> list[str]:
        """Add the next batch of every data layer none of whose tops is given; where they came from, if known."""
        origins = []
        for node, layer in self._data_nodes():
            if node.held or any(blob.name in values for blob in node.tops):
                continue
            batch = (self.feed or read_batch)(layer)
            for blob, value in zip(node.tops, batch.tops, strict=True):
                values[blob.name] = self._cast(blob.name, value.to(self.device))
            if batch.origin:
                origins.append(batch.origin)
        return origins

    def _terms(self, outputs: Mapping[str, Tensor]) -> tuple[Term, ...]:
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

    def copy_from(self, path: PathLike, *, may_fill_nothing: bool = False, only: set[int] | None = None) -> CopyReport:
        """Copy weights from a .caffemodel or .caffemodel.h5 by layer name, by Caffe's rules, or from a .safetensors.

        With `may_fill_nothing` a Caffe file none of whose layers the net has is only warned of, as all that is missing.
        `only`: the places of the layers to copy to, all others are left as they are.

        Layers that the file lacks keep their values; a warning names them. Returns what was copied, left and ignored.

        Raises:
            WeightsError: the file is damaged or of another kind; a layer's blobs differ in number or shape (both are
                named); or the file fills no layer at all.
        """
        report, filled = copy_weights(self, Path(path), may_fill_nothing, only)
        self._unfilled -= filled
        self._copied.append(Path(path))
        take_meta(self, Path(path))
        warn_missing([path], report.missing)
        return report

    def save(self, path: PathLike) -> None:
        """Write the weights by suffix: .caffemodel, .caffemodel.h5 (or .h5), .safetensors.

        The file appears under its name only when it is complete. What is known of the net's images and classes (`meta`)
        goes into the header of a .safetensors, into `x.caffemodel.json` beside an x.caffemodel. Raises `WeightsError`
        for another suffix.
        """
        save_with_meta(self, Path(path))

    # What torch calls.

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the parameters (of the first one)."""
        return next(self._tensors(), self._idle).dtype

    @property
    def device(self) -> torch.device:
        """The device of the parameters (of the first one)."""
        return next(self._tensors(), self._idle).device

    _idle = torch.empty(0, dtype=torch.float32, device="cpu")
    """What stands for the parameters of a net that has none: moved and converted like them."""

    transform: Callable[[nn.Module], Any] | None = None
    """Applied to the module of every new plan before it is run; the solver's compiling goes this way."""

    feed: Callable[[Layer], Batch] | None = None
    """How a data layer's next batch is had, if not by calling it; the solver's reading ahead goes this way."""

    def _tensors(self) -> Iterator[Tensor]:
        for ref in self._param_refs:
            layer: Any = self._modules[self._module_names[ref.layer]]
            yield getattr(layer, layer.blob_names[ref.index])

    def _tie(self) -> None:
        layers = self.layers
        for (i, k), (j, m) in self._shared.items():
            binding.set_blob(layers[i], k, getattr(layers[j], layers[j].blob_names[m]))

    def _apply(self, fn: Any, recurse: bool = True) -> Net:
        super()._apply(fn, recurse)
        self._tie()  # shared buffers become separate objects when moved
        self._plans.clear()
        self._idle = fn(self._idle)
        return self

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As in torch; layers that share a blob go on sharing it with `assign` too (the owner's entry counts)."""
        result = super().load_state_dict(state_dict, strict=strict, assign=assign)
        self._tie()
        return result

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """As in torch, before the layers take theirs."""
        renamed = with_new_names(self, state_dict, prefix)
        if renamed.keys() != state_dict.keys():
            state_dict.clear()
            state_dict.update(renamed)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _replicate_for_data_parallel(self) -> Net:
        replica = super()._replicate_for_data_parallel()  # type: ignore[no-untyped-call]
        replica.__dict__.update(replica.__getstate__())  # plans hold the layers of the net they were made for
        return replica  # type: ignore[no-any-return]

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        state |= {"_plans": {}, "_planning": Lock()}
        return state

    def __deepcopy__(self, memo: dict[int, Any]) -> Net:
        import copy

        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return twin


def type_facts(type_name: str, layer_name: str) -> TypeFacts:
    """What the class of a layer type says of itself, for `graph.build_graph`; of an unknown one, its place-holder."""
    return cast("TypeFacts", class_for(type_name, layer_name))


def lookup_facts(type_name: str, layer_name: str) -> TypeFacts:
    """The same for registered types alone; raises `UnsupportedLayerError` for others."""
    return cast("TypeFacts", lookup(type_name, layer_name))
