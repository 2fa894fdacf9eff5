"""Random chains of layers as in fully convolutional nets, and `optimize` on them against the plain net.

As a program, `python chains.py FIRST LAST` tries the chains of these numbers and prints a line of JSON for each fault:
for a process of its own, since a fault in memory ends it.
"""

from __future__ import annotations

import copy
import json
import random
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

import fcnproto
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse

Blobs = Mapping[str, Tensor]
MODES = ("gradients", "changed weights", "inference", "no_grad")
POINTWISE = [
    *('"Dropout"', '"PReLU"', '"ELU"', '"Sigmoid"', '"TanH"', '"BNLL"', '"Swish"', '"Softmax"', '"MVN"'),
    '"Power" power_param { power: 2 scale: 0.5 shift: 0.7 }',
    '"Power" power_param { scale: -1 shift: 0.3 }',
    '"Power" power_param { scale: 0 shift: 0.7 }',
    '"Exp" exp_param { scale: 0.1 base: 2 }',
    '"Clip" clip_param { min: -0.5 max: 1 }',
    '"LRN" lrn_param { local_size: 3 alpha: 0.5 }',
    '"LRN" lrn_param { local_size: 3 alpha: 0.5 norm_region: WITHIN_CHANNEL }',
    '"Scale"',
    '"Scale" scale_param { axis: -3 bias_term: true }',
    '"Scale" scale_param { num_axes: 0 }',
    '"Bias"',
    '"BatchNorm"',
    '"BatchNorm" batch_norm_param { use_global_stats: true }',
]


class Writer:
    """Writes the chain of one number: its prototxt, its input's shape, and the random numbers that follow."""

    def __init__(self, number: int) -> None:
        self.random = r = random.Random(number)
        self.layers: list[str] = []
        self.channels = r.choice([1, 3, 3, 4])
        self.shape = (r.choice([1, 1, 2]), self.channels, r.randint(4, 36), r.randint(4, 36))
        self.wide, self.upsampled = r.random() < 0.1, False
        dims = " ".join(f"dim: {n}" for n in self.shape)
        self.layers.append(f'layer {{ name: "in" type: "Input" top: "data" input_param {{ shape {{ {dims} }} }} }}')
        self.blob, self.taps = "data", ["data"]

    def add(self, text: str, bottoms: Sequence[str], in_place: bool = False) -> None:
        name = f"l{len(self.layers)}"
        self.blob = bottoms[0] if in_place else name
        wires = " ".join(f'bottom: "{bottom}"' for bottom in bottoms)
        self.layers.append(f'layer {{ name: "{name}" {wires} top: "{self.blob}" type: {text} }}')

    def write(self) -> str:
        r = self.random
        self.convolution(first=True)
        for _ in range(r.randint(1, 8)):
            kind = r.random()
            if kind < 0.35:
                self.convolution()
            elif kind < 0.55:
                self.pooling()
            elif kind < 0.8:
                text = r.choice(POINTWISE)
                self.add(text, [self.blob], r.random() < 0.5 and text != '"MVN"')
            elif kind < 0.93:
                self.upsampling()
            else:
                self.add(r.choice(['"Concat"', '"Eltwise"']), [self.blob, r.choice(self.taps)])
                break  # the channels are no longer known
            if r.random() < 0.25:
                self.taps.append(self.blob)
        return "\n".join(self.layers)

    def convolution(self, first: bool = False) -> None:
        r = self.random
        kernel = r.choice([1, 1, 2, 3, 3, 3, 5, 7])
        across = kernel if r.random() < 0.8 else r.choice([1, 2, 3, 5])
        stride, half = r.choice([1, 1, 1, 2, 3]), kernel // 2
        pad = r.choice([r.randint(2, 30), 40, 1, 5]) if first else r.choice([0, 1, half, half, half, r.randint(3, 12)])
        outputs = r.choice([128, 130, 16] if self.wide else [2, 3, 4, 8, 16, 20])
        group = r.choice([n for n in (2, 3, 4, self.channels) if self.channels % n == 0] or [1])
        group = group if r.random() < 0.15 else 1
        outputs = group * r.randint(1, 4) if group > 1 else outputs
        settings = (
            f"num_output: {outputs} group: {group} kernel_h: {kernel} kernel_w: {across} pad_h: {pad} "
            f"pad_w: {pad if r.random() < 0.8 else r.randint(0, 12)} stride_h: {stride} "
            f"stride_w: {stride if r.random() < 0.85 else r.choice([1, 2])} "
            f"dilation: {r.choice([2, 3]) if r.random() < 0.15 else 1} bias_term: {str(r.random() < 0.75).lower()}"
        )
        self.add(f'"Convolution" convolution_param {{ {settings} }}', [self.blob])
        self.channels = outputs
        if r.random() < 0.35:
            self.add('"BatchNorm"', [self.blob], r.random() < 0.6)
            if r.random() < 0.7:
                bias = str(r.random() < 0.6).lower()
                self.add(f'"Scale" scale_param {{ bias_term: {bias} }}', [self.blob], in_place=True)
        if r.random() < 0.7:
            slope = "relu_param { negative_slope: 0.1 }" if r.random() < 0.15 else ""
            self.add(f'"ReLU" {slope}', [self.blob], r.random() < 0.6)

    def pooling(self) -> None:
        r = self.random
        pad, floor = "pad: 1" * (r.random() < 0.15), "round_mode: FLOOR" * (r.random() < 0.1)
        # After upsampling a blob's constant parts are ties but for rounding, which decides where gradients go.
        method = "pool: AVE" if r.random() < 0.2 or self.upsampled else ""
        settings = (
            f"kernel_size: {r.choice([2, 2, 3, 3, 4])} stride: {r.choice([1, 2, 2, 2, 3])} {pad} {floor} {method}"
        )
        self.add(f'"Pooling" pooling_param {{ {settings} }}', [self.blob])

    def upsampling(self) -> None:
        r = self.random
        stride = r.choice([1, 2, 2, 3])
        kernel = r.choice([stride, 2 * stride, 2 * stride - stride % 2, 3, 4, 1])
        outputs = r.choice([self.channels, self.channels, 2, 3])
        group = self.channels if outputs == self.channels and r.random() < 0.3 else 1
        pad = r.randint(0, max(0, (kernel - 1) // 2)) if r.random() < 0.3 else 0
        filler = 'weight_filler { type: "bilinear" }' if r.random() < 0.6 else ""
        bias = str(r.random() < 0.5).lower()
        self.add(
            f'"Deconvolution" convolution_param {{ num_output: {outputs} group: {group} kernel_size: {kernel} '
            f"stride: {stride} pad: {pad} bias_term: {bias} {filler} }}",
            [self.blob],
        )
        self.channels, self.upsampled = outputs, True
        if r.random() < 0.7:
            kind = r.random()
            count = 1 if kind < 0.5 else 2 if kind < 0.7 else 0
            offsets = " ".join(f"offset: {r.randint(0, 5)}" for _ in range(count))
            axis = f"axis: {r.choice([2, -2, 3, -1])}" if r.random() < 0.35 else ""
            self.add(f'"Crop" crop_param {{ {axis} {offsets} }}', [self.blob, r.choice(self.taps)])


def set_values(net: fcnproto.Net, r: random.Random) -> None:
    """Values that keep signals at their size, statistics as after training, and kernels on the diagonal in part."""
    with torch.no_grad():
        for layer in net.layers:
            for k in range(len(layer.blob_names)):
                blob = layer.blob(k)
                bilinear = layer.type == "Deconvolution" and layer.config.weight_filler.type == "bilinear"
                if layer.type == "BatchNorm":
                    blob.copy_([torch.randn(blob.shape), torch.rand(blob.shape) + 0.3, torch.ones(blob.shape)][k])
                elif k == 0 and bilinear:
                    if r.random() < 0.7 and blob.shape[0] == blob.shape[1]:
                        blob.mul_(torch.eye(len(blob))[:, :, None, None])
                elif blob.dim() > 1:
                    blob.copy_(torch.randn(blob.shape) / blob[0].numel() ** 0.5)
                else:
                    blob.copy_(torch.randn(blob.shape) * 0.4)


class Trial:
    """One chain as a plain, an optimised and a float64 net with weights of their own, always of equal values."""

    def __init__(self, number: int) -> None:
        writer = Writer(number)
        self.text, r = writer.write(), writer.random
        self.random = r
        torch.manual_seed(number)
        net = fcnproto.load(parse(self.text, caffe_pb2.NetParameter), phase=r.choice(["test", "test", "train"]))
        set_values(net, r)
        for layer in net.layers:
            if layer.type == "Dropout":
                layer.eval()  # its draws depend on the order in memory
        self.plain, self.exact = copy.deepcopy(net), copy.deepcopy(net).double()
        self.fast = fcnproto.optimize(net)
        batch, channels, rows, columns = writer.shape
        larger = (batch, channels, rows + r.randint(0, 9), columns + r.randint(0, 9))
        self.sizes = [writer.shape, larger, (3 - batch, *writer.shape[1:])]
        names = list(net.graph.blobs)
        self.blobs = names if r.random() < 0.3 else r.sample(names, min(len(names), r.randint(0, 2)))

    def faults(self) -> Iterator[str]:
        """Every way in which the optimised net departs, over sizes, with and without gradients, as weights change."""
        for size in self.sizes:
            for mode in MODES if size is self.sizes[0] else MODES[:2]:
                self._level(change=mode == "changed weights")
                found = list(self._faults(size, mode))
                if found and all(fault.startswith("gradient of") for fault in found):
                    # One value within rounding of a ReLU's zero or of a window's second largest sends a gradient
                    # elsewhere, in float32, now and then: a fault shows with another image as well.
                    found = list(self._faults(size, mode))
                yield from (f"{size} {mode}: {fault}" for fault in found)

    def _level(self, change: bool) -> None:
        """The same values in all three nets: the plain one's, which `change` moves."""
        with torch.no_grad():
            for a, b, c in zip(
                *(each.state_dict().values() for each in (self.plain, self.fast, self.exact)), strict=True
            ):
                if change and a.dim() > 1:
                    a.add_(torch.randn(a.shape) * 0.1 * float(a.abs().mean()))
                b.copy_(a)
                c.copy_(a)

    def _faults(self, size: Sequence[int], mode: str) -> Iterator[str]:
        x = torch.randn(size)
        if mode != "gradients":
            kind = torch.inference_mode if mode == "inference" else torch.no_grad
            with kind():
                results = [self._call(each, x) for each in (self.plain, self.fast)]
            with torch.no_grad():
                results.append(self._call(self.exact, x.double()))
        else:
            images = [x.clone().requires_grad_(), x.clone().requires_grad_(), x.double().requires_grad_()]
            nets = (self.plain, self.fast, self.exact)
            results = [self._call(each, image) for each, image in zip(nets, images, strict=True)]
        plain, fast, exact = results
        if isinstance(plain, str) or isinstance(fast, str) or isinstance(exact, str):
            if plain != fast:
                yield f"plain: {plain if isinstance(plain, str) else 'runs'}, optimised: {fast if isinstance(fast, str) else 'runs'}"
            return
        yield from departures(plain, fast, exact, 1e-5)
        for (name, a), b in zip(self.plain.named_buffers(), self.fast.buffers(), strict=True):
            if not torch.allclose(a, b, rtol=1e-4, atol=1e-5):
                yield f"buffer {name}"
        if mode == "gradients":
            seed = self.random.randrange(10**6)
            gradients = [
                gradients_of(net, out, image, seed) for net, out, image in zip(nets, results, images, strict=True)
            ]
            yield from departures(*gradients, 1e-4, 1e-6)

    def _call(self, net: fcnproto.Net, x: Tensor) -> Blobs | str:
        try:
            return net(data=x, blobs=self.blobs)
        except fcnproto.Error as error:
            return str(error)


def gradients_of(net: fcnproto.Net, outputs: Blobs, image: Tensor, seed: int) -> dict[str, Tensor]:
    """Gradients of the image and of all parameters for random gradients of the outputs; zeros where there is none."""
    generator = torch.Generator().manual_seed(seed)
    total = sum((y * torch.randn(y.shape, generator=generator).to(y.dtype)).sum() for y in outputs.values())
    sources = {"data": image, **dict(net.named_parameters())}
    assert isinstance(total, Tensor)
    found = torch.autograd.grad(total, list(sources.values()), allow_unused=True) if total.requires_grad else []
    zeros = [torch.zeros_like(source) for source in sources.values()]
    return {
        f"gradient of {name}": zero if gradient is None else gradient
        for name, gradient, zero in zip(sources, found or zeros, zeros, strict=True)
    }


def departures(plain: Blobs, fast: Blobs, exact: Blobs, tolerance: float, floor: float = 0) -> Iterator[str]:
    """Values in which `fast` is off by more than the tolerance, and by ten times more than the plain net is.

    Where the plain net is itself off by a hundredth of a blob's largest value (what is zero but for rounding, or
    overflows) float32 can't tell. The tolerance is a part of a blob's largest value, `floor` one of the largest of all: what is zero but for rounding
    (a bias's gradient before batch statistics) is not measured by itself.
    """
    most = max((float(value.detach().abs().max()) for value in exact.values() if value.numel()), default=0.0)
    for name, value in exact.items():
        if fast[name].shape != value.shape:
            yield f"{name}: shape {tuple(fast[name].shape)}, not {tuple(value.shape)}"
            continue
        if not value.numel() or torch.equal(fast[name].detach(), plain[name].detach()):
            continue
        ours, theirs = (float((each[name].detach() - value.detach()).abs().max()) for each in (fast, plain))
        largest = float(value.detach().abs().max())
        if not theirs <= largest / 100 or not largest < 1e30:
            continue
        if not ours <= max(tolerance * largest, 10 * theirs, floor * most):
            yield f"{name}: off by {ours:.2g} of {largest:.2g}, the plain net by {theirs:.2g}"


def main(first: int, last: int) -> None:
    """Try the chains from `first` up to `last`; the number of each is written before it is tried."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    tried = 0
    for number in range(first, last):
        print(f"{number}", file=sys.stderr, flush=True)
        try:
            trial = Trial(number)
        except fcnproto.Error:
            continue  # its layers don't fit together
        tried += 1
        try:
            found = list(trial.faults())
        except Exception as error:  # whatever it is, the other chains are tried
            found = [f"{type(error).__name__}: {error}"]
        if found:
            print(json.dumps({"number": number, "faults": found, "net": trial.text}), flush=True)
    print(json.dumps({"tried": tried}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
