"""Images that go to a device as bytes, labels that come back as bytes, and processes that write."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_nets import colour_net

import fcnproto
from fcnproto import zoo
from fcnproto.errors import DataError, UsageError
from fcnproto.images import Preprocessing, to_blob
from fcnproto.segment import Segmenter, segment, sending
from fcnproto.segment.writing import Writers

RANDOM = np.random.default_rng(0)
MEAN_IMAGE = RANDOM.uniform(0, 255, (3, 5, 7)).astype(np.float32)
MEANS = {
    "none": None,
    "one": np.array([117.3], np.float32),
    "channels": np.array([104.00699, 116.66877, 122.67892]),
    "image": MEAN_IMAGE,
    "another size": RANDOM.uniform(0, 255, (3, 9, 9)).astype(np.float32),
}


def picture(seed: int = 0, size: tuple[int, int] = (5, 7)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


@pytest.mark.filterwarnings("ignore:the mean image is")
@pytest.mark.parametrize("scale", [1.0, 0.017])
@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("kind", ["bgr", "rgb"])
def test_blobs_are_those_of_the_host(kind: str, mean: str, scale: float) -> None:
    how, means = Preprocessing(kind, MEANS[mean], scale), sending.Means()  # type: ignore[arg-type]
    for seed in range(2):
        pixels, taken = sending.pixels_of(picture(seed), how)
        assert pixels.dtype == torch.uint8 and pixels.shape == (1, 3, 5, 7)
        on_device = None if taken is None else means.on(torch.device("cpu"), "data", taken)
        blob = sending.to_blobs(torch.cat([pixels, pixels]), how, on_device)
        assert blob.is_contiguous() and blob.dtype == torch.float32
        assert torch.equal(blob, torch.from_numpy(np.stack([to_blob(picture(seed), how)] * 2)))
    assert not any(sending.suits(Preprocessing(other)) for other in ("grey", "depth"))


def test_a_mean_that_does_not_fit_is_told_when_the_image_is_read() -> None:
    with pytest.raises(DataError, match="the mean has 2 channels"):
        sending.pixels_of(picture(), Preprocessing("bgr", np.zeros(2)))


def test_means_are_sent_once() -> None:
    means, cpu = sending.Means(), torch.device("cpu")
    assert means.on(cpu, "data", np.array([1.0, 2.0])) is means.on(cpu, "data", np.array([1.0, 2.0]))
    assert means.on(cpu, "data", np.array([1.0, 3.0])).tolist() == [1, 3]
    assert means.on(cpu, "data", MEAN_IMAGE) is means.on(cpu, "data", MEAN_IMAGE)
    assert torch.equal(means.on(cpu, "data", MEAN_IMAGE + 1), torch.from_numpy(MEAN_IMAGE + 1))


@pytest.mark.parametrize("probabilities", [False, True])
def test_results_are_those_of_blobs(probabilities: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    net = fcnproto.load(zoo.path("fcn-mini", "deploy"), zoo.path("fcn-mini", "weights"))
    found = []
    for sends in (False, True):
        monkeypatch.setattr(Segmenter, "_sends_bytes", sends)
        segmenter = Segmenter(fcnproto.optimize(net), probabilities=probabilities, longest_side=40)
        scenes = [segmenter.prepare({"data": picture(seed, (48, 40))}, compare=True) for seed in range(3)]
        assert scenes[0].values["data"].dtype == (torch.uint8 if sends else torch.float32)
        found.append([one for result in segmenter.run(scenes) for one in result])  # type: ignore[union-attr]
    for ours, reference in zip(*found, strict=True):
        assert ours.labels.dtype == np.uint8 and ours.labels.shape == (48, 40)
        assert np.array_equal(ours.labels, reference.labels)
        assert (ours.probabilities is None) == (not probabilities)
        if probabilities:
            assert np.array_equal(ours.probabilities, reference.probabilities)


def test_all_labels_come_in_one_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter, copies = Segmenter(fcnproto.load(*colour_net(tmp_path))), []
    before = torch.Tensor.cpu

    def cpu(its: torch.Tensor) -> torch.Tensor:
        copies.append((its.dtype, its.numel()))
        return before(its)

    monkeypatch.setattr(torch.Tensor, "cpu", cpu)
    segmenter.run([segmenter.prepare({"data": picture(seed)}) for seed in range(3)])
    assert copies == [(torch.uint8, 3 * (1 + 5 * 7))]


def test_processes_write_the_same_files(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for seed in range(3):
        picture(seed).save(tmp_path / "in" / f"{seed}.png")
    net = fcnproto.load(*colour_net(tmp_path))
    results = {n: list(segment(net, tmp_path / "in", tmp_path / f"out{n}", writers=n)) for n in (0, 2)}
    assert [result.error for result in results[2]] == [None] * 3
    assert [[path.name for path in r.files] for r in results[0]] == [
        [path.name for path in r.files] for r in results[2]
    ]
    for path in (tmp_path / "out0").iterdir():
        assert path.read_bytes() == (tmp_path / "out2" / path.name).read_bytes()
    with pytest.raises(UsageError, match="writers must be 0 or more, not -1"):
        segment(net, tmp_path / "in", tmp_path / "out", writers=-1)


def test_what_processes_may_not_write_over(tmp_path: Path) -> None:
    (tmp_path / "cat_labels.png").write_bytes(b"")
    pen = Writers(1, {str((tmp_path / "cat_labels.png").resolve())})
    found = fcnproto.segment.Segmentation("score", np.zeros((5, 7), np.uint8), None)
    try:
        with pytest.raises(DataError, match="is one of the images to be read"):
            pen.write(picture(), [found], tmp_path / "cat", [()], True)
        assert pen._pool is not None
        for process in list(pen._pool._processes.values()):
            process.kill()
            process.join()
        with pytest.raises(DataError, match="a process that writes results has ended"):
            pen.write(picture(), [found], tmp_path / "dog", [()], True)
    finally:
        pen.close()


def test_processes_that_write_need_no_torch() -> None:
    script = "import sys, fcnproto.segment.writing; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
