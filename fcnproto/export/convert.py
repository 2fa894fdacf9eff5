"""Takes a net away into another format, and back: by the name's ending, and never without a check of what was written.

Weights alone: .safetensors, .pt (a `state_dict`), .caffemodel, .caffemodel.h5. The net with its weights: .py (a module
in plain PyTorch beside a .safetensors), .pt2 (torch.export) and .onnx. The check reads each file back and compares
weights bit by bit, outputs on random images of two sizes.
"""

from __future__ import annotations

import importlib.util
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fcnproto.atomic import atomic_write
from fcnproto.errors import Error, FcnprotoWarning, UsageError, first_line
from fcnproto.export.carried import described_state, source_head, texts
from fcnproto.export.checking import Example, compare, independent, make_examples, without_chance
from fcnproto.export.shapes import blob_shapes, input_shapes
from fcnproto.export.source import Source, endpoints, make_source, run_source, state_for
from fcnproto.export.states import read_state
from fcnproto.net import Net
from fcnproto.net.roles import images_stay_apart
from fcnproto.net.tensor_files import read_safetensors, write_safetensors
from fcnproto.net.weights import header
from fcnproto.preprocessing import preprocessing_of
from fcnproto.schema.weights import open_weights

FORMATS = (".safetensors", ".pt", ".caffemodel.h5", ".h5", ".caffemodel", ".py", ".pt2", ".onnx")

_OPSET = 18
_BLOCK = 1 << 24  # bytes copied at once


@dataclass(frozen=True)
class Conversion:
    """What was written (`files`), and how it was checked: the largest relative deviation, on which sizes of images."""

    files: tuple[Path, ...]
    checked: str


@dataclass(frozen=True)
class _Options:
    """What `convert` was told about a net's code."""

    size: tuple[int, int] | None
    title: str
    about: Sequence[str]
    losses: bool
    fixed: bool


def convert(
    net: Net,
    out: Path,
    *,
    size: tuple[int, int] | None = None,
    title: str = "",
    about: Sequence[str] = (),
    losses: bool = False,
    fixed: bool = False,
) -> Conversion:
    """Write a net in the format of the path's ending, check it, and only then give the files their names.

    Args:
        size: (height, width) of image inputs for the shapes told in a .py, and those of a `fixed` .pt2 or .onnx; by
            default the prototxt's.
        title, about: what a .py calls the net and says of it.
        losses: .py, .pt2 and .onnx keep losses and accuracies, with labels as inputs.
        fixed: .pt2 and .onnx take this size alone, one image at a time; for runtimes that want to know it.

    .pt2 and .onnx take batches and images of any size, as far as the net's layers allow it. They are for inference:
    what the layers of a net in the TRAIN phase do is what they do in TEST. What the net remembers (statistics, states)
    stays as it is.

    Raises:
        UsageError: an unknown ending, a missing package, or a folder where a file is to be.
        UnsupportedLayerError: the format is .py, .pt2 or .onnx and a layer has no equal in plain PyTorch.
        Error: what was written does not give the net's numbers; nothing is left behind.
    """
    kind = check_output(out)
    if net.device.type != "cpu" or net.dtype != torch.float32:
        raise UsageError("the net must be on the CPU and in float32 to be converted")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name[:60]}.", dir=out.parent) as folder:
        made = Path(folder) / out.name
        if kind in (".py", ".pt2", ".onnx"):
            options = _Options(size, title or net.graph.name or out.stem, about, losses, fixed)
            with torch.device("cpu"):  # where a net is written and checked, whatever the user's default is
                checked = _convert_net(net, made, kind, options)
        else:
            checked = _convert_weights(net, made, kind)
        files = []
        for file in sorted(Path(folder).iterdir(), key=lambda file: file != made):
            if file.is_file():
                files.append(out.parent / file.name)
                with open(file, "rb") as content, atomic_write(files[-1]) as target:
                    shutil.copyfileobj(content, target, _BLOCK)
    return Conversion(tuple(files), checked)


def check_output(out: Path, inputs: Sequence[Path] = ()) -> str:
    """The format that a name says, once it is sure that it can be written: to be asked before a net is loaded.

    Raises:
        UsageError: an unknown ending, a package that is missing, a folder in the place of one of the files, or one of
            the `inputs` in that place.
    """
    kind = next((ending for ending in FORMATS if out.name.lower().endswith(ending)), None)
    if kind is None:
        raise UsageError(f"{out}: can't tell the format; end the name in one of {', '.join(FORMATS)}")
    if kind == ".onnx":
        missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
        if missing:
            raise UsageError(
                f".onnx needs the package{'s' if missing[1:] else ''} {' and '.join(missing)}; install what is needed "
                "with: pip install 'fcnproto[onnx]'"
            )
    beside = {".py": [_weights_name(out)], ".onnx": [f"{out.name}.data"]}
    for file in (out, *(out.with_name(name) for name in beside.get(kind, ()))):
        if file.is_dir():
            raise UsageError(f"{file}: a file of this name is to be written, but a folder is there; give another name")
        for given in inputs:
            if given.exists() and file.exists() and given.samefile(file):
                raise UsageError(f"{file}: would be written over, but it is one of the inputs; give another name")
    return kind


def _weights_name(out: Path) -> str:
    """The name of the file of weights beside a .py."""
    return f"{out.name[: -len('.py')]}.safetensors"


def about_inputs(net: Net) -> list[str]:
    """A line for each input of an exported net: how images become it, where that is known."""
    hows = {name: preprocessing_of(net, name) for name in endpoints(net)[0]}
    return [f"Input {name}: {how}." for name, how in hows.items() if how.why != "assumed"]


def _convert_weights(net: Net, made: Path, kind: str) -> str:
    state = {name: value.detach().contiguous() for name, value in net.state_dict().items()}
    if kind == ".safetensors":
        net.save(made)
        found: Mapping[str, Tensor] = read_safetensors(made)
    elif kind == ".pt":
        torch.save(described_state({name: value.clone() for name, value in state.items()}, net), made)
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


def _convert_net(net: Net, made: Path, kind: str, options: _Options) -> str:
    inputs, _ = endpoints(net, losses=options.losses)
    weights_name = _weights_name(made)
    shapes = blob_shapes(net, input_shapes(net, inputs, options.size))
    source = make_source(
        net,
        shapes,
        weights_name,
        title=options.title,
        about=options.about,
        losses=options.losses,
        plain_names=kind != ".py",
    )
    with torch.device("meta"):
        module = run_source(source)
    state = state_for(net, module, source)
    module.load_state_dict(state, assign=True)  # the net's own memory
    twin = independent(net).eval()
    if kind == ".py":
        made.write_text(source_head(net) + source.text, encoding="utf-8")
        write_safetensors(made.with_name(weights_name), state, header(net))
        return _check_module(net, twin, source, made, options.size)
    write, said = _write_program if kind == ".pt2" else _write_onnx, texts(net)

    def attempt(examples: Sequence[Example]) -> str:
        return write(module.eval(), source, made, examples, said)

    return _write_freely(attempt, twin, source, made, options)


def _write_freely(
    write: Callable[[Sequence[Example]], str], twin: Net, source: Source, made: Path, options: _Options
) -> str:
    """Write a net for batches and images of any size as far as that can be; a warning tells where it can't."""
    apart = bool(source.inputs) and images_stay_apart(twin, source.outputs)
    freedoms = [(True, batches) for batches in (True, False) if batches <= apart and not options.fixed]
    freedoms.append((False, False))
    reasons: dict[tuple[bool, bool], str] = {}
    for vary, batches in freedoms:
        try:
            examples = make_examples(twin, source.inputs, source.outputs, options.size, vary=vary, batches=batches)
            checked = write(examples)
        except UsageError:
            raise
        except Error as error:
            if (vary, batches) == freedoms[-1]:
                raise
            reasons[vary, batches] = str(error)
            continue
        for free, what in (
            ((vary, True), f"batches of {examples[0].batch}"),
            ((True, False), f"inputs of {examples[0].size}"),
        ):
            if free in reasons:
                kind = "batch" if free[1] else "size"
                warnings.warn(
                    f"{made.name} takes {what} only: for any {kind} it can't be written ({reasons[free]})",
                    FcnprotoWarning,
                    stacklevel=4,
                )
        return checked
    raise AssertionError("the last attempt returns or raises")


def _check_module(net: Net, twin: Net, source: Source, made: Path, size: tuple[int, int] | None) -> str:
    """Compare a written module with the net: as it is loaded, in eval(), and for a TRAIN net in train() too."""
    module = _written_module(made)

    def run(*values: Tensor) -> Any:
        return independent(module)(*values)  # as at first: recurrent layers remember their last states

    checked = compare(run, source.inputs, make_examples(twin, source.inputs, source.outputs, size))
    if net.training:
        for part in (module, twin):
            part.train()
            without_chance(part)
        compare(run, source.inputs, make_examples(twin, source.inputs, source.outputs, size))
        checked += " (in eval() and in train(), Dropout left out)"
    return checked


def _written_module(path: Path) -> nn.Module:
    """The module in a file as its user gets it: imported, with the weights beside it."""
    spec = importlib.util.spec_from_file_location("fcnproto_exported", path)
    assert spec is not None and spec.loader is not None
    content = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(content)
    shutil.rmtree(path.parent / "__pycache__", ignore_errors=True)
    module: nn.Module = content.load()
    return module


@contextmanager
def _tracing(kind: str) -> Iterator[None]:
    """PyTorch's exporters: silent about their own affairs, and what they raise is an `Error` of one line."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # they raise many kinds, the cause several steps behind
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise Error(f"PyTorch can't write this net as {kind}: {first_line(cause)}") from error
    finally:
        logging.disable(before)


def _exported(module: nn.Module, source: Source, examples: Sequence[Example]) -> torch.export.ExportedProgram:
    """The module as torch.export has it, for any height and width where there are several examples."""
    free: Any = torch.export.Dim.AUTO
    values = [examples[0].inputs[name] for name in source.inputs]
    shapes = tuple(
        {axis: free for axis, extents in enumerate(_extents(examples, name)) if len(extents) > 1}
        for name in source.inputs
    )
    with _tracing("an exported program"):
        return torch.export.export(module, tuple(values), dynamic_shapes=shapes)


def _extents(examples: Sequence[Example], name: str) -> list[set[int]]:
    """The sizes that each axis of an input has in the examples."""
    return [set(sizes) for sizes in zip(*(example.inputs[name].shape for example in examples), strict=True)]


def _write_program(
    module: nn.Module, source: Source, made: Path, examples: Sequence[Example], said: Mapping[str, str]
) -> str:
    torch.export.save(_exported(module, source, examples), made, extra_files=dict(said))
    return compare(torch.export.load(made).module(), source.inputs, examples)


def _write_onnx(
    module: nn.Module, source: Source, made: Path, examples: Sequence[Example], said: Mapping[str, str]
) -> str:
    program = _exported(module, source, examples)
    # In ONNX an output can't have an input's name, as it has after a layer in place.
    names = [f"{name}_output" if name in source.inputs else name for name in source.outputs]
    with _tracing("ONNX"):
        exported = torch.onnx.export(
            program,
            (),
            dynamo=True,
            verbose=False,
            opset_version=_OPSET,
            input_names=list(source.inputs),
            output_names=names,
        )
        assert exported is not None
        _name_axes(exported, source)
        exported.model.metadata_props.update(said)
        exported.save(made, external_data=_bytes_of(program) > _MOST_ONNX_BYTES)
    try:
        import onnxruntime
    except ImportError:
        warnings.warn(f"{made.name} was not checked: onnxruntime is not installed", FcnprotoWarning, stacklevel=2)
        return "not checked"
    with _tracing("ONNX that onnxruntime reads"):
        session = onnxruntime.InferenceSession(str(made), providers=["CPUExecutionProvider"])

    def run(*values: Tensor) -> dict[str, Any]:
        given = {name: value.numpy() for name, value in zip(source.inputs, values, strict=True)}
        return dict(zip(source.outputs, session.run(names, given), strict=True))

    return compare(run, source.inputs, examples)


def _name_axes(exported: Any, source: Source) -> None:
    """Give the free axes of the inputs readable names instead of the tracer's, where this torch can."""
    names: dict[str, str] = {}
    for number, value in enumerate(exported.model.graph.inputs):
        prefix = "" if number == 0 else f"{source.inputs[number]}_"
        words = ("batch", "channels", f"{prefix}height", f"{prefix}width")
        for axis, word in enumerate(words if value.shape is not None and len(value.shape) == 4 else words[:1]):
            if value.shape is not None and len(value.shape) > axis and not isinstance(value.shape[axis], int):
                names.setdefault(str(value.shape[axis].value), word)
    if names and hasattr(exported, "rename_axes"):
        exported.rename_axes(names)


_MOST_ONNX_BYTES = 1_900_000_000
"""Above this the weights go into a file of their own beside the .onnx: protobuf's messages end at 2 GiB."""


def _bytes_of(program: torch.export.ExportedProgram) -> int:
    return sum(value.numel() * value.element_size() for value in program.state_dict.values())
