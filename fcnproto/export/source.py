"""A net as the source of an ordinary `nn.Module` that needs PyTorch alone and a file of weights.

Modules have the net's own names, so that its `state_dict` fits; every line says its blob's shape. Losses and what else
needs labels is left out unless it is asked for, or nothing else is there: the module computes what can be computed of
the images.
"""

from __future__ import annotations

import keyword
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from fcnproto.errors import GraphError, UnsupportedLayerError
from fcnproto.export.audit import check_source
from fcnproto.export.code import BUILTINS, WIDTH, call, identifier, prose, several, text, with_comment
from fcnproto.export.copying import Copies
from fcnproto.export.own import say_own
from fcnproto.graph import Blob, Node
from fcnproto.layers.base import Layer
from fcnproto.layers.plain import MODULE, Blobs, Parameters, Piece, Request, Statistics, Unsayable, number
from fcnproto.net import Net
from fcnproto.net.roles import computable_outputs, image_inputs, score_blobs
from fcnproto.schema import caffe_pb2

Shape = tuple[int, ...]

_RESERVED = frozenset(["self", "F", "nn", "torch", "math", "Any", "Path", "Tensor", "load", "load_file"])
_IMPORTS = ("from pathlib import Path", "from safetensors.torch import load_file", "from torch import Tensor, nn")
_USED = {"math.": "import math", "torch.": "import torch", "F.": "import torch.nn.functional as F"}
_PLAIN = re.compile("[A-Za-z0-9_ -]+")
_LONGEST_MODULE = 200
_HOLDERS = {"Parameters": Parameters, "Statistics": Statistics, "Blobs": Blobs}
"""What a layer's values lie in where it is said by a function."""
_FALLBACK = ("    net.load_state_dict(load_file(beside if path is None else path))",)
_RESERVED = frozenset(["self", "F", "nn", "torch", "math", "Any", "Path", "Tensor", "load", "load_file"])


@dataclass(frozen=True)
class Source:
    """A generated module: its text, the class's name, the inputs in the order of `forward`, the outputs' names."""

    text: str
    class_name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    modules: Mapping[str, str] = field(default_factory=dict)
    """The net's own names of the modules that have another one here."""


@dataclass
class _Writer:
    """The lines of a class in the making."""

    net: Net
    shapes: Mapping[Blob, Shape]
    variables: dict[Blob, str] = field(default_factory=dict)
    copies: Copies = field(default_factory=Copies)
    taken: set[str] = field(default_factory=lambda: set(_RESERVED))
    modules: list[str] = field(default_factory=list)
    body: list[str] = field(default_factory=list)

    def learn(self, nodes: Sequence[tuple[Node, Layer]]) -> None:
        """Take in what the layers will name, so that no variable hides it."""
        for node, layer in nodes:
            if not (layer.idle or node.is_data or node.type == "Split"):
                args = [f"x{i}" for i in range(len(node.bottoms))]
                self._piece(node, layer, args)
        self.taken |= self.copies.names

    def add_input(self, blob: Blob) -> str:
        name = identifier(blob.name, self.taken)
        self.variables[blob] = name
        return name

    def add_constant(self, node: Node, layer: Any) -> None:
        """Say a DummyData layer whose fillers are constants."""
        first = next(iter(self.variables.values()), None)
        for blob, filler in zip(node.tops, layer.fillers(), strict=True):
            if filler.type != "constant" or first is None:
                raise UnsupportedLayerError(
                    f"layer {node.name!r} ({node.type}) can't be written as plain PyTorch: its values are drawn anew "
                    "at each call"
                )
            name, shape = self.add_input(blob), self.shapes[blob]
            line = f"        {name} = {first}.new_full({shape}, {number(filler.value)})"
            self.body += with_comment([line], " x ".join(map(str, shape)))

    def add_layer(self, node: Node, layer: Layer, module_name: str) -> None:
        """Say one layer; `UnsupportedLayerError` where plain PyTorch has no word for it."""
        if layer.idle:
            return
        if node.type == "DummyData":
            self.add_constant(node, layer)
            return
        args = [self.variables[blob] for blob in node.bottoms]
        if node.type == "Split":
            self.variables.update((blob, args[0]) for blob in node.tops)
            return
        piece = self._piece(node, layer, args)
        reference = _attribute(module_name)
        self._add_module(piece, module_name)
        if piece.call is None:
            self.variables[node.tops[0]] = args[0]
            return
        start = piece.call[0].replace(MODULE, reference)
        arguments = piece.call[1] and [argument.replace(MODULE, reference) for argument in piece.call[1]]
        targets = self._targets(node)
        comment = ", ".join(" x ".join(map(str, self.shapes[blob])) or "scalar" for blob in node.tops)
        if not start and arguments:
            lines = several(", ".join(targets), arguments, 8)
        elif arguments is None:
            lines = self._expression(", ".join(targets), start)
        else:
            lines = call(f"{', '.join(targets)} = {start}", arguments, "", 8)
        self.body += with_comment(lines, comment)

    def _piece(self, node: Node, layer: Layer, args: Sequence[str]) -> Piece:
        """What a layer becomes; the definitions that it names are copied."""
        training = f"{layer.param.phase == caffe_pb2.TRAIN}" if layer.param.HasField("phase") else "self.training"
        request = Request(args, [self.shapes[blob] for blob in node.bottoms], training)
        try:
            piece = layer.plain(request)
            if piece.own:
                piece = say_own(layer, request, self.copies)
            for thing in piece.copies:
                self.copies.add(thing)
            if piece.module is not None and piece.module[0] in _HOLDERS:
                self.copies.add(_HOLDERS[piece.module[0]])
        except Unsayable as error:
            raise UnsupportedLayerError(
                f"layer {node.name!r} ({node.type}) can't be written as plain PyTorch: {error}; "
                "files of weights (.safetensors, .pt, .caffemodel) take every net"
            ) from None
        return piece

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

    def _add_module(self, piece: Piece, module_name: str) -> None:
        if piece.module is None:
            return
        name, arguments = piece.module
        if _is_attribute(module_name):
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
    losses: bool = False,
    plain_names: bool = False,
) -> Source:
    """The source of a module that computes what `net` does.

    Args:
        shapes: every blob version's shape, for the comments.
        weights_name: the file of weights that `load` looks for beside the source.
        title: what the net is called; its own name by default.
        about: further lines for the file's docstring.
        losses: keep losses and accuracies; their labels are inputs then.
        plain_names: modules with odd signs in their names get others (`Source.modules`), for PyTorch's exporter, whose
            files give commas and the like a meaning.

    Raises:
        UnsupportedLayerError: a layer that plain PyTorch has no equal of.
        GraphError: nothing can be computed of the net's image inputs.
    """
    inputs, outputs = endpoints(net, losses=losses)
    targets = [net.graph.blobs[name] for name in outputs]
    wanted = _needed(targets)
    writer = _Writer(net, shapes)
    writer.learn([(node, layer) for node, layer in zip(net.graph.nodes, net.layers, strict=True) if node in wanted])
    for node in net.graph.nodes:
        for blob in node.tops:
            if node.is_data and blob.name in inputs:
                writer.add_input(blob)
    names = [writer.variables[blob] for blob in sorted(writer.variables, key=lambda blob: inputs.index(blob.name))]
    module_names = _plain_names(net._module_names) if plain_names else net._module_names
    for node, layer, module_name in zip(net.graph.nodes, net.layers, module_names, strict=True):
        if node in wanted and (node.type == "DummyData" or not node.is_data):
            writer.add_layer(node, layer, module_name)
    _share(net, writer, wanted, module_names)
    title = title or net.graph.name or "net"
    class_name = _class_name(title, writer.taken)
    lines = [*_head(title, about, writer, weights_name)]
    lines += _definitions(writer.copies)
    lines += ["", "", f"class {class_name}(nn.Module):", *_documented(title, inputs, outputs)]
    lines += ["    def __init__(self) -> None:", "        super().__init__()", *writer.modules, ""]
    returns = "Tensor" if len(outputs) == 1 else "dict"
    lines += call("    def forward", ["self", *(f"{name}: Tensor" for name in names)], f" -> {returns}:", 0)
    lines += [*writer.body, *_returned(outputs, [writer.variables[blob] for blob in targets])]
    lines += _load_function(class_name, weights_name)
    renamed = {new: old for new, old in zip(module_names, net._module_names, strict=True) if new != old}
    source = Source("\n".join(lines) + "\n", class_name, inputs, outputs, renamed)
    check_source(source.text, class_name, writer.copies.sources.values(), imports_of(writer))
    return source


def _returned(names: Sequence[str], variables: Sequence[str]) -> list[str]:
    """The closing statement of `forward`: one tensor, or a dict of several."""
    if len(names) == 1:
        return [f"        return {variables[0]}"]
    entries = [f"{text(name)}: {value}" for name, value in zip(names, variables, strict=True)]
    one = f"        return {{{', '.join(entries)}}}"
    if len(one) <= WIDTH:
        return [one]
    return ["        return {", *(f"            {entry}," for entry in entries), "        }"]


def endpoints(net: Net, *, losses: bool = False) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The inputs and outputs of a net taken away: its Input blobs, or the images that its scores depend on.

    With `losses`, and where there is nothing else, all outputs and all inputs, labels among them.
    """
    judges = {
        blob.name
        for node, layer in zip(net.graph.nodes, net.layers, strict=True)
        for blob in node.tops
        if layer.is_loss or node.type == "Accuracy"
    }
    if losses:
        return _everything(net)
    outputs = [name for name in _made(net, net.inputs) if name not in judges]
    if net.inputs and outputs:
        needed = set(image_inputs(net, outputs))
        return tuple(name for name in net.inputs if name in needed), tuple(outputs)
    try:
        scores = score_blobs(net)
    except GraphError:
        return _everything(net)
    return tuple(image_inputs(net, scores)), tuple(scores)


def _everything(net: Net) -> tuple[tuple[str, ...], tuple[str, ...]]:
    outputs = _made(net, list(net.source_shapes))
    if not outputs:
        raise GraphError(f"{net.graph.title}: computes nothing of inputs: there is nothing to take away")
    return tuple(image_inputs(net, outputs)), tuple(outputs)


def _made(net: Net, inputs: Sequence[str]) -> list[str]:
    """The outputs that layers make of these inputs; one may have an input's name, after a layer in place."""
    return [name for name in computable_outputs(net, inputs) if not net.graph.blobs[name].producer.is_data]


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


def _is_attribute(name: str) -> bool:
    """Whether a module's name can be written behind a dot: ASCII, no word of the language, none that Python mangles."""
    return name.isascii() and name.isidentifier() and not keyword.iskeyword(name) and not name.startswith("_")


def _attribute(name: str) -> str:
    """How a module of the net is said."""
    return f"self.{name}" if _is_attribute(name) else f"getattr(self, {text(name)})"


def _plain_names(names: Sequence[str]) -> list[str]:
    """The names with others for those that hold odd signs, or are very long."""
    plain = [len(name) < _LONGEST_MODULE and _PLAIN.fullmatch(name) is not None for name in names]
    taken = {*dir(nn.Module), *(name for name, is_plain in zip(names, plain, strict=True) if is_plain)}
    return [name if p else identifier(name, taken, "layer") for name, p in zip(names, plain, strict=True)]


def _share(net: Net, writer: _Writer, wanted: set[Node], names: Sequence[str]) -> None:
    """Statements that make parameters shared by name one object."""
    for (i, k), (j, m) in net._shared.items():
        layer, owner = net.layers[i], net.layers[j]
        if not {net.graph.nodes[i], net.graph.nodes[j]} <= wanted:
            continue
        if layer.blob_shapes[k] != owner.blob_shapes[m]:
            raise UnsupportedLayerError(f"layer {layer.name!r} shares a parameter of another shape with {owner.name!r}")
        mine, theirs = _attribute(names[i]), _attribute(names[j])
        writer.modules.append(f"        {mine}.{layer.blob_names[k]} = {theirs}.{owner.blob_names[m]}")


def _definitions(copies: Copies) -> list[str]:
    """The lines of the copied definitions, spaced as the formatter has it."""
    lines: list[str] = []
    before = "import"
    for name, source in copies.sources.items():
        kind = "constant" if source.startswith(f"{name} = ") else "definition"
        gap = {("import", "constant"): 1, ("constant", "constant"): 0}.get((before, kind), 2)
        lines += [*[""] * gap, *source.rstrip().splitlines()]
        before = kind
    return lines


def _class_name(title: str, taken: set[str]) -> str:
    """A name for the net's class, which hides nothing that the module uses."""
    words = "".join(sign if sign.isascii() and sign.isalnum() else " " for sign in title).split()
    return identifier("".join(word[:1].upper() + word[1:] for word in words), {*_RESERVED, *BUILTINS, *taken}, "Net")


def _head(
    title: str,
    about: Sequence[str],
    writer: _Writer,
    weights_name: str,
) -> list[str]:
    """The file's docstring and imports."""
    text_lines = [
        f"{prose(title, 80)}: a Caffe net in plain PyTorch, written by fcnproto.",
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
    statements = imports_of(writer)
    standard = [one for one in statements if one.split()[1].split(".")[0] not in ("torch", "safetensors")]
    others = [one for one in statements if one not in standard]
    return [*docstring, "", "from __future__ import annotations", "", *standard, "", *others]


def imports_of(writer: _Writer) -> list[str]:
    """The import statements of a module, in the formatter's order: plain ones first, each by its module's name."""
    body = "\n".join([*writer.modules, *writer.body])
    imports = {*_IMPORTS, *writer.copies.imports}
    imports |= {statement for name, statement in _USED.items() if name in body}
    plain = sorted(one for one in imports if one.startswith("import"))
    taken: dict[str, set[str]] = {}
    for statement in imports.difference(plain):
        _, module, _, names = statement.split(maxsplit=3)
        taken.setdefault(module, set()).update(names.split(", "))
    return plain + [f"from {module} import {', '.join(sorted(taken[module]))}" for module in sorted(taken)]


def _wrapped(line: str) -> list[str]:
    """The lines of a paragraph in a docstring; nothing in it can end or escape anything."""
    line = prose(line, 2000)
    return textwrap.wrap(line, WIDTH - 1, break_long_words=False, break_on_hyphens=False)


def _documented(title: str, inputs: Sequence[str], outputs: Sequence[str]) -> list[str]:
    title, names = prose(title, 80), ", ".join(prose(name, 80) for name in inputs)
    listed = ", ".join(prose(name, 80) for name in outputs)
    gives = listed if len(outputs) == 1 else f"a dict of {listed}"
    lines = textwrap.wrap(f"{title}: takes {names}, gives {gives}.", WIDTH - 10, break_long_words=False)
    if len(lines) == 1:
        return [f'    """{lines[0]}"""', ""]
    return [f'    """{lines[0]}', *(f"    {line}" for line in lines[1:]), '    """', ""]


def _load_function(class_name: str, weights_name: str) -> list[str]:
    where = f"Path(__file__).with_name({text(weights_name)})"
    one = f"    net.load_state_dict(load_file({where} if path is None else path))"
    load = [one] if len(one) <= WIDTH else [f"    beside = {where}", *_FALLBACK]
    return [
        "",
        "",
        f"def load(path: str | Path | None = None) -> {class_name}:",
        '    """The net with its weights, ready for inference; `path` is the file of weights."""',
        f"    net = {class_name}()",
        *load,
        "    return net.eval()",
    ]


def run_source(source: Source) -> nn.Module:
    """An instance of a generated module (without weights), from its text, which `make_source` has checked."""
    space: dict[str, object] = {"__name__": "fcnproto_exported"}
    exec(compile(source.text, "<generated module>", "exec"), space)
    made = space[source.class_name]
    assert isinstance(made, type)
    module = made()
    assert isinstance(module, nn.Module)
    return module


def state_for(net: Net, module: nn.Module, source: Source | None = None) -> dict[str, Tensor]:
    """The net's state for a generated module: its tensors under the module's names, as plain float32 on the CPU."""
    state, renamed = net.state_dict(), source.modules if source is not None else {}
    found = {}
    for name in module.state_dict():
        owner, dot, blob = name.rpartition(".")
        found[name] = state[f"{renamed.get(owner, owner)}{dot}{blob}"].detach().float().cpu().contiguous()
    return found
