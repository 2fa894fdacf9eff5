"""Depthwise convolutions of Caffe's forks: ConvolutionDepthwise and DepthwiseConvolution."""

from __future__ import annotations

from fcnproto.layers.convolution import Convolution
from fcnproto.layers.registry import register


@register("ConvolutionDepthwise")
class ConvolutionDepthwise(Convolution):
    """Convolution of each channel by itself, weight (C, 1, *kernel): `group` is the number of channels whatever the
    settings say, and `num_output` must be that number too."""

    fork = "MobileNet (farmingyard), mini-caffe, Synopsys"

    def group_count(self) -> int:
        if self.config.num_output != self.channels:
            self.fail(f"num_output {self.config.num_output} must be the number of channels, {self.channels}")
        return self.channels


@register("DepthwiseConvolution")
class DepthwiseConvolution(Convolution):
    """Convolution of each channel by itself, weight (num_output, C / group, *kernel): by `group` where it is given, as
    published nets do, else one group for each channel."""

    fork = "yonghenglh6, YOLO (eric612), Xilinx"
    differences = "without `group` each channel is its own (the fork's CPU code takes one group, its GPU code this)."

    def group_count(self) -> int:
        return self.config.group if self.config.HasField("group") else self.channels
