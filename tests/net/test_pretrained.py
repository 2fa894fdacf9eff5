"""A net as a folder in the hub's layout, and the stages of resolution that it tells."""

from __future__ import annotations

import functools
import inspect
import json
import sys
import types
from pathlib import Path

import pytest
import torch
from tiny_nets import small_fcn

import fcnproto
from fcnproto import zoo
from fcnproto.net import Net
from fcnproto.schema.text import read_net


def test_there_and_back(tmp_path: Path) -> None:
    net = fcnproto.load("fcn-mini", "fcn-mini")
    files = net.save_pretrained(tmp_path / "hub")
    assert [file.name for file in files] == ["deploy.prototxt", "model.safetensors", "config.json", "README.md"]
    again = Net.from_pretrained(tmp_path / "hub")
    x = torch.randn(1, 3, 40, 30)
    assert torch.equal(again(x)["score"], net(x)["score"])
    assert again.meta == net.meta and again.meta.classes == zoo.info("fcn-mini").classes
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    assert config["id2label"]["1"] == "ball" and config["num_labels"] == 11 and config["library_name"] == "fcnproto"
    card = (tmp_path / "hub" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: fcnproto\npipeline_tag: image-segmentation\n")
    assert all(str(tmp_path) not in file.read_text(errors="replace") for file in files)
    (tmp_path / "hub" / "README.md").write_text("mine")
    net.save_pretrained(tmp_path / "hub")
    assert (tmp_path / "hub" / "README.md").read_text() == "mine"


def test_options_and_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = fcnproto.load(*small_fcn(tmp_path))
    net.save_pretrained(tmp_path / "hub")
    assert Net.from_pretrained(tmp_path / "hub", phase="train").phase == "train"
    (tmp_path / "hub" / "config.json").write_text("[" * 100_000)
    with pytest.raises(fcnproto.DataError, match=r"config\.json: is no readable JSON"):
        Net.from_pretrained(tmp_path / "hub")
    (tmp_path / "hub" / "model.safetensors").unlink()
    with pytest.raises(fcnproto.DataError, match=r"has no model\.safetensors"):
        Net.from_pretrained(tmp_path / "hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(fcnproto.UsageError, match=r"no such folder; .*fcnproto\[hub\]"):
        Net.from_pretrained("somebody/net")


def test_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The repository's files are asked of huggingface_hub, those alone that are read."""
    hub = pytest.importorskip("huggingface_hub")
    net = fcnproto.load(*small_fcn(tmp_path))
    net.save_pretrained(tmp_path / "hub")
    asked = []

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, sorted(allow_patterns)))
        return str(tmp_path / "hub")

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert Net.from_pretrained("somebody/net", revision="v1").graph.name == net.graph.name
    assert asked == [("somebody/net", "v1", ["config.json", "deploy.prototxt", "model.safetensors"])]


class Hub:
    """What `push_to_hub` uses of `huggingface_hub.HfApi`, with the real one's parameters; uploads are kept."""

    def __init__(self, real: type) -> None:
        self.real, self.asked = real, list[tuple[str, dict]]()
        self.files: dict[str, bytes] = {}

    def call(self, name: str, *arguments: object, **settings: object) -> object:
        bound = inspect.signature(getattr(self.real, name)).bind(self, *arguments, **settings)
        given = {key: value for key, value in bound.arguments.items() if key != "self"}
        self.asked.append((name, given))
        if name == "create_repo":
            return types.SimpleNamespace(repo_id=f"me/{given['repo_id']}")
        if name == "file_exists":
            return given["filename"] in self.files
        ignored = given["ignore_patterns"] or []
        found = {path.name: path.read_bytes() for path in Path(given["folder_path"]).iterdir()}
        self.files |= {key: value for key, value in found.items() if key not in ignored}
        return types.SimpleNamespace(commit_url="https://hub/commit/1", pr_url="https://hub/discussions/1")

    def __getattr__(self, name: str) -> object:
        return functools.partial(self.call, name)


def test_to_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is uploaded is what `save_pretrained` writes; a card that is there stays."""
    hub = pytest.importorskip("huggingface_hub")
    net, api = fcnproto.load(*small_fcn(tmp_path)), Hub(hub.HfApi)
    monkeypatch.setattr(hub, "HfApi", lambda **settings: api)
    assert net.push_to_hub("net", private=True, commit_message="one") == "https://hub/commit/1"
    assert set(api.files) == {"deploy.prototxt", "model.safetensors", "config.json", "README.md"}
    (_, made), (_, uploaded) = api.asked[0], api.asked[-1]
    assert made == {"repo_id": "net", "private": True, "exist_ok": True}
    assert uploaded["repo_id"] == "me/net" and uploaded["commit_message"] == "one"
    api.files["README.md"] = b"mine"
    assert net.push_to_hub("net", branch="next", create_pr=True) == "https://hub/discussions/1"
    assert api.files["README.md"] == b"mine" and api.asked[-1][1]["revision"] == "next"
    for name, content in api.files.items():
        (tmp_path / name).write_bytes(content)
    assert Net.from_pretrained(tmp_path).params.keys() == net.params.keys()
    monkeypatch.setattr(api, "call", lambda *arguments, **settings: 1 / 0)
    with pytest.raises(fcnproto.DataError, match="net: not brought to the hub: division by zero"):
        net.push_to_hub("net")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(fcnproto.UsageError, match=r"fcnproto\[hub\]"):
        net.push_to_hub("net")


def test_feature_info() -> None:
    """As timm tells it: the last blob of each resolution before the scores."""
    net = Net(read_net(zoo.path("voc-fcn8s", "deploy")), fill=False)
    info = net.feature_info
    assert info.blobs() == ["conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3", "fc7"]
    assert info.channels() == [64, 128, 256, 512, 512, 4096] and info.reduction() == [1, 2, 4, 8, 16, 32]
    assert len(info) == 6 and info[-1] == {"num_chs": 4096, "reduction": 32, "module": "relu7", "blob": "fc7"}
    assert set(info.module_name()) <= dict(net.named_modules()).keys()


def test_features_are_those_blobs(tmp_path: Path) -> None:
    net = fcnproto.load("fcn-mini", "fcn-mini")
    found = net(torch.randn(1, 3, 64, 64), blobs=net.feature_info.blobs())
    assert [found[row["blob"]].shape[1] for row in net.feature_info] == net.feature_info.channels()
