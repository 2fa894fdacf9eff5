"""Each layer type of Caffe's forks in other formats: plain PyTorch, a program of torch.export, ONNX, or a refusal."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from fork_layers import LAYERS, OF_REGIONS, REFUSED, net_of

import fcnproto.net.net  # noqa: F401  (registers the types)
from fcnproto.errors import Error, UnsupportedLayerError
from fcnproto.export import convert
from fcnproto.layers.registry import lookup, types

ONNX_MISSING = any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime"))


NOT_IN = {"onnx": ("BoxAnnotatorOHEM",)}
"""What a format lacks: ONNX has no stable sort."""


def test_every_type_of_a_fork_has_a_case() -> None:
    known = {name for name in types() if lookup(name).fork and lookup(name).__module__.startswith("fcnproto.")}
    assert known - {name for name in known if lookup(name).is_data} == {
        *LAYERS,
        *OF_REGIONS,
        *REFUSED,
        "ContinuationIndicator",
    }


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_types_without_plain_words_are_refused_by_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedLayerError) as caught:
        convert(net_of([name]), tmp_path / "net.py", losses=True)
    assert "\n" not in str(caught.value) and f"({name}) can't be written as plain PyTorch" in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", ["py", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("pt2", "onnx"))])
def test_all_others_give_the_nets_numbers(ending: str, tmp_path: Path) -> None:
    """All side by side in one net, as exporting costs seconds however small a net is. `convert` compares what it wrote with the net, output by output, and raises where they differ."""
    if ending == "onnx" and ONNX_MISSING:
        pytest.skip("onnx, onnxscript or onnxruntime is not installed")
    names = (
        [*LAYERS, *OF_REGIONS] if ending == "py" else [name for name in LAYERS if name not in NOT_IN.get(ending, ())]
    )
    assert convert(net_of(names), tmp_path / f"net.{ending}", losses=True).files[0].is_file()


@pytest.mark.parametrize("name", sorted(OF_REGIONS))
def test_programs_without_regions(name: str, tmp_path: Path) -> None:
    with pytest.raises(Error) as caught:
        convert(net_of([name]), tmp_path / "net.pt2")
    assert "\n" not in str(caught.value) and "PyTorch can't write this net as an exported program" in str(caught.value)
    assert not list(tmp_path.iterdir())
