"""Parity: our numbers beside those of a reference, blob by blob, with a report that points at the first departure.

References are golden files, OpenCV's dnn, a Caffe elsewhere, or our own layers in double precision.
"""

from fcnproto.parity.comparison import compare
from fcnproto.parity.measures import Measures, measure
from fcnproto.parity.recording import Recording, read_recording
from fcnproto.parity.references import (
    DUMP_SCRIPT,
    caffe_reference,
    float64_reference,
    opencv_reference,
    random_inputs,
)
from fcnproto.parity.report import Departure, Entry, Judgement, Report

__all__ = [
    "DUMP_SCRIPT",
    "Departure",
    "Entry",
    "Judgement",
    "Measures",
    "Recording",
    "Report",
    "caffe_reference",
    "compare",
    "float64_reference",
    "measure",
    "opencv_reference",
    "random_inputs",
    "read_recording",
]
