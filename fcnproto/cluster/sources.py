"""What a corpus consists of: folders, lists, tar shards and Parquet files, here or at any of fsspec's addresses.

`corpus` says on the driver what there is, without opening shards; `listing` opens one shard on a worker; `Reader` gives
the bytes of items.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any

from fcnproto.cluster import places
from fcnproto.cluster.chunks import Chunk, Failure, Item, cut, key
from fcnproto.errors import DataError, UsageError, first_line
from fcnproto.image_files import SUFFIXES, find_images

PathLike = str | os.PathLike[str]

LISTS = (".txt", ".lst", ".list")
SHARDS = (".tar", ".parquet")
_NAMES = ("name", "path", "filename", "file_name", "__key__", "key", "id", "image_id")
"""Columns of a Parquet file that name an image, the first that is there."""


@dataclass(frozen=True)
class Shard:
    """A file that holds images: its address, its number, what its items' names begin with, and whether .npy files are
    images, too."""

    address: str
    number: int
    prefix: str = ""
    arrays: bool = False


@dataclass(frozen=True)
class Corpus:
    """The items that can be listed on the driver, and the shards that hold others."""

    items: list[Item]
    shards: list[Shard]


def corpus(
    given: PathLike | Sequence[PathLike], recursive: bool = False, leave_out: str | None = None, arrays: bool = False
) -> Corpus:
    """What the sources of a run consist of; `arrays`: .npy files are images, too. Raises `UsageError` where there is
    nothing, or no such place."""
    sources = [given] if isinstance(given, (str, os.PathLike)) else list(given)
    local: list[str] = []
    remote: list[Item] = []
    shards: list[str] = []
    for source in sources:
        address = places.address_of(source)
        found = _opened(address, arrays)
        shards += [one for one in found if _suffix(one) in SHARDS]
        rest = [one for one in found if _suffix(one) not in SHARDS]
        local += [one for one in rest if places.is_local(one)]
        remote += _remote_items([one for one in rest if not places.is_local(one)], recursive, arrays)
    out = leave_out if leave_out is not None and places.is_local(leave_out) else None
    items = [
        Item(name, str(path.absolute()), _size(str(path)))
        for path, name in find_images(local, recursive, leave_out=out, arrays=arrays)
    ]
    if not items and not remote and not shards:
        raise UsageError(f"no images in {', '.join(map(str, sources)) or 'an empty list'}")
    stems = [PurePosixPath(shard).stem for shard in shards]
    prefixes = [f"{stem}/" if len(shards) > 1 else "" for stem in stems]
    if len(set(stems)) < len(stems):
        prefixes = [f"{number:06d}-{stem}/" for number, stem in enumerate(stems)]
    named = [
        Shard(address, number, prefix, arrays)
        for number, (address, prefix) in enumerate(zip(shards, prefixes, strict=True), 1)
    ]
    return Corpus(items + _distinct(remote, {item.name for item in items}), named)


def _suffix(address: str) -> str:
    return PurePosixPath(address).suffix.lower()


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _is_image(name: str, arrays: bool) -> bool:
    suffix = _suffix(name)
    return suffix in SUFFIXES or (arrays and suffix == ".npy")


def _opened(address: str, arrays: bool) -> list[str]:
    """The addresses that one of a user's stands for: those in a list, the shards of a folder without images, itself."""
    if _suffix(address) in LISTS:
        return _listed(address)
    if _suffix(address) in SHARDS and not places.is_folder(address):
        return [address]
    if not places.is_folder(address):
        if not places.is_local(address) and not places.exists(address):
            raise UsageError(f"{address}: nothing is there")
        return [address]
    inside = places.files_in(address, recursive=False)
    if any(_is_image(name, arrays) for name, _ in inside):
        return [address]
    for suffix in SHARDS:
        if found := [name for name, _ in inside if _suffix(name) == suffix]:
            return found
    return [address]


def _listed(address: str) -> list[str]:
    """The addresses in a list, one a line; relative ones are from the working directory or the list's folder."""
    text = places.read(address).decode("utf-8-sig", "surrogateescape")
    folder, _ = places.parent_and_name(address)
    found = []
    for line in filter(None, map(str.strip, text.splitlines())):
        if "://" in line or os.path.isabs(line):
            found.append(places.address_of(line))
        elif places.is_local(address) and os.path.exists(line):
            found.append(os.path.abspath(line))
        else:
            found.append(places.join(folder, line))
    if not found:
        raise UsageError(f"{address}: names no images")
    return found


def _remote_items(addresses: Sequence[str], recursive: bool, arrays: bool) -> list[Item]:
    items = []
    for address in addresses:
        if not places.is_folder(address):
            items.append(_remote(address, places.parent_and_name(address)[1], 0))
            continue
        for file, size in places.files_in(address, recursive):
            if _is_image(file, arrays):
                items.append(_remote(file, file[len(address) :].lstrip("/"), size))
    return items


def _remote(address: str, inner: str, size: int) -> Item:
    data = places.read(address) if places.in_memory(address) else None
    return Item(os.path.splitext(inner)[0], address, size or len(data or b""), data=data)


def _distinct(items: Sequence[Item], taken: set[str]) -> list[Item]:
    """The items, a number added to names that others have."""
    found = []
    for item in items:
        name, number = item.name, 1
        while name in taken:
            number += 1
            name = f"{item.name}_{number}"
        taken.add(name)
        found.append(item._replace(name=name))
    return found


def listing(shard: Shard, step: int, part: int, column: str | None) -> Iterator[Chunk]:
    """The chunks of a shard. One that can't be read is a chunk of one item that has failed."""
    try:
        if _suffix(shard.address) == ".tar":
            yield from cut(list(_members(shard)), step, part, shard.number)
        else:
            yield from _row_groups(shard, step, part, column)
    except (DataError, OSError, tarfile.TarError, ValueError) as error:
        text = str(error) if isinstance(error, DataError) else f"{shard.address}: can't be read: {first_line(error)}"
        yield Chunk(key(shard.number, 10**10 - 1), [Item(shard.address, shard.address)], [Failure(text)])


def _members(shard: Shard) -> Iterator[Item]:
    taken: set[str] = set()
    with places.opened(shard.address) as file, tarfile.open(fileobj=file, mode="r:") as archive:
        for member in archive:
            if not member.isfile() or not _is_image(member.name, shard.arrays):
                continue
            name = os.path.splitext(_inside(member.name))[0]
            if name in taken:
                name = _inside(member.name).replace(".", "_")
            taken.add(name)
            yield Item(shard.prefix + name, shard.address, member.size, offset=member.offset_data)


def _inside(name: str) -> str:
    """A member's name as one that stays in the sink's folder."""
    return "/".join(part for part in name.split("/") if part not in ("", ".", ".."))


def _row_groups(shard: Shard, step: int, part: int, column: str | None) -> Iterator[Chunk]:
    import pyarrow.parquet

    first = 0
    with places.opened(shard.address) as file:
        table = pyarrow.parquet.ParquetFile(file)
        schema = table.schema_arrow
        image_column(shard.address, schema, column)  # tells where there is none
        naming = next((name for name in _NAMES if name in schema.names), None)
        stem = PurePosixPath(shard.address).stem
        for group in range(table.num_row_groups):
            count = table.metadata.row_group(group).num_rows
            size = table.metadata.row_group(group).total_byte_size // max(1, count)
            names = table.read_row_group(group, [naming])[naming].to_pylist() if naming else [None] * count
            items = []
            for row, name in enumerate(names):
                inner = _inside(os.path.splitext(str(name))[0]) if name is not None else ""
                own = shard.prefix + (inner or f"{stem}-{first + row:08d}")
                items.append(Item(own, shard.address, size, group=group, row=row))
            for chunk in cut(items, step, part, shard.number):
                start = first + chunk.items[0].row
                yield Chunk(key(shard.number, start), chunk.items)
            first += count


def image_column(address: str, schema: Any, wanted: str | None) -> str:
    """The column of a Parquet schema that holds images: `wanted`, one called image, or the first of bytes. `DataError`
    where there is none."""
    import pyarrow as pa

    def has_bytes(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return any(field.name == "bytes" and has_bytes(field.type) for field in kind)
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)

    fitting = [field.name for field in schema if has_bytes(field.type)]
    chosen = wanted or ("image" if "image" in fitting else fitting[0] if fitting else None)
    if chosen is None or chosen not in fitting:
        what = f"no column {wanted!r} of bytes" if wanted else "no column of bytes"
        raise DataError(f"{address}: {what}; its columns are {', '.join(schema.names)} (--column says which)")
    return str(chosen)


class Reader:
    """Gives the bytes of a chunk's items; a file that holds several is opened once. Close it."""

    def __init__(self, column: str | None = None) -> None:
        self.column = column
        self.files: dict[str, IO[bytes]] = {}
        self.rows: dict[tuple[str, int], Any] = {}

    def __call__(self, item: Item) -> bytes:
        if item.data is not None:
            return item.data
        if item.offset >= 0:
            file = self._file(item.place)
            file.seek(item.offset)
            data = file.read(item.size)
            if len(data) < item.size:
                raise DataError(f"{item.place}: ends within {item.name!r}")
            return data
        if item.row >= 0:
            value = self._group(item.place, item.group)[item.row].as_py()
            value = value["bytes"] if isinstance(value, dict) else value
            if not value:
                raise DataError(f"{item.place}: row of {item.name!r} holds no image")
            return bytes(value)
        return places.read(item.place)

    def _file(self, address: str) -> IO[bytes]:
        if address not in self.files:
            self.files[address] = places.opened(address)
        return self.files[address]

    def _group(self, address: str, group: int) -> Any:
        import pyarrow.parquet

        if (address, group) not in self.rows:
            table = pyarrow.parquet.ParquetFile(self._file(address))
            name = image_column(address, table.schema_arrow, self.column)
            self.rows = {(address, group): table.read_row_group(group, [name])[name]}
        return self.rows[address, group]

    def close(self) -> None:
        """Close the files."""
        for file in self.files.values():
            file.close()
