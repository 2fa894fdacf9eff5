"""A net as the source of an ordinary `nn.Module` that needs PyTorch alone and a file of weights.

Modules have the net's own names, so that its `state_dict` fits; every line says its blob's shape. Losses and what else
needs labels is left out; the module computes what can be computed of the inputs.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from fcnproto.errors import UnsupportedLayerError
from fcnproto.export import elementwise, helpers  # noqa: F401  registers emitters
from fcnproto.export.code import WIDTH, call, identifier, text, with_comment
from fcnproto.export.emitters import Piece, Request, Unsayable, emit
from fcnproto.graph import Blob, Node
from fcnproto.inference import computable_outputs, image_inputs
from fcnproto.layers.base import Layer
from fcnproto.net import Net
from fcnproto.segment import score_blobs

Shape = tuple[int, ...]

_LOADER = '''
def load_weights(path: Path) -> dict:
    """The tensors in a safetensors file, by name."""
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    tensors = {}
    for name, entry in json.loads(content[8:start]).items():
        if name != "__metadata__":
            count = math.prod(entry["shape"])
            offset = start + entry["data_offsets"][0]
            values = torch.frombuffer(content, dtype=torch.float32, count=count, offset=offset)
            tensors[name] = values.reshape(entry["shape"]).clone()
    return tensors
'''
_TORCH_LOADER = '''
def load_weights(path: Path) -> dict:
    """The tensors in a PyTorch file, by name."""
    return torch.load(path, weights_only=True)
'''


@dataclass(frozen=True)
class Source:
    """A generated module: its text, the class's name, the inputs in the order of `forward`, the outputs' names."""

    text: str
    class_name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass
class _Writer:
    """The lines of a class in the making."""

    net: Net
    shapes: Mapping[Blob, Shape]
    variables: dict[Blob, str] = field(default_factory=dict)
    taken: set[str] = field(default_factory=lambda: {"self", "F", "nn", "torch", "json", "math"})
    modules: list[str] = field(default_factory=list)
    body: list[str] = field(default_factory=list)
    helpers: dict[str, None] = field(default_factory=dict)

    def add_input(self, blob: Blob) -> str:
        name = identifier(blob.name, self.taken)
        self.variables[blob] = name
        return name

    def add_layer(self, node: Node, layer: Layer, module_name: str) -> None:
        """Say one layer; `UnsupportedLayerError` where plain PyTorch has no word for it."""
        if node.type == "Silence":
            return
        args = [self.variables[blob] for blob in node.bottoms]
        if node.type == "Split":
            self.variables.update((blob, args[0]) for blob in node.tops)
            return
        try:
            piece = emit(Request(layer, args, [self.shapes[blob] for blob in node.bottoms]))
        except Unsayable as error:
            raise UnsupportedLayerError(
                f"layer {node.name!r} ({node.type}) can't be written as plain PyTorch: {error}; "
                "files of weights (.safetensors, .pt, .caffemodel) take every net"
            ) from None
        self.helpers.update(dict.fromkeys(piece.helpers))
        reference = f"self.{module_name}" if module_name.isidentifier() else f"getattr(self, {text(module_name)})"
        self._add_module(piece, layer, module_name, reference)
        if piece.call is None:
            self.variables[node.tops[0]] = args[0]
            return
        start, arguments = piece.call
        start = reference if start == "self" else start
        targets = self._targets(node)
        comment = ", ".join(" x ".join(map(str, self.shapes[blob])) or "scalar" for blob in node.tops)
        if arguments is None:
            lines = self._expression(", ".join(targets), start)
        else:
            lines = call(f"{', '.join(targets)} = {start}", arguments, "", 8)
        self.body += with_comment(lines, comment)

    def _expression(self, target: str, value: str) -> list[str]:
        line = f"        {target} = {value}"
        if len(line) <= WIDTH:
            return [line]
        parts = value.split(" + ")
        if len(parts) == 1:
            return [line]
        rest = [f"            + {part}" for part in parts[1:]]
        return [f"        {target} = (", f"            {parts[0]}", *rest, "        )"]

    def _targets(self, node: Node) -> list[str]:
        targets = []
        for j, blob in enumerate(node.tops):
            in_place = j < len(node.bottoms) and node.bottoms[j].name == blob.name
            before = self.variables.get(node.bottoms[j]) if in_place else None
            self.variables[blob] = before or identifier(blob.name, self.taken)
            targets.append(self.variables[blob])
        return targets

    def _add_module(self, piece: Piece, layer: Layer, module_name: str, reference: str) -> None:
        if piece.module is None:
            return
        name, arguments = piece.module
        if module_name.isidentifier():
            self.modules += call(f"self.{module_name} = {name}", arguments, "", 8)
        else:
            self.modules += call("self.add_module", [text(module_name), f"{name}({', '.join(arguments)})"], "", 8)


def make_source(
    net: Net,
    shapes: Mapping[Blob, Shape],
    weights_name: str,
    *,
    title: str = "",
    about: Sequence[str] = (),
) -> Source:
    """The source of a module that computes what `net` does.

    Args:
        shapes: every blob version's shape, for the comments.
        weights_name: the file of weights that `load` looks for beside the source.
        title: what the net is called; its own name by default.
        about: further lines for the file's docstring.

    Raises:
        UnsupportedLayerError: a layer that plain PyTorch has no equal of.
        GraphError: nothing can be computed of the net's image inputs.
    """
    inputs, outputs = endpoints(net)
    targets = [net.graph.blobs[name] for name in outputs]
    wanted = _needed(targets)
    writer = _Writer(net, shapes)
    for node in net.graph.nodes:
        for blob in node.tops:
            if node.is_data and blob.name in inputs:
                writer.add_input(blob)
    names = [writer.variables[blob] for blob in sorted(writer.variables, key=lambda blob: inputs.index(blob.name))]
    for node, layer, module_name in zip(net.graph.nodes, net.layers, net._module_names, strict=True):
        if not node.is_data and node in wanted:
            writer.add_layer(node, layer, module_name)
    _share(net, writer, wanted)
    title = title or net.graph.name or "net"
    class_name = identifier("".join(word[:1].upper() + word[1:] for word in _words(title)), set(), "Net")
    results = [writer.variables[blob] for blob in targets]
    lines = [*_head(title, about, writer, weights_name)]
    for name in writer.helpers:
        lines += ["", "", *inspect.getsource(getattr(helpers, name)).rstrip().splitlines()]
    lines += ["", "", f"class {class_name}(nn.Module):", *_documented(title, inputs, outputs)]
    lines += ["    def __init__(self) -> None:", "        super().__init__()", *writer.modules, ""]
    returns = "Tensor" if len(outputs) == 1 else "dict"
    lines += call("    def forward", ["self", *(f"{name}: Tensor" for name in names)], f" -> {returns}:", 0)
    lines += writer.body
    if len(outputs) == 1:
        lines.append(f"        return {results[0]}")
    else:
        entries = [f"{text(name)}: {value}" for name, value in zip(outputs, results, strict=True)]
        one = f"        return {{{', '.join(entries)}}}"
        lines += (
            [one] if len(one) <= WIDTH else ["        return {", *(f"            {e}," for e in entries), "        }"]
        )
    loader = _LOADER if weights_name.endswith(".safetensors") else _TORCH_LOADER
    lines += ["", *loader.rstrip().splitlines(), *_load_function(class_name, weights_name)]
    return Source("\n".join(lines) + "\n", class_name, inputs, outputs)


def endpoints(net: Net) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The inputs and outputs of a net taken away: its Input blobs, or the images that its scores depend on."""
    judges = {
        blob.name
        for node, layer in zip(net.graph.nodes, net.layers, strict=True)
        for blob in node.tops
        if layer.is_loss or node.type == "Accuracy"
    }
    outputs = [name for name in computable_outputs(net, net.inputs) if name not in judges and name not in net.inputs]
    if net.inputs and outputs:
        needed = set(image_inputs(net, outputs))
        return tuple(name for name in net.inputs if name in needed), tuple(outputs)
    scores = score_blobs(net)
    return tuple(image_inputs(net, scores)), tuple(scores)


def _needed(targets: Sequence[Blob]) -> set[Node]:
    """The nodes that the targets depend on."""
    found: set[Node] = set()
    stack = [blob.producer for blob in targets]
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack += [blob.producer for blob in node.bottoms]
    return found


def _share(net: Net, writer: _Writer, wanted: set[Node]) -> None:
    """Statements that make parameters shared by name one object."""
    names = net._module_names
    for (i, k), (j, m) in net._shared.items():
        layer, owner = net.layers[i], net.layers[j]
        if not {net.graph.nodes[i], net.graph.nodes[j]} <= wanted:
            continue
        if layer.blob_shapes[k] != owner.blob_shapes[m]:
            raise UnsupportedLayerError(f"layer {layer.name!r} shares a parameter of another shape with {owner.name!r}")
        mine, theirs = f"{names[i]}.{layer.blob_names[k]}", f"{names[j]}.{owner.blob_names[m]}"
        writer.modules.append(f"        self.{mine} = self.{theirs}")


def _words(title: str) -> list[str]:
    return "".join(sign if sign.isalnum() else " " for sign in title).split()


def _head(
    title: str,
    about: Sequence[str],
    writer: _Writer,
    weights_name: str,
) -> list[str]:
    """The file's docstring and imports."""
    text_lines = [
        f"{title}: a Caffe net in plain PyTorch, written by fcnproto.",
        "",
        *_wrapped(f"`load()` gives the module with the weights in {weights_name}, which lies beside this file."),
        *_wrapped(
            "The comments say each blob's shape for the inputs' size in the prototxt; other sizes work too where "
            "no fully connected layer follows."
        ),
    ]
    for line in about:
        text_lines += ["", *_wrapped(line)]
    docstring = ['"""' + text_lines[0], *text_lines[1:], '"""']
    body = "\n".join([*writer.modules, *writer.body, *(inspect.getsource(getattr(helpers, n)) for n in writer.helpers)])
    imports = ["import json", "import math"] if weights_name.endswith(".safetensors") else []
    imports.append("from pathlib import Path")
    if "-> Any:" in body:
        imports.append("from typing import Any")
    lines = [*docstring, "", *imports, "", "import torch"]
    if "F." in body:
        lines.append("import torch.nn.functional as F")
    return [*lines, "from torch import Tensor, nn"]


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(line, WIDTH - 1, break_long_words=False, break_on_hyphens=False)


def _documented(title: str, inputs: Sequence[str], outputs: Sequence[str]) -> list[str]:
    names = ", ".join(inputs)
    gives = outputs[0] if len(outputs) == 1 else f"a dict of {', '.join(outputs)}"
    lines = textwrap.wrap(f"{title}: takes {names}, gives {gives}.", WIDTH - 10, break_long_words=False)
    if len(lines) == 1:
        return [f'    """{lines[0]}"""', ""]
    return [f'    """{lines[0]}', *(f"    {line}" for line in lines[1:]), '    """', ""]


def _load_function(class_name: str, weights_name: str) -> list[str]:
    where = f"Path(__file__).with_name({text(weights_name)})"
    one = f"    path = {where} if path is None else Path(path)"
    assignment = [one] if len(one) <= WIDTH else ["    if path is None:", f"        path = {where}"]
    argument = "path" if len(one) <= WIDTH else "Path(path)"
    return [
        "",
        "",
        f"def load(path: str | Path | None = None) -> {class_name}:",
        '    """The net with its weights, ready for inference; `path` is the file of weights."""',
        *assignment,
        f"    net = {class_name}()",
        f"    net.load_state_dict(load_weights({argument}))",
        "    return net.eval()",
    ]


def run_source(source: Source) -> nn.Module:
    """An instance of a generated module (without weights), from its text."""
    space: dict[str, object] = {"__name__": "fcnproto_exported"}
    exec(compile(source.text, "<generated module>", "exec"), space)
    made = space[source.class_name]
    assert isinstance(made, type)
    module = made()
    assert isinstance(module, nn.Module)
    return module


def state_for(net: Net, module: nn.Module) -> dict[str, Tensor]:
    """The net's state for a generated module: its tensors under the same names, as plain float32 on the CPU."""
    state = net.state_dict()
    return {name: state[name].detach().float().cpu().contiguous() for name in module.state_dict()}
