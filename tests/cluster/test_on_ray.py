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
from fcnproto.cli._main import main
from fcnproto.cli._modules import import_layers
from fcnproto.errors import UsageError
from fcnproto.segment.crf import parse_crf

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
    smaller = corpora.segmenter(net.net)
    smaller.longest_side = 8
    with pytest.raises(UsageError, match="of another net, or of one with other settings"):
        run(source, out, smaller, resume=True)
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
        nodes.add_node(num_cpus=2, object_store_memory=corpora.STORE)
    assert gone and gone[0] < 200
    assert (summary.done, summary.failed) == (200, [])
    assert corpora.labels(tmp_path / "out") == expected


def test_memory_is_bounded_however_long_the_corpus(nodes: Any, tmp_path: Path) -> None:
    """Of pixels that are half as much again as the object stores hold a part is there at a time, and none on the disk."""
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    side, count = 500, 384
    (tmp_path / "images").mkdir()
    Image.new("RGB", (side, side), (200, 100, 50)).save(tmp_path / "images" / "im000.png")
    for number in range(1, count):
        (tmp_path / "images" / f"im{number:03d}.png").hardlink_to(tmp_path / "images" / "im000.png")
    stores = [node["Resources"]["object_store_memory"] for node in ray_nodes()]
    assert 3 * side**2 * count > sum(stores)
    state, ended = get_state_from_address(nodes.address), threading.Event()
    used, spilled, own = [], [], []

    def watch() -> None:
        while not ended.wait(0.2):
            found = get_memory_info_reply(state).store_stats
            used.append(found.object_store_bytes_used)
            spilled.append(found.spilled_bytes_total)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        told = lambda summary, total: own.append(own_memory())  # noqa: E731
        summary = run(tmp_path / "images", tmp_path / "out.parquet", corpora.plain(tmp_path), workers=1, told=told)
    finally:
        ended.set()
        watching.join()
    assert (summary.done, summary.failed) == (count, [])
    assert max(used) < 0.8 * sum(stores) and spilled[-1] == spilled[0]
    assert max(own) - own[0] < sum(stores) / 4


def own_memory() -> int:
    """The bytes of memory that are this process's alone; what it shares with others (the object store) is not."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def ray_nodes() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


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
    """What only the driver's process holds is read and written by it. (With a CRF, which works on any corpus.)"""
    import fsspec

    source = corpora.images(tmp_path / "images", 5)
    net = corpora.plain(tmp_path)
    net.crf = parse_crf("iterations=2")
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


def printed(arguments: list[Any], capsys: pytest.CaptureFixture[str]) -> Any:
    """The JSON that a command prints."""
    capsys.readouterr()
    status = main([*map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    assert status == 0, err
    return json.loads(out)


def test_scores_and_features_from_the_command_line(
    nodes: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the commands print and write with `--cluster` is what they print and write without."""
    source = corpora.images(tmp_path / "images", 20)
    model, weights = corpora.colour_net(tmp_path)
    corpora.reference(corpora.segmenter(fcnproto.load(model, weights)), source, tmp_path / "one")
    (tmp_path / "truth").mkdir()
    (tmp_path / "classes.txt").write_text("b\ng\nr\n")
    rng = np.random.default_rng(1)
    for path in source.iterdir():
        size = Image.open(path).size
        pixels = rng.integers(0, 3, size[::-1], dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "truth" / f"{path.stem}_mask.png")
    through = ["--cluster", nodes.address, "--workers", 1, "--part", 8]

    folders = ["score", "folders", tmp_path / "one", tmp_path / "truth", "--classes", tmp_path / "classes.txt"]
    assert printed([*folders, *through], capsys) == printed(folders, capsys)

    scored = ["score", "net", model, weights, "--images", source, "--masks", tmp_path / "truth", "--mean", "none"]
    scored += ["--classes", tmp_path / "classes.txt"]
    expected, out = printed(scored, capsys), tmp_path / "scores"
    assert printed([*scored, *through, "-o", out], capsys) == expected
    sorted(out.glob("part-*.parquet"))[1].unlink()
    assert main([*map(str, [*scored, *through, "-o", out])]) == 2
    assert "holds results already; --resume adds what is missing" in capsys.readouterr().err
    assert printed([*scored, *through, "-o", out, "--resume", "--batch", 4], capsys) == expected
    (tmp_path / "truth" / "im004_mask.png").write_bytes(b"")
    assert main([*map(str, [*folders, *through])]) == 1
    assert "im004_mask.png: " in capsys.readouterr().err

    pq = pytest.importorskip("pyarrow.parquet")
    featured = ["features", model, weights, source, "--blobs", "score", "--mean", "none"]
    assert main([*map(str, [*featured, "-o", tmp_path / "one.npz"])]) == 0
    summary = printed([*featured, *through, "-o", tmp_path / "features.parquet"], capsys)
    assert (summary["done"], summary["failed"]) == (20, [])
    with np.load(tmp_path / "one.npz") as arrays:
        for row in pq.read_table(tmp_path / "features.parquet").to_pylist():
            expected_rows = arrays[f"score/{row['name']}"]
            assert tuple(row["score_shape"]) == expected_rows.shape
            assert (np.float32(row["score"]).reshape(expected_rows.shape) == expected_rows).all()
