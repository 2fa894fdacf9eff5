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

MODULE = "@module@"
"""Where a layer's module is to stand in a piece of code."""


class Unsayable(Exception):
    """The layer has no equal in plain PyTorch; the message says why."""


@dataclass
class Piece:
    """What a layer becomes. `module` is (class or factory, arguments); `call` the expression's function and arguments;
    an expression without a call is (text, None), several in a row are ("", texts). `MODULE` in any of them stands for
    the module. None: the bottom is handed on.
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
    module, helper = _zero_dimensional(layer) if layer.axes == 0 else (_convolution_module(layer), ())
    extents_needed = None
    if layer.type == "Convolution" and any(layer.window.shortfall(request.shapes[0][layer.channel_axis + 1 :])):
        extents_needed = tuple(e - 2 * p for e, p in zip(layer.window.extent, layer.window.pad, strict=True))
        helper = (*helper, "at_least")
    calls = []
    for x in request.args:
        x = x if extents_needed is None else f"at_least({x}, {extents_needed})"
        if layer.axes == 0 or layer.channel_axis == 1:
            calls.append(f"{MODULE}({x})")
        elif layer.channel_axis == 0:
            calls.append(f"{MODULE}({x}.unsqueeze(0)).squeeze(0)")
        else:
            before = layer.channel_axis
            calls.append(f"{MODULE}({x}.flatten(0, {before - 1})).unflatten(0, {request.x}.shape[:{before}])")
    if calls == [f"{MODULE}({request.x})"]:
        return Piece((MODULE, [request.x]), module)
    return Piece(("", calls), module, helper)


def _convolution_module(layer: Any) -> tuple[str, list[str]]:
    """The module of a convolution, transposed or not, over one to three axes."""
    window, transposed = layer.window, layer.type == "Deconvolution"
    if layer.axes > 3:
        raise Unsayable(f"it has {layer.axes} spatial axes, PyTorch's convolutions have up to 3")
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
    return f"nn.Conv{'Transpose' if transposed else ''}{layer.axes}d", arguments


def _zero_dimensional(layer: Any) -> tuple[tuple[str, list[str]], tuple[str, ...]]:
    """The module of a convolution without spatial axes, a linear layer, and its helpers."""
    if layer.groups != 1:
        raise Unsayable("it has groups but no spatial axes")
    arguments = [str(layer.channels), str(layer.outputs), *(["bias=False"] if len(layer.blob_names) < 2 else [])]
    if layer.type == "Convolution":
        return ("nn.Linear", arguments), ()
    return ("TransposedLinear", arguments), ("TransposedLinear",)


@says("Im2col")
def _im2col(request: Request) -> Piece:
    layer: Any = request.layer
    window, before = layer.window, layer.channel_axis
    if any(window.shortfall(request.shapes[0][before + 1 :])):
        raise Unsayable("its kernel is larger than the padded input")
    settings = [str(values) for values in (window.kernel, window.stride, window.pad, window.dilation)]
    if before == 1:
        return Piece(("im2col", [request.x, *settings]), None, ("im2col",))
    x = f"{request.x}.unsqueeze(0)" if before == 0 else f"{request.x}.flatten(0, {before - 1})"
    end = ".squeeze(0)" if before == 0 else f".unflatten(0, {request.x}.shape[:{before}])"
    return Piece((f"im2col({', '.join([x, *settings])}){end}", None), None, ("im2col",))


@says("InnerProduct")
def _inner_product(request: Request) -> Piece:
    layer: Any = request.layer
    arguments = [str(layer.inputs), str(layer.outputs), *(["bias=False"] if len(layer.blob_names) < 2 else [])]
    x = request.x if layer.first_axis == len(request.shapes[0]) - 1 else f"{request.x}.flatten({layer.first_axis})"
    if request.config.transpose:
        return Piece((MODULE, [x]), ("TransposedLinear", arguments), ("TransposedLinear",))
    return Piece((MODULE, [x]), ("nn.Linear", arguments))


@says("Embed")
def _embed(request: Request) -> Piece:
    config = request.config
    arguments = [str(config.input_dim), str(config.num_output)]
    if config.bias_term:
        return Piece((MODULE, [request.x]), ("BiasedEmbedding", arguments), ("BiasedEmbedding",))
    return Piece((MODULE, [f"{request.x}.long()"]), ("nn.Embedding", arguments))


@says("Pooling")
def _pooling(request: Request) -> Piece:
    layer: Any = request.layer
    method, windows, x = layer.method, layer.windows_of(request.shapes[0]), request.x
    kernel = str(windows.kernel) if layer.kernel is not None else f"{x}.shape[2:]"
    general = [x, kernel, str(windows.stride), str(windows.pad), f"ceil={not windows.floor}"]
    if method == caffe_pb2.PoolingParameter.STOCHASTIC:
        arguments = [*general, "sample=self.training"]
        return Piece(("stochastic_pool", arguments), None, ("windows_of", "pool_margins", "stochastic_pool"))
    if layer.num_tops > 1:
        return Piece(("max_pool_with_mask", general), None, ("windows_of", "pool_margins", "max_pool_with_mask"))
    average = method == caffe_pb2.PoolingParameter.AVE
    function = "F.avg_pool2d" if average else "F.max_pool2d"
    if layer.kernel is None:
        return Piece((f"F.adaptive_{'avg' if average else 'max'}_pool2d", [x, "1"]))
    if not _pools_alike(windows, request.shapes[0][2:]):
        name = "average_pool" if average else "max_pool"
        return Piece((name, general), None, (name, "pool_margins", "windows_of"))
    arguments = [x, extents(windows.kernel), f"stride={extents(windows.stride)}"]
    if any(windows.pad):
        arguments.append(f"padding={extents(windows.pad)}")
    if not windows.floor:
        arguments.append("ceil_mode=True")
    return Piece((function, arguments))


def _pools_alike(windows: Any, size: Shape) -> bool:
    """Whether PyTorch's own pooling makes Caffe's windows, for this and for larger inputs."""
    kernel, stride, pad = windows.kernel, windows.stride, windows.pad
    fits = all(2 * p <= k for p, k in zip(pad, kernel, strict=True))
    fits = fits and (any(pad) or all(s <= k for s, k in zip(stride, kernel, strict=True)))
    return fits and all(n + 2 * p >= k for n, p, k in zip(size, pad, kernel, strict=True))


@says("SPP")
def _spp(request: Request) -> Piece:
    config = request.config
    if config.pool == caffe_pb2.SPPParameter.STOCHASTIC:
        raise Unsayable("its pooling is stochastic")
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
    return Piece((MODULE, arguments), (layer.type, sizes), (layer.type,))


@says("LSTMUnit")
def _lstm_unit(request: Request) -> Piece:
    return Piece(("lstm_unit", list(request.args)), None, ("lstm_unit",))


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
    arguments = [str(layer.blob_shapes[0][0]), f"eps={number(config.eps)}"]
    arguments.append(f"fraction={number(config.moving_average_fraction)}")
    if config.HasField("use_global_stats"):
        arguments.append(f"stored={config.use_global_stats}")
    return Piece((MODULE, [request.x]), ("BatchNorm", arguments), ("BatchNorm",))


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
        return Piece((MODULE, [request.x]), ("Scale", arguments), ("Scale",))
    missing = len(shapes[0]) - axis - len(shapes[1]) if shapes[1] else 0
    operand = f"{request.args[1]}[..., {', '.join(['None'] * missing)}]" if missing > 0 else request.args[1]
    result = f"{request.x} {'*' if layer.type == 'Scale' else '+'} {operand}"
    if not layer.blob_names:
        return Piece((result, None))
    bias = [str(list(layer.blob_shapes[0])), str(axis), "weight=False"]
    return Piece((f"{MODULE}({result})", None), ("Scale", bias), ("Scale",))


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
        return Piece((MODULE, [request.x]), ("SharedPReLU", []), ("SharedPReLU",))
    return Piece((MODULE, [request.x]), ("nn.PReLU", [str(request.layer.blob_shapes[0][0])]))


@says("Dropout")
def _dropout(request: Request) -> Piece:
    return Piece((MODULE, [request.x]), ("nn.Dropout", [number(request.config.dropout_ratio)]))


@says("Parameter")
def _parameter(request: Request) -> Piece:
    shape = list(request.layer.blob_shapes[0])
    return Piece((MODULE, []), ("LearnedBlob", [str(shape)]), ("LearnedBlob",))


@says("Split")
def _split(request: Request) -> Piece:
    if request.layer.num_tops > 1:
        return Piece(("", [request.x] * request.layer.num_tops))
    return Piece(None)
