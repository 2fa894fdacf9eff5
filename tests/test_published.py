"""The 15 published nets at full width and third-party trained nets, against the original Caffe.

Needs the reference folder beside the checkout; skipped without it.
"""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_cases import SHARED, assert_close, deviation

import fcnproto

FULL = SHARED / "golden" / "fcn-full"
TRAINED = SHARED / "golden" / "realmodels"
NETS = sorted(folder.name for folder in FULL.glob("*") if folder.is_dir()) or ["none"]
TRAINED_NETS = sorted(folder.name for folder in TRAINED.glob("*") if folder.is_dir()) or ["none"]

needs_full = pytest.mark.skipif(not FULL.exists(), reason="the reference folder is missing")
needs_trained = pytest.mark.skipif(not TRAINED.exists(), reason="the reference folder is missing")


def bilinear(size: int) -> np.ndarray:
    """The square upsampling kernel of the FCN nets."""
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 else factor - 0.5
    line = 1 - np.abs(np.arange(size) - centre) / factor
    return (line[:, None] * line[None, :]).astype(np.float32)


def set_rule_weights(net: fcnproto.Net, seed: int) -> None:
    """Give a net the seeded weights of the recordings (see the folder's README)."""
    for layer in net.layers:
        for index, tensor in enumerate(net.params.get(layer.name, ())):
            shape = tuple(tensor.shape)
            if layer.type == "Scale":
                continue  # their constant filler
            rng = np.random.default_rng([seed, zlib.crc32(layer.name.encode()), index])
            if "up" in layer.name:
                value = np.zeros(shape, np.float32)
                value[np.arange(shape[0]), np.arange(shape[0])] = bilinear(shape[-1])
            elif index == 0:
                value = rng.standard_normal(shape, np.float32) * np.float32(math.sqrt(2 / math.prod(shape[1:])))
            else:
                value = rng.standard_normal(shape, np.float32) * np.float32(0.1)
            with torch.no_grad():
                tensor.copy_(torch.from_numpy(value))


def rule_input(seed: int, name: str, shape: list[int], classes: dict[str, int]) -> torch.Tensor:
    """The seeded image, depth map or label of the recordings."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if name in classes:
        label = rng.integers(0, classes[name], shape)
        label.reshape(-1)[::7] = 255
        return torch.from_numpy(label)
    return torch.from_numpy(rng.standard_normal(shape, np.float32) * np.float32(1 if name == "depth" else 60))


def label_classes(net: fcnproto.Net) -> dict[str, int]:
    """The number of classes of every label blob, from the width of the score it is compared with."""
    table = {}
    for node in net.graph.nodes:
        if node.type == "SoftmaxWithLoss":
            score = node.bottoms[0].producer.bottoms[0]
            while not score.producer.param.HasField("convolution_param"):
                score = score.producer.bottoms[0]
            table[node.bottoms[1].name] = score.producer.param.convolution_param.num_output
    return table


@needs_full
@pytest.mark.slow
@pytest.mark.parametrize("optimized", [False, True], ids=["plain", "optimized"])
@pytest.mark.parametrize("name", NETS)
def test_full_width_net(name: str, optimized: bool) -> None:
    case = json.loads((FULL / name / "case.json").read_text())
    net = fcnproto.load(SHARED / "fcn" / case["prototxt"], phase=case["phase"].lower())
    set_rule_weights(net, case["seed"])
    if optimized:
        net = fcnproto.optimize(net)
    classes = label_classes(net)
    inputs = {key: rule_input(case["seed"], key, shape, classes) for key, shape in case["input_shapes"].items()}
    worst = 0.0
    with np.load(FULL / name / "data.npz") as recorded, torch.no_grad():
        out = net(inputs, blobs=[blob for blob in case["blobs"] if blob in net.graph.blobs])
        for blob, facts in case["blobs"].items():
            assert list(out[blob].shape) == facts["shape"], blob
            if blob in case["loss"]:
                assert_close(out[blob], np.float32(case["loss"][blob]), 2e-4, blob)
                continue
            sample = out[blob].flatten()[torch.from_numpy(recorded[f"index.{blob}"])].numpy()
            difference = np.abs(sample - recorded[f"sample.{blob}"]).max() / facts["absmax"]
            worst = max(worst, float(difference))
            assert difference <= 1e-5, f"{blob}: {difference:.3g}"
            if f"score.{blob}" in recorded:
                assert_close(
                    out[blob][..., ::5, ::5].reshape(recorded[f"score.{blob}"].shape),
                    recorded[f"score.{blob}"],
                    1e-5,
                    blob,
                )
    print(f"{name}: worst deviation {worst:.2e}")


@needs_trained
@pytest.mark.parametrize("name", TRAINED_NETS)
def test_trained_net(name: str) -> None:
    folder = TRAINED / name
    net = fcnproto.load(folder / "net.prototxt", folder / "net.caffemodel")
    with np.load(folder / "data.npz") as recorded, torch.no_grad():
        wanted = {key[4:]: recorded[key] for key in recorded.files if key.startswith("out.")}
        out = net(
            {key[3:]: torch.from_numpy(recorded[key]) for key in recorded.files if key.startswith("in.")},
            blobs=list(wanted),
        )
        for blob, value in wanted.items():
            assert deviation(out[blob], value) <= 1e-5, blob
    assert net.outputs == json.loads((folder / "case.json").read_text())["outputs"]


@needs_full
@pytest.mark.parametrize(
    "path", sorted((SHARED / "fcn").glob("*/*.prototxt")) or [Path("none")], ids=lambda p: f"{p.parent.name}-{p.stem}"
)
def test_published_prototxt_loads_without_its_data(path: Path) -> None:
    if path.stem == "solver":
        pytest.skip("a solver, not a net")
    net = fcnproto.load(path, phase="train" if path.stem.startswith("train") else "test")
    assert all(tensor.numel() for tensors in net.params.values() for tensor in tensors)
    del net
