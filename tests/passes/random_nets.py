"""Random nets for testing `optimize`: chains of layers with branches, from a heavily or hardly padded image to scores."""

from __future__ import annotations

import random

import torch

import fcnproto
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse

POINTWISE = [
    'type: "ReLU"',
    'type: "ReLU"',
    'type: "ReLU" relu_param { negative_slope: 0.2 }',
    'type: "Sigmoid"',
    'type: "TanH"',
    'type: "PReLU" prelu_param { filler { type: "uniform" min: 0 max: 1 } }',
    'type: "ELU"',
    'type: "Power" power_param { scale: 0.7 shift: 0.4 }',
    'type: "AbsVal"',
    'type: "Dropout"',
    'type: "LRN" lrn_param { local_size: 3 alpha: 0.5 }',
    'type: "LRN" lrn_param { local_size: 3 alpha: 0.5 norm_region: WITHIN_CHANNEL }',
    'type: "BatchNorm"',
    'type: "Scale" scale_param { bias_term: true filler { type: "gaussian" } bias_filler { type: "gaussian" } }',
    'type: "Bias" bias_param { filler { type: "gaussian" } }',
    'type: "Softmax"',
]

BIAS = 'bias_filler { type: "gaussian" std: 0.5 }'


class _Writer:
    """Writes one random net's prototxt."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.lines = [
            'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 20 dim: 20 } } }'
        ]
        self.count = 0

    def add(self, bottoms: list[str], text: str, in_place: bool = False) -> str:
        self.count += 1
        kind = text.split('"')[1]
        top = bottoms[0] if in_place else f"{kind}{self.count}"
        wires = " ".join(f'bottom: "{name}"' for name in bottoms)
        self.lines.append(f'layer {{ name: "{kind}{self.count}" {wires} top: "{top}" {text} }}')
        return top

    def convolution(self, bottom: str, pad: int | None = None) -> str:
        r = self.random
        kernel, group = r.choice([1, 2, 3, 3, 3, 5]), r.choice([1, 1, 1, 2]) if bottom != "data" else 1
        pads = (
            f"pad: {pad if pad is not None else r.choice([0, 1, 1, 2])}"
            if r.random() < 0.8
            else f"pad_h: {r.choice([0, pad or 1])} pad_w: {r.choice([0, pad or 1])}"
        )
        return self.add(
            [bottom],
            f'type: "Convolution" convolution_param {{ num_output: {r.choice([4, 16, 20])} kernel_size: {kernel} {pads} '
            f"stride: {r.choice([1, 1, 1, 1, 2, 4])} dilation: {r.choice([1, 1, 1, 2])} group: {group} "
            f"{r.choice([BIAS, BIAS, 'bias_term: false'])} "
            'weight_filler { type: "xavier" } }',
        )

    def pooling(self, bottom: str) -> str:
        r = self.random
        kernel = r.choice([2, 2, 3, 3, 1])
        pool = r.choice(["MAX", "MAX", "MAX", "MAX", "AVE"])
        pad = r.choice([0, 0, 0, 1]) if kernel > 1 else 0
        rounding = r.choice(["", "", "round_mode: FLOOR"])
        return self.add(
            [bottom],
            f'type: "Pooling" pooling_param {{ pool: {pool} kernel_size: {kernel} stride: {r.choice([1, 2, 2, 3])} pad: {pad} {rounding} }}',
        )

    def upsampling(self, bottom: str) -> str:
        r = self.random
        kernel, stride = r.choice([(4, 2), (2, 2), (3, 2), (1, 2), (8, 4), (3, 1)])
        fixed = r.random() < 0.5
        group = "group: 4" if fixed else ""
        filler = 'type: "bilinear"' if fixed else 'type: "gaussian"'
        bias = r.choice(["bias_term: false", BIAS])
        up = self.add(
            [bottom],
            f'type: "Deconvolution" convolution_param {{ num_output: 4 {group} kernel_size: {kernel} stride: {stride} '
            f"pad: {r.choice([0, 0, 1]) if kernel > 2 else 0} {bias} "
            f"weight_filler {{ {filler} }} }}",
        )
        if r.random() < 0.7:
            offsets = r.choice(["", f"offset: {r.randrange(3)}", f"offset: {r.randrange(3)} offset: {r.randrange(3)}"])
            return self.add([up, "small"], f'type: "Crop" crop_param {{ axis: 2 {offsets} }}')
        return up

    def write(self) -> str:
        r = self.random
        blob = self.convolution("data", r.choice([0, 1, 3, 10, 20, 30]))
        tails: list[str] = []
        for _ in range(r.randrange(2, 9)):
            kind = r.random()
            if kind < 0.35:
                blob = self.convolution(blob)
            elif kind < 0.6:
                blob = self.pooling(blob)
            else:
                text = r.choice(POINTWISE)
                in_place = r.random() < 0.6 and "AbsVal" not in text
                blob = self.add([blob], text, in_place)
            if r.random() < 0.15:
                tails.append(blob)
        score = self.add(
            [blob],
            'type: "Convolution" convolution_param { num_output: 4 kernel_size: 1 weight_filler { type: "xavier" } }',
        )
        self.lines.append(
            'layer { name: "small" type: "Input" top: "small" input_param { shape { dim: 1 dim: 1 dim: 2 dim: 3 } } }'
        )
        self.upsampling(score)
        for tail in tails:
            self.add([tail], 'type: "Power" power_param { scale: 2 }')
        return "\n".join(self.lines)


def random_net(seed: int, phase: str = "test") -> fcnproto.Net | None:
    """The net of that number in float64 with statistics in its BatchNorm layers; None where its layers don't fit."""
    torch.manual_seed(seed)
    param = parse(_Writer(seed).write(), caffe_pb2.NetParameter)
    try:
        net = fcnproto.load(param, phase=phase)
    except fcnproto.Error:
        return None
    with torch.no_grad():
        for layer in net.layers:
            if layer.type == "BatchNorm":
                layer.blob(0).normal_()
                layer.blob(1).uniform_(0.5, 2)
                layer.blob(2).fill_(1.5)
            if layer.type == "Deconvolution" and layer.groups == 1 and seed % 2:
                layer.blob(0).mul_(torch.eye(4)[:, :, None, None])  # one kernel on the diagonal
    return net.double()
