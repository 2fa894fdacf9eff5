"""What Caffe's forks add to the windows of Convolution, Deconvolution and Pooling, read from the settings. No torch.

`pad_t`, `pad_b`, `pad_l`, `pad_r` pad the four sides by themselves (one that is left out is 0); `pad_type: 1` is
TensorFlow's SAME. `hole` (DeepLab) and `dilation_h`, `dilation_w` (yjxiong) say what `dilation` says in Caffe.
"""

from __future__ import annotations

from typing import TypeAlias

from fcnproto.schema import caffe_pb2

Sides = tuple[tuple[int, int], tuple[int, int]]
"""Padding as ((top, left), (bottom, right))."""

WINDOW_FIELDS = ("pad_l", "pad_r", "pad_t", "pad_b", "pad_type")
"""The fields that Convolution, Deconvolution and Pooling share."""
DILATION_FIELDS = ("hole", "hole_h", "hole_w", "dilation_h", "dilation_w")
"""The further ones of the convolutions."""

WindowMessage: TypeAlias = caffe_pb2.ConvolutionParameter | caffe_pb2.PoolingParameter


class WindowError(ValueError):
    """Settings that contradict each other, in words to go behind the layer's name."""


def pads_by_side(message: WindowMessage) -> Sides | None:
    """The padding where it is given side by side, None where it isn't (or is 0 everywhere).

    Raises `WindowError` for a negative pad, and where pad, pad_h, pad_w or SAME is given too.
    """
    top, bottom, left, right = message.pad_t, message.pad_b, message.pad_l, message.pad_r
    if not (top or bottom or left or right):
        return None
    if min(top, bottom, left, right) < 0:
        raise WindowError(f"pad_t {top}, pad_b {bottom}, pad_l {left} and pad_r {right} must not be negative")
    if _pads(message) or message.pad_type:
        raise WindowError("pad_l, pad_r, pad_t and pad_b take the place of pad, pad_h, pad_w and pad_type; give one")
    return (top, left), (bottom, right)


def is_same(message: WindowMessage) -> bool:
    """Whether the padding is SAME: the top has ceil(n / stride) positions. Raises `WindowError` for other types."""
    if message.pad_type not in (0, 1):
        raise WindowError(f"pad_type {message.pad_type}: expected 0 (by pad) or 1 (SAME)")
    if message.pad_type and _pads(message):
        raise WindowError("pad_type 1 (SAME) works the padding out by itself; remove pad, pad_h and pad_w")
    return bool(message.pad_type)


def dilations(message: caffe_pb2.ConvolutionParameter) -> list[int]:
    """`dilation`, one number or one for each axis, by whatever name it goes; empty where it isn't given.

    Raises `WindowError` where it goes by two names, or one axis' is missing.
    """
    found = {"dilation": list(message.dilation)} if message.dilation else {}
    if message.HasField("hole"):
        found["hole"] = [message.hole]
    for name in ("hole", "dilation"):
        given = [message.HasField(f"{name}_{axis}") for axis in "hw"]
        if any(given) and not all(given):
            raise WindowError(f"give both {name}_h and {name}_w")
        if all(given):
            found[f"{name}_h, {name}_w"] = [getattr(message, f"{name}_h"), getattr(message, f"{name}_w")]
    if len(found) > 1:
        raise WindowError(f"{' and '.join(found)} say the same; give one of them")
    return next(iter(found.values()), [])


def _pads(message: WindowMessage) -> bool:
    """Whether Caffe's own fields pad anything."""
    own = [message.pad] if isinstance(message, caffe_pb2.PoolingParameter) else list(message.pad)
    return any(own) or bool(message.pad_h or message.pad_w)
