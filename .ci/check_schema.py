"""Reads and writes every kind of file that the schema floor knows, with the protobuf runtime that is installed.

Run by `protobuf-versions`; warnings are errors there, so that deprecated protobuf functions don't pass.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

import google.protobuf
import numpy as np
from google.protobuf import text_format
from google.protobuf.internal import api_implementation

from fcnproto.errors import PrototxtError, WeightsError
from fcnproto.schema import caffe_pb2
from fcnproto.schema.definition import net_definition
from fcnproto.schema.saving import write_caffemodel, write_hdf5_weights
from fcnproto.schema.state import open_state, write_state
from fcnproto.schema.text import format_message, parse, read_net, read_solver, write_message
from fcnproto.schema.weights import open_weights, read_blob, write_blob

NET = """
name: "check é"
input: "data" input_shape { dim: [1, 3, 8, 8] }
layers { name: "conv" type: CONVOLUTION bottom: "data" top: "conv" blobs_lr: 1 blobs_lr: 2
         convolution_param { num_output: 2 kernel_size: 3 weight_filler { type: "xavier" std: 1e-3 } } }
layers { name: "drop" type: DROPOUT bottom: "conv" top: "conv" dropout_param { dropout_ratio: 0.25 } }
"""


def refuses(text: str, line: int, column: int, words: str) -> bool:
    """Whether a text is refused at that place, with those words."""
    try:
        parse(text, caffe_pb2.NetParameter)
    except PrototxtError as error:
        return (error.line, error.column) == (line, column) and words in str(error)
    return False


def is_cut_off(path: Path) -> bool:
    """Whether a caffemodel is refused for that reason."""
    try:
        open_weights(path)
    except WeightsError as error:
        return "cut off" in str(error)
    return False


def check(folder: Path) -> None:
    """Text, binary and HDF5, there and back; AssertionError where something differs."""
    (folder / "net.prototxt").write_text(NET, encoding="utf-8")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        net = read_net(folder / "net.prototxt")
    assert len(caught) == 2, [str(entry.message) for entry in caught]
    assert [layer.type for layer in net.layer] == ["Input", "Convolution", "Dropout"]
    assert net.layer[1].param[1].lr_mult == 2 and not net.layer[2].HasField("phase")
    write_message(folder / "new.prototxt", net)
    assert read_net(folder / "new.prototxt") == net == text_format.Parse(format_message(net), type(net)())
    (folder / "solver.prototxt").write_text('base_lr: 0.1 type: "Adam" solver_mode: CPU')
    assert read_solver(folder / "solver.prototxt").type == "Adam"
    assert refuses("layer {\n  nam: 1\n}", 2, 3, 'did you mean "name"?')
    assert refuses("layer {\n  clip_param { min: 0 }\n}", 2, 3, 'needs "max"')

    values = [[], [np.arange(54, dtype=np.float32).reshape(2, 3, 3, 3), np.ones(2, np.float32)], []]
    write_caffemodel(folder / "w.caffemodel", net, values)
    assert net_definition(folder / "w.caffemodel") == net
    message = caffe_pb2.NetParameter.FromString((folder / "w.caffemodel").read_bytes())
    assert list(message.layer[1].blobs[0].data) == list(range(54))
    write_hdf5_weights(folder / "w.caffemodel.h5", [layer.name for layer in net.layer], values)
    for name in ("w.caffemodel", "w.caffemodel.h5"):
        with open_weights(folder / name) as weights:
            blobs = {layer.name: [blob.array() for blob in layer.blobs if blob] for layer in weights.layers}
        assert np.array_equal(blobs["conv"][0], values[1][0]) and len(blobs) == 3
    write_blob(folder / "mean.binaryproto", values[1][0][0])
    assert read_blob(folder / "mean.binaryproto").shape == (1, 3, 3, 3)
    for name in ("s.solverstate", "s.solverstate.h5"):
        write_state(folder / name, 3, "w.caffemodel", 1, values[1])
        with open_state(folder / name) as state:
            assert state.iter == 3 and np.array_equal(state.history[0].array(), values[1][0])
    (folder / "cut.caffemodel").write_bytes((folder / "w.caffemodel").read_bytes()[:100])
    assert is_cut_off(folder / "cut.caffemodel")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        check(Path(name))
    assert "torch" not in sys.modules
    print(f"protobuf {google.protobuf.__version__} ({api_implementation.Type()}): good")
