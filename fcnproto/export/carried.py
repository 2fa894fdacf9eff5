"""What belongs to a net (`meta`), in the files of PyTorch and ONNX that it is converted to, and back from them.

A .pt has it where a state_dict has its versions (`state._metadata[""]`), a .pt2 among its extra files, a .onnx among
its metadata properties, each under the name "fcnproto.meta"; a .py in comments at its head, as a prototxt does. Other
programs read it there too: it is JSON.
"""

from __future__ import annotations

import os
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fcnproto.errors import DataError, UsageError, WeightsError, first_line
from fcnproto.meta import KEY, LONGEST_FILE, Meta, comment, from_text, to_text
from fcnproto.net import Net
from fcnproto.net.described import known_meta, told_in

PathLike = str | os.PathLike[str]


def texts(net: Net) -> dict[str, str]:
    """What goes into a file of a net's, by name; nothing where nothing is known of it."""
    meta = known_meta(net)
    return {} if meta is None else {KEY: to_text(meta)}


def source_head(net: Net) -> str:
    """The comments at the head of a .py; nothing where nothing is known of the net.

    Python reads the first two lines of a source for the encoding of the rest, so no name from a file stands in them.
    """
    said = comment(known_meta(net))
    return f"# A Caffe net in plain PyTorch.\n{said}" if said else ""


def described_state(state: Mapping[str, Tensor], net: Net) -> OrderedDict[str, Tensor]:
    """A state_dict as PyTorch makes them, for `torch.save`, with what is known of the net."""
    found = OrderedDict(state)
    found._metadata = OrderedDict({"": {"version": 1, **texts(net)}})  # type: ignore[attr-defined]
    return found


def read_meta(path: PathLike) -> Meta | None:
    """What a file says of its net: any that `convert`, `save` or `finetune` writes. None where it says nothing.

    Raises `DataError` and `WeightsError` for damaged files, `UsageError` where the package onnx is needed and missing.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(f"{file}: no such file")
    kind = file.suffix.lower()
    reading = {".pt": _in_state, ".pth": _in_state, ".pt2": _in_program, ".onnx": _in_onnx}.get(kind)
    if reading is None:
        return told_in(file)
    text = reading(file)
    return None if text is None else from_text(text, file.name)


def _in_state(file: Path) -> str | None:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # torch raises many kinds for damaged files
        raise WeightsError(f"{file}: not a PyTorch file of tensors ({first_line(error)})") from error
    said = getattr(state, "_metadata", None)
    own = said.get("") if isinstance(said, Mapping) else None
    text = own.get(KEY) if isinstance(own, Mapping) else None
    return text if isinstance(text, str) else None


def _in_program(file: Path) -> bytes | None:
    try:
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                if entry.filename.endswith(f"/extra/{KEY}") and entry.file_size <= LONGEST_FILE:
                    return archive.read(entry)
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{file}: not a program of torch.export ({first_line(error)})") from error
    return None


def _in_onnx(file: Path) -> str | None:
    try:
        import onnx
    except ImportError:
        raise UsageError(f"{file}: reading it needs the package onnx: pip install 'fcnproto[onnx]'") from None
    try:
        model = onnx.load(file, load_external_data=False)
    except Exception as error:  # protobuf's errors are of several kinds
        raise DataError(f"{file}: no readable ONNX ({first_line(error)})") from error
    return next((entry.value for entry in model.metadata_props if entry.key == KEY), None)
