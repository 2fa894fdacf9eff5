"""Where results go: files, or parts (tar or Parquet) that are committed as a whole, or one such file.

Every result has one place, which its name or its chunk decides: done again, it takes its own place, never another.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar

from fcnproto import atomic
from fcnproto.cluster import places
from fcnproto.cluster.chunks import Chunk, Failure
from fcnproto.cluster.summary import MANIFEST
from fcnproto.cluster.work import Row
from fcnproto.errors import DataError, UsageError, first_line

FORMATS = ("files", "tar", "parquet")
LABELS = "_labels.png"
REFUSES = "the sink refuses"
"""What an error says that is tried again after a while (by Ray, see `engine.py`)."""
RECORD = ".fcnproto-run.json"


class SinkError(DataError):
    """The sink can't be written to, perhaps for a while."""


@dataclass(frozen=True)
class Sink(ABC):
    """A place for results: `address` is the folder that holds them (or their parts)."""

    address: str
    schema: Any = None
    binding: ClassVar[tuple[str, ...]] = ("net",)
    """What a resumed run must have in common with the one before; see `engine.record`."""

    @property
    def manifest(self) -> str:
        """The address of the manifest."""
        return places.join(self.address, MANIFEST)

    @abstractmethod
    def done(self, chunk: Chunk) -> frozenset[int]:
        """The places of a chunk's items whose results are here."""

    @abstractmethod
    def write(self, chunk: Chunk, rows: Mapping[int, Sequence[Row]]) -> int:
        """Write the rows of a chunk's items by place; the number of bytes. Raises `SinkError`."""

    def kept(self, chunk: Chunk) -> dict[int, list[Row]]:
        """The rows that are here of items that are done, by place; none where they aren't kept as rows."""
        return {}

    def holds_results(self) -> bool:
        """Whether there are results here."""
        return places.is_folder(self.address) and any(map(self._is_result, self._names()))

    def _names(self) -> Iterator[str]:
        if places.is_local(self.address):
            for _, folders, files in os.walk(self.address):
                folders.sort()
                yield from files
        else:
            yield from (places.parent_and_name(file)[1] for file, _ in places.files_in(self.address))

    def _is_result(self, name: str) -> bool:
        return name == MANIFEST or name.endswith((LABELS, ".tar", ".parquet"))

    def begin(self, record: Mapping[str, Any], resume: bool) -> None:
        """Refuse a sink with results, or of other work where it is resumed; note what is done here."""
        if not resume and self.holds_results():
            raise UsageError(f"{self.address}: holds results already; --resume adds what is missing")
        noted = places.join(self.address, RECORD)
        before = json.loads(places.read(noted)) if resume and places.exists(noted) else record
        for what in self.binding:
            if before.get(what) != record[what]:
                more = ", or of one with other settings" if what == "net" else ""
                raise UsageError(
                    f"{self.address}: --resume: the results there are of another {what}{more}; take another sink"
                )
        try:
            places.write(noted, json.dumps(record).encode())
        except OSError as error:
            raise UsageError(f"{self.address}: can't be written to ({error.strerror or first_line(error)})") from None

    def complete(self) -> bool:
        """Whether an earlier run has left nothing to do, whatever the corpus."""
        return False

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """After the last result: the manifest, and nothing that killed processes left."""
        if places.is_local(self.address):
            atomic.tidy(Path(self.address))
        self._write(self.manifest, _as_text(manifest))

    def _write(self, address: str, data: bytes) -> int:
        try:
            places.write(address, data)
        except OSError as error:
            raise SinkError(f"{address}: {REFUSES} ({error.strerror or first_line(error)})") from None
        return len(data)


@dataclass(frozen=True)
class Files(Sink):
    """Label files of the names that `segment` gives them; `parts` are what the names of several scores have added."""

    parts: tuple[str, ...] = ("",)

    def done(self, chunk: Chunk) -> frozenset[int]:
        """Those with all label files (an image may have one score only, though the net has several)."""
        return frozenset(place for place, item in enumerate(chunk.items) if self._has(item.name))

    def _has(self, name: str) -> bool:
        return places.exists(self._file(name, "")) or all(places.exists(self._file(name, part)) for part in self.parts)

    def _file(self, name: str, part: str) -> str:
        return places.join(self.address, *f"{name}{part}{LABELS}".split("/"))

    def write(self, chunk: Chunk, rows: Mapping[int, Sequence[Row]]) -> int:
        """A file for each row."""
        return sum(
            self._write(self._file(row["name"], row["part"]), row["labels"]) for found in rows.values() for row in found
        )


@dataclass(frozen=True)
class Parts(Sink):
    """A folder of tar or Parquet files, one for each chunk, failed items among the rows."""

    format: str = "parquet"
    binding: ClassVar[tuple[str, ...]] = ("net", "corpus", "part")

    def _part(self, chunk: Chunk) -> str:
        return places.join(self.address, f"{chunk.key}.{self.format}")

    def done(self, chunk: Chunk) -> frozenset[int]:
        """Those that the chunk's part holds without an error."""
        address = self._part(chunk)
        if not places.exists(address):
            return frozenset()
        good = {row["name"] for row in self.rows(address) if not row.get("error")}
        return frozenset(place for place, item in enumerate(chunk.items) if item.name in good)

    def write(self, chunk: Chunk, rows: Mapping[int, Sequence[Row]]) -> int:
        """The chunk's part, with what an earlier run has left of it."""
        if len(chunk.done) == len(chunk.items):
            return 0
        kept, found = self.kept(chunk), []
        for place, item in enumerate(chunk.items):
            value = chunk.values[place]
            if type(value) is Failure:
                found.append({"name": item.name, "error": value.reason})
            else:
                found += kept.get(place) or rows.get(place, [])
        return self._write(self._part(chunk), self.packed(found))

    def kept(self, chunk: Chunk) -> dict[int, list[Row]]:
        """The rows that are here of items that are done, by place."""
        found: dict[str, list[Row]] = {}
        for row in self.rows(self._part(chunk)) if chunk.done else ():
            found.setdefault(row["name"], []).append(row)
        return {place: found[chunk.items[place].name] for place in sorted(chunk.done)}

    def rows(self, address: str) -> list[Row]:
        """The rows of a part. Raises `DataError` where it can't be read."""
        try:
            return _from_tar(places.read(address)) if self.format == "tar" else _from_parquet(places.read(address))
        except (OSError, ValueError, tarfile.TarError, KeyError) as error:
            raise DataError(f"{address}: not a part that was written here ({first_line(error)}); remove it") from None

    def packed(self, rows: Sequence[Row]) -> bytes:
        """Rows as the bytes of a part."""
        return _to_tar(rows) if self.format == "tar" else _to_parquet(rows, self.schema)


@dataclass(frozen=True)
class OneFile(Parts):
    """One tar or Parquet file: parts in a hidden folder beside it, put together at the end."""

    target: str = ""

    @property
    def manifest(self) -> str:
        """The address of the manifest, beside the file."""
        return f"{self.target}.{MANIFEST}"

    def holds_results(self) -> bool:
        """Whether the file, or parts of it, are there."""
        return places.exists(self.target) or super().holds_results()

    def complete(self) -> bool:
        """Whether the file is there and no run is on. Parts of one that was killed at its last step are removed."""
        noted = places.join(self.address, RECORD)
        if places.exists(noted) or not places.exists(self.manifest) or not places.exists(self.target):
            return False
        places.remove_folder(self.address)
        return True

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Put the parts together, then write the manifest and remove them."""
        names = [name for name, _ in places.files_in(self.address) if name.endswith(f".{self.format}")]
        try:
            with places.writing(self.target) as file:
                _join_tar(names, file) if self.format == "tar" else _join_parquet(names, file, self.schema)
        except OSError as error:
            raise SinkError(f"{self.target}: {REFUSES} ({error.strerror or first_line(error)})") from None
        self._write(self.manifest, _as_text(manifest))
        if places.is_local(self.target):
            atomic.tidy_beside(self.target)
        places.remove_file(places.join(self.address, RECORD))  # from here on the file counts, whatever parts are left
        places.remove_folder(self.address)


def _as_text(manifest: Mapping[str, Any]) -> bytes:
    return (json.dumps(manifest, indent=2) + "\n").encode()


def _join_tar(names: Sequence[str], file: IO[bytes]) -> None:
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in names:
            with tarfile.open(fileobj=io.BytesIO(places.read(name))) as part:
                for member in part:
                    archive.addfile(member, part.extractfile(member))


def _join_parquet(names: Sequence[str], file: IO[bytes], schema: Any) -> None:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        for name in names:
            writer.write_table(pyarrow.parquet.read_table(io.BytesIO(places.read(name)), schema=schema))


def _to_parquet(rows: Sequence[Row], schema: Any) -> bytes:
    import pyarrow
    import pyarrow.parquet

    names = schema.names
    table = pyarrow.Table.from_pylist([{name: row.get(name) for name in names} for row in rows], schema=schema)
    file = io.BytesIO()
    pyarrow.parquet.write_table(table, file)
    return file.getvalue()


def _from_parquet(data: bytes) -> list[Row]:
    import pyarrow.parquet

    found: list[Row] = pyarrow.parquet.read_table(io.BytesIO(data)).to_pylist()
    return found


def _to_tar(rows: Sequence[Row]) -> bytes:
    """For each row NAME_labels.png, where it has labels, and NAME_labels.json with the rest."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for row in rows:
            rest = {key: value for key, value in row.items() if key != "labels"}
            stem = f"{row['name']}{row.get('part') or ''}{LABELS}".removesuffix(".png")
            if row.get("labels") is not None:
                _add(archive, f"{stem}.png", row["labels"])
            _add(archive, f"{stem}.json", json.dumps(rest).encode())
    return file.getvalue()


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # of no time and no owner: the same results are the same bytes
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def _from_tar(data: bytes) -> list[Row]:
    rows: list[Row] = []
    labels: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            file = archive.extractfile(member)
            content = b"" if file is None else file.read()
            stem, ending = os.path.splitext(member.name)
            if ending == ".png":
                labels[stem] = content
            elif ending == ".json":
                rows.append(json.loads(content) | ({"labels": labels[stem]} if stem in labels else {}))
    return rows


def sink_of(address: str, format: str | None, schema: Any, parts: Sequence[str] | None) -> Sink:
    """The sink that a user's address and format mean; `parts` where results can be files (see `Files`)."""
    suffix = os.path.splitext(address)[1].lower()
    if suffix in (".tar", ".parquet") and not places.is_folder(address):
        if format not in (None, suffix[1:]):
            raise UsageError(f"-o {address}: is no place for --format {format}")
        folder, name = places.parent_and_name(address)
        return OneFile(places.join(folder, f".{name}.parts"), schema, suffix[1:], address)
    if places.is_local(address) and os.path.exists(address) and not os.path.isdir(address):
        raise UsageError(f"{address} is a file; the results go to a folder, or a file that ends in .tar or .parquet")
    chosen = format or ("files" if parts is not None else "parquet")
    if chosen == "files":
        if parts is None:
            raise UsageError("--format files: these results go to Parquet")
        return Files(address, schema, tuple(parts))
    return Parts(address, schema, chosen)
