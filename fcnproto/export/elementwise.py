"""How layers without parameters are said in ordinary PyTorch: activations, arithmetic, and moving values about."""

from __future__ import annotations

from typing import Any

from fcnproto.export.code import number
from fcnproto.export.emitters import Piece, Request, says
from fcnproto.schema import caffe_pb2


def _simple(function: str) -> Any:
    return lambda request: Piece((function, [request.x]))


for _type, _function in {"Sigmoid": "torch.sigmoid", "TanH": "torch.tanh", "AbsVal": "torch.abs"}.items():
    says(_type)(_simple(_function))


@says("ReLU")
def _relu(request: Request) -> Piece:
    slope = request.config.negative_slope
    return Piece(("F.leaky_relu", [request.x, number(slope)]) if slope else ("F.relu", [request.x]))


@says("ELU")
def _elu(request: Request) -> Piece:
    return Piece(("F.elu", [request.x, f"alpha={number(request.config.alpha)}"]))


@says("BNLL")
def _bnll(request: Request) -> Piece:
    return Piece(("F.softplus", [request.x, "threshold=50"]))


@says("Clip")
def _clip(request: Request) -> Piece:
    return Piece(("torch.clamp", [request.x, number(request.config.min), number(request.config.max)]))


@says("Swish")
def _swish(request: Request) -> Piece:
    beta = request.config.beta
    if beta == 1:
        return Piece(("F.silu", [request.x]))
    return Piece((f"{request.x} * torch.sigmoid({request.x} * {number(beta)})", None))


@says("Threshold")
def _threshold(request: Request) -> Piece:
    return Piece((f"({request.x} > {number(request.config.threshold)}).to({request.x}.dtype)", None))


@says("Power")
def _power(request: Request) -> Piece:
    layer: Any = request.layer
    if layer.constant is not None:
        return Piece(("torch.full_like", [request.x, number(layer.constant)]))
    base = _affine(request.x, request.config.scale, request.config.shift)
    power = request.config.power
    if power == 1:
        return Piece((base, None)) if base != request.x else Piece(None)
    return Piece((f"{_bracketed(base)}.pow({number(power)})", None))


@says("Exp")
def _exp(request: Request) -> Piece:
    layer: Any = request.layer
    inner = request.x if layer.inner_scale == 1 else f"{request.x} * {number(layer.inner_scale)}"
    outer = "" if layer.outer_scale == 1 else f" * {number(layer.outer_scale)}"
    return Piece((f"torch.exp({inner}){outer}", None))


@says("Log")
def _log(request: Request) -> Piece:
    layer: Any = request.layer
    base = _affine(request.x, request.config.scale, request.config.shift)
    outer = "" if layer.base_scale == 1 else f" * {number(layer.base_scale)}"
    return Piece((f"torch.log({base}){outer}", None))


def _affine(x: str, scale: float, shift: float) -> str:
    text = x if scale == 1 else f"{x} * {number(scale)}"
    return f"{text} + {number(shift)}" if shift else text


def _bracketed(text: str) -> str:
    return text if text.isidentifier() else f"({text})"


@says("Softmax")
def _softmax(request: Request) -> Piece:
    return Piece(("F.softmax", [request.x, f"dim={request.config.axis}"]))


@says("Eltwise")
def _eltwise(request: Request) -> Piece:
    layer: Any = request.layer
    operation = request.config.operation
    if operation == caffe_pb2.EltwiseParameter.MAX:
        result = request.args[0]
        for other in request.args[1:]:
            result = f"torch.maximum({result}, {other})"
        return Piece((result, None))
    if operation == caffe_pb2.EltwiseParameter.PROD:
        return Piece((" * ".join(request.args), None))
    terms = [
        name if factor == 1 else f"{name} * {number(factor)}"
        for name, factor in zip(request.args, layer.coefficients, strict=True)
    ]
    return Piece((" + ".join(terms), None))


@says("Reduction")
def _reduction(request: Request) -> Piece:
    config, shape = request.config, request.shapes[0]
    axis = config.axis % len(shape) if shape else 0
    x = request.x
    operation = caffe_pb2.ReductionParameter.ReductionOp.Name(config.operation)
    values = {"SUM": x, "MEAN": x, "ASUM": f"{x}.abs()", "SUMSQ": f"{x}.square()"}[operation]
    axes = "" if axis == 0 else str(tuple(range(axis, len(shape))))
    result = f"{values}.{'mean' if operation == 'MEAN' else 'sum'}({axes})"
    return Piece((result if config.coeff == 1 else f"{result} * {number(config.coeff)}", None))


@says("ArgMax")
def _arg_max(request: Request) -> Piece:
    layer: Any = request.layer
    axis = "None" if layer.given_axis is None else str(layer.given_axis)
    arguments = [request.x, str(request.config.top_k), f"axis={axis}", f"values={bool(request.config.out_max_val)}"]
    return Piece(("arg_max", arguments), None, ("arg_max",))


@says("Concat")
def _concat(request: Request) -> Piece:
    layer: Any = request.layer
    if len(request.args) == 1:
        return Piece(None)
    axis = layer.canonical_axis(request.shapes[0])
    return Piece(("torch.cat", [f"[{', '.join(request.args)}]", f"dim={axis}"]))


@says("Slice")
def _slice(request: Request) -> Piece:
    layer: Any = request.layer
    if layer.num_tops == 1:
        return Piece(None)
    axis = layer.canonical_axis(request.shapes[0])
    if not layer.points:
        return Piece(("torch.chunk", [request.x, str(layer.num_tops), f"dim={axis}"]))
    return Piece(("torch.tensor_split", [request.x, str(list(layer.points)), f"dim={axis}"]))


@says("Crop")
def _crop(request: Request) -> Piece:
    layer: Any = request.layer
    parts = [":"] * len(request.shapes[0])
    for axis, offset in layer.offsets(request.shapes[0]):
        size = f"{request.args[1]}.shape[{axis}]"
        parts[axis] = f"{offset} : {offset} + {size}" if offset else f": {size}"
    return Piece((f"{request.x}[", parts))


@says("Flatten")
def _flatten(request: Request) -> Piece:
    config, axes = request.config, len(request.shapes[0])
    start, end = config.axis % axes, config.end_axis % axes
    return Piece((f"{request.x}.flatten({start}{'' if end == axes - 1 else f', {end}'})", None))


@says("Reshape")
def _reshape(request: Request) -> Piece:
    config, shape = request.config, request.shapes[0]
    axes = len(shape)
    start = config.axis + axes + 1 if config.axis < 0 else config.axis
    end = axes if config.num_axes == -1 else start + config.num_axes
    kept = [f"{request.x}.shape[{i}]" for i in range(axes)]
    dims = [kept[start + i] if dim == 0 else str(dim) for i, dim in enumerate(config.shape.dim)]
    return Piece((f"{request.x}.reshape", [*kept[:start], *dims, *kept[end:]]))


@says("Tile")
def _tile(request: Request) -> Piece:
    config, axes = request.config, len(request.shapes[0])
    counts = [str(config.tiles) if i == config.axis % axes else "1" for i in range(axes)]
    return Piece((f"{request.x}.repeat", counts))


@says("BatchReindex")
def _batch_reindex(request: Request) -> Piece:
    return Piece((f"{request.x}.index_select(0, {request.args[1]}.long())", None))


@says("Filter")
def _filter(request: Request) -> Piece:
    kept = f"{request.args[-1]}.flatten() != 0"
    return Piece(("", [f"{name}[{kept}]" for name in request.args[:-1]]))
