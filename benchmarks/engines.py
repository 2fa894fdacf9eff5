"""Other engines on the same net: ONNX Runtime and OpenVINO on the exported ONNX file, MNN and OpenCV on Caffe's files.

Each is a package that may be missing (onnxruntime, openvino, MNN, opencv-python); whoever asks for it then gets
`ModuleNotFoundError`, which names it. All compute in float32 and with the threads that they are told.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

Shape = Sequence[int]
Run = Callable[[Mapping[str, Any]], list[Any]]
"""From the inputs' values by blob to the outputs' in the order of `Files.outputs`."""

PACKAGES = {
    "onnxruntime": ("onnxruntime",),
    "openvino": ("openvino",),
    "MNN": ("MNN",),
    "opencv": ("opencv-python", "opencv-python-headless"),
}
"""The engines, and the packages of which one brings them."""
EXACT = 1e-5
"""The deviation from the plain net up to which an engine counts as computing the same."""


@dataclass(frozen=True)
class Files:
    """A net's files, and the shapes of its inputs; `write` makes the files, `read` finds them."""

    folder: Path
    inputs: dict[str, tuple[int, ...]]
    outputs: tuple[str, ...]

    @property
    def prototxt(self) -> Path:
        """The definition."""
        return self.folder / "net.prototxt"

    @property
    def weights(self) -> Path:
        """The caffemodel."""
        return self.folder / "net.caffemodel"

    @property
    def onnx(self) -> Path:
        """The ONNX file."""
        return self.folder / "net.onnx"


def write(definition: Any, weights: Path, folder: Path, shapes: Mapping[str, Shape] | None = None) -> None:
    """The files of a net (a NetParameter) in a folder, with inputs of `shapes` where they aren't to be its own; they
    serve for other sizes, too, where the net does. Raises what exporting raises."""
    import fcnproto
    from fcnproto.export import convert
    from fcnproto.schema.text import write_message

    folder.mkdir(parents=True, exist_ok=True)
    if shapes is not None:
        set_shapes(definition, shapes)
    write_message(folder / "net.prototxt", definition)
    (folder / "net.caffemodel").symlink_to(weights.resolve())
    net = fcnproto.load(folder / "net.prototxt", weights)
    convert(net, folder / "net.onnx")
    (folder / "outputs.json").write_text(json.dumps(net.outputs))


def read(folder: Path, shapes: Mapping[str, Shape]) -> Files:
    """What `write` has written there, for inputs of these shapes: no torch is needed for it."""
    outputs = json.loads((folder / "outputs.json").read_text())
    return Files(folder, {name: tuple(shape) for name, shape in shapes.items()}, tuple(outputs))


def set_shapes(definition: Any, shapes: Mapping[str, Shape]) -> None:
    """Give the inputs of a NetParameter these shapes, in whichever of the three ways it says them."""
    for layer in definition.layer:
        if layer.type == "Input":
            del layer.input_param.shape[:]
            for top in layer.top:
                layer.input_param.shape.add(dim=list(shapes[top]))
    if definition.input:
        del definition.input_dim[:]
        del definition.input_shape[:]
        for name in definition.input:
            definition.input_shape.add(dim=list(shapes[name]))


def version(engine: str) -> str:
    """The engine's version; what is missing where it can't be had."""
    for package in PACKAGES[engine]:
        with suppress(metadata.PackageNotFoundError):
            return f"{engine} {metadata.version(package)}"
    return f"{engine}: package {PACKAGES[engine][0]} is missing"


def start(engine: str, files: Files, threads: int) -> Run:
    """An engine with a net, ready to be called."""
    return {"onnxruntime": _onnxruntime, "openvino": _openvino, "MNN": _mnn, "opencv": _opencv}[engine](files, threads)


def _onnxruntime(files: Files, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(str(files.onnx), options, providers=["CPUExecutionProvider"])
    found = [output.name for output in session.get_outputs()]
    names = list(files.outputs) if set(files.outputs) <= set(found) else None
    return lambda inputs: list(session.run(names, dict(inputs)))


def _openvino(files: Files, threads: int) -> Run:
    import openvino

    core = openvino.Core()
    model = core.read_model(str(files.onnx))
    model.reshape({name: list(shape) for name, shape in files.inputs.items()})
    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    request = core.compile_model(model, "CPU", settings).create_infer_request()

    def run(inputs: Mapping[str, Any]) -> list[Any]:
        found = request.infer(dict(inputs), share_inputs=True)
        return [found[name].copy() for name in files.outputs]

    return run


def _mnn(files: Files, threads: int) -> Run:
    import MNN

    model = files.folder / "net.mnn"
    if not model.exists():
        told = ["-f", "CAFFE", "--prototxt", str(files.prototxt), "--modelFile", str(files.weights)]
        command = [sys.executable, "-m", "MNN.tools.mnnconvert", *told, "--MNNModel", str(model), "--bizCode", "net"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not model.exists():
            lines = (done.stdout + done.stderr).strip().splitlines()
            raise RuntimeError(f"MNN can't convert the net: {lines[-1] if lines else done.returncode}")
    net = MNN.Interpreter(str(model))
    session = net.createSession({"numThread": threads, "backend": "CPU", "precision": "high"})
    inputs_there = net.getSessionInputAll(session)
    for name, shape in files.inputs.items():
        net.resizeTensor(inputs_there[name], shape)
    net.resizeSession(session)

    def run(inputs: Mapping[str, Any]) -> list[Any]:
        for name, value in inputs.items():
            given = MNN.Tensor(value.shape, MNN.Halide_Type_Float, value, MNN.Tensor_DimensionType_Caffe)
            inputs_there[name].copyFrom(given)
        net.runSession(session)
        answers = []
        there = net.getSessionOutputAll(session)
        for name in files.outputs:
            shape = there[name].getShape()
            here = np.empty(shape, np.float32)
            taken = MNN.Tensor(shape, MNN.Halide_Type_Float, here, MNN.Tensor_DimensionType_Caffe)
            there[name].copyToHostTensor(taken)
            answers.append(np.array(taken.getNumpyData()))
        return answers

    return run


def _opencv(files: Files, threads: int) -> Run:
    import cv2

    cv2.setNumThreads(threads)
    net = cv2.dnn.readNetFromCaffe(str(files.prototxt), str(files.weights))

    def run(inputs: Mapping[str, Any]) -> list[Any]:
        for name, value in inputs.items():
            net.setInput(value, name)
        return list(net.forward(list(files.outputs)))

    return run
