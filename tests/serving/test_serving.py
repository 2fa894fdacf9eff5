"""The page of `fcnproto serve`: what its server answers and refuses, and the page itself in a real browser."""

from __future__ import annotations

import http.client
import io
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import browser
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import fcnproto
from fcnproto import zoo
from fcnproto.cli._main import commands
from fcnproto.scenes.scenes import draw_scenes
from fcnproto.segment import Segmenter

pytest.importorskip("starlette", reason="starlette is not installed")
uvicorn = pytest.importorskip("uvicorn", reason="uvicorn is not installed")

from fcnproto.net.reach import reach, within  # noqa: E402
from fcnproto.serving.app import application  # noqa: E402
from fcnproto.serving.desk import Desk, Limits, served  # noqa: E402

HEADERS = {"Host": "localhost"}


def bytes_of(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def net() -> fcnproto.Net:
    return fcnproto.load(zoo.path("fcn-mini", "deploy"), zoo.path("fcn-mini", "weights"))


@pytest.fixture(scope="module")
def scene() -> Image.Image:
    (drawn,) = draw_scenes(seed=5, count=1)
    return Image.fromarray(drawn.image).crop((20, 30, 148, 126))


@pytest.fixture(scope="module")
def desk(net: fcnproto.Net) -> Desk:
    return Desk([served("first <b>", net, net), served("second", net, net, longest_side=64)], Limits(0.2, 0.05, 3))


@pytest.fixture(scope="module")
def port(desk: Desk) -> Iterator[int]:
    server = uvicorn.Server(
        uvicorn.Config(application(desk, ["localhost", "127.0.0.1"]), port=0, log_level="critical", lifespan="off")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(20)


class Answer:
    def __init__(self, port: int, method: str, path: str, body: bytes | None = None, **headers: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request(method, path, body, HEADERS | {name.title(): value for name, value in headers.items()})
        found = connection.getresponse()
        self.status, self.body, self.headers = found.status, found.read(), found.headers
        connection.close()

    def json(self) -> dict:
        return json.loads(self.body)

    def image(self) -> Image.Image:
        return Image.open(io.BytesIO(self.body))


@pytest.fixture(scope="module")
def key(port: int, scene: Image.Image) -> str:
    answer = Answer(port, "POST", "/api/images", bytes_of(scene))
    assert answer.status == 201
    assert (answer.json()["width"], answer.json()["height"]) == scene.size
    return str(answer.json()["id"])


def test_json_of_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The address and the nets, before it serves."""
    from fcnproto.cli._main import main

    said = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: said.append(capsys.readouterr().out))
    words = ["serve", "fcn-mini", "fcn-mini", "--port", "0", "--json"]
    assert main(words) == main([*words, "--against", "fcn-mini", "fcn-mini"]) == 0
    found = json.loads(said[0])
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", found["address"]) and found["nets"] == ["fcn-mini"]
    alike = "fcn-mini (fcn-mini/deploy.prototxt, weights.caffemodel)"
    assert json.loads(said[1])["nets"] == [alike, alike]


class TestServer:
    def test_segmentation_is_the_segmenters(self, port: int, key: str, net: fcnproto.Net, scene: Image.Image) -> None:
        (expected,) = Segmenter(net, probabilities=True)(scene)
        (told,) = Answer(port, "GET", f"/api/nets/0/segmentation?image.data={key}").json()
        assert {entry["name"]: entry["share"] for entry in told["legend"]} == expected.shares()
        assert (told["width"], told["height"], told["blob"]) == (*scene.size, expected.blob)
        picture = np.asarray(Answer(port, "GET", f"/api/nets/0/overlay?image.data={key}&blob=").image())
        colours = np.array(zoo.palette(256), dtype=np.uint8)
        assert (picture[:, :, :3] == colours[expected.labels]).all()
        assert ((picture[:, :, 3] == 0) == (expected.labels == 0)).all()
        pixel = Answer(port, "GET", f"/api/nets/0/pixel?image.data={key}&x=70&y=40").json()
        values = {entry["label"]: entry["value"] for entry in pixel["probabilities"]}
        assert expected.probabilities is not None
        assert [values[label] for label in range(11)] == pytest.approx(expected.probabilities[:, 40, 70].tolist())
        assert pixel["probabilities"][0]["name"] == expected.name(int(expected.labels[40, 70]))

    def test_blobs(self, port: int, key: str, net: fcnproto.Net, scene: Image.Image) -> None:
        answer = Answer(port, "GET", f"/api/nets/0/blob?image.data={key}&blob=pool3")
        values = net(**net.preprocess(scene), blobs=["pool3"])["pool3"]
        about = json.loads(unquote(answer.headers["X-About"]))
        assert about["shape"] == list(values.shape)
        assert about["largest"] == pytest.approx(float(values.detach().max()))
        assert answer.image().size[0] > 50

    def test_the_page_and_its_rules(self, port: int) -> None:
        page = Answer(port, "GET", "/")
        assert page.status == 200
        assert "script-src 'self'" in page.headers["Content-Security-Policy"]
        for name in ("page.js", "page.css"):
            assert Answer(port, "GET", f"/{name}").status == 200

    @pytest.mark.parametrize(
        "path",
        [
            "/../pyproject.toml",
            "/page.html",
            "//etc/passwd",
            "/%2e%2e/%2e%2e/etc/passwd",
            "/app.py",
            "/api/images/..%2f",
        ],
    )
    def test_no_address_leads_to_a_file(self, port: int, path: str) -> None:
        assert Answer(port, "GET", path).status == 404

    def test_other_hosts_and_other_pages_are_refused(self, port: int, scene: Image.Image) -> None:
        assert Answer(port, "GET", "/", host="evil.example").status == 400
        answer = Answer(port, "POST", "/api/images", bytes_of(scene), origin="http://evil.example")
        assert answer.status == 403
        assert Answer(port, "POST", "/api/images", bytes_of(scene), origin="http://localhost").status == 201

    @pytest.mark.parametrize(
        ("body", "status", "words"),
        [
            (b"", 422, "not an image"),
            (b"GIF89a", 422, "image"),
            (b"\x89PNG\r\n\x1a\n" + b"\0" * 60, 422, "image"),
            (bytes_of(Image.new("L", (400, 300))), 422, "megapixels"),
            (b"x" * 300_000, 413, "MB"),
        ],
        ids=["empty", "cut", "damaged", "large", "long"],
    )
    def test_what_is_no_fit_image_is_refused(self, port: int, body: bytes, status: int, words: str) -> None:
        answer = Answer(port, "POST", "/api/images", body)
        assert (answer.status, words in answer.json()["error"]) == (status, True), answer.body

    @pytest.mark.parametrize(
        ("path", "status"),
        [
            ("/api/nets/7/segmentation?image.data={key}", 404),
            ("/api/nets/x/segmentation?image.data={key}", 422),
            ("/api/nets/0/segmentation?image.data=none", 404),
            ("/api/nets/0/segmentation", 422),
            ("/api/nets/0/pixel?image.data={key}&x=500&y=0", 422),
            ("/api/nets/0/pixel?image.data={key}&x=-1&y=0", 422),
            ("/api/nets/0/overlay?image.data={key}&blob=nothing", 404),
            ("/api/nets/0/blob?image.data={key}&blob=nothing", 422),
            ("/api/images/none", 404),
        ],
    )
    def test_what_is_not_there_is_said(self, port: int, key: str, path: str, status: int) -> None:
        answer = Answer(port, "GET", path.format(key=key))
        assert answer.status == status
        assert answer.json()["error"]

    def test_old_images_go(self, net: fcnproto.Net, scene: Image.Image) -> None:
        desk = Desk([served("net", net, net)], Limits(images=2))
        keys = [desk.add(bytes_of(scene))[0] for _ in range(3)]
        with pytest.raises(KeyError):
            desk.image(keys[0])
        assert desk.image(keys[1]).size == scene.size
        assert len(desk.segment(0, {"data": keys[2]})) == 1

    @pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK", "I;16"])
    def test_every_kind_of_image(self, net: fcnproto.Net, scene: Image.Image, mode: str) -> None:
        image = scene.convert("L").convert("I;16") if mode == "I;16" else scene.convert(mode)
        desk = Desk([served("net", net, net)])
        key, _ = desk.add(bytes_of(image, "TIFF" if mode == "CMYK" else "PNG"))
        (found,) = desk.segment(0, {"data": key})
        assert found.labels.shape == (scene.height, scene.width)


class TestReach:
    def test_nothing_outside_counts_and_the_edges_do(self, net: fcnproto.Net) -> None:
        """The box by the windows against the gradient's, of a net whose every path stays open (weights above 0)."""
        with torch.no_grad():
            opened = fcnproto.load(zoo.path("fcn-mini", "deploy"))
            for blobs in opened.params.values():
                for blob in blobs:
                    blob.abs_().clamp_(min=0.01)
        values = torch.rand(1, 3, 230, 250, requires_grad=True)
        score = opened(data=values)["score"]
        for row, column in ((100, 120), (3, 240)):
            box = reach(opened, "score", row, column)["data"]
            (slope,) = torch.autograd.grad(score[0, 1, row, column], values, retain_graph=True)
            rows, columns = (slope[0].abs().sum((0, 2 - axis)).nonzero().flatten() for axis in (0, 1))
            found = within(box, (230, 250))
            assert found is not None
            top, left, bottom, right = found
            assert top <= int(rows[0]) and int(rows[-1]) < bottom
            assert left <= int(columns[0]) and int(columns[-1]) < right
            # max pooling passes the gradient of one position by window: at most a window of the last pooling is missing
            assert int(rows[0]) - top <= 40 and bottom - 1 - int(rows[-1]) <= 40

    def test_layers_without_positions_reach_everything(self, tmp_path: Path) -> None:
        text = """
        input: "data" input_dim: 1 input_dim: 3 input_dim: 9 input_dim: 9
        layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 4 } }
        layer { name: "r" type: "Reshape" bottom: "ip" top: "r" reshape_param { shape { dim: [1, 1, 2, 2] } } }
        """
        (tmp_path / "net.prototxt").write_text(text)
        net = fcnproto.load(tmp_path / "net.prototxt")
        assert within(reach(net, "r", 1, 1)["data"], (9, 9)) == (0, 0, 9, 9)

    def test_outside_of_the_image(self, net: fcnproto.Net) -> None:
        box = reach(net, "conv1_1", 0, 0)["data"]
        assert (box.rows, box.columns) == ((-100, -98), (-100, -98))
        assert within(box, (50, 50)) is None


@pytest.mark.skipif(browser.find() is None, reason="no Chromium is installed")
def test_the_page_by_mouse_and_keys(port: int, scene: Image.Image, tmp_path: Path) -> None:
    scene.save(tmp_path / "scene.png")
    with browser.Browser(tmp_path) as page:
        page.visit(f"http://localhost:{port}/")
        page.wait("document.querySelectorAll('section').length === 2")
        assert page.run("document.querySelector('h2').textContent") == "first <b>"  # a name is text
        page.choose("#slots input", tmp_path / "scene.png")
        page.wait("document.querySelectorAll('.legend tr').length > 2")
        page.wait("[...document.querySelectorAll('.colours')].every(i => i.complete && i.naturalWidth === 128)")
        page.click(".picture")  # the middle: its probabilities and what it sees
        page.wait("getComputedStyle(document.querySelector('.field')).display === 'block'")
        column, row = page.run("document.querySelector('.place').textContent.match(/[0-9]+/g).map(Number)")
        assert abs(column - 64) <= 1 and abs(row - 48) <= 1
        page.key("ArrowRight")
        page.key("ArrowDown")
        page.wait(f"document.querySelector('.place').textContent === 'column {column + 1}, row {row + 1}'")
        page.key("Escape")
        page.wait("getComputedStyle(document.querySelector('.field')).display === 'none'")
        page.key("o")
        page.wait("document.querySelector('.colours').style.opacity === '0'")
        page.key("o")
        page.run("(b => { b.value = 'pool3'; b.onchange() })(document.querySelector('.blobs'))")
        page.wait("document.querySelector('.about').textContent.startsWith('pool3: 1 x 48')")
        page.picture(tmp_path / "page.png")
        drop = "new File([new Uint8Array([1, 2])], 'no.png', {type: 'image/png'})"
        page.run(
            f"(d => {{ d.items.add({drop}); document.body.dispatchEvent(new DragEvent('drop', "
            "{dataTransfer: d, bubbles: true})) })(new DataTransfer())"
        )
        page.wait("document.querySelector('#message.error')?.textContent === 'not an image of a known kind'")


def test_addresses_that_cannot_be_had(tmp_path: Path) -> None:
    arguments = ["serve", str(zoo.path("fcn-mini", "deploy")), str(zoo.path("fcn-mini", "weights"))]
    result = CliRunner().invoke(commands, [*arguments, "--host", "no.such.host.invalid"])
    assert isinstance(result.exception, fcnproto.UsageError)
    assert "can't listen on no.such.host.invalid" in str(result.exception)
