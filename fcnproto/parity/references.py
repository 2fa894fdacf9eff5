"""References that are computed on the spot: our own graph in double precision, OpenCV's dnn, and a Caffe elsewhere.

Each gives a `Recording` for the same inputs; golden files are read by `recording.py`.
"""

from __future__ import annotations

import copy
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fcnproto.errors import DataError, Error, UsageError
from fcnproto.inspect.running import run_with, write_arrays
from fcnproto.net import Net
from fcnproto.net.examples import draw_inputs
from fcnproto.net.plan import runnable
from fcnproto.net.weights import definition
from fcnproto.parity.comparison import backward, ordered_blobs
from fcnproto.parity.recording import Recording, read_recording
from fcnproto.schema.extract import loadable
from fcnproto.schema.text import write_message

Array = npt.NDArray[Any]

DUMP_SCRIPT = Path(__file__).with_name("dump_caffe.py")
"""The stand-alone script that records a net where Caffe lives."""

SEED = 1


def random_inputs(net: Net, size: tuple[int, int] | None = None) -> dict[str, Array]:
    """Random values for the net's inputs, the same at every call; see `draw_inputs`.

    `size` is the (height, width) of inputs with four axes. UsageError where the net does not say a shape.
    """
    made = {blob.name for node in net.graph.nodes if node.type == "DummyData" for blob in node.tops}
    shapes = {}
    for name in net.inputs or [name for name in net.source_shapes if name not in made]:
        shape = net.source_shapes[name]
        if shape is None:
            raise UsageError(f"the net does not say the shape of input {name!r}; give --image or --input")
        extents = list(shape)
        if size is not None and len(extents) == 4:
            extents[2:] = size
        if None in extents[1:]:
            raise UsageError(f"the net does not say the size of input {name!r}; give --input-size, --image or --input")
        shapes[name] = [1 if extent is None else extent for extent in extents]
    if not shapes:
        raise UsageError("the net has no inputs")
    return draw_inputs(net, shapes, seed=SEED)


def float64_reference(net: Net, inputs: Mapping[str, Array], *, with_gradients: bool | None = None) -> Recording:
    """What the same layers give in double precision: all that differs from it is rounding.

    With gradients (by default where the net has a loss that can be computed) they come from the loss, or from random
    gradients at the outputs.
    """
    twin = copy.deepcopy(net).double()
    tensors = {name: torch.from_numpy(np.asarray(value, dtype=np.float64)) for name, value in inputs.items()}
    names = _computable(net, inputs)
    weighted = any(blob.name in names for blob, _ in net.graph.weighted())
    wanted = weighted if with_gradients is None else with_gradients
    for tensor in tensors.values():
        tensor.requires_grad_(wanted)
    with torch.set_grad_enabled(wanted):
        outputs = run_with(twin, {name: value.to(net.device) for name, value in tensors.items()}, names)
    result = Recording(source="our layers in float64", inputs=dict(inputs))
    result.blobs = {name: outputs[name].detach().cpu().numpy() for name in names}
    if wanted:
        if not weighted:
            result.output_gradients = random_gradients(net, outputs)
        backward(twin, outputs, {n: torch.from_numpy(v).to(net.device) for n, v in result.output_gradients.items()})
        result.input_gradients = {n: t.grad.numpy() for n, t in tensors.items() if t.grad is not None}
        result.param_gradients = {
            f"{layer}.{index}": blob.grad.cpu().numpy()
            for layer, blobs in twin.params.items()
            for index, blob in enumerate(blobs)
            if blob.grad is not None
        }
    return result


def random_gradients(net: Net, outputs: Mapping[str, Tensor]) -> dict[str, Array]:
    """Gradients to put in at the net's outputs, the same at every call."""
    draw = np.random.default_rng(SEED)
    return {
        name: draw.standard_normal(tuple(outputs[name].shape))
        for name in net.outputs
        if name in outputs and outputs[name].requires_grad
    }


def _computable(net: Net, inputs: Mapping[str, Array]) -> list[str]:
    made = [blob.name for node in net.graph.nodes if node.type in ("DummyData", "Parameter") for blob in node.tops]
    known = runnable(net.graph, list(dict.fromkeys([*inputs, *made])))
    return [name for name in ordered_blobs(net) if known[net.graph.blobs[name]]]


def opencv() -> Any:
    """OpenCV's module `cv2`. `UsageError` where it is missing, or of version 5, which reads no Caffe files."""
    try:
        import cv2
    except ImportError:
        raise UsageError(
            "--reference opencv needs OpenCV; install it with: pip install 'opencv-python-headless<5'"
        ) from None
    if not hasattr(cv2.dnn, "readNetFromCaffe"):
        raise UsageError(
            f"OpenCV {cv2.__version__} no longer reads Caffe's files; --reference opencv needs an older one: "
            "pip install 'opencv-python-headless<5'"
        )
    return cv2


def opencv_reference(net: Net, inputs: Mapping[str, Array]) -> Recording:
    """What OpenCV's dnn gives for the net's definition and weights, every layer's output.

    OpenCV reads both files itself, so loading is compared too; layers are run one by one, without its fusions.

    Raises:
        UsageError: as `opencv`.
        DataError: OpenCV can't read or run the net; the message is its own.
    """
    cv2 = opencv()
    with _files(net, inputs, explicit=True) as (model, weights), _quietly(cv2):
        try:
            reader = cv2.dnn.readNetFromCaffe(str(model), str(weights))
            reader.enableFusion(False)
            reader.enableWinograd(False)
            for name, value in inputs.items():
                reader.setInput(np.ascontiguousarray(value, dtype=np.float32), name)
            known = set(reader.getLayerNames())
            makers = {name: net.graph.blobs[name].producer.name for name in _computable(net, inputs)}
            wanted = {name: layer for name, layer in makers.items() if layer in known}
            if not wanted:
                raise DataError("OpenCV knows none of the net's layers by name")
            outputs = reader.forward(list(wanted.values()))
        except cv2.error as error:
            reason = " ".join(str(error).split())
            raise DataError(f"OpenCV {cv2.__version__} can't run {net.graph.title}: {reason}") from error
    result = Recording(source=f"OpenCV {cv2.__version__} dnn", inputs=dict(inputs))
    result.blobs = dict(zip(wanted, (np.asarray(value) for value in outputs), strict=True))
    for name in result.blobs:
        if net.graph.blobs[name].producer.type == "DetectionOutput":
            result.blobs[name] = _detections_in_order(result.blobs[name])
    return result


@contextmanager
def _quietly(cv2: Any) -> Iterator[None]:
    """Without what OpenCV writes to stderr by itself: its errors say the same."""
    before = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(before)


def _detections_in_order(rows: Array) -> Array:
    """OpenCV's detections (1, 1, K, 7) by image and label, the best first, as Caffe's forks have them; without the rows
    of zeros with which it fills up the most that there could be."""
    found = rows.reshape(-1, 7)
    found = found[found.any(1)]
    return found[np.lexsort((-found[:, 2], found[:, 1], found[:, 0]))].reshape(1, 1, -1, 7)


def caffe_reference(
    net: Net,
    inputs: Mapping[str, Array],
    *,
    python: str,
    with_gradients: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Recording:
    """What a Caffe gives that the interpreter `python` (a program's name or path) can import, in its own process.

    A net without loss is run with `force_backward` for its gradients: Caffe computes none there otherwise.

    Raises `DataError` if it can't be started or fails, with its fatal message or the last line that it wrote.
    """
    with _files(net, inputs) as (model, weights), tempfile.TemporaryDirectory(prefix="fcnproto-") as folder:
        given, made = Path(folder) / "inputs.npz", Path(folder) / "dump.npz"
        write_arrays(given, {name: np.asarray(value, dtype=np.float32) for name, value in inputs.items()})
        command = [python, str(DUMP_SCRIPT), str(model), str(weights), str(made), "--input", str(given)]
        command += ["--phase", net.phase, *(["--backward"] if with_gradients else [])]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", env=environment, check=False
            )
        except OSError as error:
            raise DataError(f"--python {python}: can't be started: {error.strerror}") from None
        if done.returncode or not made.is_file():
            raise DataError(f"Caffe in {python} failed: {_complaint(done.stderr) or f'exit status {done.returncode}'}")
        result = read_recording(made)
    result.source = f"Caffe in {python}"
    return result


def _complaint(written: str) -> str:
    """What a Caffe that failed has to say: glog's fatal line (a stack trace follows it), else the last line."""
    lines = [line for line in written.splitlines() if line.strip()]
    fatal = [line.partition("] ")[2] for line in lines if re.match(r"F\d{4,8} .*\] ", line)]
    return (fatal or lines or [""])[-1]


@contextmanager
def _files(net: Net, inputs: Mapping[str, Array], explicit: bool = False) -> Iterator[tuple[Path, Path]]:
    """The net as a prototxt whose inputs have these shapes, and its weights as a caffemodel, for other programs.

    `explicit`: with what OpenCV wants to read also where it is the default.
    """
    shapes = {name: list(np.shape(value)) for name, value in inputs.items()}
    param, _ = loadable(definition(net), shapes)
    _keep_computable(param, net, inputs)
    for layer in param.layer if explicit else ():
        if layer.type == "DetectionOutput":
            settings = layer.detection_output_param
            settings.share_location = settings.share_location
            settings.background_label_id = settings.background_label_id
    with tempfile.TemporaryDirectory(prefix="fcnproto-") as folder:
        model, weights = Path(folder) / "net.prototxt", Path(folder) / "net.caffemodel"
        write_message(model, param)
        net.save(weights)
        yield model, weights


def _keep_computable(param: Any, net: Net, inputs: Mapping[str, Array]) -> None:
    """Drop the layers that these inputs don't reach (a loss without its label)."""
    known = runnable(net.graph, list(inputs))
    idle = {
        node.name
        for node in net.graph.nodes
        if (node.is_data and node.type == "Input" and not any(blob.name in inputs for blob in node.tops))
        or (not node.is_data and not all(known[blob] for blob in node.bottoms))
    }
    kept = [layer for layer in param.layer if layer.name not in idle]
    if not kept:
        raise Error(f"{net.graph.title}: no layer can be run on these inputs")
    del param.layer[:]
    param.layer.extend(kept)
