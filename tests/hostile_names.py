"""Names as an attacker, or an accident, would choose them, nets that are full of them, and what must hold of outputs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import fcnproto
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import write_message

CANARY = "canary"
"""A file of this name in the working directory tells that a name was run as code."""

NAMES = (
    'quote " here',
    "quote ' here",
    f'"""\nopen("{CANARY}", "w")\n"""',
    f"'''\nopen('{CANARY}', 'w')\n'''",
    f'"); open("{CANARY}", "w"); ("',
    f"\\\nopen('{CANARY}', 'w')\n#",
    f"$(touch {CANARY})",
    f"`touch {CANARY}`",
    f"; touch {CANARY}",
    "back\\slash\\",
    "two\nlines",
    "nul\0byte",
    "return\rover",
    "tab\tstop",
    "\x1b[31mred",
    "\x1b]0;owned\x07",
    "\x9b31mC1",
    "del\x7f",
    "\u202eright to left\u2066",
    "zero\u200bwidth\ufeff",
    "line\u2028separator\u2029\x85",
    "\\[/x]",
    "[bold red]markup[/]",
    "[link=file:///etc/passwd]click[/link]",
    ":warning: emoji",
    "$\\bad$",
    "$_{^",
    "</script><script>window.canary=1</script>",
    "<img src=x onerror='window.canary=1'>",
    "--><svg onload=window.canary=1>",
    "]]>&amp;&#x0;",
    "<!--<script>",
    "{{7*7}}",
    "{0.__class__}",
    "%s%n%d",
    "../x",
    "../../x",
    "/etc/x",
    "a//b",
    "./y",
    "..\\z",
    "C:\\x",
    "CON",
    "nul.txt",
    ".hidden",
    "__x",
    "__class__",
    "__init__",
    "self",
    "forward",
    "lambda",
    "None",
    "import",
    "-rf",
    "=1+2",
    "@SUM(1)",
    "a" * 10_000,
    "word " * 2_000,
    "\N{LATIN SMALL LIGATURE FI}x",
    "\N{PILE OF POO}\u0301",
    "\ud7ff\ue000\U0010ffff",
)


def fuzzed(count: int, seed: int = 0) -> list[str]:
    """Names out of pieces of the list, drawn at random, the same at every call."""
    draw = random.Random(seed)
    pieces = [name[:12] for name in NAMES] + list("\"'\\\n\r\0\x1b\u202e[]{}<>$%&/.-#`; ") + [f'"""{CANARY}']
    return ["".join(draw.choices(pieces, k=draw.randint(1, 6))) for _ in range(count)]


def chain(names: Sequence[str], title: str = "net", typed: str = "Convolution") -> caffe_pb2.NetParameter:
    """A net of one layer after the other, layer and blob of one name each; image in (3, 6, 6), two channels out."""
    net = caffe_pb2.NetParameter(name=title)
    data = net.layer.add(name="data", type="Input", top=["data"])
    data.input_param.shape.add(dim=[1, 3, 6, 6])
    bottom = "data"
    for number, name in enumerate(names):
        kind = typed if number % 8 == 0 else "Power"
        layer = net.layer.add(name=name, type=kind, bottom=[bottom], top=[name])
        if kind == "Convolution":
            layer.convolution_param.num_output = 2
            layer.convolution_param.kernel_size.append(1)
            layer.convolution_param.weight_filler.type = "xavier"
        else:
            layer.power_param.scale = 1.0 + number / 1000
        bottom = name
    return net


def files(folder: Path, net: caffe_pb2.NetParameter) -> tuple[str, str]:
    """The net and its weights, written to files."""
    model, weights = folder / "net.prototxt", folder / "net.caffemodel"
    write_message(model, net)
    fcnproto.load(model).save(weights)
    return str(model), str(weights)


def trained(folder: Path, names: Sequence[str], title: str = "net") -> caffe_pb2.SolverParameter:
    """A solver for a net whose losses have these names."""
    net = caffe_pb2.NetParameter(name=title)
    data = net.layer.add(name="data", type="DummyData", top=["data", "label"])
    data.dummy_data_param.shape.add(dim=[2, 4])
    data.dummy_data_param.shape.add(dim=[2])
    inner = net.layer.add(name="inner", type="InnerProduct", bottom=["data"], top=["inner"])
    inner.inner_product_param.num_output = 3
    for name in names:
        net.layer.add(name=name, type="SoftmaxWithLoss", bottom=["inner", "label"], top=[name])
    write_message(folder / "net.prototxt", net)
    solver = caffe_pb2.SolverParameter(base_lr=0.01, lr_policy="fixed", max_iter=1, display=1, debug_info=True)
    solver.net, solver.snapshot_prefix = "net.prototxt", "snap"
    solver.test_iter.append(1)
    solver.test_interval = 1
    solver.solver_mode = caffe_pb2.SolverParameter.CPU
    write_message(folder / "solver.prototxt", solver)
    return solver


def is_clean(text: str) -> bool:
    """Whether a terminal may be given this: nothing but printable characters and line ends (and Caffe's tabs)."""
    return all(char.isprintable() or char in "\n\t" for char in text)


class Page(HTMLParser):
    """What an HTML parser finds in a page: its elements, the handlers among their attributes, the text of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.handlers: list[str] = []
        self.addresses: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.scripts: list[str] = []
        self._in_script = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag == "script":
            self._in_script = True
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._in_script = False

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts[-1] += data
