"""Segmenting on a GPU: the results of the CPU, and how often a call waits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gpu_waits import waits
from PIL import Image

import fcnproto
from fcnproto import zoo
from fcnproto.cli._main import main
from fcnproto.segment import Segmenter

pytestmark = pytest.mark.gpu
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

MODEL, WEIGHTS = zoo.path("fcn-mini", "deploy"), zoo.path("fcn-mini", "weights")


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((64, 48), Image.Resampling.BICUBIC)


def close(ours: np.ndarray, reference: np.ndarray) -> bool:
    """Labels may differ where two scores are as good as equal."""
    return bool((ours == reference).mean() > 0.999)


@pytest.mark.parametrize("optimized", [False, True])
@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("device", ["cuda:0", "cuda:1"])
def test_as_on_the_cpu(optimized: bool, probabilities: bool, device: str) -> None:
    if torch.device(device).index >= torch.cuda.device_count():
        pytest.skip("one CUDA device only")
    found = []
    for place in ("cpu", device):
        net = fcnproto.load(MODEL, WEIGHTS, device=place)
        segmenter = Segmenter(
            fcnproto.optimize(net) if optimized else net, probabilities=probabilities, longest_side=60
        )
        scenes = [segmenter.prepare({segmenter.inputs[0]: picture(seed)}) for seed in range(3)]
        found.append([one for result in segmenter.run(scenes) for one in result])  # type: ignore[union-attr]
    for ours, reference in zip(*reversed(found), strict=True):
        assert ours.labels.dtype == np.uint8 and close(ours.labels, reference.labels)
        if probabilities:
            np.testing.assert_allclose(ours.probabilities, reference.probabilities, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"cuda_graphs": True}, {"precision": "bf16"}])
@pytest.mark.parametrize("count", [1, 3])
def test_a_call_waits_once(options: dict[str, object], count: int) -> None:
    """For the labels, which come as bytes."""
    net = fcnproto.optimize(fcnproto.load(MODEL, WEIGHTS, device="cuda"), **options)  # type: ignore[arg-type]
    segmenter = Segmenter(net)
    scenes = [segmenter.prepare({segmenter.inputs[0]: picture(seed)}) for seed in range(count)]
    assert all(scene.values[segmenter.inputs[0]].dtype == torch.uint8 for scene in scenes)
    for _ in range(3):
        segmenter.run(scenes)
    with waits() as found:
        segmenter.run(scenes)
    assert len(found) == 1


def test_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for seed in range(3):
        picture(seed).save(tmp_path / "in" / f"{seed}.png")
    for device, options in (("cpu", ()), ("cuda", ("--cuda-graphs", "--batch", "2"))):
        arguments = ["segment", MODEL, WEIGHTS, tmp_path / "in", "-o", tmp_path / device, "--device", device, *options]
        assert main(list(map(str, arguments))) == 0
    for seed in range(3):
        ours, reference = (np.asarray(Image.open(tmp_path / d / f"{seed}_labels.png")) for d in ("cuda", "cpu"))
        assert close(ours, reference)
