"""Files of arrays that claim more than they hold, or lead to other files: refused in one line, in little memory."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from fcnproto.data.matlab import load_variable
from fcnproto.errors import DataError, WeightsError
from fcnproto.parity.recording import read_recording
from fcnproto.schema import limits
from fcnproto.schema.arrays import read_npy, read_npz
from fcnproto.schema.hdf5 import all_datasets, file_budget, open_hdf5, read_dataset

MEGABYTE = 1 << 20


def header(shape: tuple[int, ...], dtype: str = "<f4") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def deflated(start: bytes, megabytes: int, wbits: int) -> bytes:
    """`start` and so many megabytes of zeros: a block that stands by itself, packed once and repeated."""
    pack = zlib.compressobj(9, wbits=wbits)
    begin = pack.compress(start) + pack.flush(zlib.Z_FULL_FLUSH)
    block = pack.compress(bytes(MEGABYTE)) + pack.flush(zlib.Z_FULL_FLUSH)
    return begin + block * megabytes + pack.flush()


def zipped(path: Path, members: dict[str, bytes], megabytes: int = 0) -> None:
    """An archive of members, each followed by so many megabytes of zeros."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, start in members.items():
            content = deflated(start, megabytes, -15)
            archive.writestr(name, content)
            entry = archive.getinfo(name)
            entry.compress_type, entry.file_size = zipfile.ZIP_DEFLATED, len(start) + megabytes * MEGABYTE
            entry.CRC = zlib.crc32(start + bytes(megabytes * MEGABYTE)) if megabytes < 100 else 0
    whole = bytearray(path.read_bytes())
    for entry in archive.infolist():  # the local headers were written as of stored members
        whole[entry.header_offset + 8 : entry.header_offset + 10] = zipfile.ZIP_DEFLATED.to_bytes(2, "little")
    path.write_bytes(whole)


def inflating(path: Path) -> None:
    zipped(path, {"out.y.npy": header((1 << 28,))}, 1024)


def claiming(path: Path) -> None:
    zipped(path, {"out.y.npy": header((1 << 40,)) + bytes(100)})


def several(path: Path) -> None:
    zipped(path, {f"out.y{index}.npy": header((1 << 24,)) for index in range(9)}, 64)


def long_header(path: Path) -> None:
    zipped(path, {"out.y.npy": b"\x93NUMPY\x02\x00" + (1 << 29).to_bytes(4, "little")}, 512)


def other_packing(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("out.y.npy", header((4,)) + bytes(16))


def overlapping(path: Path) -> None:
    """One member's bytes under many names: the directory's entry is repeated."""
    zipped(path, {"out.y.npy": header((1000,), "|u1") + np.random.default_rng(0).bytes(1000)})
    content = path.read_bytes()
    start = content.rindex(b"PK\x01\x02")
    end = content.rindex(b"PK\x05\x06")
    entries = b"".join(content[start:end].replace(b"out.y.npy", b"out.%d.npy" % (index % 10)) for index in range(100))
    last = bytearray(content[end:])
    last[8:12] = (100).to_bytes(2, "little") * 2
    last[12:16] = len(entries).to_bytes(4, "little")
    path.write_bytes(content[:start] + entries + bytes(last))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (inflating, "'out.y.npy': would take 1,073,741,824 bytes of memory; of a file of .* bytes 268,435,456 in all"),
        (claiming, r"should have 4,398,046,511,104 bytes, 100 are stored"),
        (several, "'out.y4.npy': would take 67,108,864 bytes"),
        (long_header, "its header says to be 536,870,912 bytes long"),
        (other_packing, "packed in a way that NumPy doesn't write"),
        (overlapping, "overlap"),
    ],
)
def test_archives(make: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    path = tmp_path / "g.npz"
    make(path)
    with pytest.raises(DataError, match=rf"g\.npz: not a readable \.npz file \(.*{message}"):
        read_recording(path)


def test_an_npy_file_that_claims_more(tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(header((1 << 40,)) + bytes(9))
    with pytest.raises(DataError, match=r"x\.npy: not a readable \.npy file \(its array should have .* 9 are stored"):
        read_npy(tmp_path / "x.npy")
    with pytest.raises(DataError, match="no such file"):
        read_npy(tmp_path / "none.npy")


def test_what_numpy_writes_is_read(tmp_path: Path) -> None:
    arrays = {
        "scalar": np.array(3.0),
        "empty": np.zeros((0, 4)),
        "text": np.array(["a", "bc"]),
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "swapped": np.arange(3, dtype=">i2"),
        "named": np.zeros(2, [("é", "f4"), ("b", "i8")]),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "x.npz", **arrays)
        found = dict(read_npz(tmp_path / "x.npz"))
        assert list(found) == list(arrays)
        for key, value in arrays.items():
            assert found[key].dtype == value.dtype
            assert np.array_equal(found[key], value)
    np.save(tmp_path / "x.npy", arrays["columns"])
    assert np.array_equal(read_npy(tmp_path / "x.npy"), arrays["columns"])


def test_large_files_may_be_packed_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit grows with the file: what packs to a fiftieth is read, whatever its size."""
    monkeypatch.setattr(limits, "FLOOR", 1000)
    values = np.repeat(np.random.default_rng(0).integers(0, 255, 2000, np.uint8), 50)
    np.savez_compressed(tmp_path / "x.npz", values=values)
    assert (tmp_path / "x.npz").stat().st_size < values.size / 20
    assert np.array_equal(dict(read_npz(tmp_path / "x.npz"))["values"], values)


def never_written(file: h5py.File, name: str) -> None:
    file.create_dataset(name, shape=(1, 3, 10000, 10000), dtype="f4", chunks=(1, 1, 1000, 1000))


def hardly_written(file: h5py.File, name: str) -> None:
    file.create_dataset(name, shape=(10**5, 10**4), dtype="f4", chunks=(1, 1000))[0, 0] = 1


def packed(file: h5py.File, name: str) -> None:
    made = file.create_dataset(name, shape=(64, MEGABYTE), dtype="f8", chunks=(1, MEGABYTE), compression="gzip")
    chunk = deflated(b"", 8, 15)
    for row in range(64):
        made.id.write_direct_chunk((row, 0), chunk)


def large_chunk(file: h5py.File, name: str) -> None:
    """Four values in a chunk of a gigabyte."""
    file.create_dataset(name, (4,), "u1", chunks=(1 << 30,), maxshape=(None,), compression="gzip")
    file[name].id.write_direct_chunk((0,), deflated(b"", 1024, 15))


def overfull_chunk(file: h5py.File, name: str) -> None:
    """A chunk that inflates to a gigabyte where 4 KB are wanted."""
    file.create_dataset(name, (4096,), "u1", chunks=(4096,), compression="gzip")
    file[name].id.write_direct_chunk((0,), deflated(b"", 1024, 15))


def twice(file: h5py.File, name: str) -> None:
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_chunk((4096,))
    settings.set_deflate(9)
    settings.set_deflate(9)
    space = h5py.h5s.create_simple((4096,))
    made = h5py.h5d.create(file.id, name.encode(), h5py.h5t.STD_U8LE, space, settings)
    made.write(h5py.h5s.ALL, h5py.h5s.ALL, np.zeros(4096, np.uint8))


def external(file: h5py.File, name: str) -> None:
    file.create_dataset(name, (31,), "u1", external=[("/etc/passwd", 0, 31)])


def virtual(file: h5py.File, name: str) -> None:
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "y", (3,))
    file.create_virtual_dataset(name, layout)


def soft_link(file: h5py.File, name: str) -> None:
    file["kept"] = np.zeros(3)
    file[name] = h5py.SoftLink("/kept")


def external_link(file: h5py.File, name: str) -> None:
    file[name] = h5py.ExternalLink("other.h5", "/y")


HDF5 = {
    never_written: "no values are stored",
    hardly_written: "but 4,000 are stored",
    packed: "would take 536,870,912 bytes of memory",
    large_chunk: "would take 1,073,741,824 bytes of memory",
    overfull_chunk: "unpacks to more than its 4,096 bytes",
    twice: "is packed twice over",
    external: "lies in another file, which is not followed",
    virtual: "lies in another file, which is not followed",
    soft_link: "which is not followed",
    external_link: "which is not followed",
}


@pytest.mark.parametrize("make", HDF5, ids=lambda make: make.__name__)
def test_hdf5(make: Callable[[h5py.File, str], None], tmp_path: Path) -> None:
    golden, matlab = tmp_path / "g.h5", tmp_path / "x.mat"
    for path, name in ((golden, "out.y"), (matlab, "S")):
        with h5py.File(path, "w") as file:
            make(file, name)
    with pytest.raises(DataError, match=rf"g\.h5: .*{HDF5[make]}"):
        read_recording(golden)
    with pytest.raises(DataError, match=rf"x\.mat: .*{HDF5[make]}"):
        load_variable(str(matlab), "S")


def test_one_place_under_many_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.h5"
    monkeypatch.setattr(limits, "FLOOR", 1 << 22)
    with h5py.File(path, "w") as file:
        file["out.y0"] = np.zeros(1 << 14)
        for index in range(1, 300):
            file[f"out.y{index}"] = file["out.y0"]
        file.create_group("a")
        file["a/again"] = file["a"]
    with pytest.raises(DataError, match="would take 131,072 bytes of memory"):
        read_recording(path)
    with open_hdf5(str(path)) as file:
        assert sum(1 for _ in all_datasets(file)) == 300


def test_sound_datasets_of_every_kind_are_read(tmp_path: Path) -> None:
    path, values = tmp_path / "x.h5", np.random.default_rng(0).integers(0, 4, (40, 50)).astype(np.int32)
    ways = [{}, {"compression": "gzip"}, {"compression": "lzf"}, {"scaleoffset": 0}, {"fletcher32": True}]
    ways += [{"compression": "gzip", "shuffle": True, "fletcher32": True}, {"maxshape": (None, 50)}]
    with h5py.File(path, "w") as file:
        for index, way in enumerate(ways):
            file.create_dataset(str(index), data=values, **way)
        file.create_dataset("part", (40, 50), "i4", chunks=(10, 50))[:10] = 7
        file.create_dataset("big", (1 << 20,), "u1", chunks=(1 << 20,), compression="gzip", fletcher32=True)
        file["big"][:] = np.random.default_rng(1).integers(0, 255, 1 << 20, np.uint8)
    with open_hdf5(str(path)) as file:
        budget = file_budget(path)
        for index in range(len(ways)):
            found = read_dataset(file[str(index)], str(path), budget, WeightsError, np.float32)
            assert found.dtype == np.float32
            assert np.array_equal(found, values)
        assert read_dataset(file["part"], str(path), budget).sum() == 7 * 500
        assert read_dataset(file["big"], str(path), budget).sum() == file["big"][()].sum()


def test_memory_stays_small(tmp_path: Path) -> None:
    """All of it again in a process that counts its memory."""
    for make in (inflating, long_header):
        make(tmp_path / f"{make.__name__}.npz")
    for build in (never_written, packed, large_chunk, overfull_chunk):
        with h5py.File(tmp_path / f"{build.__name__}.h5", "w") as file:
            build(file, "out.y")
    code = (
        "import resource, sys; from fcnproto.parity.recording import read_recording; from fcnproto import Error\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for path in sys.argv[1:]:\n"
        "    try: read_recording(path)\n"
        "    except Error: print('refused')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *sorted(map(str, tmp_path.iterdir()))], capture_output=True, text=True, check=True
    )
    *refused, kilobytes = done.stdout.split()
    assert len(refused) == 6
    assert int(kilobytes) < 300_000
