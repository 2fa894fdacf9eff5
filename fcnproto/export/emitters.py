"""How each layer type is said in ordinary PyTorch: one function per type, registered under its Caffe name.

An emitter gets the layer and the names of its bottoms and answers with a `Piece`: the module for `__init__` if it has
one, the expression for `forward`, and which helpers these use. `Unsayable` is raised for settings without an equal in
PyTorch. Numbers agree in the forward pass; gradients are PyTorch's own where Caffe's differ (ties, clamps).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fcnproto.export.code import extents, number
from fcnproto.layers.base import Layer
from fcnproto.schema import caffe_pb2

Shape = tuple[int, ...]


class Unsayable(Exception):
    """The layer has no equal in plain PyTorch; the message says why."""


@dataclass
class Piece:
    """What a layer becomes. `module` is (class or factory, arguments); `call` the expression's function and arguments,
    with "self" standing for the module; an expression without a call is (text, None). None: the bottom is handed on.
    """

    call: tuple[str, list[str] | None] | None
    module: tuple[str, list[str]] | None = None
    helpers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """A layer to say: `args` are its bottoms' variables, `shapes` their shapes."""

    layer: Layer
    args: Sequence[str]
    shapes: Sequence[Shape]

    @property
    def config(self) -> Any:
        return self.layer.config

    @property
    def x(self) -> str:
        return self.args[0]


Emitter = Callable[[Request], Piece]
EMITTERS: dict[str, Emitter] = {}


def says(*types: str) -> Callable[[Emitter], Emitter]:
    """Registers an emitter for layer types."""

    def add(emitter: Emitter) -> Emitter:
        EMITTERS.update(dict.fromkeys(types, emitter))
        return emitter

    return add


def emit(request: Request) -> Piece:
    """The piece for a layer. Raises `Unsayable`."""
    emitter = EMITTERS.get(request.layer.type)
    if emitter is None:
        raise Unsayable("the type has no equal in plain PyTorch")
    return emitter(request)


@says("Convolution", "Deconvolution")
def _convolution(request: Request) -> Piece:
    layer: Any = request.layer
    if layer.axes not in (1, 2, 3) or layer.channel_axis != 1:
        raise Unsayable(f"its channels are at axis {layer.channel_axis}, with {layer.axes} spatial axes after them")
    if len(request.args) > 1:
        raise Unsayable("it has several bottoms")
    window, transposed = layer.window, layer.type == "Deconvolution"
    if not transposed and any(window.shortfall(request.shapes[0][2:])):
        raise Unsayable("its kernel is larger than the padded input")
    arguments = [str(layer.channels), str(layer.outputs), extents(window.kernel)]
    for name, values, default in (("stride", window.stride, 1), ("padding", window.pad, 0)):
        if set(values) != {default}:
            arguments.append(f"{name}={extents(values)}")
    if layer.groups != 1:
        arguments.append(f"groups={layer.groups}")
    if len(layer.blob_names) < 2:
        arguments.append("bias=False")
    if set(window.dilation) != {1}:
        arguments.append(f"dilation={extents(window.dilation)}")
    name = f"nn.Conv{'Transpose' if transposed else ''}{layer.axes}d"
    return Piece(("self", [request.x]), (name, arguments))


@says("InnerProduct")
def _inner_product(request: Request) -> Piece:
    layer: Any = request.layer
    arguments = [str(layer.inputs), str(layer.outputs), *(["bias=False"] if len(layer.blob_names) < 2 else [])]
    x = request.x if layer.first_axis == len(request.shapes[0]) - 1 else f"{request.x}.flatten({layer.first_axis})"
    if request.config.transpose:
        return Piece(("self", [x]), ("TransposedLinear", arguments), ("TransposedLinear",))
    return Piece(("self", [x]), ("nn.Linear", arguments))


@says("Embed")
def _embed(request: Request) -> Piece:
    config = request.config
    arguments = [str(config.input_dim), str(config.num_output)]
    if config.bias_term:
        return Piece(("self", [request.x]), ("BiasedEmbedding", arguments), ("BiasedEmbedding",))
    return Piece(("self", [f"{request.x}.long()"]), ("nn.Embedding", arguments))


@says("Pooling")
def _pooling(request: Request) -> Piece:
    layer: Any = request.layer
    if layer.method == caffe_pb2.PoolingParameter.STOCHASTIC:
        raise Unsayable("stochastic pooling has no equal")
    average = layer.method == caffe_pb2.PoolingParameter.AVE
    function = "F.avg_pool2d" if average else "F.max_pool2d"
    if layer.num_tops > 1 and layer.kernel is None:
        raise Unsayable("global pooling with a mask has no equal")
    if layer.kernel is None:
        return Piece((function, [request.x, f"{request.x}.shape[2:]"]))
    windows = layer.windows
    fits = all(2 * p <= k for p, k in zip(windows.pad, windows.kernel, strict=True))
    fits = fits and (any(windows.pad) or all(s <= k for s, k in zip(windows.stride, windows.kernel, strict=True)))
    size = request.shapes[0][2:]
    fits = fits and all(n + 2 * p >= k for n, p, k in zip(size, windows.pad, windows.kernel, strict=True))
    if not fits and layer.num_tops > 1:
        raise Unsayable("PyTorch's pooling with indices takes no such windows")
    if layer.num_tops > 1:
        arguments = [request.x, str(windows.kernel), str(windows.stride), str(windows.pad), f"ceil={not windows.floor}"]
        return Piece(("max_pool_with_mask", arguments), None, ("max_pool_with_mask",))
    if not fits:
        name = "average_pool" if average else "max_pool"
        arguments = [request.x, str(windows.kernel), str(windows.stride), str(windows.pad), f"ceil={not windows.floor}"]
        return Piece((name, arguments), None, (name, "pool_margins", "windows_of"))
    arguments = [request.x, extents(windows.kernel), f"stride={extents(windows.stride)}"]
    if any(windows.pad):
        arguments.append(f"padding={extents(windows.pad)}")
    if not windows.floor:
        arguments.append("ceil_mode=True")
    return Piece((function, arguments))


@says("SPP")
def _spp(request: Request) -> Piece:
    config = request.config
    if config.pool == caffe_pb2.SPPParameter.STOCHASTIC:
        raise Unsayable("stochastic pooling has no equal")
    arguments = [request.x, str(config.pyramid_height), f"average={config.pool == caffe_pb2.SPPParameter.AVE}"]
    pools = ("windows_of", "pool_margins", "max_pool", "average_pool")
    return Piece(("spatial_pyramid", arguments), None, (*pools, "spatial_pyramid"))


@says("LSTM", "RNN")
def _recurrent(request: Request) -> Piece:
    layer: Any = request.layer
    sizes = [str(layer.blob_shapes[0][1]), str(request.config.num_output)]
    arguments = list(request.args[:2])
    if layer.has_static:
        sizes.append(str(layer.blob_shapes[2][1]))
        arguments.append(request.args[2])
    if request.config.expose_hidden:
        first = request.args[2 + layer.has_static :]
        arguments.append(f"first=({', '.join(first)}{',' if len(first) == 1 else ''})")
    return Piece(("self", arguments), (layer.type, sizes), (layer.type,))


@says("LRN")
def _lrn(request: Request) -> Piece:
    config, x = request.config, request.x
    size, alpha, beta = config.local_size, number(config.alpha), number(config.beta)
    if config.norm_region == caffe_pb2.LRNParameter.WITHIN_CHANNEL:
        mean = f"F.avg_pool2d({x}.square(), {size}, stride=1, padding={size // 2})"
        return Piece((f"{x} * ({mean} * {alpha} + 1).pow(-{beta})", None))
    arguments = [x, str(size), f"alpha={alpha}", f"beta={beta}", f"k={number(config.k)}"]
    return Piece(("F.local_response_norm", arguments))


@says("BatchNorm")
def _batch_norm(request: Request) -> Piece:
    layer, config = request.layer, request.config
    if config.HasField("use_global_stats") and config.use_global_stats != (not layer.training):
        raise Unsayable("use_global_stats fixes what PyTorch decides by train() and eval()")
    arguments = [str(layer.blob_shapes[0][0]), f"eps={number(config.eps)}"]
    arguments.append(f"fraction={number(config.moving_average_fraction)}")
    return Piece(("self", [request.x]), ("BatchNorm", arguments), ("BatchNorm",))


@says("Scale", "Bias")
def _scale(request: Request) -> Piece:
    layer, shapes = request.layer, request.shapes
    axis = request.config.axis % len(shapes[0]) if shapes[0] else 0
    if len(request.args) == 1:
        shape = list(layer.blob_shapes[0])
        arguments = [str(shape), str(axis)]
        if layer.type == "Bias":
            arguments.append("weight=False")
        elif len(layer.blob_names) < 2:
            arguments.append("bias=False")
        return Piece(("self", [request.x]), ("Scale", arguments), ("Scale",))
    if layer.blob_names:
        raise Unsayable("its factor is a blob and its bias learned")
    missing = len(shapes[0]) - axis - len(shapes[1]) if shapes[1] else 0
    operand = f"{request.args[1]}[..., {', '.join(['None'] * missing)}]" if missing > 0 else request.args[1]
    return Piece((f"{request.x} {'*' if layer.type == 'Scale' else '+'} {operand}", None))


@says("MVN")
def _mvn(request: Request) -> Piece:
    config, x = request.config, request.x
    missing = 4 - len(request.shapes[0])
    x = f"{x}[..., {', '.join(['None'] * missing)}]" if missing else x
    axes = "(1, 2, 3)" if config.across_channels else "(2, 3)"
    arguments = [x, axes, number(config.eps), str(config.normalize_variance)]
    return Piece(("mean_variance_normalise", arguments), None, ("mean_variance_normalise",))


@says("PReLU")
def _prelu(request: Request) -> Piece:
    if request.config.channel_shared:
        return Piece(("self", [request.x]), ("SharedPReLU", []), ("SharedPReLU",))
    return Piece(("self", [request.x]), ("nn.PReLU", [str(request.layer.blob_shapes[0][0])]))


@says("Dropout")
def _dropout(request: Request) -> Piece:
    return Piece(("self", [request.x]), ("nn.Dropout", [number(request.config.dropout_ratio)]))


@says("Split")
def _split(request: Request) -> Piece:
    if request.layer.num_tops > 1:
        return Piece((", ".join([request.x] * request.layer.num_tops), None))
    return Piece(None)
