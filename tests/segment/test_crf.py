"""The dense CRF: its filter against the sum over all pairs of pixels, and what it does to a label map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_nets import colour_net

import fcnproto
from fcnproto.cli._main import main
from fcnproto.errors import UsageError
from fcnproto.segment import Segmenter
from fcnproto.segment.crf import DenseCrf, Lattice, parse_crf


def scene(height: int = 24, width: int = 30) -> tuple[torch.Tensor, np.ndarray, torch.Tensor]:
    """An image of two areas of colour, which of them each pixel is in, and probabilities that are often wrong."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    truth = (np.hypot(y - height / 2, x - width / 2) < height / 3).astype(int)
    pixels = np.array([[60, 90, 40], [200, 120, 90]])[truth] + random.normal(0, 2, (height, width, 3))
    sure = np.where(random.random((height, width)) < 0.2, 0.3, 0.7)
    right = np.where(truth == 1, sure, 1 - sure)
    probabilities = torch.from_numpy(np.stack([1 - right, right])).float()
    return torch.from_numpy(pixels).float(), truth, probabilities


@pytest.mark.parametrize("dimensions", [2, 5])
def test_the_filter_is_nearly_the_sum_over_all_pairs(dimensions: int) -> None:
    torch.manual_seed(0)
    points = torch.rand(900, dimensions) * 4
    values = torch.rand(900, 3)
    exact = torch.exp(-0.5 * torch.cdist(points, points) ** 2)
    lattice = Lattice(points)
    ours = lattice.filter(values) / lattice.filter(torch.ones(900, 1))
    theirs = exact @ values / exact.sum(1, keepdim=True)
    assert torch.allclose(lattice.weights.sum(1), torch.ones(900), atol=1e-4) and lattice.weights.min() > -1e-4
    # The lattice is an approximation: its published error is some percent.
    assert (ours - theirs).abs().mean() < 0.15 * (theirs - theirs.mean(0)).abs().mean() + 0.01
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.95


def exact_inference(crf: DenseCrf, probabilities: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Mean field with the very kernels, over all pairs of pixels."""
    classes, height, width = probabilities.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack([x, y], -1).reshape(-1, 2).float()
    colours = pixels.reshape(-1, 3)
    unary = probabilities.reshape(classes, -1).T.log()
    kernels = []
    for weight, points in (
        (crf.pos_w, places / crf.pos_xy),
        (crf.bi_w, torch.cat([places / crf.bi_xy, colours / crf.bi_rgb], 1)),
    ):
        kernel = torch.exp(-0.5 * torch.cdist(points, points) ** 2)
        scale = kernel.sum(1).rsqrt()
        kernels.append(weight * scale[:, None] * kernel * scale)
    beliefs = unary.softmax(1)
    for _ in range(crf.iterations):
        beliefs = (unary + sum(kernel @ beliefs for kernel in kernels)).softmax(1)
    return beliefs.T.reshape(classes, height, width)


def test_inference_as_over_all_pairs() -> None:
    pixels, truth, probabilities = scene()
    crf = DenseCrf()
    ours, theirs = crf.refine(probabilities, pixels), exact_inference(crf, probabilities, pixels)
    assert torch.allclose(ours.sum(0), torch.ones(ours.shape[1:]), atol=1e-5)
    assert (ours.argmax(0) == theirs.argmax(0)).float().mean() > 0.99
    before, after = ((one.argmax(0).numpy() == truth).mean() for one in (probabilities, ours))
    assert before < 0.85 and after > 0.99


def test_parameters() -> None:
    """DeepLab's; others by name."""
    assert parse_crf("") == DenseCrf(10, 3.0, 1.0, 4.0, 67.0, 3.0)
    assert parse_crf("iterations=5,bi_xy=49") == DenseCrf(iterations=5, bi_xy=49.0)
    pixels, _, probabilities = scene()
    torch.testing.assert_close(
        DenseCrf(iterations=0).refine(probabilities, pixels), probabilities, rtol=1e-4, atol=1e-5
    )
    for text in ("bi=3", "bi_xy=x", "bi_xy=0", "iterations=1.5"):
        with pytest.raises(UsageError, match="dense CRF"):
            parse_crf(text)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, weights = colour_net(tmp_path)
    random = np.random.default_rng(0)
    pixels = np.zeros((24, 30, 3), np.uint8) + np.array([90, 60, 60], np.uint8)
    pixels[:, 15:] = (60, 60, 90)
    noisy = np.clip(pixels + random.normal(0, 1, pixels.shape), 0, 255).astype(np.uint8)
    noisy[5, 5] = (61, 91, 60)  # alone among the red ones
    Image.fromarray(noisy).save(tmp_path / "a.png")
    words = ["segment", str(model), str(weights), str(tmp_path / "a.png"), "--mean", "none", "--scale", "0.02"]
    for name, more in (("plain", []), ("crf", ["--crf", "--crf-parameters", "bi_rgb=20"])):
        assert main([*words, "-o", str(tmp_path / name), "--probs", *more]) == 0
    plain, refined = (np.asarray(Image.open(tmp_path / name / "a_labels.png")) for name in ("plain", "crf"))
    assert plain[5, 5] == 1 and refined[5, 5] == 2
    np.testing.assert_array_equal(refined, np.where(np.arange(30) < 15, 2, 0)[None].repeat(24, 0))
    probs = np.load(tmp_path / "crf" / "a_probs.npz")["probs"]
    np.testing.assert_array_equal(probs.argmax(0), refined)
    assert main([*words, "-o", str(tmp_path / "x"), "--crf-parameters", "bi_rgb=20"]) == 2
    found = Segmenter(fcnproto.load(model, weights), crf=DenseCrf())(tmp_path / "a.png")
    assert found[0].labels.shape == (24, 30)
