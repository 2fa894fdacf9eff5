"""Files of tensors in the safetensors format: the safetensors package behind checks of its header.

The package maps a file, so that reading takes no memory but what is used. Before it sees one, each tensor's place is
compared with the file's size and with the others', since of two tensors in one place a small file makes gigabytes.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from fcnproto.atomic import TEMPORARY, PathLike, atomic_write, is_stream
from fcnproto.errors import WeightsError

# The bits of a value of each type of the format.
# fmt: off
_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32,
    "U16": 16, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "C64": 64,
}
# fmt: on
_LONGEST_HEADER = 100_000_000  # the format's own limit


def write_safetensors(path: PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors, whole or not at all. `metadata` are texts by name. `WeightsError` for a type the format lacks."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        # The package writes to names alone; by way of a file the tensors need not be in memory twice.
        beside = None if is_stream(path) else os.path.dirname(os.path.realpath(path))
        with (
            tempfile.TemporaryDirectory(prefix=".", suffix=TEMPORARY, dir=beside) as folder,
            atomic_write(path) as file,
        ):
            made = Path(folder) / "tensors"
            safetensors.torch.save_file(plain, made, dict(metadata) if metadata else None)
            with made.open("rb") as content:
                shutil.copyfileobj(content, file)
    except (KeyError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise WeightsError(f"{path}: the tensors can't be written as safetensors ({_reason(error)})") from error


def read_safetensors(path: PathLike) -> dict[str, Tensor]:
    """The tensors in a file, by name, mapped: what is not used is not read.

    Raises `WeightsError` if the file is missing, damaged, or of another kind."""
    file = Path(path)
    try:
        _check(file)
        return safetensors.torch.load_file(file)
    except OSError as error:
        raise WeightsError(f"{file}: can't be read: {error.strerror or error}") from None
    except (KeyError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise WeightsError(f"{file}: this is not a readable safetensors file ({_reason(error)})") from error


def read_metadata(path: PathLike) -> dict[str, str]:
    """The texts in a file's header, by name. Raises `WeightsError` as `read_safetensors`."""
    try:
        found = _check(Path(path)).get("__metadata__")
    except OSError as error:
        raise WeightsError(f"{path}: can't be read: {error.strerror or error}") from None
    texts = found.items() if isinstance(found, dict) else ()
    return {name: value for name, value in texts if isinstance(value, str)}


def _check(file: Path) -> dict[str, Any]:
    """The header, as JSON, once its tensors' places are known to be in the file."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        start = opened.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(size - 8, _LONGEST_HEADER):
            raise WeightsError(f"{file}: this is not a safetensors file, or it is cut off")
        text = opened.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise WeightsError(f"{file}: this is not a safetensors file (its header is no JSON)") from None
    if not isinstance(header, dict):
        raise WeightsError(f"{file}: this is not a safetensors file (its header is no JSON object)")
    places = [_place(file, name, entry, size - 8 - length) for name, entry in header.items() if name != "__metadata__"]
    last, before = 0, ""
    for begin, end, name in sorted(places):
        if begin < last and end > begin:
            raise WeightsError(f"{file}: the tensors {before!r} and {name!r} overlap")
        last, before = max(last, end), name
    return header


def _place(file: Path, name: str, entry: Any, held: int) -> tuple[int, int, str]:
    """Where a tensor begins and ends, compared with its type, its shape and what the file holds."""
    where = f"{file}: tensor {name!r}"
    try:
        bits, shape, (start, end) = _BITS[entry["dtype"]], entry["shape"], entry["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise WeightsError(f"{where}: its entry in the header is damaged, or of an unknown type") from None
    numbers = [*shape, start, end] if isinstance(shape, list) else [None]
    if not all(isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in numbers):
        raise WeightsError(f"{where}: its entry in the header is damaged")
    size = math.prod(shape) * bits // 8
    if not start <= end <= held or end - start != size:
        raise WeightsError(f"{where}: {size} bytes are needed, the file holds {max(0, min(end, held) - start)}")
    return start, end, name


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
