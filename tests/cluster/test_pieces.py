"""What a corpus on Ray is made of, without Ray: chunks, sources, sinks, the guard, the parcel."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import pickle
import sys
import tarfile
import threading
from pathlib import Path
from typing import Any

import corpora
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_nets import colour_net, small_fcn

import fcnproto
from fcnproto.cli._main import main
from fcnproto.cluster import Cluster, chunks, engine, guard, places, scoring, sending, sinks, sources
from fcnproto.cluster.chunks import Chunk, Failure, Item
from fcnproto.cluster.segmenting import decoded
from fcnproto.cluster.summary import Summary
from fcnproto.errors import DataError, UsageError
from fcnproto.images import Preprocessing, as_image, pixel_count
from fcnproto.scoring import score_folders
from fcnproto.segment.polygons import CocoFile, labelme_content
from fcnproto.segment.results import Segmentation

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed (the extra `cluster`)")


def items(*sizes: int) -> list[Item]:
    return [Item(f"i{number}", f"/x/i{number}.png", size) for number, size in enumerate(sizes)]


class TestChunks:
    @pytest.mark.parametrize("part", [1, 16, 20, 64])
    def test_begin_at_multiples_of_the_step(self, part: int) -> None:
        found = list(chunks.cut(items(*[100] * 150), 16, part))
        assert [item for chunk in found for item in chunk.items] == items(*[100] * 150)
        assert all(int(chunk.key[-10:]) % 16 == 0 for chunk in found)
        assert all(len(chunk.items) <= max(16, part) for chunk in found)
        assert [chunk.key for chunk in found] == sorted(chunk.key for chunk in found)

    def test_have_fewer_large_items(self) -> None:
        assert {len(chunk.items) for chunk in chunks.cut(items(*[10**6] * 64), 16, 64)} == {16}

    def test_come_through_a_row(self) -> None:
        chunk = Chunk("part-000000-0000000000", items(1, 2), [Failure("no"), np.zeros(3)], frozenset({1}), 5)
        again = chunks.from_row(chunk.row())
        assert again.values[0] == Failure("no") and again.done == {1} and again.open_places() == [1]
        assert chunks.reasons([again]) == [("i0", "no")]


class TestSources:
    def test_names_are_those_of_one_process(self, tmp_path: Path) -> None:
        source = corpora.images(tmp_path / "a", 3)
        (tmp_path / "list.txt").write_text(f"a/im002.png\n\n{tmp_path}/a/im000.png\n")
        found = sources.corpus([tmp_path / "list.txt"])
        assert [(item.name, item.place) for item in found.items] == [
            ("im002", str(source / "im002.png")),
            ("im000", str(source / "im000.png")),
        ]
        assert found.items[0].size == (source / "im002.png").stat().st_size

    def test_a_folder_of_shards(self, tmp_path: Path) -> None:
        for name in ("b.tar", "a.tar", "readme.md"):
            (tmp_path / name).write_bytes(b"")
        found = sources.corpus(tmp_path)
        assert [(Path(shard.address).name, shard.prefix) for shard in found.shards] == [
            ("a.tar", "a/"),
            ("b.tar", "b/"),
        ]

    def test_a_member_that_leads_out_stays_in(self, tmp_path: Path) -> None:
        with tarfile.open(tmp_path / "x.tar", "w") as archive:
            for name in ("../../evil.png", "/abs.png", "a/b.jpg", "a/b.png", "a/text.txt"):
                member = tarfile.TarInfo(name)
                member.size = 4
                archive.addfile(member, io.BytesIO(b"data"))
        (chunk,) = sources.listing(sources.Shard(str(tmp_path / "x.tar"), 1), 16, 64, None)
        assert [item.name for item in chunk.items] == ["evil", "abs", "a/b", "a/b_png"]
        reader = sources.Reader()
        assert [reader(item) for item in chunk.items] == [b"data"] * 4
        reader.close()

    @pytest.mark.parametrize("kind", ["bgr", "bands", "depth"])
    def test_content_is_read_as_the_file_is(self, tmp_path: Path, kind: str) -> None:
        """Whatever a shard calls it: colours of 16 bits, more than three bands, arrays."""
        tifffile = pytest.importorskip("tifffile")
        rng = np.random.default_rng(0)
        deep = rng.integers(0, 2**16, (5, 6, 4 if kind == "bands" else 3), dtype=np.uint16)
        files = [tmp_path / "a.tif", tmp_path / "b.npy", tmp_path / "c.png"]
        values = deep[:, :, 0] if kind == "depth" else deep
        tifffile.imwrite(files[0], values, photometric="rgb" if kind == "bgr" else "minisblack", planarconfig="contig")
        np.save(files[1], values)
        grey = kind == "depth"
        Image.fromarray(rng.integers(0, 256, (5, 6) if grey else (5, 6, 3), dtype=np.uint8)).save(files[2])
        how = Preprocessing(kind, bands=4 if kind == "bands" else 0)  # type: ignore[arg-type]
        for file in files[: 2 if kind == "bands" else 1 if kind == "depth" else 3]:
            item, content = Item("x", f"{tmp_path}/shard.tar", offset=0), file.read_bytes()
            picture = as_image(file, how.kind, how.bands)
            expected = picture.values if kind == "bands" else np.asarray(picture)  # type: ignore[union-attr]
            np.testing.assert_array_equal(decoded(item, content, how), expected)
            assert pixel_count(file) == pixel_count("shard.tar: x", content)

    def test_arrays_are_images_where_bands_are_wanted(self, tmp_path: Path) -> None:
        for name in ("a.npy", "b.tif"):
            (tmp_path / name).write_bytes(b"")
        with tarfile.open(tmp_path / "x.tar", "w") as archive:
            archive.add(tmp_path / "a.npy", "a.npy")
        for arrays in (True, False):
            found = sources.corpus([tmp_path / "a.npy", tmp_path, tmp_path / "x.tar"][1:], arrays=arrays)
            assert [item.name for item in found.items] == (["a", "b"] if arrays else ["b"])
            members = [item.name for chunk in sources.listing(found.shards[0], 16, 64, None) for item in chunk.items]
            assert members == (["a"] if arrays else [])

    def test_parquet_without_images_fails_as_one_item(self, tmp_path: Path) -> None:
        pa = pytest.importorskip("pyarrow")
        pq = pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.table({"a": [1], "b": ["x"]}), tmp_path / "x.parquet")
        (chunk,) = sources.listing(sources.Shard(str(tmp_path / "x.parquet"), 1), 16, 64, None)
        ((name, reason),) = chunks.reasons([chunk])
        assert name == str(tmp_path / "x.parquet") and "no column of bytes; its columns are a, b (--column" in reason

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("nowhere://x", "Protocol not known"),
            ("memory://nothing", "nothing is there"),
            ("empty", "no images in"),
            *(
                (f"{scheme}://bucket/x", f"{scheme}://bucket/x: .*{package}")
                for scheme, package in [("s3", "s3fs"), ("gs", "gcsfs"), ("abfs", "adlfs"), ("hdfs", "pyarrow")]
            ),
        ],
    )
    def test_what_is_no_source(self, tmp_path: Path, source: str, message: str) -> None:
        (tmp_path / "empty").mkdir()
        given = source if "://" in source else tmp_path / source
        if "bucket" in source and importlib.util.find_spec(message.rpartition("*")[2]) and "pyarrow" not in message:
            pytest.skip("its package is installed")
        with pytest.raises(UsageError, match=message) as error:
            sources.corpus(given)
        assert "\n" not in str(error.value)


class TestPlaces:
    @pytest.mark.parametrize("start", ["memory://p", "", "file://"])
    def test_written_and_read(self, tmp_path: Path, start: str) -> None:
        address = places.address_of(start + (str(tmp_path / "d") if "mem" not in start else ""))
        try:
            places.write(places.join(address, "a", "b.bin"), b"12345")
            with places.writing(places.join(address, "c.bin")) as file:
                file.write(b"67")
            assert places.files_in(address) == [
                (places.join(address, "a", "b.bin"), 5),
                (places.join(address, "c.bin"), 2),
            ]
            assert places.read(places.join(address, "c.bin")) == b"67"
            with pytest.raises(DataError, match="no such file"):
                places.read(places.join(address, "nothing"))
        finally:
            places.remove_folder(address)
        assert not places.exists(address)

    def test_a_file_system_on_which_half_files_can_be_seen(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """There a file is written beside and renamed."""
        from fsspec.implementations.memory import MemoryFileSystem

        class Slow(MemoryFileSystem):
            protocol = "slow"
            store: dict[str, Any] = {}  # noqa: RUF012
            piped: list[str] = []  # noqa: RUF012

            def pipe_file(self, path: str, value: bytes, **options: Any) -> None:
                self.piped.append(path)
                super().pipe_file(path, value, **options)

        fsspec.register_implementation("slow", Slow, clobber=True)
        places.write("slow://a/b.bin", b"1")
        assert [path.rpartition("/")[2] for path in Slow.piped] == [".b.bin.fcnproto.tmp"]
        assert [path.rpartition("/")[2] for path in Slow.store] == ["b.bin"]

    def test_what_a_package_raises_is_told_and_tried_again(self, tmp_path: Path) -> None:
        """Clients of object stores have errors of their own, which are no OSErrors."""
        from fsspec.implementations.memory import MemoryFileSystem

        class LostError(Exception):
            pass

        class Away(MemoryFileSystem):
            protocol = "away"

            def _lost(self, *arguments: Any, **options: Any) -> Any:
                raise LostError("could not connect\nto the endpoint")

            cat_file = pipe_file = find = isdir = exists = _lost

        fsspec.register_implementation("away", Away, clobber=True)
        with pytest.raises(DataError, match=r"^away://b/x: can't be read \(could not connect\)$"):
            places.read("away://b/x")
        with pytest.raises(OSError, match="could not connect") as lost:
            sources.corpus("away://b")
        assert (lost.value.filename, lost.value.strerror) == ("away://b", "could not connect")
        sink = sinks.sink_of("away://b/out", "files", None, [""])
        row = {"name": "i0", "blob": "score", "part": "", "labels": b"png", "shares": {}}
        with pytest.raises(sinks.SinkError, match=f"{sinks.REFUSES} .*could not connect"):
            sink.write(Chunk("part-000000-0000000000", items(1), [object()]), {0: [row]})


class TestSinks:
    def rows(self) -> dict[int, list[dict[str, Any]]]:
        return {
            place: [
                {"name": f"i{place}", "blob": "score", "part": "", "labels": b"png%d" % place, "shares": {"a": 1.0}}
            ]
            for place in (0, 2)
        }

    def chunk(self, **values: Any) -> Chunk:
        return Chunk("part-000000-0000000000", items(1, 1, 1), [object(), Failure("broken"), object()], **values)

    def schema(self) -> Any:
        from fcnproto.cluster.segmenting import Segmenting

        return Segmenting(Preprocessing("bgr"), "cpu", None, "", 16).schema()

    @pytest.mark.parametrize("kind", ["files", "tar", "parquet"])
    def test_hold_what_was_written(self, tmp_path: Path, kind: str) -> None:
        pytest.importorskip("pyarrow")
        sink = sinks.sink_of(str(tmp_path / "out"), kind, self.schema(), [""])
        record = {"net": "n", "corpus": "c", "part": 64}
        sink.begin(record, False)
        assert not sink.holds_results() and sink.done(self.chunk()) == frozenset()
        sink.write(self.chunk(), self.rows())
        assert sink.done(self.chunk()) == {0, 2} and sink.holds_results()
        with pytest.raises(UsageError, match="holds results already"):
            sink.begin(record, False)
        sink.begin(record, True)
        with pytest.raises(UsageError, match="of another net"):
            sink.begin({**record, "net": "m"}, True)
        before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        # again, where one has failed and is done now
        chunk = Chunk(self.chunk().key, items(1, 1, 1), [None, object(), None], frozenset({0, 2}))
        sink.write(chunk, {1: [{"name": "i1", "part": "", "labels": b"png1", "shares": {}}]})
        assert sink.done(self.chunk()) == {0, 1, 2}
        after = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        assert set(before) <= set(after) and len(after) == len(before) + (kind == "files")

    def test_one_file_is_put_together(self, tmp_path: Path) -> None:
        pq = pytest.importorskip("pyarrow.parquet")
        for ending in ("tar", "parquet"):
            target = tmp_path / f"x.{ending}"
            sink = sinks.sink_of(str(target), None, self.schema(), [""])
            sink.begin({"net": "n", "corpus": "c", "part": 64}, False)
            for first in (3, 0):
                chunk = Chunk(f"part-000000-000000000{first}", items(1), [object()])
                sink.write(chunk, {0: [{"name": f"i{first}", "part": "", "labels": b"png", "shares": {}}]})
            assert not sink.complete()
            sink.finish(Summary("segment").as_dict())
            assert sink.complete() and sink.holds_results()
            assert json.loads((tmp_path / f"x.{ending}.manifest.json").read_text())["command"] == "segment"
        assert [row["name"] for row in pq.read_table(tmp_path / "x.parquet").to_pylist()] == ["i0", "i3"]
        with tarfile.open(tmp_path / "x.tar") as archive:
            assert archive.getnames() == ["i0_labels.png", "i0_labels.json", "i3_labels.png", "i3_labels.json"]

    def test_a_refusal_is_told_as_one(self, tmp_path: Path) -> None:
        sink = sinks.sink_of(str(tmp_path / "out"), "files", self.schema(), [""])
        (tmp_path / "out").write_text("in the way")
        with pytest.raises(sinks.SinkError, match=sinks.REFUSES):
            sink.write(self.chunk(), self.rows())


class Telling(guard.Guard):
    """A guard whose ledger is in this process."""

    def __init__(self, ledger: guard.Ledger) -> None:
        super().__init__(None, None, "it")
        self.book = ledger

    def _begin(self, key: Any, parts: list[Any]) -> Any:
        return self.book.begin(key, parts)

    def _end(self, key: Any) -> None:
        self.book.end(key)


class Death(BaseException):
    """The worker's process ends."""


class TestGuard:
    def alive(self, ledger: guard.Ledger, work: Any) -> tuple[Any, int]:
        """What comes out when a dead worker is started again, and how often it died."""
        for deaths in range(20):
            try:
                return work(Telling(ledger)), deaths
            except Death:
                continue
        raise AssertionError("it goes on dying")

    @pytest.mark.parametrize("bad", [[], [1], [0, 2]])
    def test_the_item_that_kills_is_found_and_the_others_run_together(self, bad: list[int]) -> None:
        runs: list[list[int]] = []

        def compute(numbers: list[int]) -> list[int]:
            if set(numbers) & set(bad):
                raise Death
            runs.append(numbers)
            return [10 * number for number in numbers]

        names = {number: f"n{number}" for number in range(4)}
        ledger = guard.Ledger()
        found, deaths = self.alive(ledger, lambda one: one.together(names, compute))
        good = [number for number in range(4) if number not in bad]
        assert {number: found[number] for number in good} == {number: 10 * number for number in good}
        assert all(found[number].reason.startswith("it ended its worker 2 times") for number in bad)
        assert runs[-1] == good and deaths == (1 + 2 * len(bad) if bad else 0)

    def test_a_worker_killed_from_outside_costs_no_item(self) -> None:
        times = [0]

        def compute(numbers: list[int]) -> list[int]:
            times[0] += 1
            if times[0] in (1, 3):
                raise Death
            return numbers

        found, deaths = self.alive(guard.Ledger(), lambda one: one.together({0: "a", 1: "b"}, compute))
        assert found == {0: 0, 1: 1} and deaths == 2

    def test_each(self) -> None:
        def compute(number: int) -> int:
            if number == 1:
                raise Death
            if number == 2:
                raise ValueError("bad")
            return number

        ledger = guard.Ledger()
        found, deaths = self.alive(ledger, lambda one: one.each("k", {0: "a", 1: "b", 2: "c"}, compute))
        assert found[0] == 0 and found[2] == Failure("ValueError: bad") and "ended its worker" in found[1].reason
        assert deaths == 3
        ledger.time_out(("it", "a"))
        late = Telling(ledger)
        late.seconds = 3
        assert late.each("k", {0: "a"}, compute) == {0: Failure("it took more than 3 s (--item-timeout)")}

    def test_a_usage_error_is_no_items_fault(self) -> None:
        def compute(number: int) -> int:
            raise UsageError("all wrong")

        with pytest.raises(UsageError):
            Telling(guard.Ledger()).each("k", {0: "a"}, compute)


class TestParcel:
    def test_a_net_comes_out_as_it_went_in_and_shares_its_parameters(self, tmp_path: Path) -> None:
        net = fcnproto.optimize(fcnproto.load(*small_fcn(tmp_path)))
        parcel = sending.pack(net)
        again = sending.unpack(parcel)
        x = torch.rand(2, 3, 20, 30)
        assert torch.equal(again(data=x)["score"], net(data=x)["score"])
        assert parcel.size == sum(array.nbytes for array in parcel.arrays)
        pointers = {array.ctypes.data for array in parcel.arrays}
        assert all(blob.data_ptr() in pointers for blobs in again.params.values() for blob in blobs)
        assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in net.parameters()]
        assert len(parcel.structure) < 10**5  # the values are beside it


class Fake:
    """What `shares` asks of Ray: nodes with so many CPUs and GPUs."""

    def __init__(self, *nodes: tuple[float, float]) -> None:
        self.found = [{"Alive": True, "Resources": {"CPU": cpus, "GPU": gpus}} for cpus, gpus in nodes]

    def nodes(self) -> list[dict[str, Any]]:
        return self.found


class TestShares:
    def test_of_many_cpus_three_quarters_compute(self) -> None:
        found = engine.shares(Fake((0, 0), (32, 0), (32, 0)), Cluster("auto"))
        assert found == engine.Shares(48, 1.0, 0.0, 1.0, 0.25)
        assert engine.shares(Fake((64, 0)), Cluster("auto", threads=4)).workers == 12

    def test_few_cpus_are_enough_for_all(self) -> None:
        for nodes in [((1, 0), (1, 0)), ((2, 0),), ((1, 0),)]:
            found = engine.shares(Fake(*nodes), Cluster("auto", workers=2))
            assert found.workers * found.net_cpus + 2 * found.task_cpus <= sum(cpus for cpus, _ in nodes)

    @pytest.mark.parametrize("cpus", [(1,), (2,), (3,), (1, 1), (2, 3), (4,), (16,), (17,), (64,), (32, 32)])
    @pytest.mark.parametrize("workers", [None, 1, 2, 5])
    def test_no_stage_is_left_without_a_share(self, cpus: tuple[int, ...], workers: int | None) -> None:
        """What waits for a share until the net has done all items bounds nothing."""
        for address in ("local", "auto"):
            found = engine.shares(Fake(*((count, 0) for count in cpus)), Cluster(address, workers=workers))
            stages = [found.task_cpus, found.task_cpus]
            stages += [found.waiting_cpus] * 2 if found.waiting_cpus < found.task_cpus else []
            least = found.workers * found.net_cpus + sum(stages)
            assert least <= sum(cpus) + 1e-9 and least <= found.most_cpus

    def test_gpus(self) -> None:
        found = engine.shares(Fake((16, 4), (16, 4)), Cluster("auto", gpus_per_worker=0.5))
        assert (found.workers, found.net_gpus) == (16, 0.5)
        with pytest.raises(UsageError, match="the cluster has 8 GPUs, enough for 4 workers, not 5"):
            engine.shares(Fake((16, 4), (16, 4)), Cluster("auto", workers=5, gpus_per_worker=2))
        with pytest.raises(UsageError, match="the cluster has 0 GPUs"):
            engine.shares(Fake((16, 0)), Cluster("auto", gpus_per_worker=1))

    def test_what_makes_no_sense(self) -> None:
        for wrong in ({"workers": 0}, {"item_timeout": 0.0}, {"gpus_per_worker": -1.0}, {"part": 0}):
            with pytest.raises(UsageError):
                Cluster("local", **wrong)
        with pytest.raises(UsageError, match="no option 'wokers'"):
            engine.cluster_of("local", {"wokers": 2})


class TestCommandLine:
    @pytest.mark.parametrize("out", ["out", "x.parquet", "s3://bucket/out"])
    def test_without_ray_one_line_names_the_extra(
        self, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setitem(sys.modules, "ray", None)
        source = corpora.images(tmp_path / "images", 1)
        model, weights = colour_net(tmp_path)
        out = out if "://" in out else str(tmp_path / out)
        command = ["segment", str(model), str(weights), str(source), "-o", out, "--cluster", "local"]
        assert main(command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "pip install 'fcnproto[cluster]'" in line
        assert not os.path.exists(out)

    @pytest.mark.parametrize("option", [["--resume"], ["--workers", "2"], ["--format", "tar"], ["--item-timeout", "3"]])
    def test_options_that_need_it(self, tmp_path: Path, option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        model, weights = colour_net(tmp_path)
        source = corpora.images(tmp_path / "images", 1)
        assert main(["segment", str(model), str(weights), str(source), "-o", str(tmp_path / "out"), *option]) == 2
        assert f"{option[0]} goes with --cluster" in capsys.readouterr().err


class TestScoring:
    """What workers do of `score_folders`, done here."""

    @pytest.fixture(autouse=True)
    def here(self, monkeypatch: pytest.MonkeyPatch) -> None:
        cloudpickle = pytest.importorskip("ray.cloudpickle", reason="Ray is not installed (the extra `cluster`)")

        def run(work: Any, items: Any, out: Any, where: Any, sums: Any, *rest: Any, **others: Any) -> None:
            again = pickle.loads(cloudpickle.dumps(work))  # as it travels to them
            with again.reading() as read:
                for item in items:
                    sums.take(item.name, [again.told(again.encode(item, again.decode(item, read(item), 0)))])

        monkeypatch.setattr(scoring, "_run", run)

    @pytest.mark.parametrize("form", ["same", "labels", "mask", "beside", "npy", "labelme", "coco"])
    def test_files_are_found_as_one_process_finds_them(self, tmp_path: Path, form: str) -> None:
        names = ["background", "cat", "dog"]
        rng = np.random.default_rng(3)
        found, truth = tmp_path / "found", tmp_path / "truth"
        (found / "day").mkdir(parents=True)
        truth.mkdir()
        (truth / "day").mkdir()
        ending = {"labels": "_labels", "mask": "_mask", "beside": "_mask"}.get(form, "")
        contents = []
        for name in ("a", "day/b"):
            Image.fromarray(rng.integers(0, 3, (6, 8), dtype=np.uint8)).save(found / f"{name}{ending}.png")
            labels = np.zeros((6, 8), dtype=np.uint8)
            labels[1:4, 2:7] = 1 + len(contents)
            if form == "npy":
                np.save(truth / f"{name}.npy", labels)
            elif form in ("labelme", "coco"):
                image = tmp_path / f"{name}.jpg"
                segmented = Segmentation("score", labels, tuple(names))
                contents.append((segmented, f"{name}.jpg"))
                if form == "labelme":
                    (truth / f"{name}.json").write_text(json.dumps(labelme_content(segmented, image.name)))
            else:
                Image.fromarray(labels).save(truth / f"{name}{'_mask' if form == 'beside' else ''}.png")
            if form == "beside":
                Image.fromarray(np.zeros((6, 8, 3), dtype=np.uint8)).save(truth / f"{name}.png")
        if form == "coco":
            pytest.importorskip("pycocotools")
            file = CocoFile()
            for one in contents:
                file.add(*one)
            (truth / "all.json").write_text(json.dumps(file.content()))
        one = score_folders(found, truth, names)
        assert scoring.score_folders(found, truth, names).as_dict() == one.as_dict()
        if form in ("npy", "labelme", "coco"):
            return
        memory = fsspec.filesystem("memory")
        for folder in (found, truth):
            memory.put(str(folder), f"/{folder.name}", recursive=True)
        try:
            assert scoring.score_folders("memory://found", "memory://truth", names).as_dict() == one.as_dict()
        finally:
            memory.rm("/", recursive=True)

    @pytest.mark.parametrize("head", ["", "memory://"])
    def test_a_prediction_that_is_missing(self, tmp_path: Path, head: str) -> None:
        for name in ("found/b", "truth/a"):
            (tmp_path / name).parent.mkdir()
            Image.fromarray(np.zeros((2, 2), dtype=np.uint8)).save(tmp_path / f"{name}.png")
        memory = fsspec.filesystem("memory")
        for folder in ("found", "truth"):
            memory.put(str(tmp_path / folder), f"/{folder}", recursive=True)
        places = [head + name if head else str(tmp_path / name) for name in ("found", "truth")]
        try:
            with pytest.raises(DataError, match=r"a.png: has no prediction a.png or a_labels.png in .*found"):
                scoring.score_folders(*places, ["x", "y"])
        finally:
            memory.rm("/", recursive=True)


def test_the_lists_of_a_summary_are_in_order() -> None:
    summary = Summary("segment", failed=[("b", "2"), ("a", "1")])
    assert [entry["name"] for entry in summary.as_dict()["failed"]] == ["a", "b"]
    assert Summary.of(summary.as_dict()).failed == [("a", "1"), ("b", "2")]
    assert threading.active_count() >= 1
