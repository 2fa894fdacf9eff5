"""Corpora on a Ray of two nodes: results of one process, and what happens when workers, nodes and sinks go."""

from __future__ import annotations

import functools
import io
import json
import tarfile
import threading
import time
from pathlib import Path
from typing import Any

import corpora
import numpy as np
import pytest
from PIL import Image

import fcnproto
from fcnproto import cluster
from fcnproto.cli._modules import import_layers
from fcnproto.errors import DataError, UsageError
from fcnproto.images import Preprocessing
from fcnproto.inspect.features import extract_features
from fcnproto.scoring import score_folders, score_net

pytestmark = pytest.mark.cluster


def run(source: Any, out: Any, net: Any, **options: Any) -> cluster.Summary:
    return cluster.segment(net, source, out, **{"workers": 2, "part": 16, **options})


def test_label_files_are_those_of_one_process(nodes: Any, tmp_path: Path) -> None:
    source = corpora.images(tmp_path / "images", 70)
    (source / "im020.png").write_bytes(b"no image")
    net = corpora.plain(tmp_path)
    expected = corpora.reference(net, source, tmp_path / "one")
    told: list[tuple[int, int | None]] = []
    out = tmp_path / "out"
    summary = run(source, out, net, told=lambda summary, total: told.append((summary.items, total)))
    assert corpora.labels(out) == expected
    assert (summary.items, summary.done, summary.kept, len(expected)) == (70, 69, 0, 69)
    ((name, reason),) = summary.failed
    assert name == "im020" and reason == f"{source / 'im020.png'}: not an image of a known kind"
    assert told[-1] == (70, 70)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest == summary.as_dict()
    assert manifest["failed"] == [{"name": name, "reason": reason}]
    assert manifest["bytes_read"] == sum(path.stat().st_size for path in source.iterdir())

    with pytest.raises(UsageError, match="holds results already; --resume"):
        run(source, out, net)
    with pytest.raises(UsageError, match="of another net"):
        run(source, out, corpora.segmenter(fcnproto.load(tmp_path / "colours.prototxt")), resume=True)
    wrong = corpora.segmenter(net.net)
    wrong.classes = ["one", "two"]
    with pytest.raises(UsageError, match="2 class names are given, but blob 'score' has 3 classes"):
        run(source, tmp_path / "wrong", wrong, workers=1)
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("*.png")}
    for name in ("im003", "im004", "im069"):
        (out / f"{name}_labels.png").unlink()
    corpora.images(tmp_path / "more", 1).joinpath("im000.png").rename(source / "im020.png")
    summary = run(source, out, net, resume=True)
    assert (summary.done, summary.kept, summary.failed) == (4, 66, [])
    assert {name: data for name, data in corpora.labels(out).items() if name != "im020_labels.png"} == expected
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items() if path.exists() and path.name[:5] not in ("im003", "im004", "im069"))  # fmt: skip


def test_crash_hang_killed_worker_and_sink_that_refuses(nodes: Any, tmp_path: Path) -> None:
    """All at once: the ones to blame are listed, every other image has the labels of an undisturbed run."""
    source = corpora.images(tmp_path / "images", 40)
    model, weights, module = corpora.trapped(tmp_path)
    import_layers(str(module))
    net = corpora.segmenter(fcnproto.load(model, weights))
    expected = corpora.reference(net, source, tmp_path / "one")
    for number, colour in ((5, corpora.CRASH), (20, corpora.HANG), (36, corpora.ONCE)):
        corpora.mark(source / f"im{number:03d}.png", colour)
    (source / "night").mkdir()
    (source / "im039.png").rename(source / "night" / "im039.png")
    out = tmp_path / "out"
    out.mkdir()
    (out / "night").write_text("in the way")
    began: list[float] = []

    def clear(summary: cluster.Summary, total: int | None) -> None:
        if not began:
            began.append(time.time())
            threading.Timer(4, (out / "night").unlink).start()

    setup = functools.partial(import_layers, str(module))
    summary = run(source, out, net, item_timeout=4.0, setup=setup, recursive=True, told=clear)
    reasons = dict(summary.failed)
    assert set(reasons) == {"im005", "im020"}
    assert reasons["im005"].startswith("the net ended its worker 2 times (a crash")
    assert reasons["im020"] == "the net took more than 4 s (--item-timeout)"
    assert (module.parent / "killed").exists()
    found = corpora.labels(out)
    found["im039_labels.png"] = found.pop("night/im039_labels.png")
    for name in ("im005_labels.png", "im020_labels.png"):
        assert name not in found and expected.pop(name)
    del found["im036_labels.png"], expected["im036_labels.png"]  # its first pixel is another
    assert found == expected


def test_a_node_goes_in_the_middle(nodes: Any, tmp_path: Path) -> None:
    source = corpora.images(tmp_path / "images", 200)
    net = corpora.plain(tmp_path)
    expected = corpora.reference(net, source, tmp_path / "one")
    gone: list[int] = []

    def remove(summary: cluster.Summary, total: int | None) -> None:
        if not gone:
            gone.append(summary.items)
            nodes.remove_node(next(iter(nodes.worker_nodes)), allow_graceful=False)

    try:
        summary = run(source, tmp_path / "out", net, told=remove)
    finally:
        nodes.add_node(num_cpus=2, object_store_memory=200_000_000)
    assert gone and gone[0] < 200
    assert (summary.done, summary.failed) == (200, [])
    assert corpora.labels(tmp_path / "out") == expected


def test_shards_in_and_out(nodes: Any, tmp_path: Path) -> None:
    """A tar shard and a Parquet file to a Parquet file; what was made of them, in a folder of tar parts, resumed."""
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    source = corpora.images(tmp_path / "images", 40)
    net = corpora.plain(tmp_path)
    expected = corpora.reference(net, source, tmp_path / "one")
    files = sorted(source.iterdir())
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for path in files[:20]:
            archive.add(path, path.name)
    table = pa.table(
        {"name": [path.name for path in files[20:]], "image": [{"bytes": path.read_bytes()} for path in files[20:]]}
    )
    pq.write_table(table, tmp_path / "b.parquet", row_group_size=7)
    out = tmp_path / "labels.parquet"
    summary = run([tmp_path / "a.tar", tmp_path / "b.parquet"], out, net, workers=1)
    assert (summary.done, summary.failed) == (40, [])
    rows = pq.read_table(out).to_pylist()
    assert {row["name"].split("/")[1] + "_labels.png": row["labels"] for row in rows} == expected
    assert len(rows) == 40 and all(row["error"] is None for row in rows)
    assert sum(share for _, share in rows[0]["shares"]) == pytest.approx(1)
    assert json.loads((tmp_path / "labels.parquet.manifest.json").read_text())["done"] == 40
    assert not (tmp_path / ".labels.parquet.parts").exists()

    broken = tmp_path / "broken.tar"
    broken.write_bytes(b"no archive at all" * 100)
    parts = tmp_path / "parts"
    summary = run([tmp_path / "a.tar", broken], parts, net, format="tar", workers=1)
    assert summary.done == 20 and [name for name, _ in summary.failed] == [str(broken)]
    first = sorted(parts.glob("part-*.tar"))[0]
    whole = first.read_bytes()
    first.unlink()
    summary = run([tmp_path / "a.tar", broken], parts, net, format="tar", resume=True, workers=1)
    assert (summary.done, summary.kept) == (16, 4) and first.read_bytes() == whole
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        names = archive.getnames()
        content = archive.extractfile("a/im000_labels.png").read()  # type: ignore[union-attr]
    assert names[:2] == ["a/im000_labels.png", "a/im000_labels.json"] and content == expected["im000_labels.png"]


def test_memory_and_lists(nodes: Any, tmp_path: Path) -> None:
    """What only the driver's process holds is read and written by it."""
    import fsspec

    source = corpora.images(tmp_path / "images", 5)
    net = corpora.plain(tmp_path)
    expected = corpora.reference(net, source, tmp_path / "one")
    memory = fsspec.filesystem("memory")
    for path in list(source.iterdir())[:3]:
        memory.pipe_file(f"/in/{path.name}", path.read_bytes())
    rest = sorted({path.name for path in source.iterdir()} - {name.split("/")[-1] for name in memory.ls("/in", False)})
    (tmp_path / "list.txt").write_text("\n".join(f"images/{name}" for name in rest))
    try:
        summary = run(["memory://in", f"file://{tmp_path}/list.txt"], "memory://out", net, workers=1)
        assert (summary.done, summary.failed) == (5, [])
        found = {name.split("/")[-1]: memory.cat_file(name) for name in memory.find("/out") if name.endswith(".png")}
        assert found == expected
    finally:
        memory.rm("/", recursive=True)


def test_scores_and_features_are_those_of_one_process(nodes: Any, tmp_path: Path) -> None:
    from fcnproto.data.datasets import ImageFolders, Images, Masks

    source = corpora.images(tmp_path / "images", 20)
    segmenter = corpora.plain(tmp_path)
    corpora.reference(segmenter, source, tmp_path / "one")
    truth = tmp_path / "truth"
    truth.mkdir()
    rng = np.random.default_rng(1)
    for path in source.iterdir():
        size = Image.open(path).size
        Image.fromarray(rng.integers(0, 3, size[::-1], dtype=np.uint8)).save(truth / path.name)
    names, how = ["b", "g", "r"], Preprocessing("bgr")
    options = {"cluster": cluster.Cluster(workers=1, part=8)}
    ours = cluster.score_folders(tmp_path / "one", truth, names, **options)
    assert ours.as_dict() == score_folders(tmp_path / "one", truth, names).as_dict()

    data = ImageFolders({"data": Images(source, how)}, {"label": Masks(truth, 3)})
    outputs = {"score": ("label", names)}
    expected = score_net(segmenter.net, (data[index] for index in range(20)), outputs)
    out = tmp_path / "scores"
    (ours,) = cluster.score_net(segmenter.net, data, outputs, out=out, **options)
    assert ours.as_dict() == expected[0].as_dict()
    sorted(out.glob("part-*.parquet"))[1].unlink()
    (ours,) = cluster.score_net(segmenter.net, data, outputs, out=out, resume=True, **options)
    assert ours.as_dict() == expected[0].as_dict()
    (truth / "im004.png").write_bytes(b"")
    with pytest.raises(DataError, match="im004.png: "):
        cluster.score_folders(tmp_path / "one", truth, names, **options)

    import pyarrow.parquet

    found = [(path, path.stem) for path in sorted(source.iterdir())]
    extract_features(segmenter.net, found, ["score"], tmp_path / "one.npz", how)
    cluster.features(segmenter.net, source, ["score"], tmp_path / "features.parquet", how, **options)
    with np.load(tmp_path / "one.npz") as arrays:
        for row in pyarrow.parquet.read_table(tmp_path / "features.parquet").to_pylist():
            expected_rows = arrays[f"score/{row['name']}"]
            assert tuple(row["score_shape"]) == expected_rows.shape
            assert (np.float32(row["score"]).reshape(expected_rows.shape) == expected_rows).all()
