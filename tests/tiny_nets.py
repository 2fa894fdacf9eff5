"""Nets small enough to reason about, written to files for tests of commands: what they answer is known by construction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

import fcnproto

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}
"""In the order of the labels that `colour_net` gives them."""

_INPUT = """
name: "colours"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 6 dim: 8 } } }
"""

_SCORE = """
layer {
  name: "score" type: "Convolution" bottom: "data" top: "score"
  convolution_param { num_output: 3 kernel_size: 1 }
}
"""

# Padding, pooling that rounds up, an upsampling deconvolution and a crop back to the input: works on any size.
_FCN = """
name: "small"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 20 dim: 20 } } }
layer {
  name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 4 kernel_size: 3 pad: 10 weight_filler { type: "gaussian" std: 0.1 } }
}
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { kernel_size: 2 stride: 2 } }
layer {
  name: "class" type: "Convolution" bottom: "pool" top: "class"
  convolution_param { num_output: 5 kernel_size: 1 weight_filler { type: "gaussian" std: 0.1 } }
}
layer {
  name: "up" type: "Deconvolution" bottom: "class" top: "up" param { lr_mult: 0 }
  convolution_param { num_output: 5 group: 5 kernel_size: 4 stride: 2 bias_term: false weight_filler { type: "bilinear" } }
}
layer { name: "score" type: "Crop" bottom: "up" bottom: "data" top: "score" crop_param { axis: 2 offset: 8 } }
"""


def colour_net(folder: Path, extra: str = "", source: str = _INPUT) -> tuple[Path, Path]:
    """A net whose blob "score" is the image's B, G and R themselves, so that its label is the strongest colour.

    Returns the prototxt and the weights. `extra` is prototxt text after the score layer.
    """
    model, weights = folder / "colours.prototxt", folder / "colours.caffemodel"
    model.write_text(source + _SCORE + extra)
    net = fcnproto.load(model)
    with torch.no_grad():
        net.params["score"][0].copy_(torch.eye(3)[:, :, None, None])
    net.save(weights)
    return model, weights


def small_fcn(folder: Path) -> tuple[Path, Path]:
    """A small FCN with random weights and five classes. Returns the prototxt and the weights."""
    model, weights = folder / "small.prototxt", folder / "small.caffemodel"
    model.write_text(_FCN)
    torch.manual_seed(1)
    fcnproto.load(model).save(weights)
    return model, weights


def stripes(path: Path, height: int = 6, width: int = 9) -> npt.NDArray[np.uint8]:
    """Write an image of a blue, a green and a red third (left to right) and return the labels of its pixels."""
    labels = np.repeat(np.arange(3, dtype=np.uint8), width // 3)[None].repeat(height, axis=0)
    Image.fromarray(np.array(list(COLOURS.values()), dtype=np.uint8)[labels]).save(path)
    return labels
