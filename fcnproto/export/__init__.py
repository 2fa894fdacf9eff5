"""Leaving for other formats and coming back: plain PyTorch source, torch.export, ONNX, and files of weights."""

from fcnproto.export.convert import (
    FORMATS,
    STATE_FILES,
    Conversion,
    about_inputs,
    check_output,
    convert,
    load_state,
    read_state,
)
from fcnproto.export.source import Source, make_source

__all__ = [
    "FORMATS",
    "STATE_FILES",
    "Conversion",
    "Source",
    "about_inputs",
    "check_output",
    "convert",
    "load_state",
    "make_source",
    "read_state",
]
