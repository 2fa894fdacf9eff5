"""FlowNet2's DataAugmentation, as far as it prepares images for a trained net: the mean that it takes off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

from fcnproto.errors import LayerError
from fcnproto.layers.base import Layer, Shape
from fcnproto.layers.plain import Request, Unsayable
from fcnproto.layers.registry import register


@register("DataAugmentation")
class DataAugmentation(Layer):
    """Images (N, C, H, W) less a mean: with `recompute_mean` that of all images of the first so many calls, in either
    phase, for each pixel or (`mean_per_pixel` false) each channel, which is kept in blobs beside their number; else the
    `mean` of three channels, where `mean_per_pixel` is false.

    Blobs: the number of calls (1, 1, 1, 1) and, with `recompute_mean`, the means (1, C, H, W) and (1, C, 1, 1). Only
    what is cropped is augmented, in the fork: with a crop, and with coefficients as a second bottom or top, the layer
    holds its place.
    """

    fork = "FlowNet2"
    config_field = "augmentation_param"
    also_reads = ("coeff_schedule_param",)
    kind = "data"
    bottoms = (1, 2)
    tops = (1, 2)
    differences = "recorded from no fork (it is computed on the GPU alone); augmentation and crops are not here."

    def keeps_images_apart(self) -> bool:
        return False

    def withheld(self) -> str:
        if not (self.config.crop_width or self.config.crop_height or len(self.param.bottom) > 1 or self.num_tops > 1):
            return ""
        return (
            f"layer {self.name!r} (DataAugmentation): crops and random changes of images can't be computed here; "
            "without crop_width and crop_height the layer takes a mean off alone"
        )

    def setup(self, shapes: Sequence[Shape]) -> None:
        config = self.config
        if self.withheld():
            raise LayerError(self.withheld())
        if len(shapes[0]) != 4:
            self.fail(f"needs images (N, C, H, W), got {tuple(shapes[0])}")
        channels, height, width = shapes[0][1:]
        self.add_blob("calls", (1, 1, 1, 1), learnable=False)
        if config.recompute_mean:
            self.add_blob("mean", (1, channels, height, width), learnable=False)
            self.add_blob("channel_mean", (1, channels, 1, 1), learnable=False)
            self.loose_blobs = () if config.mean_per_pixel else (1,)
        elif len(config.mean) == 3 and not config.mean_per_pixel and channels != 3:
            self.fail(f"mean has three values for {channels} channels")

    @classmethod
    def fixes_image_size(cls, param: object) -> bool:
        settings = param.augmentation_param  # type: ignore[attr-defined]
        return bool(settings.recompute_mean and settings.mean_per_pixel)

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [tuple(shapes[0])]

    def plain(self, request: Request) -> NoReturn:
        raise Unsayable("it keeps the mean of the images that it has seen")

    def forward(self, x: Tensor) -> Tensor:
        config = self.config
        if config.recompute_mean:
            self._see(x)
            if not config.mean_per_pixel:
                return x - self.blob(2)
            if self.blob(1).shape[2:] != x.shape[2:]:
                self.fail(f"has a mean for images of {tuple(self.blob(1).shape[2:])}, got {tuple(x.shape[2:])}")
            return x - self.blob(1)
        if len(config.mean) == 3 and not config.mean_per_pixel:
            return x - x.new_tensor(list(config.mean)).view(1, 3, 1, 1)
        return x.clone()

    @torch.no_grad()
    def _see(self, x: Tensor) -> None:
        """Count a call, and take its images into the means if it is one of the first."""
        calls, mean, by_channel = (self.blob(index) for index in range(3))
        calls.add_(1)
        count = int(calls)
        if count > self.config.recompute_mean:
            return
        if mean.shape[2:] == x.shape[2:]:
            mean.mul_(count - 1).add_(x.mean(0, keepdim=True)).div_(count)
        by_channel.mul_(count - 1).add_(x.mean((0, 2, 3), keepdim=True)).div_(count)
