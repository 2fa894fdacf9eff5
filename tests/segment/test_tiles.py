"""Images in tiles: the whole image's scores and labels, for tiles of any size, and where that can't be."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_cases import deviation
from PIL import Image
from tiny_nets import small_fcn
from torch import Tensor

import fcnproto
from fcnproto import zoo
from fcnproto.cli._main import main
from fcnproto.errors import DataError, UsageError
from fcnproto.inspect.running import run_with
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse
from fcnproto.segment import Segmenter
from fcnproto.segment import tiles as tiling
from fcnproto.segment.cutting import Cutting, Strides
from fcnproto.segment.tiles import WholeScores

SLIM = (4, 4, 6, 8, 8, 12)
fcn, sources = zoo.definitions("fcn"), zoo.definitions("sources")
BUILDERS = {
    "32s": (fcn.fcn32s, {"data": 3}, 5),
    "16s": (fcn.fcn16s, {"data": 3}, 5),
    "8s": (fcn.fcn8s, {"data": 3}, 5),
    "8s at once": (fcn.fcn8s_at_once, {"data": 3}, 5),
    "AlexNet": (fcn.fcn_alexnet, {"data": 3}, 5),
    "SIFT Flow": (fcn.fcn8s, {"data": 3}, {"sem": 6, "geo": 3}),
    "RGB-D": (fcn.fcn32s_early_fusion, {"color": 3, "depth": 1}, 5),
    "RGB and HHA": (fcn.fcn32s_late_fusion, {"color": 3, "hha": 3}, 5),
}


def filled(net: fcnproto.Net) -> fcnproto.Net:
    """The net with random weights that keep the signal."""
    torch.manual_seed(7)
    with torch.no_grad():
        for layer, blobs in net.params.items():
            if net.layer(layer).type == "BatchNorm":
                blobs[0].normal_(), blobs[1].uniform_(0.5, 2), blobs[2].fill_(1)
                continue
            torch.nn.init.kaiming_normal_(blobs[0]) if blobs[0].dim() > 1 else blobs[0].normal_()
            for bias in blobs[1:]:
                bias.normal_(std=0.3)
    return net


def published(name: str) -> fcnproto.Net:
    build, inputs, classes = BUILDERS[name]
    shapes = {blob: (1, channels, 64, 64) for blob, channels in inputs.items()}
    return filled(fcnproto.load(build(sources.inputs(shapes), classes, SLIM).to_proto()))


def loaded(text: str) -> fcnproto.Net:
    return filled(fcnproto.load(parse(text, caffe_pb2.NetParameter)))


@torch.no_grad()
def both(
    net: fcnproto.Net, blobs: list[str], values: Mapping[str, Tensor], side: int
) -> Iterator[tuple[str, Tensor, Tensor, Cutting]]:
    """For each blob the scores in tiles and those of the whole."""
    whole = run_with(net, values, blobs)
    cutting = Strides.of(net, blobs).cutting({name: tuple(value.shape) for name, value in values.items()})
    found = {blob: WholeScores(cutting.extents(blob)) for blob in blobs}

    def scores(tile: dict[str, Tensor]) -> Mapping[str, Tensor]:
        outputs = run_with(net, tile, blobs)
        return {blob: outputs[blob] for blob in blobs}

    for part in cutting.run(values, side, scores):
        found[part.blob].put(part)
    for blob in blobs:
        yield blob, found[blob].scores, whole[blob], cutting


@pytest.mark.parametrize(
    ("name", "optimized"), [("8s", False), ("RGB-D", False), *((name, True) for name in BUILDERS)], ids=str
)
def test_published_nets(name: str, optimized: bool) -> None:
    net = published(name)
    if optimized:
        net = fcnproto.optimize(net)
    height, width = (655, 53) if optimized else (71, 643)
    values = {blob: torch.randn(1, shape[1] or 0, height, width) for blob, shape in net.source_shapes.items()}
    for blob, tiled, whole, cutting in both(net, list(net.outputs), values, 100):
        assert max(len(cutting.cuts(axis, 100)) for axis in (0, 1)) == 6
        assert deviation(tiled, whole) <= 1e-5, (name, blob)
        first, second = whole.topk(2, 1).values.unbind(1)
        clear = first - second > 2e-5 * whole.abs().max()
        assert torch.equal(tiled.argmax(1)[clear], whole.argmax(1)[clear])


def test_a_tile_sees_no_more_than_it_needs() -> None:
    """The receptive field of FCN-32s is 404 pixels and its stride 32; every tile has one size."""
    net = published("32s")
    cutting = Strides.of(net, ["score"]).cutting({"data": (1, 3, 5000, 3001)})
    for axis, length in ((0, 5000), (1, 3001)):
        cuts = cutting.cuts(axis, 512)
        assert len({cut.stop - cut.start for cut in cuts}) == 1
        assert cuts[0].stop - cuts[0].start <= 512 + 2 * (404 + 64)
        assert cuts[0].start == 0 and cuts[-1].stop == length
        covered = [cut.kept["score"] for cut in cuts]
        assert [first for first, _ in covered] == [0, *(last for _, last in covered[:-1])]
        assert covered[-1][1] == length


WINDOWED = [
    'type: "Convolution" convolution_param {{ num_output: 4 kernel_size: {k} stride: {s} pad: {p} }}',
    'type: "Convolution" convolution_param {{ num_output: 4 kernel_h: 1 kernel_w: {k} stride_h: 1 stride_w: {s} pad_h: {p} pad_w: 0 }}',
    'type: "Convolution" convolution_param {{ num_output: 4 kernel_size: 3 dilation: 2 pad: {p} }}',
    'type: "Deconvolution" convolution_param {{ num_output: 4 kernel_size: {k} stride: 2 pad: {q} }}',
    'type: "Pooling" pooling_param {{ pool: MAX kernel_size: {k} stride: {s} pad: {q} }}',
    'type: "Pooling" pooling_param {{ pool: AVE kernel_size: {k} stride: {s} pad: {q} }}',
]
POINTWISE = [
    'type: "ReLU"',
    'type: "BatchNorm" batch_norm_param { use_global_stats: true }',
    'type: "Scale" scale_param { bias_term: true }',
    'type: "LRN" lrn_param { local_size: 3 }',
    'type: "LRN" lrn_param { local_size: 3 norm_region: WITHIN_CHANNEL }',
    'type: "Softmax"',
    'type: "Dropout"',
    'type: "PReLU"',
]


def chain(seed: int) -> fcnproto.Net:
    """A random chain of windows and pointwise layers, with branches that crops bring together again."""
    draw, lines, top = random.Random(seed), [], "data"
    size = "input_param { shape { dim: 1 dim: 3 dim: 120 dim: 130 } }"
    lines.append(f'layer {{ name: "data" type: "Input" top: "data" {size} }}')
    for place in range(draw.randrange(3, 9)):
        k = draw.choice([2, 3, 3, 5])
        settings = draw.choice(WINDOWED).format(
            k=k, s=draw.choice([1, 2, 3][: k - 1]), p=draw.choice([0, 1, 7]), q=draw.choice([0, 1])
        )
        lines.append(f'layer {{ name: "w{place}" bottom: "{top}" top: "w{place}" {settings} }}')
        top = f"w{place}"
        if draw.random() < 0.5:
            lines.append(f'layer {{ name: "p{place}" bottom: "{top}" top: "p{place}" {draw.choice(POINTWISE)} }}')
            top = f"p{place}"
        if draw.random() < 0.3:
            lines.append(
                f'layer {{ name: "a{place}" bottom: "{top}" top: "a{place}" type: "Convolution" convolution_param {{ num_output: 4 kernel_size: 3 pad: 3 }} }}'
            )
            lines.append(
                f'layer {{ name: "c{place}" bottom: "a{place}" bottom: "{top}" top: "c{place}" type: "Crop" crop_param {{ axis: 2 offset: {draw.choice([0, 1, 2, 4])} }} }}'
            )
            kind = draw.choice(["Eltwise", "Concat"])
            both_ways = f'bottom: "c{place}" bottom: "a{place}b"'
            lines.append(
                f'layer {{ name: "a{place}b" bottom: "c{place}" top: "a{place}b" type: "Convolution" convolution_param {{ num_output: 4 kernel_size: 3 pad: 1 }} }}'
            )
            lines.append(f'layer {{ name: "j{place}" {both_ways} top: "j{place}" type: "{kind}" }}')
            top = f"j{place}"
    return loaded("\n".join(lines))


@pytest.mark.parametrize("seed", range(16))
def test_random_chains(seed: int) -> None:
    net, draw = chain(seed), random.Random(seed)
    values = {"data": torch.randn(1, 3, draw.randrange(90, 200), draw.randrange(60, 120))}
    for _, tiled, whole, _ in both(net, list(net.outputs), values, draw.choice([8, 20, 40])):
        assert bool(whole.isfinite().all())
        assert deviation(tiled, whole) <= 1e-5


@pytest.fixture(scope="module")
def net() -> fcnproto.Net:
    return published("SIFT Flow")


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """Of 560 x 90 pixels: nothing repeats in it."""
    values = np.random.default_rng(3).integers(0, 256, (9, 56, 3), np.uint8)
    return Image.fromarray(values).resize((560, 90), Image.Resampling.BICUBIC)


def alike(net: fcnproto.Net, photo: Image.Image, tile: int | str, **options: object) -> None:
    """The segmenter's results in tiles are those of the whole image."""
    whole = Segmenter(net, tile="off", probabilities=True, **options)(photo)
    for found, expected in zip(Segmenter(net, tile=tile, probabilities=True, **options)(photo), whole, strict=True):
        assert found.blob == expected.blob
        assert found.probabilities is not None and expected.probabilities is not None
        assert np.abs(found.probabilities - expected.probabilities).max() <= 1e-5
        assert (found.labels == expected.labels).mean() >= 0.999  # but for ties of classes


def test_a_segmenter_gives_the_same(net: fcnproto.Net, photo: Image.Image) -> None:
    alike(net, photo, 96)
    alike(net, photo, 96, blobs=["score_geo"], longest_side=500)  # scores of another size than the image


def test_scores_of_a_coarser_grid(photo: Image.Image) -> None:
    size = "input_param { shape { dim: 1 dim: 3 dim: 64 dim: 64 } }"
    alike(
        loaded(
            f'layer {{ name: "data" type: "Input" top: "data" {size} }}'
            'layer { name: "c" type: "Convolution" bottom: "data" top: "c" '
            "  convolution_param { num_output: 5 kernel_size: 7 stride: 4 pad: 2 } }"
        ),
        photo,
        50,
    )


REFUSED = {
    "InnerProduct": "inner_product_param { num_output: 4 }",
    "MVN": "",
    "Pooling": "pooling_param { pool: AVE global_pooling: true }",
    "Softmax": "softmax_param { axis: 2 }",
    "BatchNorm": "",  # of a net for training: by the image's own statistics
}


@pytest.mark.parametrize("kind", REFUSED)
def test_layers_that_look_at_the_whole_image(kind: str, photo: Image.Image) -> None:
    text = (
        'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 90 dim: 560 } } }'
        'layer { name: "c" type: "Convolution" bottom: "data" top: "c" convolution_param { num_output: 4 kernel_size: 1 } }'
        f'layer {{ name: "odd" type: "{kind}" bottom: "c" top: "odd" {REFUSED[kind]} }}'
        'layer { name: "t" type: "TanH" bottom: "odd" top: "t" }'
    )
    phase = "train" if kind == "BatchNorm" else "test"
    net = fcnproto.load(parse(text, caffe_pb2.NetParameter), phase=phase)
    with pytest.raises(UsageError, match=rf"layer 'odd' \({kind}\) .*can't be computed in tiles; .*--tile off"):
        Segmenter(net, tile=64)
    Segmenter(net, tile="auto")  # which computes such a net whole


@pytest.mark.parametrize("tile", ["on", 0, -3, True])
def test_other_words(net: fcnproto.Net, tile: object) -> None:
    with pytest.raises(UsageError, match="tile must be 'auto', 'off' or a number"):
        Segmenter(net, tile=tile)


def pieces(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The sizes that go through a segmenter's net from now on."""
    seen: list[tuple[int, ...]] = []
    module = fcnproto.segment.segmenter
    run = module.run_with

    def watched(net: fcnproto.Net, values: Mapping[str, Tensor], blobs: list[str]) -> Mapping[str, Tensor]:
        seen.append(tuple(next(iter(values.values())).shape[2:]))
        return run(net, values, blobs)

    monkeypatch.setattr(module, "run_with", watched)
    return seen


def test_auto_goes_by_the_memory_that_is_free(
    net: fcnproto.Net, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = pieces(monkeypatch)
    for free, expected in ((1 << 40, 560), (None, 560), (45 << 20, 560), (10 << 20, 528)):
        monkeypatch.setattr(tiling, "free_bytes", lambda device, free=free: free)
        seen.clear()
        Segmenter(net)(photo)
        assert {width for _, width in seen} == {expected}, free
        assert (len(seen) > 1) == (expected < 560)


def test_auto_makes_tiles_smaller_where_memory_does_not_suffice(
    net: fcnproto.Net, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [one.labels for one in Segmenter(net, tile="off")(photo)]
    seen = pieces(monkeypatch)
    run = fcnproto.segment.segmenter.run_with

    def short(net: fcnproto.Net, values: Mapping[str, Tensor], blobs: list[str]) -> Mapping[str, Tensor]:
        if next(iter(values.values())).shape[3] > 550:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory")
        return run(net, values, blobs)

    monkeypatch.setattr(fcnproto.segment.segmenter, "run_with", short)
    for _ in range(2):
        for found, labels in zip(Segmenter(net)(photo), expected, strict=True):
            assert (found.labels == labels).mean() >= 0.999
    with pytest.raises(DataError, match="560x90 pixels are too many for the memory"):
        Segmenter(net, tile="off")(photo)
    assert seen


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, weights = map(str, small_fcn(tmp_path))
    values = np.random.default_rng(3).integers(0, 256, (61, 83, 3), np.uint8)
    Image.fromarray(values).save(tmp_path / "cat.png")
    found = []
    for tile in ("off", "16", "auto"):
        folder = tmp_path / tile
        assert main(["segment", model, weights, str(tmp_path / "cat.png"), "-o", str(folder), "--tile", tile]) == 0
        found.append((folder / "cat_labels.png").read_bytes())
    assert found[0] == found[1] == found[2]
    capsys.readouterr()
    for wrong in ("0", "some"):
        assert main(["segment", model, weights, str(tmp_path), "-o", str(tmp_path), "--tile", wrong]) == 2
        assert "is not auto, off or a number of pixels from 1 on" in capsys.readouterr().err
