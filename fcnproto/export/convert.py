"""Takes a net away into another format, and back: by the name's ending, and never without a check of what was written.

Weights alone: .safetensors, .pt (a `state_dict`), .caffemodel, .caffemodel.h5. The net with its weights: .py (a module
in plain PyTorch beside a .safetensors), .pt2 (torch.export) and .onnx. The check reads each file back and compares
weights bit by bit, outputs on random images of two sizes.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fcnproto.errors import Error, FcnprotoWarning, GraphError, UsageError, WeightsError
from fcnproto.export.shapes import blob_shapes, input_shapes
from fcnproto.export.source import Source, endpoints, make_source, run_source, state_for
from fcnproto.inference import fixed_image_size, run_with
from fcnproto.net import Net
from fcnproto.recognise import preprocessing_of, zoo_record
from fcnproto.safetensors_file import read_safetensors, write_safetensors
from fcnproto.schema.weights import open_weights

FORMATS = (".safetensors", ".pt", ".caffemodel.h5", ".h5", ".caffemodel", ".py", ".pt2", ".onnx")
STATE_FILES = (".safetensors", ".pt", ".pth")

TOLERANCE = 1e-5
_SIZES = ((96, 64), (67, 93))
_OPSET = 18


@dataclass(frozen=True)
class Conversion:
    """What was written (`files`), and how it was checked: the largest relative deviation, on which sizes of images."""

    files: tuple[Path, ...]
    checked: str


def convert(
    net: Net, out: Path, *, size: tuple[int, int] | None = None, title: str = "", about: Sequence[str] = ()
) -> Conversion:
    """Write a net in the format of the path's ending, check it, and only then give the files their names.

    Args:
        size: (height, width) of image inputs for the shapes told in a .py; by default the prototxt's.
        title, about: what a .py calls the net and says of it.

    Raises:
        UsageError: an unknown ending, or a missing package.
        UnsupportedLayerError: the format is .py, .pt2 or .onnx and a layer has no equal in plain PyTorch.
        Error: what was written does not give the net's numbers; nothing is left behind.
    """
    kind = next((ending for ending in FORMATS if out.name.lower().endswith(ending)), None)
    if kind is None:
        raise UsageError(f"{out}: can't tell the format; end the name in one of {', '.join(FORMATS)}")
    if net.device.type != "cpu" or net.dtype != torch.float32:
        raise UsageError("the net must be on the CPU and in float32 to be converted")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name[:60]}.", dir=out.parent) as folder:
        made = Path(folder) / out.name
        if kind in (".py", ".pt2", ".onnx"):
            checked = _convert_net(net, made, kind, size, title or net.graph.name or out.stem, about)
        else:
            checked = _convert_weights(net, made, kind)
        files = []
        for file in sorted(Path(folder).iterdir(), key=lambda file: file != made):
            if file.is_file():
                shutil.move(file, out.parent / file.name)
                files.append(out.parent / file.name)
    return Conversion(tuple(files), checked)


def about_inputs(net: Net, model: Path, weights: Path | None = None) -> list[str]:
    """A line for each input of an exported net: how images become it, where that is known of these files."""
    record = zoo_record(model, weights)
    hows = {name: preprocessing_of(net, name, record) for name in endpoints(net)[0]}
    return [f"Input {name}: {how}." for name, how in hows.items() if how.why != "assumed"]


def load_state(net: Net, path: Path) -> None:
    """Give a net the values of a PyTorch `state_dict` with the net's names (.pt, .pth or .safetensors).

    Other float types are converted; a `state_dict` key of a checkpoint is looked into; a prefix "module." goes.

    Raises:
        WeightsError: the file is damaged, or names or shapes differ from the net's.
    """
    state = _strip(read_state(path))
    own = net.state_dict()
    shared = {name for name in own if name not in state}
    for name in sorted(shared):  # a parameter that two layers share may be stored once
        twin = next((other for other in state if other in own and own[other].data_ptr() == own[name].data_ptr()), None)
        if twin is None or not own[name].numel():
            raise WeightsError(f"{path}: has no {name!r}; the net's names are {_some(own)}, the file's {_some(state)}")
        state[name] = state[twin].reshape(own[name].shape)
    for name, value in state.items():
        if name not in own:
            raise WeightsError(f"{path}: {name!r} is no parameter of the net, whose names are {_some(own)}")
        if value.shape != own[name].shape:
            raise WeightsError(f"{path}: {name!r} has shape {tuple(value.shape)}, the net's {tuple(own[name].shape)}")
    net.load_state_dict({name: value.to(own[name].dtype) for name, value in state.items()})
    net._unfilled.clear()


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors in a .safetensors, .pt or .pth file, by name; no code in it is run. Raises `WeightsError`."""
    if path.name.lower().endswith(".safetensors"):
        return read_safetensors(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file") from None
    except Exception as error:  # torch raises many kinds for damaged files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path}: not a PyTorch file of tensors ({reason})") from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{path}: holds no state_dict (names with tensors)")
    return dict(content)


def _strip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = "module."
    return {name[len(prefix) :]: v for name, v in state.items()} if all(n.startswith(prefix) for n in state) else state


def _some(names: Mapping[str, Any]) -> str:
    listed = list(names)
    return ", ".join(listed[:3]) + (", ..." if len(listed) > 3 else "") if listed else "none"


def _convert_weights(net: Net, made: Path, kind: str) -> str:
    state = {name: value.detach().contiguous() for name, value in net.state_dict().items()}
    if kind == ".safetensors":
        net.save(made)
        found: Mapping[str, Tensor] = read_safetensors(made)
    elif kind == ".pt":
        torch.save({name: value.clone() for name, value in state.items()}, made)
        found = read_state(made)
    else:
        net.save(made)
        return _check_caffe_file(net, made)
    for name, value in found.items():
        if not torch.equal(value, state[name]):
            raise Error(f"{made.name}: {name!r} was not written as it is; nothing was kept")
    return f"{len(found)} tensors read back, equal to the last bit"


def _check_caffe_file(net: Net, made: Path) -> str:
    params, count = net.params, 0
    with open_weights(made) as stored:
        seen: set[str] = set()
        for layer in stored.layers:
            if layer.name in seen:
                continue
            seen.add(layer.name)
            for index, blob in enumerate(layer.blobs):
                if blob is None:
                    continue
                ours = params[layer.name][index].detach().numpy()
                if not np.array_equal(blob.array().reshape(ours.shape), ours, equal_nan=True):
                    raise Error(f"{made.name}: blob {index} of layer {layer.name!r} was not written as it is")
                count += 1
    return f"{count} blobs read back, equal to the last bit"


def _convert_net(
    net: Net, made: Path, kind: str, size: tuple[int, int] | None, title: str, about: Sequence[str]
) -> str:
    inputs, _ = endpoints(net)
    weights_name = f"{made.stem}.safetensors"
    shapes = blob_shapes(net, input_shapes(net, inputs, size))
    source = make_source(net, shapes, weights_name, title=title, about=about)
    with torch.device("meta"):
        module = run_source(source)
    state = state_for(net, module)
    module.load_state_dict(state, assign=True)  # the net's own memory
    module.train(net.training)
    examples = _examples(net, source)
    if kind == ".py":
        made.write_text(source.text, encoding="utf-8")
        write_safetensors(made.with_name(weights_name), state, {"format": "pt", "net": net.graph.name})
        return _check(net, source, _written_module(made), examples)
    program = _exported(module, source, examples[0], net)
    if kind == ".pt2":
        torch.export.save(program, made)
        return _check(net, source, torch.export.load(made).module(), examples)
    return _write_onnx(net, source, program, made, examples)


def _written_module(path: Path) -> Callable[..., Any]:
    """The module in a file as its user gets it: imported, with the weights beside it."""
    spec = importlib.util.spec_from_file_location("fcnproto_exported", path)
    assert spec is not None and spec.loader is not None
    content = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(content)
    shutil.rmtree(path.parent / "__pycache__", ignore_errors=True)
    module: Callable[..., Any] = content.load()
    return module


def _examples(net: Net, source: Source) -> list[dict[str, Tensor]]:
    """Random inputs of two sizes that the net can take, or of the one in the prototxt where it takes no other."""
    draw = torch.Generator().manual_seed(0)

    def example(size: tuple[int, int] | None) -> dict[str, Tensor]:
        shapes = input_shapes(net, source.inputs, size)
        return {name: torch.rand(shape, generator=draw) * 200 - 100 for name, shape in shapes.items()}

    fixed = any(fixed_image_size(net, name) for name in source.inputs)
    found = []
    for size in () if fixed else _SIZES:
        try:
            blob_shapes(net, input_shapes(net, source.inputs, size))
            found.append(example(size))
        except (GraphError, RuntimeError):  # too small for this net
            continue
    return found if len(found) == len(_SIZES) else [example(None)]


def _check(net: Net, source: Source, run: Callable[..., Any], examples: Sequence[Mapping[str, Tensor]]) -> str:
    """Compare what was written with the net; the text says how well it agrees."""
    worst, sizes = 0.0, []
    for values in examples:
        with torch.no_grad():
            result = run(*(values[name] for name in source.inputs))
            expected = run_with(net, dict(values), source.outputs)
        found = result if isinstance(result, Mapping) else {source.outputs[0]: result}
        for name in source.outputs:
            ours, theirs = torch.as_tensor(found[name]), expected[name]
            if ours.shape != theirs.shape:
                raise Error(f"the exported net gives {name!r} the shape {tuple(ours.shape)} for {tuple(theirs.shape)}")
            scale = float(theirs.abs().max()) if theirs.numel() else 0.0
            worst = max(worst, float((ours - theirs).abs().max()) / (scale or 1.0) if theirs.numel() else 0.0)
        sizes.append(" and ".join("x".join(map(str, value.shape[2:])) or "-" for value in values.values()))
    if not worst <= TOLERANCE:
        raise Error(f"the exported net departs from this one by {worst:.3g} of the largest value; nothing was kept")
    return f"outputs on inputs of {', '.join(sizes)} compared, largest deviation {worst:.2g}"


def _exported(
    module: nn.Module, source: Source, example: Mapping[str, Tensor], net: Net
) -> torch.export.ExportedProgram:
    """The module as torch.export has it, for any height and width where the net takes any."""
    free: Any = torch.export.Dim.AUTO
    fixed = any(fixed_image_size(net, name) for name in source.inputs)
    shapes = tuple({2: free, 3: free} if example[n].dim() == 4 and not fixed else {} for n in source.inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(module, tuple(example[name] for name in source.inputs), dynamic_shapes=shapes)


def _write_onnx(
    net: Net,
    source: Source,
    program: torch.export.ExportedProgram,
    made: Path,
    examples: Sequence[Mapping[str, Tensor]],
) -> str:
    if importlib.util.find_spec("onnx") is None or importlib.util.find_spec("onnxscript") is None:
        raise UsageError(
            ".onnx needs the packages onnx and onnxscript; install them with: pip install 'fcnproto[onnx]'"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.onnx.export(
            program,
            (),
            dynamo=True,
            verbose=False,
            opset_version=_OPSET,
            input_names=list(source.inputs),
            output_names=list(source.outputs),
        )
    assert exported is not None
    _name_axes(exported, source)
    exported.save(made, external_data=_bytes_of(program) > _MOST_ONNX_BYTES)
    try:
        import onnxruntime
    except ImportError:
        warnings.warn(f"{made.name} was not checked: onnxruntime is not installed", FcnprotoWarning, stacklevel=2)
        return "not checked"
    session = onnxruntime.InferenceSession(str(made), providers=["CPUExecutionProvider"])

    def run(*values: Tensor) -> dict[str, Any]:
        given = {name: value.numpy() for name, value in zip(source.inputs, values, strict=True)}
        return dict(zip(source.outputs, session.run(list(source.outputs), given), strict=True))

    return _check(net, source, run, examples)


def _name_axes(exported: Any, source: Source) -> None:
    """Give the free axes of the inputs readable names instead of the tracer's, where this torch can."""
    names: dict[str, str] = {}
    for number, value in enumerate(exported.model.graph.inputs):
        prefix = "" if number == 0 else f"{source.inputs[number]}_"
        for axis, word in ((2, "height"), (3, "width")):
            if value.shape is not None and len(value.shape) == 4 and not isinstance(value.shape[axis], int):
                names.setdefault(str(value.shape[axis].value), prefix + word)
    if names and hasattr(exported, "rename_axes"):
        exported.rename_axes(names)


_MOST_ONNX_BYTES = 1_900_000_000
"""Above this the weights go into a file of their own beside the .onnx: protobuf's messages end at 2 GiB."""


def _bytes_of(program: torch.export.ExportedProgram) -> int:
    return sum(value.numel() * value.element_size() for value in program.state_dict.values())
