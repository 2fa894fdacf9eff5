"""Leaving for other formats and coming back: plain PyTorch source, torch.export, ONNX, and files of weights."""

from fcnproto.export.carried import read_meta
from fcnproto.export.convert import FORMATS, Conversion, about_inputs, check_output, convert
from fcnproto.export.source import Source, make_source
from fcnproto.export.states import STATE_FILES, load_state, read_state

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
    "read_meta",
    "read_state",
]
