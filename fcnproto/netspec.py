"""A builder for nets in the manner of pycaffe's NetSpec: layers are functions of tops, a spec gives them names.

    net = NetSpec()
    net.data = layers.Input(shape=dict(dim=[1, 3, 224, 224]))
    net.conv1 = layers.Convolution(net.data, num_output=64, kernel_size=3, pad=1)
    net.relu1 = layers.ReLU(net.conv1, in_place=True)
    print(net.to_proto())

It writes NetParameter messages and needs no torch; it does not know which layer types exist or whether a net can run
(loading it says so). Beyond pycaffe: settings are checked when a layer is made; layer types that have no message of
their own take the plain settings of the messages they share (Deconvolution num_output, SoftmaxWithLoss ignore_label);
enums may be given by name; `name=` names a layer apart from its top; automatic names step around given ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from fcnproto.errors import GraphError
from fcnproto.graph import coord_map
from fcnproto.schema import caffe_pb2
from fcnproto.schema.fields import Field, fields_of, suggestion
from fcnproto.schema.settings import settings_fields

__all__ = ["Function", "NetSpec", "SpecNameError", "Top", "crop", "layers", "params", "to_proto"]

_LAYER_FIELDS = fields_of(caffe_pb2.LayerParameter.DESCRIPTOR).by_name

# Where a layer type looks for its plain settings: in the message called after it ...
MESSAGES: dict[str, tuple[str, ...]] = {
    field.message.name.removesuffix("Parameter"): (name,)
    for name, field in _LAYER_FIELDS.items()
    if field.message is not None and name.endswith("_param") and name not in ("transform_param", "loss_param")
}
# ... or, where several types share one or a type reads two, in these, earlier ones first.
MESSAGES |= {
    "Deconvolution": ("convolution_param",),
    "Im2col": ("convolution_param",),
    "LSTM": ("recurrent_param",),
    "RNN": ("recurrent_param",),
    "SoftmaxWithLoss": ("softmax_param", "loss_param"),
    "ContrastiveLoss": ("contrastive_loss_param", "loss_param"),
    "EuclideanLoss": ("loss_param",),
    "HingeLoss": ("hinge_loss_param", "loss_param"),
    "InfogainLoss": ("infogain_loss_param", "loss_param"),
    "MultinomialLogisticLoss": ("loss_param",),
    "SigmoidCrossEntropyLoss": ("loss_param",),
}


class SpecNameError(GraphError, AttributeError):
    """A name that a spec, or a layer type's parameters, does not have."""


class Top:
    """One output of a layer, to be handed to further layers."""

    def __init__(self, producer: Function, index: int) -> None:
        self.producer, self.index = producer, index

    def to_proto(self) -> caffe_pb2.NetParameter:
        """The net that computes this top, all names made up."""
        return to_proto(self)

    def __repr__(self) -> str:
        return f"<top {self.index} of {self.producer.param.type}>"


class Function:
    """A layer without its name: its settings as a LayerParameter (`param`), the tops it reads, the tops it makes."""

    def __init__(self, type_name: str, bottoms: Iterable[Top], settings: Mapping[str, Any]) -> None:
        """Settings as `layers` describes them. Raises `GraphError` for inputs that are no tops and bad settings."""
        rest = dict(settings)
        ntop, self.in_place = rest.pop("ntop", 1), rest.pop("in_place", False)
        self.bottoms = tuple(bottoms)
        for index, bottom in enumerate(self.bottoms):
            if not isinstance(bottom, Top):
                what = "a layer without tops" if isinstance(bottom, Function) else f"of type {type(bottom).__name__}"
                raise GraphError(f"{type_name}: input {index} is {what}; give the tops of other layers")
        if self.in_place and ntop > len(self.bottoms):
            raise GraphError(f"{type_name}: {ntop} tops in place need as many inputs, not {len(self.bottoms)}")
        self.settings = rest
        self.param = _filled(type_name, rest)
        self.tops = tuple(Top(self, index) for index in range(ntop))

    def update(self, settings: Mapping[str, Any]) -> None:
        """Give settings other values, or set more of them. Raises `GraphError` for bad ones."""
        self.param = _filled(self.param.type, {**self.settings, **settings})
        self.settings = {**self.settings, **settings}


def _filled(type_name: str, settings: Mapping[str, Any]) -> caffe_pb2.LayerParameter:
    """The message of a layer of these settings."""
    param = caffe_pb2.LayerParameter(type=type_name)
    for key, value in settings.items():
        message = _target(param, key)
        _assign(message, key, value, f"{type_name}: {key}")
    return param


class _Layers:
    """`layers.<Type>(*tops, **settings)`: a layer of any type, as its top (a tuple for ntop > 1, a Function for 0).

    `ntop` is the number of tops (1), `in_place` lets the tops overwrite the inputs, `name` names the layer itself.
    A setting goes to the field of that name in the layer's own message, else in the LayerParameter (`param`,
    `loss_weight`, `include`, `transform_param`, ...). Dictionaries stand for messages, lists for repeated fields; a
    single value for a repeated field is one entry. Raises `GraphError`.
    """

    def __getattr__(self, type_name: str) -> Any:
        if type_name.startswith("__"):
            raise AttributeError(type_name)

        def make(*bottoms: Top, **settings: Any) -> Top | tuple[Top, ...] | Function:
            function = Function(type_name, bottoms, settings)
            if not function.tops:
                return function
            return function.tops[0] if len(function.tops) == 1 else function.tops

        make.__name__ = make.__qualname__ = type_name
        return make


class _Enums:
    """The enum numbers of one parameter message."""

    def __init__(self, descriptor: Any) -> None:
        self._descriptor = descriptor

    def __getattr__(self, name: str) -> int:
        values = self._descriptor.enum_values_by_name
        if name not in values:
            raise SpecNameError(f"{self._descriptor.name} has no value {name!r}{suggestion(name, values)}")
        return int(values[name].number)


class _Params:
    """`params.<Type>.<VALUE>`: enum numbers of `<Type>Parameter`, as in `params.Pooling.MAX`."""

    def __getattr__(self, type_name: str) -> _Enums:
        messages = caffe_pb2.DESCRIPTOR.message_types_by_name
        if f"{type_name}Parameter" not in messages:
            known = [name.removesuffix("Parameter") for name in messages]
            raise SpecNameError(f"the schema has no {type_name}Parameter{suggestion(type_name, known)}")
        return _Enums(messages[f"{type_name}Parameter"])


layers = _Layers()
params = _Params()


class NetSpec:
    """A net under construction: assigning a top to an attribute (or item) names it.

    A layer is called after its first top. In-place layers keep their own name and reuse the blob name of their input.
    Reading an unknown name raises `SpecNameError`.
    """

    _tops: dict[str, Top | Function]

    def __init__(self) -> None:
        object.__setattr__(self, "_tops", {})

    def __setattr__(self, name: str, top: Top | Function) -> None:
        if not isinstance(top, (Top, Function)):
            what = (
                "a tuple: name each top by itself"
                if isinstance(top, tuple)
                else f"a value of type {type(top).__name__}"
            )
            raise GraphError(f"{name!r} can only name a layer's top, not {what}")
        self._tops[name] = top

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name not in self._tops:
            raise SpecNameError(f"the spec has no top {name!r}{suggestion(name, self._tops)}")
        return self._tops[name]

    def __setitem__(self, name: str, top: Top | Function) -> None:
        self.__setattr__(name, top)

    def __getitem__(self, name: str) -> Any:
        return self.__getattr__(name)

    def __contains__(self, name: object) -> bool:
        return name in self._tops

    def __iter__(self) -> Iterator[str]:
        return iter(self._tops)

    def to_proto(self) -> caffe_pb2.NetParameter:
        """The net of all named tops and what they need, each layer after those it reads from."""
        return _to_proto(self._tops.values(), {top: name for name, top in self._tops.items()})


def to_proto(*tops: Top | Function) -> caffe_pb2.NetParameter:
    """The net that computes the tops; layers are called `<Type><k>`, k counting from 1 for each type."""
    return _to_proto(tops, {})


def crop(top: Top, reference: Top) -> Top:
    """A Crop of `top` to the size of `reference`, at the offsets that align the two (see `graph.coord_map.crop`)."""
    derived = coord_map.crop(top, reference)
    return Function("Crop", (top, reference), {"crop_param": derived}).tops[0]


def _to_proto(wanted: Iterable[Top | Function], names: Mapping[Top | Function, str]) -> caffe_pb2.NetParameter:
    net = caffe_pb2.NetParameter()
    blob_names: dict[Top, str] = {}
    counts: dict[str, int] = {}
    taken = set(names.values())

    def automatic(type_name: str) -> str:
        while True:
            counts[type_name] = counts.get(type_name, 0) + 1
            name = f"{type_name}{counts[type_name]}"
            if name not in taken:
                return name

    for function in _in_order(wanted):
        layer = net.layer.add()
        layer.CopyFrom(function.param)
        own = [
            names.get(top) or (index == 0 and layer.name) or automatic(layer.type)
            for index, top in enumerate(function.tops)
        ]
        if not layer.name:
            layer.name = own[0] if own else names.get(function) or automatic(layer.type)
        layer.bottom.extend(blob_names[bottom] for bottom in function.bottoms)
        if function.in_place:
            own = [blob_names[bottom] for bottom in function.bottoms[: len(own)]]
        layer.top.extend(own)
        blob_names.update(zip(function.tops, own, strict=True))
    return net


def _in_order(wanted: Iterable[Top | Function]) -> list[Function]:
    """The layers of the wanted tops, each after its inputs. Without recursion: chains may be long."""
    done: dict[Function, None] = {}
    stack = [top if isinstance(top, Function) else top.producer for top in wanted][::-1]
    while stack:
        function = stack[-1]
        missing = [bottom.producer for bottom in function.bottoms if bottom.producer not in done]
        if missing and function not in done:
            stack.extend(reversed(missing))
        else:
            done[function] = None
            stack.pop()
    return list(done)


def _target(layer: caffe_pb2.LayerParameter, key: str) -> Any:
    """The message whose field a setting goes to: one of the type's own messages or the layer itself."""
    own = settings_fields(layer.type) or MESSAGES.get(layer.type, ())
    known = {name: _LAYER_FIELDS[name] for name in _LAYER_FIELDS if name not in ("type", "bottom", "top")}
    if key in known and key.endswith("param"):
        return layer
    for name in own:
        fields = fields_of(getattr(layer, name).DESCRIPTOR).by_name
        if key in fields:
            return getattr(layer, name)
        known = {**fields, **known}
    if key not in known:
        raise SpecNameError(f"{layer.type} has no setting {key!r}{suggestion(key, known)}")
    return layer


def _assign(message: Any, name: str, value: Any, where: str) -> None:
    """Set a field from Python values; `where` begins the error messages."""
    table = fields_of(message.DESCRIPTOR)
    if name not in table.by_name:
        raise SpecNameError(f"{where}: {table.name} has no field {name!r}{suggestion(name, table.by_name)}")
    field = table.by_name[name]
    if field.repeated:
        single = isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable)
        for entry in [value] if single else value:
            if field.kind == "message":
                _fill(getattr(message, name).add(), entry, where)
            else:
                _store(getattr(message, name).append, field, entry, where)
    elif field.kind == "message":
        _fill(getattr(message, name), value, where)
    else:
        _store(lambda scalar: setattr(message, name, scalar), field, value, where)


def _fill(message: Any, value: Any, where: str) -> None:
    """Set a message field from a dictionary or from a message of the same type."""
    message.SetInParent()
    if isinstance(value, Mapping):
        for name, part in value.items():
            _assign(message, name, part, where)
    elif isinstance(value, type(message)):
        message.MergeFrom(value)
    else:
        expected = fields_of(message.DESCRIPTOR).name
        raise GraphError(f"{where}: {value!r} is not a message; give a dictionary of {expected}'s fields")


def _store(store: Callable[[Any], None], field: Field, value: Any, where: str) -> None:
    """Set a scalar; an enum may be given by the name of its value."""
    if field.kind == "enum" and isinstance(value, str):
        if value not in field.enum_numbers:
            choices = ", ".join(field.enum_numbers)
            raise GraphError(f"{where}: {field.name} has no value {value!r}; choose from {choices}")
        value = field.enum_numbers[value]
    if isinstance(value, float) and value.is_integer() and "int" in field.kind:
        value = int(value)  # what `/` gives in Python 3 where Python 2 gave a whole number
    try:
        store(value)
    except (TypeError, ValueError):
        raise GraphError(f"{where}: {field.name} takes {field.kind} values, not {value!r}") from None
