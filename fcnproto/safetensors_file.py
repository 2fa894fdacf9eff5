"""Files of tensors in the safetensors format, written and read without the safetensors package.

Eight bytes of length, a JSON header with each tensor's dtype, shape and place, then the tensors' bytes. A file's
lengths and places are checked against its size before anything is made of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fcnproto.atomic import PathLike, atomic_write
from fcnproto.errors import WeightsError

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_LONGEST_HEADER = 100_000_000  # the format's own limit


def write_safetensors(path: PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors, whole or not at all. `metadata` are texts by name."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    kept, offset = [], 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):
        if tensor.dtype not in _NAMES:
            raise WeightsError(f"{path}: {name!r} has the type {tensor.dtype}, which the format lacks")
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        kept.append(tensor)
        offset += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with atomic_write(path) as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for tensor in kept:
            plain = tensor.detach().cpu().contiguous()
            file.write(plain.reshape(-1).view(torch.uint8).numpy().data)


def read_safetensors(path: PathLike) -> dict[str, Tensor]:
    """The tensors in a file, by name. Raises `WeightsError` if it is missing, damaged, or of another kind."""
    file = Path(path)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise WeightsError(f"{file}: can't be read: {error.strerror or error}") from None
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > min(len(content) - 8, _LONGEST_HEADER):
        raise WeightsError(f"{file}: this is not a safetensors file, or it is cut off")
    try:
        header = json.loads(content[8 : 8 + length])
    except (ValueError, RecursionError):
        raise WeightsError(f"{file}: this is not a safetensors file (its header is no JSON)") from None
    if not isinstance(header, dict):
        raise WeightsError(f"{file}: this is not a safetensors file (its header is no JSON object)")
    data = memoryview(content)[8 + length :]
    return {name: _tensor(file, name, entry, data) for name, entry in header.items() if name != "__metadata__"}


def _tensor(file: Path, name: str, entry: Any, data: memoryview) -> Tensor:
    where = f"{file}: tensor {name!r}"
    try:
        dtype, shape, (start, end) = _DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise WeightsError(f"{where}: its entry in the header is damaged, or of an unknown type") from None
    numbers = [*shape, start, end] if isinstance(shape, list) else [None]
    if not all(isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in numbers):
        raise WeightsError(f"{where}: its entry in the header is damaged")
    size = math.prod(shape) * dtype.itemsize
    if not start <= end <= len(data) or end - start != size:
        raise WeightsError(f"{where}: {size} bytes are needed, the file holds {max(0, min(end, len(data)) - start)}")
    if not size:
        return torch.zeros(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data[start:end]), dtype=dtype).reshape(shape)
