"""Reading a net from its files."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from fcnproto import zoo
from fcnproto.errors import DataError, FcnprotoWarning, GraphError
from fcnproto.escaping import one_line
from fcnproto.graph.rules import phase_value
from fcnproto.net import calling
from fcnproto.net.described import take_meta
from fcnproto.net.net import Net, PathLike
from fcnproto.net.refusals import caffe_refusals
from fcnproto.net.weights import copy_all
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import read_net


def load(
    net: PathLike | caffe_pb2.NetParameter,
    weights: PathLike | Sequence[PathLike] | None = None,
    *,
    phase: str | int = "test",
    level: int = 0,
    stages: Sequence[str] = (),
    device: str | torch.device | None = None,
    allow_python: bool = False,
    allow_writes: bool = False,
    shapes: Mapping[str, Sequence[int]] | None = None,
    crop: str = "caffe",
    dialect: str | None = None,
    caffe_exact: bool = False,
    strict: bool = False,
    caffe_proto: PathLike | None = None,
) -> Net:
    """Read a net from a prototxt, with its weights.

    Args:
        net: path of the .prototxt (any version of the format), or an upgraded `NetParameter`; or the name of a net of
            the zoo (`list_models`), whose deploy.prototxt is read then, for the phase "train" its train.prototxt.
        weights: path of a .caffemodel, .caffemodel.h5 or .safetensors, or several (later ones overwrite); or the name
            of a net of the zoo, for the weights that come along or were fetched. Without, and for layers that the file
            lacks, parameters hold their fillers' values.
        phase: "train" or "test"; with `level` and `stages` it selects the layers (Caffe: NetState).
        device: where the parameters go; the CPU by default.
        allow_python: permit the import of modules that Python layers name (they run with your rights).
        allow_writes: let layers that write files (HDF5Output) do so; otherwise they do nothing, and a warning tells.
        shapes: shapes of data tops, by name, for data layers whose source is not at hand.
        crop: where a Crop without offset begins: "caffe" at 0, with a warning where the coordinate map says another
            offset; "aligned" there, as in the Caffe that nets of 2015 (the first FCN, HED, RCF) were written for.
        dialect: the fork of Caffe that the net was written for ("ssd", "segnet", "hed", ...; all of them in
            `fcnproto.graph.dialect.DIALECTS`), where the same text means something else to it. By default the fields
            that the text uses decide (`graph/evidence.py`); `Net.dialect` says the outcome.
        caffe_exact: where layers that share memory make Caffe's gradient another than the true one, compute Caffe's
            (docs/layers.md lists the places). A net in TRAIN that has such places warns of them otherwise. A net that
            the original Caffe would refuse, though it runs here, draws a warning that says why.
        strict: refuse fields and layer types that nobody here knows, and Python layers that may not be imported. Else
            one warning names them all, and the net computes what doesn't need them (`Net.unknown`).
        caffe_proto: the `caffe.proto` of the fork that the net was written for; fields that it has are none of those
            that `strict` refuses.

    No data source is opened, except that the shape of an HDF5Data, Data or ImageData layer's tops is looked up where
    the shape of a parameter depends on it and the prototxt does not say it.

    Raises:
        PrototxtError: the text does not follow the schema (file, line and column).
        GraphError: the layers don't fit together.
        WeightsError: the weights are damaged, don't fit, or fill nothing.
        UsageError: torch has no such device.
    """
    target = None if device is None else calling.usable_device(device)
    sources = [weights] if isinstance(weights, (str, os.PathLike)) else list(weights or [])
    sources = [zoo.located(source, "weights") for source in sources]
    if isinstance(net, caffe_pb2.NetParameter):
        name, definition, base_dir, file = "", net, None, None
    else:
        file = zoo.located(net, "train" if phase_value(phase) == caffe_pb2.TRAIN else "deploy")
        base_dir, name = Path(file).resolve().parent, f"{os.fspath(file)}: "
        definition = read_net(file, strict=strict and caffe_proto is None, quiet=True)
    try:
        result = Net(
            definition,
            phase,
            level=level,
            stages=stages,
            allow_python=allow_python,
            allow_writes=allow_writes,
            base_dir=base_dir,
            file=file,
            shapes=shapes,
            fill=False,
            crop=crop,
            dialect=dialect,
            caffe_exact=caffe_exact,
            sized_by=sources,
            strict=strict,
            caffe_proto=caffe_proto,
        )
        if caffe_exact and (refused := caffe_refusals(result)):
            said = "; ".join(f"{where!r}: {reason}" if where != "net" else reason for where, reason in refused)
            warnings.warn(f"{name}the original Caffe refuses this net: {said}", FcnprotoWarning, stacklevel=2)
        if file is not None:
            take_meta(result, Path(file))
        copy_all(result, sources)
        result.fill_params()
    except (GraphError, DataError) as error:
        error.args = (one_line(f"{name}{error}"),)
        raise
    return result if target is None else result.to(target)
