"""Weights into the cache, from a server on this machine: whole, cut off, mirrored, and web pages in their place."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import fcnproto
from fcnproto import zoo
from fcnproto.cli._main import main
from fcnproto.errors import DataError, UsageError, WeightsError
from fcnproto.zoo import cache
from fcnproto.zoo.fetching import fetch

pytest.importorskip("pooch", reason="pooch is not installed")

MINI = zoo.path("fcn-mini", "weights").read_bytes()
PAGE = b"<!DOCTYPE html><html><head><title>Sign in <b></title></head><body>" + b"x" * 3000


class Server(ThreadingHTTPServer):
    """Gives `content` at any address; cuts the connection after `cut` bytes of an answer; notes what was asked."""

    content, cut, version, status = MINI, 0, '"one"', 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range", "")
        self.server.asked.append((self.path, wanted))
        begin = 0
        if wanted and self.headers.get("If-Range") == self.server.version:
            begin = int(re.findall(r"\d+", wanted)[0])
        rest = self.server.content[begin:]
        self.send_response(206 if begin else self.server.status)
        self.send_header("Content-Length", str(len(rest)))
        if self.server.version:
            self.send_header("ETag", self.server.version)
        self.end_headers()
        self.wfile.write(rest[: self.server.cut] if self.server.cut else rest)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv(cache.PLACE, str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def test_size_and_hash_are_printed_and_remembered(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"{server.url}/mini.caffemodel"
    assert main(["zoo", "fetch", "fcn-mini", "--from", url]) == 0
    place, line = capsys.readouterr().out.splitlines()
    digest = hashlib.sha256(MINI).hexdigest()
    assert line == f"{len(MINI):,} bytes, SHA-256 {digest}" and Path(place).read_bytes() == MINI
    assert zoo.fetched()["fcn-mini"].sha256 == digest and zoo.fetched()["fcn-mini"].url == url
    asked = len(server.asked)
    assert main(["zoo", "fetch", "fcn-mini", "--from", url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sha256"] == digest
    assert len(server.asked) == asked  # it is there
    assert sorted(path.name for path in cache.folder().iterdir()) == ["fcn-mini.caffemodel", cache.RECORD]


def test_a_download_goes_on_where_it_stopped(server: Server) -> None:
    url = f"{server.url}/mini.caffemodel"
    server.cut = 100_000
    with pytest.raises(DataError, match=r"can't be fetched: .*65,536 bytes are kept, and the same command goes on"):
        fetch("fcn-mini", source=url)
    server.cut = 0
    assert fetch("fcn-mini", source=url).path.read_bytes() == MINI
    assert server.asked[-1][1] == "bytes=65536-"


@pytest.mark.parametrize("version", ['"two"', ""])
def test_another_version_is_fetched_from_its_start(server: Server, version: str) -> None:
    url = f"{server.url}/mini.caffemodel"
    server.cut, server.content = 1000, b"\x00" * 5000
    with pytest.raises(DataError):
        fetch("fcn-mini", source=url)
    server.cut, server.content, server.version = 0, MINI, version
    assert fetch("fcn-mini", source=url).path.read_bytes() == MINI


def test_a_mirror_has_the_published_name(server: Server) -> None:
    server.content = fcnmodel("strange")
    with pytest.raises(WeightsError, match="has weights of none of voc-fcn8s's layers"):
        fetch("voc-fcn8s", mirror=f"{server.url}/weights/")
    assert server.asked[-1][0] == "/weights/fcn8s-heavy-pascal.caffemodel"
    assert not zoo.fetched() and not (cache.folder() / "voc-fcn8s.caffemodel").exists()
    server.content = fcnmodel("score_fr")
    found = fetch("voc-fcn8s", mirror=f"{server.url}/weights")
    assert zoo.path("voc-fcn8s", "weights") == found.path


def fcnmodel(layer: str) -> bytes:
    from fcnproto.schema import caffe_pb2

    net = caffe_pb2.NetParameter(name="n")
    one = net.layer.add(name=layer, type="Convolution")
    one.blobs.add(data=[1.0, 2.0]).shape.dim.append(2)
    return net.SerializeToString()


@pytest.mark.parametrize("way", ["server", "file"])
def test_a_web_page_is_no_model(server: Server, tmp_path: Path, way: str) -> None:
    server.content = PAGE
    (tmp_path / "page.caffemodel").write_bytes(PAGE)
    source = f"{server.url}/x" if way == "server" else str(tmp_path / "page.caffemodel")
    with pytest.raises(DataError, match="gives a web page called 'Sign in <b>', not a model; .*--from FILE"):
        fetch("fcn-mini", source=source)
    assert not zoo.fetched() and not list(cache.folder().glob("*.caffemodel*"))


def test_what_changed_is_refused(server: Server) -> None:
    url = f"{server.url}/mini.caffemodel"
    first = fetch("fcn-mini", source=url)
    with pytest.raises(DataError, match=r"its SHA-256 is [0-9a-f]{64}, expected 0{64}"):
        fetch("fcn-mini", source=f"{server.url}/other", sha256="0" * 64)
    server.content = fcnmodel("score_fr")
    first.path.write_bytes(b"x" * first.size)  # damaged on the disk: it is fetched again, and is another file now
    with pytest.raises(DataError, match="another file than fcn-mini's of before .*--new takes it"):
        fetch("fcn-mini", source=url)
    assert fetch("fcn-mini", source=url, accept_new=True).path.read_bytes() == fcnmodel("score_fr")


def test_from_a_file(server: Server, tmp_path: Path) -> None:
    (tmp_path / "w.caffemodel").write_bytes(MINI)
    found = fetch("fcn-mini", source=str(tmp_path / "w.caffemodel"))
    assert found.path.read_bytes() == MINI and not server.asked
    assert fcnproto.load("fcn-mini", found.path).meta.classes == zoo.info("fcn-mini").classes


def test_refusals(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nobody has published weights of it; --from says"):
        fetch("fcn-mini")
    with pytest.raises(UsageError, match="give one of them"):
        fetch("fcn-mini", source="x", mirror=server.url)
    with pytest.raises(UsageError, match="expected an http or https address, or a file"):
        fetch("fcn-mini", source="ftp://x/y")
    with pytest.raises(UsageError, match="64 hexadecimal digits"):
        fetch("fcn-mini", source="x", sha256="12")
    with pytest.raises(DataError, match="none: can't be read: No such file"):
        fetch("fcn-mini", source=str(tmp_path / "none"))
    server.status = 404
    with pytest.raises(DataError, match="can't be fetched: 404"):
        fetch("fcn-mini", source=f"{server.url}/x")
    server.status, server.content = 200, b"no model at all"
    with pytest.raises(WeightsError, match=f"{server.url}/x"):
        fetch("fcn-mini", source=f"{server.url}/x")


def test_records_that_lie_are_left_out(server: Server) -> None:
    cache.folder().mkdir()
    for text in (
        "{",
        "[]",
        '{"fcn-mini": 3}',
        '{"fcn-mini": {"file": "../../etc/passwd", "size": 1, "sha256": "", "url": ""}}',
    ):
        (cache.folder() / cache.RECORD).write_text(text)
        assert zoo.fetched() == {}
