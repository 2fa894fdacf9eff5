"""`Net`: pycaffe's net, whose blobs live: forward reads and writes them, backward works on what they hold.

The engine is `fcnproto.net.Net`; `LiveNet` is that net with a call that goes over the blobs, which is what the solver
needs of it.
"""

from __future__ import annotations

import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fcnproto.data.python import Python
from fcnproto.errors import FcnprotoWarning, UsageError
from fcnproto.graph import Blob as Version
from fcnproto.net import Net as EngineNet
from fcnproto.net import Outputs
from fcnproto.net.caffe_memory import is_in_place
from fcnproto.net.params import set_blob
from fcnproto.net.shapes import blob_shapes
from fcnproto.net.weights import save_weights
from fcnproto.pycaffe import mode
from fcnproto.pycaffe.batches import Batches
from fcnproto.pycaffe.blob import Blob, BlobVec
from fcnproto.pycaffe.failures import MissingFileError, as_pycaffe_raised
from fcnproto.pycaffe.layerwise import Layerwise, prepare_device
from fcnproto.pycaffe.memory import ParameterMemory
from fcnproto.pycaffe.own_modules import prefer_own_modules
from fcnproto.schema.text import read_net

Callback = Callable[[int], Any]


class InputError(UsageError, ValueError):
    """The arrays handed to a call don't suit the net's blobs."""


class LiveNet(EngineNet):
    """An engine whose call runs over the blobs of a `Net`, once it has one."""

    live: Net | None = None

    def forward(self, /, *args: Any, blobs: Any = None, **inputs: Any) -> Outputs:
        """Write the inputs that are given into their blobs and run all layers; the net's outputs as tensors."""
        net = self.live
        if net is None:
            return super().forward(*args, blobs=blobs, **inputs)
        for name, value in {**(args[0] if args else {}), **inputs}.items():
            net.blobs[name].put(torch.as_tensor(value).to(mode.device(), torch.float32), False)
        net._forward(0, len(net.layers) - 1)
        device = mode.device()
        outputs = Outputs((name, net.blobs[name].tensor(device)) for name in net.outputs)
        tops = zip(self.graph.nodes, net.engine_tops, strict=True)
        outputs.weighted = tuple(
            (blob.tensor(device), weight, False)
            for node, blobs_of_layer in tops
            for blob, weight in zip(blobs_of_layer, node.loss_weights, strict=True)
            if weight
        )
        return outputs


class LayerView:
    """A layer as `net.layers` lists it: its type and its parameter blobs."""

    def __init__(self, name: str, type_name: str, blobs: BlobVec) -> None:
        self.name, self.type, self.blobs = name, type_name, blobs

    def __repr__(self) -> str:
        return f"<caffe.Layer {self.name!r} ({self.type})>"


class Net(Batches):
    """A Caffe net with live blobs.

    `Net(prototxt, phase, level=0, stages=None, weights=None)`, or in the old way `Net(prototxt, weights, phase)`, which
    warns. Python layers' modules are imported: those beside the prototxt, in the working directory and on `sys.path`
    come before the layers that the package knows by name.

    Raises:
        fcnproto.Error: whatever is wrong with the files; RuntimeError too for a missing one, and what a Python layer's
            own code raised.
    """

    def __init__(
        self,
        network_file: str | os.PathLike[str],
        *arguments: Any,
        **named: Any,
    ) -> None:
        number, level, stages, weights = _arguments(network_file, arguments, named)
        _check_file(network_file)
        if weights is not None:
            _check_file(weights)
        param, folder = read_net(network_file), Path(network_file).resolve().parent
        chosen = tuple(stages or ())
        prefer_own_modules(param, number, level, chosen, folder)
        with as_pycaffe_raised():
            engine = LiveNet(
                param,
                number,
                level=level,
                stages=chosen,
                allow_python=True,
                allow_writes=True,
                base_dir=folder,
                file=network_file,
                caffe_exact=True,
                sized_by=() if weights is None else (weights,),
            )
        self._take(engine)
        if weights is not None:
            self.copy_from(weights)

    @classmethod
    def around(cls, engine: LiveNet) -> Net:
        """The net whose layers are those of an engine, such as a solver's."""
        net = cls.__new__(cls)
        net._take(engine)
        return net

    def _take(self, engine: LiveNet) -> None:
        self.engine = engine
        shapes = blob_shapes(engine.graph, engine.layers, _known(engine), partial=True)
        self._blobs: list[Blob] = []
        self._blob_names: list[str] = []
        self._blob_loss_weights: list[float] = []
        self.engine_bottoms: list[list[Blob]] = []
        self.engine_tops: list[list[Blob]] = []
        by_version: dict[Version, Blob] = {}
        for node in engine.graph.nodes:
            self.engine_bottoms.append([by_version[version] for version in node.bottoms])
            tops = []
            for j, (version, weight) in enumerate(zip(node.tops, node.loss_weights, strict=True)):
                in_place = j < len(node.bottoms) and node.bottoms[j].name == version.name
                blob = by_version[node.bottoms[j]] if in_place else self._new(version, shapes.get(version, ()))
                if weight:
                    blob.loss_weight = weight
                    blob.slopes = type(blob.slopes)(blob.slopes.capacity, weight)
                    self._blob_loss_weights[self._blobs.index(blob)] = weight
                by_version[version] = blob
                tops.append(blob)
            if node.facts.shares_memory(node.param) and not is_in_place(node):
                for blob in tops:
                    blob.share_values(self.engine_bottoms[-1][0], blob.shape)
            self.engine_tops.append(tops)
        parameters = self._parameters()
        self.layers: list[Any] = []
        for index, layer in enumerate(engine.layers):
            if isinstance(layer, Python):
                layer.live_on(self.engine_bottoms[index], self.engine_tops[index], parameters[index])
                self.layers.append(layer.instance)
            else:
                self.layers.append(LayerView(layer.name, layer.type, parameters[index]))
        self._layer_names = [layer.name for layer in engine.layers]
        self._runner = Layerwise(engine, self.engine_bottoms, self.engine_tops, parameters)
        self.layer_dict: OrderedDict[str, Any] = OrderedDict(zip(self._layer_names, self.layers, strict=True))
        self.blobs: OrderedDict[str, Blob] = OrderedDict(zip(self._blob_names, self._blobs, strict=True))
        self.params: OrderedDict[str, BlobVec] = OrderedDict()
        for name, blobs in zip(self._layer_names, parameters, strict=True):
            if blobs:
                self.params[name] = blobs
        self._places = {id(blob): number for number, blob in enumerate(self._blobs)}
        self._inputs = [self._blob_names.index(name) for name in engine.inputs]
        self._outputs = [self._blob_names.index(name) for name in engine.outputs]
        self.inputs: list[str] = engine.inputs
        """The tops of the Input layers."""
        self.outputs: list[str] = engine.outputs
        """The blobs that no layer reads."""
        self._callbacks: dict[str, list[Callback]] = {kind: [] for kind in _CALLBACKS}
        engine.live = self

    def _new(self, version: Version, shape: Sequence[int]) -> Blob:
        blob = Blob(shape)
        self._blobs.append(blob)
        self._blob_names.append(version.name)
        self._blob_loss_weights.append(0.0)
        return blob

    def _parameters(self) -> list[BlobVec]:
        """The parameter blobs of every layer; layers that share one list the same blob, in their own shape."""
        owned: dict[tuple[int, int], Blob] = {}
        result = []
        for index, layer in enumerate(self.engine.layers):
            blobs = BlobVec()
            for k, shape in enumerate(layer.blob_shapes):
                owner = self.engine.shared_blobs.get((index, k))
                if owner is not None:
                    first = owned[owner]
                    blobs.append(Blob(shape, first.values, first.slopes))
                    continue
                name = layer.blob_names[k]
                memory = ParameterMemory(lambda layer=layer, name=name: getattr(layer, name))  # type: ignore[misc]
                owned[index, k] = Blob(shape, memory)
                blobs.append(owned[index, k])
            result.append(blobs)
        return result

    # What it is made of.

    @property
    def blob_loss_weights(self) -> OrderedDict[str, float]:
        """The loss weight of every blob, 0 for most."""
        return OrderedDict(zip(self._blob_names, self._blob_loss_weights, strict=True))

    @property
    def top_names(self) -> OrderedDict[str, list[str]]:
        """The tops of each layer, by the layers' names."""
        return self._names(self.engine_tops)

    @property
    def bottom_names(self) -> OrderedDict[str, list[str]]:
        """The bottoms of each layer."""
        return self._names(self.engine_bottoms)

    def _names(self, sides: Sequence[Sequence[Blob]]) -> OrderedDict[str, list[str]]:
        rows = [[self._blob_names[self._places[id(blob)]] for blob in side] for side in sides]
        return OrderedDict(zip(self._layer_names, rows, strict=True))

    def _top_ids(self, layer: int) -> list[int]:
        return [self._places[id(blob)] for blob in self.engine_tops[layer]]

    def _bottom_ids(self, layer: int) -> list[int]:
        return [self._places[id(blob)] for blob in self.engine_bottoms[layer]]

    # Passes.

    def _forward(self, start: int, end: int) -> float:
        """Run the layers start..end (both included); returns the weighted loss of those."""
        device, loss = mode.device(), 0.0
        prepare_device(self.engine, device)
        with as_pycaffe_raised():
            for index in range(start, end + 1):
                self._call("before_forward", index)
                loss += self._runner.forward(index, device)
                self._call("after_forward", index)
        return loss

    def _backward(self, start: int, end: int) -> None:
        """Run the layers start..end backward, start being the later one."""
        device = mode.device()
        prepare_device(self.engine, device)
        with as_pycaffe_raised():
            for index in range(start, end - 1, -1):
                self._call("before_backward", index)
                self._runner.backward(index, device)
                self._call("after_backward", index)

    def _call(self, kind: str, index: int) -> None:
        for callback in self._callbacks[kind]:
            callback(index)

    def forward(
        self, blobs: Sequence[str] | None = None, start: str | None = None, end: str | None = None, **inputs: Any
    ) -> dict[str, np.ndarray]:
        """Run the net, or its layers from `start` to `end`; arrays of the outputs (or of `end`'s tops) and of `blobs`.

        `inputs` give all input blobs their values, of the blobs' batch size. The arrays are the blobs' own memory: the
        next pass changes them. Raises `ValueError` for an unknown layer, `KeyError` for an unknown blob,
        `InputError` (a ValueError) for inputs that don't suit.
        """
        names = self._layer_names
        first = 0 if start is None else names.index(start)
        last = len(names) - 1 if end is None else names.index(end)
        wanted = set(self.outputs if end is None else self.top_names[end]) | set(blobs or ())
        if inputs:
            self._set(inputs, self.inputs, "inputs", "data")
        self._forward(first, last)
        return {name: self.blobs[name].data for name in wanted}

    def backward(
        self, diffs: Sequence[str] | None = None, start: str | None = None, end: str | None = None, **tops: Any
    ) -> dict[str, np.ndarray]:
        """Run the net backward, or its layers from `start` back to `end`; arrays of the gradients of the inputs (or of
        `end`'s bottoms) and of `diffs`.

        `tops` give all outputs their gradients; without, they are what the blobs' `diff` holds (a loss's weight). The
        gradients of parameters add up until `clear_param_diffs`.
        """
        names = self._layer_names
        first = len(names) - 1 if start is None else names.index(start)
        last = 0 if end is None else names.index(end)
        wanted = set(self.inputs if end is None else self.bottom_names[end]) | set(diffs or ())
        if tops:
            self._set(tops, self.outputs, "outputs", "diff")
        self._backward(first, last)
        return {name: self.blobs[name].diff for name in wanted}

    def _set(self, given: Mapping[str, Any], names: Sequence[str], what: str, side: str) -> None:
        if set(given) != set(names):
            raise InputError(f"given are {', '.join(sorted(given))}; the net's {what} are {', '.join(names) or 'none'}")
        for name, value in given.items():
            blob, array = self.blobs[name], np.asarray(value)
            if array.shape[:1] != blob.shape[:1]:
                raise InputError(
                    f"blob {name!r} is given {array.shape[0] if array.ndim else 'no'} items, its batch is "
                    f"{blob.shape[0] if blob.shape else 'a scalar'}; reshape the blob, or call forward_all"
                )
            getattr(blob, side)[...] = array

    def reshape(self) -> None:
        """Give all blobs the shapes that follow from the inputs' (forward does so by itself)."""
        with as_pycaffe_raised():
            for index in range(len(self.layers)):
                self._runner.reshape(index, mode.device())

    def before_forward(self, callback: Callback) -> None:
        """Have a function called with each layer's number before its forward."""
        self._callbacks["before_forward"].append(callback)

    def after_forward(self, callback: Callback) -> None:
        """The same after it."""
        self._callbacks["after_forward"].append(callback)

    def before_backward(self, callback: Callback) -> None:
        """The same before its backward."""
        self._callbacks["before_backward"].append(callback)

    def after_backward(self, callback: Callback) -> None:
        """The same after that."""
        self._callbacks["after_backward"].append(callback)

    # Parameters.

    def clear_param_diffs(self) -> None:
        """Set the gradients of all parameters to zero."""
        for blobs in self.params.values():
            for blob in blobs:
                blob.slopes.on(self.engine.device).zero_()
                blob.slopes.touched()

    def bind_gradients(self) -> None:
        """Give torch's parameters the blobs' gradients as their `.grad` (the same memory), for an optimizer."""
        device = self.engine.device
        for blobs in self.params.values():
            for blob in blobs:
                blob.values.on(device)
        for layer, own in zip(self.engine.layers, self._runner.parameters, strict=True):
            for name, blob in zip(layer.blob_names, own, strict=True):
                parameter = getattr(layer, name)
                if isinstance(parameter, nn.Parameter) and parameter.requires_grad:
                    parameter.grad = blob.slopes.on(device).view(parameter.shape)

    def put_updates(self, update_of: Callable[[torch.Tensor], torch.Tensor | None]) -> None:
        """Leave what an update took off each parameter in its `diff`, as Caffe does; 0 where nothing was."""
        for layer, own in zip(self.engine.layers, self._runner.parameters, strict=True):
            for name, blob in zip(layer.blob_names, own, strict=True):
                update, slopes = update_of(getattr(layer, name)), blob.slopes.on(self.engine.device)
                slopes.copy_(torch.zeros_like(slopes) if update is None else update.reshape(-1))
                blob.slopes.touched()

    def copy_from(self, weights: str | os.PathLike[str]) -> None:
        """Copy weights by layer name, from a caffemodel or an HDF5 file; layers that it lacks keep their values."""
        _check_file(weights)
        self._bring_home()
        self.engine.copy_from(weights, may_fill_nothing=True)
        self._parameters_changed()

    def load_hdf5(self, filename: str | os.PathLike[str]) -> None:
        """Copy weights from an HDF5 file, whatever its name."""
        self.copy_from(filename)

    def save(self, filename: str | os.PathLike[str]) -> None:
        """Write the weights as a caffemodel, whatever the file's name."""
        self._bring_home()
        save_weights(self.engine, Path(filename), format_of=Path("net.caffemodel"))

    def save_hdf5(self, filename: str | os.PathLike[str]) -> None:
        """Write the weights as HDF5, whatever the file's name."""
        self._bring_home()
        save_weights(self.engine, Path(filename), format_of=Path("net.caffemodel.h5"))

    def _bring_home(self) -> None:
        """What Python has written into parameters on a GPU's host side goes to where the module has them."""
        for blobs in self.params.values():
            for blob in blobs:
                blob.values.on(self.engine.device)

    def _parameters_changed(self) -> None:
        for blobs in self.params.values():
            for blob in blobs:
                blob.values.touched()

    def share_with(self, other: Net) -> None:
        """Make the parameters of layers that both nets have one memory, that of `other`; gradients stay apart.

        Raises `fcnproto.SolverError` where shapes differ.
        """
        from fcnproto.solver.nets import check_shareable

        if other.engine.device != self.engine.device:
            self.engine.to(other.engine.device)
        targets: dict[str, int] = {}
        for index, name in enumerate(self._layer_names):
            targets.setdefault(name, index)
        for number, source in enumerate(other.engine.layers):
            if source.name not in targets:
                continue
            index = targets[source.name]
            target = self.engine.layers[index]
            check_shareable(source, target)
            for k, name in enumerate(source.blob_names):
                theirs = getattr(source, name)
                mine = theirs.detach()
                if isinstance(theirs, nn.Parameter):
                    mine = nn.Parameter(mine, requires_grad=getattr(target, target.blob_names[k]).requires_grad)
                set_blob(target, k, mine)
                self._runner.parameters[index][k].values = other._runner.parameters[number][k].values

    def set_input_arrays(self, data: np.ndarray, labels: np.ndarray) -> None:
        """Give the MemoryData layer its rows; labels may be a plain list of numbers."""
        rows = np.asarray(labels)
        self.engine.set_input_arrays(data, rows.reshape(-1, 1, 1, 1) if rows.ndim == 1 else rows)

    _set_input_arrays = set_input_arrays


_CALLBACKS = ("before_forward", "after_forward", "before_backward", "after_backward")


_NAMES = ("phase", "level", "stages", "weights")


def _arguments(file: Any, given: Sequence[Any], named: Mapping[str, Any]) -> tuple[int, int, Sequence[str] | None, Any]:
    """The phase, level, stages and weights of a call of `Net` by either of its two signatures."""
    if len(given) == 2 and isinstance(given[0], (str, os.PathLike)) and not named:
        weights, phase = os.fspath(given[0]), int(given[1])
        warnings.warn(
            f"Net({os.fspath(file)!r}, {weights!r}, {phase}) is the deprecated form; write "
            f"Net({os.fspath(file)!r}, {phase}, weights={weights!r})",
            FcnprotoWarning,
            stacklevel=3,
        )
        return phase, 0, None, weights
    values = {**dict(zip(_NAMES, given, strict=False)), **named}
    twice = set(_NAMES[: len(given)]) & set(named)
    if len(given) > len(_NAMES) or twice or not set(values) <= set(_NAMES):
        raise TypeError(f"Net takes a file and {', '.join(_NAMES)}, each once")
    if not isinstance(values.get("phase"), (int, np.integer)):
        raise TypeError("Net needs a phase, caffe.TRAIN or caffe.TEST: Net(prototxt, phase, weights=...)")
    return int(values["phase"]), int(values.get("level", 0)), values.get("stages"), values.get("weights")


def _check_file(path: str | os.PathLike[str]) -> None:
    if not os.path.isfile(path):
        raise MissingFileError(f"{os.fspath(path)}: no such file (looked for in {os.getcwd()})")


def _known(engine: EngineNet) -> dict[Version, tuple[int, ...]]:
    """The shapes of the data layers' tops, as far as they are fully known."""
    found = {}
    shapes = engine.source_shapes
    for node, layer in zip(engine.graph.nodes, engine.layers, strict=True):
        if not node.is_data:
            continue
        for j, version in enumerate(node.tops):
            shape = layer.top_blobs[j].shape if isinstance(layer, Python) else shapes[version.name]
            if shape is not None and None not in shape:
                found[version] = tuple(int(extent) for extent in shape if extent is not None)
    return found
