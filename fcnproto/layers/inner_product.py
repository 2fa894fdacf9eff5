"""Caffe's fully connected layers: InnerProduct and Embed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from fcnproto.layers.backward import Reads
from fcnproto.layers.base import NO_BIAS, Layer, Shape
from fcnproto.layers.examples import Draw, integers
from fcnproto.layers.plain import MODULE, Piece, Request, Unsayable, blob_or_none, parameters_of
from fcnproto.layers.registry import register
from fcnproto.schema import caffe_pb2


@register("InnerProduct")
class InnerProduct(Layer):
    """Caffe's InnerProduct: y = x W^T + b over all axes from `axis` on, flattened.

    The weight is (outputs, inputs), or (inputs, outputs) with `transpose`; the top's shape is the bottom's axes before
    `axis`, then (outputs,).
    """

    config_field = "inner_product_param"
    kind = "linear"
    fork_bottoms = 3  # NormFace's takes weights and biases from bottoms

    def of_zeros(self) -> str:
        return "linear"

    def keeps_images_apart(self) -> bool:
        return bool(self.config.axis > 0)

    @classmethod
    def fixes_image_size(cls, param: caffe_pb2.LayerParameter) -> bool:
        return True

    def multiply_adds(self, bottoms: Sequence[Shape], tops: Sequence[Shape]) -> int:
        return math.prod(tops[0]) * self.inputs

    @classmethod
    def settings_text(cls, param: caffe_pb2.LayerParameter) -> str:
        return str(param.inner_product_param.num_output)

    def setup(self, shapes: Sequence[Shape]) -> None:
        config = self.config
        self.first_axis = self.axis(config.axis, shapes[0])
        self.inputs, self.outputs = math.prod(shapes[0][self.first_axis :]), config.num_output
        if self.outputs == 0:
            self.fail("num_output must be given and positive")
        shape = (self.inputs, self.outputs) if config.transpose else (self.outputs, self.inputs)
        self.add_blob("weight", shape, config.weight_filler)
        if config.bias_term:
            self.add_blob("bias", (self.outputs,), config.bias_filler)
        else:
            self.warn_unread(("bias_filler",), NO_BIAS)

    def backward_reads(self, in_place: bool) -> Reads:
        return Reads(bottoms=(0,))

    def forward(self, x: Tensor) -> Tensor:
        inputs = math.prod(x.shape[self.first_axis :])
        if inputs != self.inputs or x.dim() < self.first_axis:
            self.fail(
                f"was set up for {self.inputs} inputs from axis {self.first_axis} on, got a bottom of shape "
                f"{tuple(x.shape)} with {inputs}; the input size of a net with this layer is fixed"
            )
        weight = self.blob(0).t() if self.config.transpose else self.blob(0)
        return F.linear(x.reshape(*x.shape[: self.first_axis], inputs), weight, self.optional_blob(1))

    def plain(self, request: Request) -> Piece:
        axes = len(request.shapes[0])
        if self.first_axis == axes:
            raise Unsayable("it takes every value by itself")
        x = request.x if self.first_axis == axes - 1 else f"{request.x}.flatten({self.first_axis})"
        if self.config.transpose:
            module = parameters_of(self.blob_names, self.blob_shapes)
            return Piece(("F.linear", [x, f"{MODULE}.weight.t()", blob_or_none(self.blob_names, 1)]), module)
        bias = [] if len(self.blob_names) > 1 else ["bias=False"]
        return Piece((MODULE, [x]), ("nn.Linear", [str(self.inputs), str(self.outputs), *bias]))


@register("Embed")
class Embed(Layer):
    """Caffe's Embed: for each index in the bottom (truncated to an integer) one row of the weight (input_dim, outputs).

    The top is the bottom's shape, then (outputs,). The indices get no gradient.
    """

    differences = "indices out of range are an error on the CPU; Caffe reads past the blob."

    config_field = "embed_param"
    index_bottoms = (0,)
    kind = "linear"

    def keeps_images_apart(self) -> bool:
        return True

    def suitable_values(self, bottom: int, first: Shape) -> Draw | None:
        return integers(self.config.input_dim)

    def setup(self, shapes: Sequence[Shape]) -> None:
        config = self.config
        if config.num_output == 0 or config.input_dim == 0:
            self.fail("num_output and input_dim must be given and positive")
        self.add_blob("weight", (config.input_dim, config.num_output), config.weight_filler)
        if config.bias_term:
            self.add_blob("bias", (config.num_output,), config.bias_filler)
        else:
            self.warn_unread(("bias_filler",), NO_BIAS)

    def backward_reads(self, in_place: bool) -> Reads:
        return Reads(bottoms=(0,))

    def forward(self, index: Tensor) -> Tensor:
        weight, bias = self.blob(0), self.optional_blob(1)
        try:
            rows = F.embedding(index.long(), weight)
        except IndexError:  # on the CPU; a GPU reports its own error later
            self.fail(f"an index is outside of 0..{weight.shape[0] - 1}, the rows of the weight (input_dim)")
        return rows if bias is None else rows + bias

    def plain(self, request: Request) -> Piece:
        index = f"{request.x}.long()"
        if self.config.bias_term:
            module = parameters_of(self.blob_names, self.blob_shapes)
            return Piece((f"F.embedding({index}, {MODULE}.weight) + {MODULE}.bias", None), module)
        return Piece((MODULE, [index]), ("nn.Embedding", [str(self.config.input_dim), str(self.config.num_output)]))
