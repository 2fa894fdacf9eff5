"""A slim SSD that trains from its own solver, on a database of drawn objects, and is tested by its mean precision."""

from __future__ import annotations

from pathlib import Path

import drawn_boxes
import numpy as np
import pytest
import torch

import fcnproto
from fcnproto.solver import Solver


@pytest.fixture(scope="module")
def solver_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("lmdb")
    folder = tmp_path_factory.mktemp("slim_ssd")
    return drawn_boxes.write_files(folder, train=24, test=8, iterations=16, every=16, width=8)


def test_boxes_hold_the_objects() -> None:
    """A drawn object's box is at least as long as its radius on both sides, and within the image."""
    image, objects = drawn_boxes.draw(3)
    assert image.shape == (96, 96, 3) and 1 <= len(objects) <= 2
    for label, (left, top, right, bottom) in objects:
        assert 1 <= label < 11 and 0 <= left < right <= 1 and 0 <= top < bottom <= 1
        assert min(right - left, bottom - top) * 96 > 8


def test_it_trains_to_a_loss_that_falls(solver_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(solver_file.parent)
    solver = Solver(solver_file, device="cpu")
    solver.solve()
    assert len(solver.losses) == 16
    assert np.mean(solver.losses[-4:]) < 0.7 * np.mean(solver.losses[:2])
    (scores,) = solver.test()
    assert 0 <= scores["detection_eval"][0] <= 1


def test_the_same_images_without_a_database(solver_file: Path) -> None:
    """Given tops bypass AnnotatedData; the loss and its gradient are finite, and reach every parameter."""
    net = fcnproto.load(solver_file.parent / "net.prototxt", phase="train")
    label = torch.tensor([[0, 3, 0, 0.2, 0.2, 0.5, 0.6, 0], [1, 5, 0, 0.4, 0.1, 0.9, 0.5, 0]])[None, None]
    out = net(data=torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1)), label=label)
    net.loss(out).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in net.parameters())
