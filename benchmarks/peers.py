"""The FCN nets as one writes them by hand in PyTorch: the yardstick of the benchmarks, not used by the package.

Ordinary modules in NCHW: ceil-mode pooling, full transposed convolutions, slicing for the crops.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def _block(channels: int, widths: Sequence[int], pad: int = 1) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Conv2d(channels, width, 3, padding=pad), nn.ReLU(inplace=True)]
        channels, pad = width, 1
    return nn.Sequential(*layers, nn.MaxPool2d(2, 2, ceil_mode=True))


def _crop(x: Tensor, offset: int, like: Tensor) -> Tensor:
    return x[:, :, offset : offset + like.shape[2], offset : offset + like.shape[3]]


class Vgg(nn.Module):
    """FCN-32s (stages 1), -16s (2) or -8s (3) on VGG16, with one or more heads."""

    def __init__(self, stages: int, heads: Sequence[int], channels: int = 3) -> None:
        super().__init__()
        self.stages = stages
        inputs = (channels, *(block[-1] for block in VGG16))
        self.blocks = nn.ModuleList(_block(inputs[i], widths, 100 if i == 0 else 1) for i, widths in enumerate(VGG16))
        self.top = nn.Sequential(
            *(nn.Conv2d(512, 4096, 7), nn.ReLU(inplace=True), nn.Dropout()),
            *(nn.Conv2d(4096, 4096, 1), nn.ReLU(inplace=True), nn.Dropout()),
        )
        self.scores = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(width, classes, 1) for width in (4096, 512, 256)[:stages]) for classes in heads
        )
        last = 2 ** (6 - stages)
        self.ups = nn.ModuleList(
            nn.ModuleList(
                [nn.ConvTranspose2d(n, n, 4, 2, bias=False) for _ in range(stages - 1)]
                + [nn.ConvTranspose2d(n, n, 2 * last, last, bias=False)]
            )
            for n in heads
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        image, pools = x, []
        for block in self.blocks:
            x = block(x)
            pools.append(x)
        x = self.top(x)
        outputs = []
        for scores, ups in zip(self.scores, self.ups, strict=True):
            y = scores[0](x)
            for i in range(1, self.stages):
                y = ups[i - 1](y)
                y = y + _crop(scores[i](pools[4 - i]), (5, 9)[i - 1], y)
            outputs.append(_crop(ups[-1](y), {1: 19, 2: 27, 3: 31}[self.stages], image))
        return outputs


class AlexNet(nn.Module):
    """FCN-AlexNet."""

    def __init__(self, classes: int = 21) -> None:
        super().__init__()
        norm = {"alpha": 1e-4, "beta": 0.75}
        pool = {"kernel_size": 3, "stride": 2, "ceil_mode": True}
        relu = {"inplace": True}
        self.body = nn.Sequential(
            *(nn.Conv2d(3, 96, 11, 4, 100), nn.ReLU(**relu), nn.MaxPool2d(**pool), nn.LocalResponseNorm(5, **norm)),
            *(nn.Conv2d(96, 256, 5, padding=2, groups=2), nn.ReLU(**relu), nn.MaxPool2d(**pool)),
            nn.LocalResponseNorm(5, **norm),
            *(nn.Conv2d(256, 384, 3, padding=1), nn.ReLU(**relu)),
            *(nn.Conv2d(384, 384, 3, padding=1, groups=2), nn.ReLU(**relu)),
            *(nn.Conv2d(384, 256, 3, padding=1, groups=2), nn.ReLU(**relu), nn.MaxPool2d(**pool)),
            *(nn.Conv2d(256, 4096, 6), nn.ReLU(**relu), nn.Dropout()),
            *(nn.Conv2d(4096, 4096, 1), nn.ReLU(**relu), nn.Dropout()),
            nn.Conv2d(4096, classes, 1),
        )
        self.up = nn.ConvTranspose2d(classes, classes, 63, 32, bias=False)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [_crop(self.up(self.body(x)), 18, x)]


def parameters(module: nn.Module) -> list[Tensor]:
    """The weights in the published nets' order: the trunk, then each head's scores and upsamplings."""
    if isinstance(module, AlexNet):
        return list(module.parameters())
    assert isinstance(module, Vgg)
    tensors = [*module.blocks.parameters(), *module.top.parameters()]
    for scores, ups in zip(module.scores, module.ups, strict=True):
        for score, up in zip(scores, [*ups], strict=True):
            tensors += [*score.parameters()]
            tensors += [*up.parameters()]
    return tensors


@torch.no_grad()
def copy_weights(module: nn.Module, params: dict[str, list[Tensor]]) -> None:
    """Give a hand-written net the weights of ours, matched by shape in order (tests that it computes the same)."""
    remaining = [tensor for tensors in params.values() for tensor in tensors]
    for target in parameters(module):
        for i, source in enumerate(remaining):
            if source.shape == target.shape:
                target.copy_(source)
                del remaining[i]
                break
        else:
            raise ValueError(f"no blob of shape {tuple(target.shape)} is left")


def loss(outputs: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
    """The published nets' loss: cross entropy summed over the pixels that are not 255."""
    terms = [
        F.cross_entropy(y, label, ignore_index=255, reduction="sum") for y, label in zip(outputs, labels, strict=True)
    ]
    return torch.stack(terms).sum()
