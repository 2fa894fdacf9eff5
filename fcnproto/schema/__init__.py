"""Caffe's files: the messages of the schema (`caffe_pb2`, made from `protos/caffe.proto` by `make proto`), their text
format (`text`), the upgrade of old formats (`upgrade`), weights (`weights`) and solver states (`state`).

Knows nothing of torch: files and numpy arrays only.
"""

from fcnproto.schema import caffe_pb2

__all__ = ["caffe_pb2"]
