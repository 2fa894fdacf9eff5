"""Which fork of Caffe wrote the definition in a caffemodel: the one whose numbers explain all of it.

One number means different fields to different forks, and bytes parse as one or the other without an error. So a
definition is read by the numbers of every known fork (`fork_numbers.py`). Those count that leave nothing unexplained,
and of them those that find most settings of the layers' own types, and fewest of other types. Where several of them
read different things, Caffe's own reading stands for a net of Caffe's types; then those that have the fewest fields
which the package's schema lacks (it has those of public nets). What the rest doesn't agree on is left out, and told.
What none explains is read layer by layer (`fork_binary.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from google.protobuf.message import Message

from fcnproto.errors import PrototxtError, WeightsError
from fcnproto.schema import caffe_pb2, fork_numbers, forks, unknown
from fcnproto.schema.fields import FIRST_ADDED, fields_of
from fcnproto.schema.settings import settings_fields
from fcnproto.schema.text import format_message, parse
from fcnproto.schema.upgrade import FURTHER_V1_TYPES, V1_TYPES

DIALECTS: dict[str, tuple[str, ...]] = {
    "cascade-rcnn": ("zhaoweicai/cascade-rcnn",),
    "ctpn": ("tianzhi0549/CTPN",),
    "deconvnet": ("HyeonwooNoh/caffe",),
    "deeplab1": ("TheLegendAli/DeepLab-Context",),
    "faceboxes": ("sfzhang15/FaceBoxes",),
    "happynear": ("happynear/caffe-windows",),
    "hed": ("s9xie/hed", "zeakey/DeepSkeleton"),
    "imcl": ("cjsure/imcl-caffe",),
    "intel": ("intel/caffe",),
    "mscnn": ("zhaoweicai/mscnn",),
    "nvidia": ("NVIDIA/caffe",),
    "pspnet": ("hszhao/PSPNet", "yjxiong/caffe"),
    "segnet": ("alexgkendall/caffe-segnet", "TimoSaemann/caffe-enet"),
    "ssd": ("weiliu89/caffe", "sfzhang15/RefineDet"),
    "sstd": ("BestSonny/SSTD",),
    "synopsys": ("foss-for-synopsys-dwc-arc-processors/synopsys-caffe",),
    "textboxes": ("MhLiao/TextBoxes",),
    "textboxes++": ("MhLiao/TextBoxes_plusplus",),
    "yolo": ("eric612/MobileNet-YOLO", "eric612/Caffe-YOLOv3-Windows"),
}
"""Whose numbers each dialect has; its name is that of `load(..., dialect=)`."""

_V1_ENUM = caffe_pb2.V1LayerParameter.LayerType.DESCRIPTOR
_CAFFES_TYPES = {V1_TYPES[value.name] for value in _V1_ENUM.values if value.number < FIRST_ADDED} | {
    *("BatchNorm", "BatchReindex", "Bias", "Clip", "Crop", "ELU", "Embed", "Filter", "Input", "LSTM", "LSTMUnit"),
    *("PReLU", "Parameter", "Python", "RNN", "Reduction", "Reshape", "SPP", "Scale", "Swish", "Tile"),
}
# Settings that layers of any type have.
_UNBOUND = {"include", "exclude", "loss_param", "mask_param", "param", "quantization_param", "transform_param"}
_LAYERS = ("layer", "layers")
_SHORTEST_PART = 3


class Reading(NamedTuple):
    """A definition, and what was left out of it because the forks that may have written it read different things."""

    net: caffe_pb2.NetParameter
    left_out: list[str]


_Names = frozenset[tuple[str, int, str]]


class _Candidate(NamedTuple):
    """A fork that may have written a definition: its own message of it, and the names that it has for what is used."""

    fork: str
    score: int
    net: Any
    names: _Names


def read(content: bytes, name: str, dialect: str | None = None) -> Reading | None:
    """The net that the bytes of a definition (without blobs) describe, by the numbers of whoever wrote it.

    None where that needs no finding out: the file is the package's own, or has nothing but what means the same to
    everybody; and where no fork's numbers explain all of it. `dialect` names the fork. `WeightsError` where the bytes
    don't follow its numbers, or the forks that may have written them disagree on the type of a layer.
    """
    if dialect is None and (_is_our_own(content) or _is_plain(content)):
        return None
    found = list(_candidates(content, name, dialect))
    if not found:
        if dialect is not None:
            raise WeightsError(f"{name}: the net definition in it doesn't follow the numbers of the dialect {dialect}")
        return None
    best = max(one.score for one in found)
    readings: dict[_Names, list[_Candidate]] = {}
    for one in found:
        if one.score == best:
            readings.setdefault(one.names, []).append(one)
    nets = []
    for same in readings.values():
        try:
            net = parse(format_message(same[0].net), caffe_pb2.NetParameter, name, strict=False)
        except PrototxtError:
            continue
        nets.append((net, [one.fork for one in same]))
    if not nets:
        return None
    for net, who in nets:
        if fork_numbers.CAFFE in who and all(layer.type in _CAFFES_TYPES for layer in net.layer):
            return Reading(net, [])
    _check_types(nets, name)
    lacking = [sum(1 for _ in unknown.kept_within(net)) for net, _ in nets]
    return _agreed([one for one, count in zip(nets, lacking, strict=True) if count == min(lacking)], name)


def _candidates(content: bytes, name: str, dialect: str | None) -> Iterator[_Candidate]:
    """The forks whose numbers explain all of a definition, with what it says by them."""
    for fork in fork_numbers.names() if dialect is None else DIALECTS[dialect]:
        try:
            net = fork_numbers.schema(fork).parsed(content, name)
        except WeightsError:
            continue
        names = _names(net) if net.IsInitialized() else None
        score = None if names is None else _score(net)
        if names is not None and score is not None:
            yield _Candidate(fork, score, net, names)


def _within(message: Message) -> Iterator[Message]:
    """A message and all that are in it."""
    yield message
    for descriptor, content in message.ListFields():
        if descriptor.message_type is not None:
            for inner in content if isinstance(content, Sequence) or hasattr(content, "add") else [content]:
                yield from _within(inner)


def _names(net: Message) -> _Names | None:
    """What the fields and the values of enums in a definition are called, by message or enum and number; None where
    some are unknown, or a text is none."""
    found = set()
    for message in _within(net):
        if unknown.has_others(message):
            return None
        scope = _inner(message.DESCRIPTOR.full_name)
        for field, value in message.ListFields():
            found.add((scope, field.number, field.name))
            values = value if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else [value]
            if field.enum_type is not None:
                known = field.enum_type.values_by_number
                found.update((_inner(field.enum_type.full_name), one, known[one].name) for one in values)
            elif field.type == field.TYPE_STRING and any(isinstance(one, bytes) for one in values):
                return None
    return frozenset(found)


def _is_our_own(content: bytes) -> bool:
    """Whether the package itself wrote a definition: it has the package's private numbers."""
    net = caffe_pb2.NetParameter()
    try:
        net.ParseFromString(content)
    except Exception:  # protobuf's runtimes raise different classes
        return False
    for layer in net.layer:
        if any(layer.HasField(name) for name in settings_fields(layer.type)):
            return True
    return any(
        any(field.number >= FIRST_ADDED and not field.is_extension for field, _ in message.ListFields())
        or unknown.kept(message)
        for message in _within(net)
    )


def _is_plain(content: bytes) -> bool:
    """Whether all of a definition means to every fork what it means to Caffe."""
    try:
        net = fork_numbers.schema(fork_numbers.CAFFE).parsed(content, "")
    except WeightsError:
        return False
    names, contested = _names(net), fork_numbers.contested(bool(net.layers))
    return names is not None and not any((scope, number) in contested for scope, number, _ in names)


def _scope(message: Message) -> str:
    return _inner(message.DESCRIPTOR.full_name)


def _inner(full_name: str) -> str:
    """A name without the package before it."""
    return full_name.partition(".")[2]


def _score(net: Any) -> int | None:
    """How well a fork's reading suits the layers: how many settings are of their own types, less thrice those that
    are of another type under numbers that forks have for different things.

    None where it can't be right: a layer has no type, a V1 layer's type is a source of data though it reads blobs (or
    the other way round), or such numbers give layers the settings of other types and never those of their own."""
    score, own, strange = 0, 0, 0
    contested = fork_numbers.contested(old=True)
    for layer in (layer for group in _LAYERS for layer in getattr(net, group, ())):
        type_name = _type_name(layer)
        if type_name is None:
            return None
        for field, _ in layer.ListFields():
            if field.message_type is None or not field.name.endswith("_param"):
                continue
            is_contested = (_scope(layer), field.number) in contested
            if _fits(field.name, type_name):
                score += 1
                own += is_contested
            elif field.name not in _UNBOUND and is_contested:
                score -= 3
                strange += 1
    return None if strange and not own else score


def _type_name(layer: Any) -> str | None:
    """The type of a layer of either format by its current name; None where it can't be its."""
    if isinstance(layer.type, str):
        return layer.type or None
    name = layer.DESCRIPTOR.fields_by_name["type"].enum_type.values_by_number[layer.type].name
    if name != "NONE" and name.endswith("DATA") == bool(layer.bottom):
        return None
    known = V1_TYPES.get(name) or FURTHER_V1_TYPES.get(name)
    return known or "".join(word.capitalize() for word in name.split("_"))


def _fits(field: str, type_name: str) -> bool:
    """Whether settings are a layer type's, by their name: made of the type's, a part of it, or known."""
    if field in forks.settings_of(type_name):
        return True
    part, whole = field.removesuffix("_param").replace("_", ""), type_name.lower()
    return min(len(part), len(whole)) >= _SHORTEST_PART and (part in whole or whole in part)


def _check_types(nets: Sequence[tuple[caffe_pb2.NetParameter, list[str]]], name: str) -> None:
    """`WeightsError` where a layer of the format before 2014 has another type to one fork than to another."""
    net, who = nets[0]
    for other, theirs in nets[1:]:
        for mine, old in zip(net.layers, other.layers, strict=True):
            if _type_of(mine) != _type_of(old):
                raise WeightsError(
                    f"{name}: the type of layer {old.name!r} is {_type_of(mine)} by the numbers of "
                    f"{fork_numbers.named(who)}, {_type_of(old)} by those of {fork_numbers.named(theirs)}; say which "
                    "with dialect=, --dialect, or caffe_proto=, --caffe-proto"
                )


def _agreed(nets: Sequence[tuple[caffe_pb2.NetParameter, list[str]]], name: str) -> Reading:
    """What all readings of a definition agree on."""
    (net, who), *others = nets
    differing: list[str] = []
    for place, layer in enumerate(net.layer):
        for other, theirs in others:
            for text in _take_common(layer, other.layer[place], who, theirs):
                differing.append(f"layer {layer.name!r} ({layer.type}): {text}")
    for place, old in enumerate(net.layers):
        for other, theirs in others:
            for text in _take_common(old, other.layers[place], who, theirs):
                differing.append(f"layer {old.name!r}: {text}")
    for other, theirs in others:
        rest, theirs_rest = (_without_layers(one) for one in (net, other))
        differing += list(_take_common(rest, theirs_rest, who, theirs))
        rest.layer.extend(net.layer)
        rest.layers.extend(net.layers)
        net = rest
    return Reading(net, list(dict.fromkeys(differing)))


def _without_layers(net: caffe_pb2.NetParameter) -> caffe_pb2.NetParameter:
    copy = caffe_pb2.NetParameter()
    copy.CopyFrom(net)
    for group in _LAYERS:
        copy.ClearField(group)
    return copy


def _type_of(layer: caffe_pb2.V1LayerParameter) -> str:
    kept = [text for text in unknown.kept(layer) if unknown.name_of(text) == "type"]
    return kept[0].removeprefix("type:").strip() if kept else caffe_pb2.V1LayerParameter.LayerType.Name(layer.type)


def _take_common(message: Any, other: Any, who: list[str], theirs: list[str]) -> Iterator[str]:
    """Leave in a message what another one has, too; says what goes, with whose readings those are."""
    table = fields_of(message.DESCRIPTOR)
    for field, value in message.ListFields():
        known = table.by_name[field.name]
        there = getattr(other, field.name)
        has = bool(there) if known.repeated else other.HasField(field.name)
        if has and known.kind == "message" and (not known.repeated or len(value) == len(there)):
            pairs = zip(value, there, strict=True) if known.repeated else [(value, there)]
            for one, two in pairs:
                yield from _take_common(one, two, who, theirs)
        elif not has or value != there:
            yield f"{_shown(field.name, message)} by {fork_numbers.named(who)}'s numbers"
            if has:
                yield f"{_shown(field.name, other)} by {fork_numbers.named(theirs)}'s numbers"
            message.ClearField(field.name)
    for field, _ in other.ListFields():
        known = table.by_name[field.name]
        if not (getattr(message, field.name) if known.repeated else message.HasField(field.name)):
            yield f"{_shown(field.name, other)} by {fork_numbers.named(theirs)}'s numbers"
    mine, others = unknown.kept(message), unknown.kept(other)
    if mine != others:
        yield from (
            f"{text.splitlines()[0]} by {fork_numbers.named(who)}'s numbers" for text in mine if text not in others
        )
        yield from (
            f"{text.splitlines()[0]} by {fork_numbers.named(theirs)}'s numbers" for text in others if text not in mine
        )
        message.DiscardUnknownFields()
        for text in mine:
            if text in others:
                unknown.keep(message, text)


def _shown(name: str, message: Any) -> str:
    single = type(message)()
    known = fields_of(message.DESCRIPTOR).by_name[name]
    if known.repeated:
        getattr(single, name).extend(getattr(message, name))
    elif known.kind == "message":
        getattr(single, name).CopyFrom(getattr(message, name))
    else:
        setattr(single, name, getattr(message, name))
    return " ".join(format_message(single).split())
