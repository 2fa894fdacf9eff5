"""Segmenting where memory runs out: what fits alone is done alone, what doesn't fit is said in one line."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from PIL import Image
from tiny_nets import colour_net

import fcnproto
from fcnproto.errors import DataError
from fcnproto.segment import Scene, Segmenter


def exhaust(*_: Any) -> NoReturn:
    raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate much")


@pytest.fixture
def segmenter(tmp_path: Path) -> Segmenter:
    return Segmenter(fcnproto.load(*colour_net(tmp_path)))


def scenes(segmenter: Segmenter) -> list[Scene]:
    return [segmenter.prepare({"data": Image.new("RGB", (9, 8), colour)}) for colour in ("red", "blue")]


def test_tried_one_by_one_when_the_first_attempt_has_left_the_memory(segmenter: Segmenter) -> None:
    """Memory has room for the blobs of one scene, and none while anything holds those of the attempt with two."""
    used: list[weakref.ref[torch.Tensor]] = []

    def allocate(layer: Any, bottoms: Any, top: torch.Tensor) -> None:
        full = any(reference() is not None for reference in used)
        used.append(weakref.ref(top))
        if len(top) > 1 or full:
            exhaust()

    segmenter.net.layers[-1].register_forward_hook(allocate)
    assert [type(found) for found in segmenter.run(scenes(segmenter))] == [list, list]
    assert len(used) == 3


def test_too_large_by_itself(segmenter: Segmenter) -> None:
    segmenter.net.layers[-1].register_forward_hook(exhaust)
    for found in segmenter.run(scenes(segmenter)):
        assert isinstance(found, DataError)
        assert str(found) == "9x8 pixels are too many for the memory (CUDA out of memory.)"


@pytest.mark.parametrize("where", ["argmax", "to"])
def test_before_and_after_the_net(where: str, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    given = scenes(segmenter)
    monkeypatch.setattr(torch.Tensor, where, exhaust)
    assert [str(found)[:40] for found in segmenter.run(given)] == ["9x8 pixels are too many for the memory ("] * 2
