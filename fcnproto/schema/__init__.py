"""Caffe's files: the messages of the schema (`caffe_pb2`, made from `protos/caffe.proto` by `make proto`), their text
format (`text`), the upgrade of old formats (`upgrade`), weights (`weights`) and solver states (`state`).

Knows nothing of torch: files and numpy arrays only.
"""

from fcnproto.lazy import lazily
from fcnproto.schema import caffe_pb2

__all__ = ["caffe_pb2"]

__getattr__, __dir__ = lazily(
    __name__,
    {name: f"fcnproto.schema.{name}:" for name in ("definition", "saving", "state", "text", "upgrade", "weights")},
)
