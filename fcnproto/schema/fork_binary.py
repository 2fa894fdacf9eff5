"""What the numbers in forks' caffemodels stand for: one number means another field to each fork, and to Caffe.

The layer's type decides. Settings go by their type's name, so field 143 of an Interp is its `interp_param` and that of
an Input Caffe's `input_param`; where no fork with that number has settings for the type, nothing is guessed. Within
messages that are the forks' own the numbers are theirs here, too, but for BN, whose forks number alike differently.
Not for texts, where names decide.
"""

from __future__ import annotations

from fcnproto.schema import caffe_pb2, forks, unknown
from fcnproto.schema.fields import Field, fields_of
from fcnproto.schema.wire import FIXED32, FIXED64, LENGTH, VARINT, MessageReader, Window, encode_tag, encode_varint

_LAYER = fields_of(caffe_pb2.LayerParameter.DESCRIPTOR)
_SETTINGS_FROM = 12
# Where BN's inner numbers are not those of the schema: by the number of the field, from theirs to ours.
_SEGNET = {1: 1001, 2: 1002, 3: 1003, 7: 1, 8: 2, 9: 3, 10: 1008}
_RUNNING = {1: 1001, 2: 1002, 3: 1004, 4: 1005, 5: 1006, 6: 1007}
_BN: dict[int, dict[int, int]] = {45: _SEGNET, 139: _RUNNING, 144: _RUNNING}
_BN.update({number: {} for number in (137, 147, 152, 200, 204)})
# Fields that forks added to Caffe's own messages: by message, their number and wire type, and ours.
_ADDED: dict[str, dict[tuple[int, int], str]] = {
    "ConvolutionParameter": {
        (26, VARINT): "pad_l",
        (27, VARINT): "pad_r",
        (28, VARINT): "pad_t",
        (29, VARINT): "pad_b",
    },
    "PoolingParameter": {
        (14, VARINT): "ceil_mode",
        (16, VARINT): "pad_l",
        (17, VARINT): "pad_r",
        (18, VARINT): "pad_t",
        (19, VARINT): "pad_b",
        (40, VARINT): "torch_pooling",
    },
    "BatchNormParameter": {
        (4, VARINT): "update_global_stats",
        (5, LENGTH): "scale_filler",
        (5, VARINT): "use_weight_bias",
        (6, LENGTH): "bias_filler",
        (6, VARINT): "bias_term",
        (7, LENGTH): "filler",
        (7, VARINT): "scale_bias",
        (8, LENGTH): "bias_filler",
        (9, VARINT): "stats_batch_size",
        (10, VARINT): "relu",
    },
    "TransformationParameter": {
        (8, LENGTH): "resize_param",
        (9, LENGTH): "noise_param",
        (10, LENGTH): "emit_constraint",
        (11, VARINT): "crop_h",
        (12, VARINT): "crop_w",
        (13, LENGTH): "distort_param",
        (14, LENGTH): "expand_param",
    },
    "LossParameter": {(4, FIXED32): "pre_fixed_normalizer"},
}


def settings_field(type_name: str, number: int) -> tuple[Field | None, str]:
    """The schema's field that a number of a layer of this type stands for, and who has it, in words, if none does."""
    own, named = _LAYER.by_number.get(number), forks.by_number(number)
    if own is not None and (not named or not type_name or number < _SETTINGS_FROM):
        return own, ""
    wanted = forks.settings_of(type_name)
    if own is not None and own.name in wanted:
        return own, ""
    for name in named:
        known = _LAYER.by_name.get(name)
        if name in wanted and known is not None and (name != "bn_param" or number in _BN):
            return known, ""
    others = ", ".join(f"{name} of {fork[0]}" for name, fork in list(named.items())[:2])
    return None, others or "no known fork's"


def settings(window: Window, start: int, end: int, number: int, field: Field) -> bytes:
    """The bytes of a settings field as the schema numbers it, from those that a fork wrote under `number`."""
    content = window.read(start, end)
    if field.name == "bn_param" and _BN.get(number):
        content = _renumbered(window, start, end, _BN[number])
    return encode_tag(field.number, LENGTH) + encode_varint(len(content)) + content


def with_additions(window: Window, start: int, end: int, message: str) -> tuple[bytes, list[int]]:
    """The bytes of one of Caffe's messages with the fields that forks added to it under the schema's numbers, and the
    numbers in it that nobody knows, which are left out."""
    table = fields_of(caffe_pb2.DESCRIPTOR.message_types_by_name[message])
    added, content, unknown_numbers = _ADDED.get(message, {}), bytearray(), list[int]()
    reader = MessageReader(window, start, end)
    while found := reader.next():
        raw = window.read(found.begin, found.end)
        target = table.by_name.get(added.get((found.number, found.wire), ""))
        if found.number == unknown.NUMBER or (found.number in table.by_number and target is None):
            content += raw
        elif (
            target is not None
            and found.number not in table.by_number
            and found.wire in (VARINT, LENGTH, FIXED32, FIXED64)
        ):
            content += encode_tag(target.number, found.wire) + raw[len(encode_tag(found.number, found.wire)) :]
        else:
            unknown_numbers.append(found.number)
    return bytes(content), unknown_numbers


def _renumbered(window: Window, start: int, end: int, numbers: dict[int, int]) -> bytes:
    content = bytearray()
    reader = MessageReader(window, start, end)
    while found := reader.next():
        raw = window.read(found.begin, found.end)
        if found.number in numbers:
            content += encode_tag(numbers[found.number], found.wire) + raw[len(encode_tag(found.number, found.wire)) :]
    return bytes(content)
