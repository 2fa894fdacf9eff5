"""Generated modules: they give the net's numbers, load its state by name, need PyTorch alone, and are formatted."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import golden_cases
import pytest
import torch

import fcnproto
from fcnproto.export.code import call, identifier, text
from fcnproto.export.shapes import blob_shapes, input_shapes
from fcnproto.export.source import Source, endpoints, make_source, run_source, state_for
from fcnproto.layers.plain import number
from fcnproto.net import Net
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse, read_net

NO_INPUT = ("data_lmdb", "hdf5", "dummy_data", "memory_data", "python_data", "dropout_train", "input_")
UNSAYABLE = {
    "python_layer": "the type has no equal",
    "python_loss_layer": "the type has no equal",
    "infogain_file": "its matrix lies in a file",
    "net_shared_params_permissive": "shares a parameter of another shape",
}
"""Cases without an equal in PyTorch, and what is said of them."""


def sources() -> list[tuple[str, str]]:
    cases = [("layers", name) for name in golden_cases.names("layers") if not name.startswith(NO_INPUT)]
    return cases + [("fcn", name) for name in golden_cases.names("fcn")]


def exported(net: Net, given: dict[str, tuple[int, ...]], losses: bool = False) -> Source:
    return make_source(net, blob_shapes(net, given), "w.safetensors", title="a net", losses=losses)


@pytest.mark.parametrize(("group", "name"), sources())
def test_golden_case(group: str, name: str) -> None:
    """In the phase that was not recorded, and for whole nets in the recorded one; the others are in test_exported_golden.py."""
    case = golden_cases.load(group, name)
    recorded = case.facts["phase"].lower()
    net = other_phase(case, "test" if recorded == "train" else "train") if group == "layers" else case.net()
    if net is None:
        return
    check_source(case, net, losses=False)
    if group == "fcn" and endpoints(case.net(), losses=True) != endpoints(case.net()):
        check_source(case, case.net(), losses=True)


def other_phase(case: golden_cases.Case, phase: str) -> Net | None:
    """The case's net in another phase; None where it then has other inputs, or is none."""
    try:
        net = case.net(phase=phase)
        usable = set(endpoints(net)[0]) <= set(case.keys("in"))
    except (fcnproto.Error, KeyError):
        return None
    return net if usable else None


def check_source(case: golden_cases.Case, net: Net, losses: bool) -> None:
    """The generated module gives the net's outputs for the recorded inputs, or is refused for the reason known."""
    name = case.name
    inputs = {key: torch.from_numpy(value).float() for key, value in case.keys("in").items()}
    names, outputs = endpoints(net, losses=losses)
    given = {key: inputs[key] for key in names}
    given_shapes = {key: tuple(value.shape) for key, value in given.items()}
    if name in UNSAYABLE and (losses or name != "infogain_file"):
        with pytest.raises(fcnproto.UnsupportedLayerError, match=UNSAYABLE[name]):
            exported(net, given_shapes, losses)
        return
    source = exported(net, given_shapes, losses)
    module = run_source(source)
    module.load_state_dict(state_for(net, module))
    module.train(net.phase == "train")
    if any(layer.type == "Dropout" and layer.training for layer in net.layers):
        module.eval()
        net.eval()
    for _ in range(case.facts.get("pre_steps", 0) + 1):  # statistics move with every forward
        with torch.no_grad():
            result = module(*(given[key] for key in source.inputs))
            expected = net(given, blobs=list(outputs))
    found = result if isinstance(result, dict) else {outputs[0]: result}
    for blob in outputs:
        golden_cases.assert_close(found[blob], expected[blob].numpy(), 1e-6, blob)


@pytest.fixture(scope="module")
def zoo_sources() -> dict[str, str]:
    found = {}
    for name in fcnproto.zoo.names():
        net = Net(read_net(fcnproto.zoo.path(name, "deploy")), fill=False).to("meta")
        inputs, _ = endpoints(net)
        source = make_source(net, blob_shapes(net, input_shapes(net, inputs)), f"{name}.safetensors", title=name)
        with torch.device("meta"):
            module = run_source(source)
        shapes = {key: value.shape for key, value in module.state_dict().items()}
        assert shapes == {key: value.shape for key, value in net.state_dict().items()}
        found[name] = source.text
    return found


def test_all_nets_of_the_zoo(zoo_sources: dict[str, str]) -> None:
    assert len(zoo_sources) >= 15
    source = zoo_sources["voc-fcn8s"]
    assert "        self.conv1_1 = nn.Conv2d(3, 64, 3, padding=100)\n" in source
    assert "        conv1_1 = self.conv1_1(data)  # 1 x 64 x 698 x 698\n" in source
    assert "        pool3 = max_pool(conv3_3, Windows((2, 2), (2, 2)))  # 1 x 256 x 88 x 88\n" in source
    assert "        score = upscore8[:, :, 31 : 31 + data.shape[2], 31 : 31 + data.shape[3]]" in source


def test_only_torch_is_imported(zoo_sources: dict[str, str]) -> None:
    for source in zoo_sources.values():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                assert all(name.name.split(".")[0] in ("torch", "math") for name in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert str(node.module).split(".")[0] in (
                    "torch",
                    "safetensors",
                    "pathlib",
                    "typing",
                    "collections",
                    "__future__",
                )


@pytest.mark.skipif(importlib.util.find_spec("ruff") is None, reason="ruff is not installed")
def test_formatted(zoo_sources: dict[str, str], tmp_path: Path) -> None:
    for name, source in zoo_sources.items():
        (tmp_path / f"{name.replace('-', '_')}.py").write_text(source)
    for group, name in sources()[::2]:
        net = golden_cases.load(group, name).net()
        shapes = {key: value.shape for key, value in golden_cases.load(group, name).keys("in").items()}
        try:
            (tmp_path / f"{name}.py").write_text(exported(net, shapes).text)
        except fcnproto.Error:
            continue
    for command in (["format", "--check"], ["check", "--select", "E,F,W,I"]):
        options = ["--isolated", "--line-length", "120"]
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *options, str(tmp_path)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout


def test_names_that_are_no_identifiers() -> None:
    text_ = """
    layer { name: "in" type: "Input" top: "1/x" input_param { shape { dim: 1 dim: 2 dim: 5 dim: 5 } } }
    layer { name: "3x3/conv.a" type: "Convolution" bottom: "1/x" top: "class" convolution_param { num_output: 2 kernel_size: 3 } }
    layer { name: "forward" type: "PReLU" bottom: "class" top: "class" }
    layer { name: "cls" type: "InnerProduct" bottom: "class" top: "self" inner_product_param { num_output: 3 } }
    layer { name: "other" type: "TanH" bottom: "class" top: "F" }
    """
    torch.manual_seed(0)
    net = Net(parse(text_, caffe_pb2.NetParameter))
    with torch.no_grad():
        for blobs in net.params.values():
            for blob in blobs:
                blob.normal_()
    x = torch.randn(1, 2, 5, 5)
    source = exported(net, {"1/x": (1, 2, 5, 5)})
    module = run_source(source)
    module.load_state_dict(net.state_dict())
    found = module(x)
    assert set(found) == {"F", "self"}
    for name, value in net(x).items():
        torch.testing.assert_close(found[name], value)


def test_pieces_of_code() -> None:
    assert call("f", ["a", "b"], "", 4) == ["    f(a, b)"]
    wide = ["x" * 50, "y" * 50]
    assert call("function_name", wide, "", 4) == ["    function_name(", f"        {wide[0]}, {wide[1]}", "    )"]
    assert call("a[", ["z" * 70, "w" * 70], "", 0)[1:3] == [f"    {'z' * 70},", f"    {'w' * 70},"]
    taken: set[str] = set()
    names = ["a/b", "a.b", "1x", "class", "ünder"]
    assert [identifier(name, taken) for name in names] == ["a_b", "a_b_", "blob_1x", "class_", "nder"]
    config = caffe_pb2.LRNParameter(alpha=1e-4)
    assert number(config.alpha) == "0.0001"
    assert number(0.1) == "0.1"
    assert [number(float(value)) for value in ("inf", "-inf", "nan")] == ["math.inf", "-math.inf", "math.nan"]
    assert text('it\'s "1"\n') == '"it\'s \\"1\\"\\n"'
