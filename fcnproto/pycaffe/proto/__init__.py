"""Caffe's messages, as scripts find them: `from caffe.proto import caffe_pb2`."""

from __future__ import annotations

from fcnproto.schema import caffe_pb2
