"""Moving weights between files and a net: Caffe's rules of copying trained layers, and saving.

Internal to `fcnproto.net`; the file formats themselves are in `fcnproto.schema.weights`.
"""

from __future__ import annotations

import math
import os
import shlex
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fcnproto.atomic import is_stream
from fcnproto.errors import FcnprotoWarning, WeightsError
from fcnproto.layers.base import Layer
from fcnproto.layers.placeholder import class_for
from fcnproto.meta import KEY, to_text, write_beside
from fcnproto.net.described import known_meta, take_meta, with_new_names
from fcnproto.net.stored_shapes import StoredShapes
from fcnproto.net.tensor_files import read_safetensors, write_safetensors
from fcnproto.schema import caffe_pb2
from fcnproto.schema.blobs import StoredBlob
from fcnproto.schema.saving import write_caffemodel, write_hdf5_weights
from fcnproto.schema.weights import StoredLayer, open_weights

if TYPE_CHECKING:
    from fcnproto.net.net import Net

_MATCH_ADVICE = "rename the layer in the prototxt to leave it out"


@dataclass(frozen=True)
class CopyReport:
    """What copying weights did: layers `copied`, `missing` in the file (they keep their values), and layers of the
    file `ignored` because the net has none of that name."""

    copied: tuple[str, ...]
    missing: tuple[str, ...]
    ignored: tuple[str, ...]


DiffOf = Callable[[Tensor], Tensor | None]
"""What stands in the `diff` of a parameter's tensor; None for zeros."""
BlobPlace = tuple[int, int]
"""Where a parameter blob is: the index of the layer that owns it, and its own."""


def copy_weights(
    net: Net, path: Path, may_fill_nothing: bool = False, only: set[int] | None = None
) -> tuple[CopyReport, set[BlobPlace]]:
    """Copy a weight file into a net by layer name; nothing is written to the net unless every layer fits.

    Also returns the blobs that got values, be it through another layer that shares them. Layers that wait for a size,
    and place-holders, take the shapes of their blobs from the file. `only`: the indices of layers to copy to.

    Caffe's rules: the first layer of a name is the target (of HDF5 files the last one), layers unknown to either side
    are passed over, the number of blobs and their shapes must agree (legacy 4-D shapes after padding with ones on the
    left). In HDF5 files a blob may be absent where the net shares it by name. Files in the safetensors format go by the
    names of `state_dict`, each tensor straight from the file; a blob shared by name may stand under any of its names.

    Raises `WeightsError`.
    """
    if net.device.type == "meta":
        raise WeightsError(f"{path}: can't be copied: the net is on the device 'meta', so its blobs hold no values")
    if path.name.lower().endswith(".safetensors"):
        return _copy_tensors(net, path, only)
    if only is None:
        net.take_sizes(StoredShapes([path]))
    with open_weights(path) as stored:
        targets: dict[str, tuple[int, Layer]] = {}
        for i, layer in enumerate(net.layers):
            if only is not None and i not in only:
                continue
            if stored.kind == "hdf5" or layer.name not in targets:
                targets[layer.name] = (i, layer)
        plan: list[tuple[Tensor, StoredBlob]] = []
        copied, ignored, waiting = [], [], 0
        filled: set[BlobPlace] = set()
        for source in stored.layers:
            if source.name not in targets:
                ignored.append(source.name)
                continue
            index, layer = targets[source.name]
            if net.graph.nodes[index].held and not layer.blob_names:
                waiting += 1
                continue
            try:
                matched = _match(net, index, layer, source, path, stored.kind == "hdf5")
            except MisfitError as error:
                pairs = [(one, targets[one.name][1]) for one in stored.layers if one.name in targets]
                said = MisfitError(f"{error}; {net._assumed or _advice(pairs, path)}")
                said.index = index
                raise said from None
            if matched:
                copied.append(source.name)
                plan += [(getattr(layer, layer.blob_names[k]), blob) for k, blob in matched.items()]
                filled |= {net._shared.get((index, k), (index, k)) for k in (*matched, *layer.loose_blobs)}
        empty = not any(layer.blobs for layer in stored.layers) and not any(layer.blob_names for layer in net.layers)
        if not copied and not waiting and not empty and not may_fill_nothing and only is None:
            raise WeightsError(_nothing_fits(net, path, stored.layers))
        for tensor, blob in plan:
            _read(tensor, blob)
    missing = [
        layer.name
        for i, layer in enumerate(net.layers)
        if any(net._shared.get((i, k), (i, k)) not in filled for k in range(len(layer.blob_names)))
    ]
    return CopyReport(tuple(copied), tuple(dict.fromkeys(missing)), tuple(ignored)), filled


def _copy_tensors(net: Net, path: Path, only: set[int] | None) -> tuple[CopyReport, set[BlobPlace]]:
    if only is None:
        net.take_sizes(StoredShapes([path]))
    stored, own = with_new_names(net, read_safetensors(path)), net.state_dict()
    if only is not None:
        modules = [name for index, name in enumerate(net._module_names) if index in only]
        stored = {name: value for name, value in stored.items() if name.rpartition(".")[0] in modules}
    for name, value in stored.items():
        if name in own and value.shape != own[name].shape:
            raise WeightsError(
                f"{path}: {name!r} has the shape {tuple(value.shape)}, the net's "
                f"{tuple(own[name].shape)}; {_MATCH_ADVICE}"
            )
    found = [name for name in stored if name in own]
    if own and not found and only is None:
        raise WeightsError(
            f"{path}: fills no layer of {net.graph.title}; its names are {_some(list(stored))}, "
            f"the net's are {_some(list(own))}; is it the weight file of another net?"
        )
    with torch.no_grad():
        for name in found:
            own[name].copy_(stored[name])
    copied, missing = [], []
    keys = [
        [(net._shared.get((i, k), (i, k)), f"{module}.{blob}") for k, blob in enumerate(layer.blob_names)]
        for i, (module, layer) in enumerate(zip(net._module_names, net.layers, strict=True))
    ]
    filled = {place for layer in keys for place, key in layer if key in stored}
    for layer, places in zip(net.layers, keys, strict=True):
        if any(place not in filled for place, _ in places):
            missing.append(layer.name)
        elif any(key in stored for _, key in places):
            copied.append(layer.name)
    ignored = tuple(name for name in stored if name not in own)
    return CopyReport(tuple(copied), tuple(dict.fromkeys(missing)), ignored), filled


def copy_all(net: Net, paths: Sequence[str | os.PathLike[str]]) -> None:
    """Copy several weight files, one after the other, and warn of the layers that none of them has values for."""
    missing: list[str] | None = None
    for path in paths:
        if not os.fspath(path):
            raise WeightsError("the path of the weights is empty")
        report, filled = copy_weights(net, Path(path))
        net._unfilled -= filled
        net._copied.append(Path(path))
        take_meta(net, Path(path))
        missing = [layer for layer in report.missing if missing is None or layer in missing]
    warn_missing(paths, missing or [])


def warn_missing(paths: Sequence[str | os.PathLike[str]], layers: Sequence[str]) -> None:
    """Warn that the weight files have no values for these layers, if there are any."""
    if layers:
        files = ", ".join(os.fspath(path) for path in paths)
        message = f"{files}: has no values for {', '.join(layers)}; these layers keep what they have"
        warnings.warn(message, FcnprotoWarning, stacklevel=3)


class MisfitError(WeightsError):
    """A layer of the file and the net's layer of its name have other blobs. `index`: the net's layer."""

    index: int = -1


def _advice(pairs: Sequence[tuple[StoredLayer, Layer]], path: Path) -> str:
    """The command that moves what can be moved of a file in which not every layer fits the net's of its name."""
    left_out = []
    for source, layer in pairs:
        counts = [math.prod(blob.shape) for blob in source.blobs if blob is not None]
        if counts and counts != [math.prod(shape) for shape in layer.blob_shapes]:
            left_out.append(layer.name)
    model = shlex.quote(pairs[0][1].prototxt or "MODEL.prototxt")
    if len(left_out) == sum(bool(source.blobs) for source, _ in pairs):
        for source, layer in pairs:
            shape, own = source.blobs[0].shape if source.blobs and source.blobs[0] else (), layer.blob_shapes[:1]
            if left_out == [layer.name] and len(shape) == 4 and [tuple(shape[1:])] == [one[1:] for one in own]:
                classes = f"fcnproto surgery set-classes {model} --classes {shape[0]} -o NEW.prototxt"
                return f"`{classes}` gives the net as many classes as the file's"
        return f"none of its layers fits; is it the weight file of another net? Otherwise {_MATCH_ADVICE}"
    command = f"fcnproto surgery transplant {model} {shlex.quote(str(path))}"
    if left_out:
        command += f" --leave-out {shlex.quote(','.join(left_out))}"
    what = "copies the rest" if left_out else "brings them into shape"
    return f"`{command} -o NEW.caffemodel` {what}"


def _match(
    net: Net, index: int, layer: Layer, source: StoredLayer, path: Path, may_leave_out_shared: bool
) -> dict[int, StoredBlob]:
    """The stored blobs to read into the layer's, by index."""
    where = f"{path}: layer {layer.name!r}"
    blobs: Sequence[StoredBlob | None] = source.blobs
    if may_leave_out_shared:
        blobs = [*blobs, *[None] * (len(layer.blob_names) - len(blobs))]
    if len(blobs) != len(layer.blob_names):
        raise MisfitError(f"{where} has {len(blobs)} blobs, the net's has {len(layer.blob_names)}")
    matched = {}
    for k, blob in enumerate(blobs):
        if blob is None:
            if (index, k) not in net._shared:
                raise WeightsError(f"{where}: blob {k} is missing, expected shape {layer.blob_shapes[k]}")
            continue
        if not blob.matches(layer.blob_shapes[k]):
            if k in layer.loose_blobs:
                continue
            raise MisfitError(f"{where}, blob {k}: the file's shape is {blob.shape}, the net's {layer.blob_shapes[k]}")
        blob.check()
        matched[k] = blob
    return matched


def _nothing_fits(net: Net, path: Path, stored: Sequence[StoredLayer]) -> str:
    theirs = [layer.name for layer in stored if layer.blobs]
    ours = [layer.name for layer in net.layers if layer.blob_names]
    if not theirs:
        return f"{path}: holds no weights (it has {len(stored)} layers, none with blobs)"
    return (
        f"{path}: fills no layer of {net.graph.title}; its layers are {_some(theirs)}, "
        f"the net's are {_some(ours)}; is it the weight file of another net?"
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "") if names else "none"


def _read(tensor: Tensor, blob: StoredBlob) -> None:
    """Read a stored blob into a tensor, straight into its memory where that is float32 on the CPU."""
    target = tensor.detach()
    if target.device.type == "cpu" and target.dtype == torch.float32 and target.is_contiguous():
        blob.read_into(target.numpy())
    else:
        target.copy_(torch.from_numpy(blob.array()).reshape(target.shape))


def arrays(layer: Layer) -> list[np.ndarray[Any, Any]]:
    """A layer's blobs as float32 arrays in the layer's own shapes; views of the memory where possible."""
    return [layer.blob(k).detach().to("cpu", torch.float32).contiguous().numpy() for k in range(len(layer.blob_names))]


def _diffs(layer: Layer, diff_of: DiffOf) -> list[np.ndarray[Any, Any]]:
    """What `diff_of` gives for a layer's blobs as arrays like `arrays`, zero where that is None."""
    result = []
    for k, shape in enumerate(layer.blob_shapes):
        diff = diff_of(getattr(layer, layer.blob_names[k]))
        zero = np.zeros(shape, np.float32)
        result.append(zero if diff is None else diff.detach().to("cpu", torch.float32).reshape(shape).numpy())
    return result


def definition(net: Net) -> caffe_pb2.NetParameter:
    """The net's definition as Caffe stores it beside the weights: layers as built, with Split layers and phase."""
    result = caffe_pb2.NetParameter(name=net.graph.name)
    for node in net.graph.nodes:
        layer = result.layer.add()
        layer.CopyFrom(node.param)
        layer.ClearField("blobs")
        if class_for(node.type, node.name).is_loss and not layer.loss_weight and len(node.tops) == 1:
            layer.loss_weight.append(1.0)  # Caffe's loss layers write their default weight into their own message
        if not layer.HasField("phase"):
            layer.phase = net.graph.state.phase
    return result


def save_weights(net: Net, path: Path, *, diff_of: DiffOf | None = None, format_of: Path | None = None) -> None:
    """Write a net's weights in the format of the path's suffix, with the diffs that `diff_of` gives for its tensors.

    `format_of` is another path whose suffix says the format, for files that are to be renamed to it. Raises
    `WeightsError` for an unknown suffix, a path that can't be written to, and a net without values (device "meta").
    """
    if net.device.type == "meta":
        raise WeightsError(f"{path}: can't be written: the net is on the device 'meta', so its blobs have no values")
    try:
        _save_by_suffix(net, path, diff_of, (format_of or path).name)
    except OSError as error:
        raise WeightsError(f"{path}: can't be written: {error.strerror or error}") from error


def _save_by_suffix(net: Net, path: Path, diff_of: DiffOf | None, name: str) -> None:
    if name.endswith(".safetensors"):
        _save_safetensors(net, path)
        return
    layers = net.layers
    blobs = [arrays(layer) for layer in layers]
    diffs = None if diff_of is None else [_diffs(layer, diff_of) for layer in layers]
    if name.endswith(".h5"):
        kept = [
            [None if (i, k) in net._shared else value for k, value in enumerate(values)]
            for i, values in enumerate(blobs)
        ]
        write_hdf5_weights(path, [layer.name for layer in layers], kept, diffs)
    elif name.endswith(".caffemodel"):
        write_caffemodel(path, definition(net), blobs, diffs)
    else:
        raise WeightsError(
            f"{path}: can't tell the format; end the name in .caffemodel, .caffemodel.h5 or .safetensors"
        )


def _save_safetensors(net: Net, path: Path) -> None:
    seen: set[int] = set()
    tensors = {}
    for key, value in net.state_dict().items():
        if value.data_ptr() in seen and value.numel():
            continue  # shared by name: stored once, under the owner
        seen.add(value.data_ptr())
        tensors[key] = value.detach().cpu().contiguous()
    write_safetensors(path, tensors, header(net))


def header(net: Net) -> dict[str, str]:
    """The texts in the header of a .safetensors file of a net's."""
    meta = known_meta(net)
    return {"format": "pt", "net": net.graph.name} | ({} if meta is None else {KEY: to_text(meta)})


def save_with_meta(net: Net, path: Path, format_of: Path | None = None) -> None:
    """`save_weights`, with what is known of the net's images and classes where the format has no place for it: beside
    the file."""
    save_weights(net, path, format_of=format_of)
    if not path.name.lower().endswith(".safetensors") and not is_stream(path):
        try:
            write_beside(path, known_meta(net))
        except OSError as error:
            raise WeightsError(f"{path}.json: can't be written: {error.strerror or error}") from error
