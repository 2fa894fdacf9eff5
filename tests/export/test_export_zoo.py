"""Every published net at full width as a module in plain PyTorch: written, read back and compared; half a GB each."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import fcnproto
from fcnproto.export import convert


@pytest.mark.slow
@pytest.mark.parametrize("name", fcnproto.zoo.names())
def test_net_as_plain_pytorch(name: str, tmp_path: Path) -> None:
    net = fcnproto.load(fcnproto.zoo.path(name, "deploy"))
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for blobs in net.params.values():
            for blob in blobs:
                blob.normal_(0, math.sqrt(2 / blob[0].numel()) if blob.dim() == 4 else 0.1, generator=draw)
    done = convert(net, tmp_path / "net.py", title=name)
    assert "96x64" in done.checked
    assert "67x93" in done.checked
    assert [file.name for file in done.files] == ["net.py", "net.safetensors"]
