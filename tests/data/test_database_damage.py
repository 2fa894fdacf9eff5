"""Damaged databases: one clear error, or all records as they were; never a dead process, never others silently."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fcnproto.data.lmdb_pages import check_lmdb
from fcnproto.data.records import open_records
from fcnproto.errors import DataError
from fcnproto.schema import caffe_pb2

# Runs in a process of its own, each case in a fork of it: what dies there is counted.
FUZZ = """
import collections, glob, os, random, shutil, sys
import fcnproto.data.records as records
from fcnproto.errors import DataError

kind, cases, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
numbers = random.Random(seed)
expected = [(b"%05d" % i, numbers.randbytes(900 if i % 3 else 9000)) for i in range(150)]
if kind == "lmdb":
    import lmdb
    with lmdb.open("whole", map_size=1 << 24) as made, made.begin(write=True) as writer:
        for key, value in expected:
            writer.put(key, value)
    os.unlink("whole/lock.mdb")
else:
    import plyvel
    made = plyvel.DB("whole", create_if_missing=True, write_buffer_size=100000, compression=None)
    for key, value in expected:
        made.put(key, value)
    made.close()
    os.unlink("whole/LOG")
found = collections.Counter()
for case in range(cases):
    shutil.rmtree("copy", ignore_errors=True)
    shutil.copytree("whole", "copy")
    file = numbers.choice(sorted(path for path in glob.glob("copy/*") if os.path.getsize(path)))
    content = bytearray(open(file, "rb").read())
    if numbers.random() < 0.3:
        content = content[: numbers.randrange(len(content))]
    elif numbers.random() < 0.6:  # where pages begin their heads and their lists of nodes stand
        for _ in range(2):
            place = numbers.randrange(len(content) // 4096 + 1) * 4096 + numbers.randrange(24)
            content[min(place, len(content) - 1)] = numbers.randrange(256)
    else:
        for _ in range(3):
            content[numbers.randrange(len(content))] ^= 1 << numbers.randrange(8)
    open(file, "wb").write(content)
    child = os.fork()
    if not child:
        status = 9
        try:
            opened = records.open_records("copy", 0 if kind == "leveldb" else 1)
            keys = [opened.seek(None)[0], *(opened.next()[0] for _ in expected)]
            status = 0 if keys == [key for key, _ in expected] + [expected[0][0]] else 8
        except DataError as error:
            status = 1 if str(error).startswith("copy") and "\\n" not in str(error) else 7
        finally:
            os._exit(status)
    found[os.waitpid(child, 0)[1]] += 1
right, refused = found.pop(0, 0), found.pop(256, 0)
print(right, refused, dict(found))
"""


@pytest.mark.parametrize(("kind", "module"), [("lmdb", "lmdb"), ("leveldb", "plyvel")])
def test_damage(kind: str, module: str, tmp_path: Path) -> None:
    pytest.importorskip(module)
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, kind, "60", "3"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    right, refused, other = done.stdout.split(maxsplit=2)
    assert other.strip() == "{}"
    assert int(right) + int(refused) == 60 and int(refused) > 20


def test_a_file_that_is_cut_off(tmp_path: Path) -> None:
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(tmp_path / "db"), map_size=1 << 24) as made, made.begin(write=True) as writer:
        for index in range(100):
            writer.put(b"%03d" % index, bytes(1000))
    file = tmp_path / "db" / "data.mdb"
    check_lmdb(str(tmp_path / "db"))
    check_lmdb(str(file))
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    for path in (tmp_path / "db", file):
        with pytest.raises(
            DataError, match=rf"data\.mdb: the file is cut off: it says to have .*{len(content) - 1:,} are"
        ):
            open_records(str(path))
    for part in (b"", content[:100], bytes(10000)):
        file.write_bytes(part)
        with pytest.raises(DataError, match=r"data\.mdb: not a readable LMDB"):
            open_records(str(tmp_path / "db"))


def test_a_manifest_of_an_earlier_time(tmp_path: Path) -> None:
    """Cut at the end of an entry it is sound in itself; the tables are newer than it knows."""
    plyvel = pytest.importorskip("plyvel")
    made = plyvel.DB(str(tmp_path / "db"), create_if_missing=True, write_buffer_size=100000, compression=None)
    for index in range(100):
        made.put(b"%03d" % index, bytes([index]) * 9000)
    made.close()
    manifest = next((tmp_path / "db").glob("MANIFEST-*"))
    content, place, ends = manifest.read_bytes(), 0, []
    while place < len(content):
        place += 7 + int.from_bytes(content[place + 4 : place + 6], "little")
        ends.append(place)
    assert len(ends) > 3
    manifest.write_bytes(content[: ends[2]])
    tables = sorted((tmp_path / "db").glob("*.ldb"))
    with pytest.raises(DataError, match=r"the LevelDB's MANIFEST is older than \d+\.ldb"):
        open_records(str(tmp_path / "db"), caffe_pb2.DataParameter.LEVELDB)
    assert sorted((tmp_path / "db").glob("*.ldb")) == tables


def test_all_shapes_of_sound_databases_pass(tmp_path: Path) -> None:
    """Empty, one record, many small ones (several levels of branches), deleted and overwritten ones, large ones."""
    lmdb = pytest.importorskip("lmdb")
    for round_, (count, size) in enumerate([(0, 0), (1, 3), (20000, 40), (300, 3000), (20, 50000)]):
        with lmdb.open(str(tmp_path / "db"), map_size=1 << 27) as made, made.begin(write=True) as writer:
            for index in range(count):
                writer.put(b"%d-%08d" % (round_, index), bytes([index % 251]) * (size + index % 3))
            for index in range(0, count, 3):
                writer.delete(b"%d-%08d" % (round_, index))
        check_lmdb(str(tmp_path / "db"))
        opened = open_records(str(tmp_path / "db"))
        assert (opened.count() > 0) == (round_ > 1)
        opened.close()
