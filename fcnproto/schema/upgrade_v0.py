"""Brings nets in Caffe's V0 format (one flat message of settings for all layer types, padding as a layer) to V1.

The first of the steps that `upgrade.py` lists; the settings each type takes are Caffe's. Not for V1 layers.
"""

from __future__ import annotations

import warnings

from fcnproto.errors import FcnprotoWarning, PrototxtError
from fcnproto.schema import caffe_pb2, unknown
from fcnproto.schema.fields import fields_of, suggestion

V0_TYPES: dict[str, str] = {
    "accuracy": "ACCURACY",
    "bnll": "BNLL",
    "concat": "CONCAT",
    "conv": "CONVOLUTION",
    "data": "DATA",
    "dropout": "DROPOUT",
    "euclidean_loss": "EUCLIDEAN_LOSS",
    "flatten": "FLATTEN",
    "hdf5_data": "HDF5_DATA",
    "hdf5_output": "HDF5_OUTPUT",
    "im2col": "IM2COL",
    "images": "IMAGE_DATA",
    "infogain_loss": "INFOGAIN_LOSS",
    "innerproduct": "INNER_PRODUCT",
    "lrn": "LRN",
    "multinomial_logistic_loss": "MULTINOMIAL_LOGISTIC_LOSS",
    "pool": "POOLING",
    "relu": "RELU",
    "sigmoid": "SIGMOID",
    "softmax": "SOFTMAX",
    "softmax_loss": "SOFTMAX_LOSS",
    "split": "SPLIT",
    "tanh": "TANH",
    "window_data": "WINDOW_DATA",
}
_CONV, _POOL, _INNER, _LRN = "convolution_param", "pooling_param", "inner_product_param", "lrn_param"
_DATA, _IMAGES, _WINDOWS, _HDF5 = "data_param", "image_data_param", "window_data_param", "hdf5_data_param"
# Settings: per V0 field the layer types that take it, and where it goes in their V1 message.
_PLACES: dict[str, dict[str, tuple[str, str]]] = {
    "num_output": {"conv": (_CONV, "num_output"), "innerproduct": (_INNER, "num_output")},
    "biasterm": {"conv": (_CONV, "bias_term"), "innerproduct": (_INNER, "bias_term")},
    "weight_filler": {"conv": (_CONV, "weight_filler"), "innerproduct": (_INNER, "weight_filler")},
    "bias_filler": {"conv": (_CONV, "bias_filler"), "innerproduct": (_INNER, "bias_filler")},
    "pad": {"conv": (_CONV, "pad"), "pool": (_POOL, "pad")},
    "kernelsize": {"conv": (_CONV, "kernel_size"), "pool": (_POOL, "kernel_size")},
    "stride": {"conv": (_CONV, "stride"), "pool": (_POOL, "stride")},
    "group": {"conv": (_CONV, "group")},
    "pool": {"pool": (_POOL, "pool")},
    "dropout_ratio": {"dropout": ("dropout_param", "dropout_ratio")},
    "local_size": {"lrn": (_LRN, "local_size")},
    "alpha": {"lrn": (_LRN, "alpha")},
    "beta": {"lrn": (_LRN, "beta")},
    "k": {"lrn": (_LRN, "k")},
    "source": {
        "data": (_DATA, "source"),
        "hdf5_data": (_HDF5, "source"),
        "images": (_IMAGES, "source"),
        "window_data": (_WINDOWS, "source"),
        "infogain_loss": ("infogain_loss_param", "source"),
    },
    "batchsize": {
        "data": (_DATA, "batch_size"),
        "hdf5_data": (_HDF5, "batch_size"),
        "images": (_IMAGES, "batch_size"),
        "window_data": (_WINDOWS, "batch_size"),
    },
    "rand_skip": {"data": (_DATA, "rand_skip"), "images": (_IMAGES, "rand_skip")},
    "shuffle_images": {"images": (_IMAGES, "shuffle")},
    "new_height": {"images": (_IMAGES, "new_height")},
    "new_width": {"images": (_IMAGES, "new_width")},
    "concat_dim": {"concat": ("concat_param", "concat_dim")},
    "det_fg_threshold": {"window_data": (_WINDOWS, "fg_threshold")},
    "det_bg_threshold": {"window_data": (_WINDOWS, "bg_threshold")},
    "det_fg_fraction": {"window_data": (_WINDOWS, "fg_fraction")},
    "det_context_pad": {"window_data": (_WINDOWS, "context_pad")},
    "det_crop_mode": {"window_data": (_WINDOWS, "crop_mode")},
}
_TRANSFORM = {"scale": "scale", "meanfile": "mean_file", "cropsize": "crop_size", "mirror": "mirror"}
_UNREAD = ("new_num", "new_channels")
_KEPT = ("name", "input", "input_dim", "force_backward")


def has_v0_layers(net: caffe_pb2.NetParameter) -> bool:
    """Caffe's test: any of `layers` has a `layer` inside."""
    return any(layer.HasField("layer") for layer in net.layers)


def upgrade_v0_net(net: caffe_pb2.NetParameter, file: str | None) -> bool:
    """Upgrades a V0 net in place to V1; False if settings were dropped (each with an FcnprotoWarning)."""
    layers = _without_padding(net, file)
    upgraded = caffe_pb2.NetParameter()
    compatible = True
    for layer in layers:
        compatible &= _upgrade_layer(layer, upgraded.layers.add(), file)
    for descriptor, _ in net.ListFields():
        if descriptor.name not in (*_KEPT, "layers"):
            compatible = False
            _warn(file, f"{descriptor.name} is no field of a V0 net and is dropped")
            net.ClearField(descriptor.name)
    net.ClearField("layers")
    net.MergeFrom(upgraded)
    return compatible


def _without_padding(net: caffe_pb2.NetParameter, file: str | None) -> list[caffe_pb2.V1LayerParameter]:
    """The layers without those of type padding, whose consumers take over pad and bottom."""
    kept: list[caffe_pb2.V1LayerParameter] = []
    producers: dict[str, caffe_pb2.V1LayerParameter | None] = dict.fromkeys(net.input)
    for original in net.layers:
        layer = caffe_pb2.V1LayerParameter()
        layer.CopyFrom(original)
        if layer.layer.type != "padding":
            kept.append(layer)
        for index, bottom in enumerate(original.bottom):
            if bottom not in producers:
                raise PrototxtError(f'layer "{layer.layer.name}" reads "{bottom}", which nothing before it makes', file)
            source = producers[bottom]
            if source is not None and source.layer.type == "padding":
                _check_padding(source, original, file)
                layer.layer.pad = source.layer.pad
                layer.bottom[index] = source.bottom[0]
        producers.update(dict.fromkeys(original.top, original))
    return kept


def _check_padding(padding: caffe_pb2.V1LayerParameter, consumer: caffe_pb2.V1LayerParameter, file: str | None) -> None:
    name = padding.layer.name
    if consumer.layer.type not in ("conv", "pool") or len(consumer.bottom) != 1:
        raise PrototxtError(
            f'padding layer "{name}" feeds "{consumer.layer.name}" ({consumer.layer.type}); '
            "only conv and pool layers with one bottom take padding",
            file,
        )
    if len(padding.bottom) != 1 or len(padding.top) != 1:
        raise PrototxtError(f'padding layer "{name}" must have one bottom and one top', file)


def _upgrade_layer(old: caffe_pb2.V1LayerParameter, new: caffe_pb2.V1LayerParameter, file: str | None) -> bool:
    """Fills a V1 layer from one whose settings are in the V0 message; False if some were dropped."""
    if not old.HasField("layer"):
        raise PrototxtError(f'layers mixes V0 and V1 entries: "{old.name}" has no layer inside, others have', file)
    settings = old.layer
    new.bottom.extend(old.bottom)
    new.top.extend(old.top)
    for text in (*unknown.kept(old), *unknown.kept(settings)):
        unknown.keep(new, text)
    compatible = True
    for descriptor, value in settings.ListFields():
        name = descriptor.name
        if name == "type" and _is_forks(settings.type):
            unknown.keep(new, f"type: {settings.type}")  # one of a fork's: the V1 upgrade makes it a type of that name
        elif name == "type":
            new.type = caffe_pb2.V1LayerParameter.LayerType.Value(_v1_type(settings, file))
        elif name == "name":
            new.name = value
        elif name in ("blobs", "blobs_lr", "weight_decay"):
            getattr(new, name).extend(value)
        elif name in _TRANSFORM:
            setattr(new.transform_param, _TRANSFORM[name], value)
        elif name == "hdf5_output_param" and settings.type == "hdf5_output":
            new.hdf5_output_param.CopyFrom(value)
        elif name in _PLACES and settings.type in _PLACES[name]:
            holder, target = _PLACES[name][settings.type]
            try:
                _set(getattr(new, holder), target, value)
            except ValueError:  # new_height and new_width: signed in V0, unsigned in V1
                raise PrototxtError(f'layer "{settings.name}": {name} can\'t be {value}', file) from None
        elif name not in _UNREAD:
            compatible = False
            _warn(file, f'{name} of layer "{settings.name}" has no meaning for the type {settings.type} and is dropped')
    return compatible


def _set(holder: caffe_pb2.LayerParameter, name: str, value: object) -> None:
    """Sets a field: a filler is copied; pad, kernel_size and stride of a convolution are lists with one entry."""
    field = fields_of(holder.DESCRIPTOR).by_name[name]
    if field.kind == "message":
        getattr(holder, name).CopyFrom(value)
    elif field.repeated:
        getattr(holder, name).append(value)
    else:
        setattr(holder, name, value)


def _is_forks(type_name: str) -> bool:
    """Whether a type is none of Caffe's, nor one of them misspelt."""
    return type_name not in V0_TYPES and type_name.isidentifier() and not suggestion(type_name, V0_TYPES)


def _v1_type(settings: caffe_pb2.V0LayerParameter, file: str | None) -> str:
    if settings.type not in V0_TYPES:
        near = suggestion(settings.type, V0_TYPES)
        raise PrototxtError(f'layer "{settings.name}": "{settings.type}" is no layer type of the V0 format{near}', file)
    return V0_TYPES[settings.type]


def _warn(file: str | None, message: str) -> None:
    warnings.warn(f"{file or '<net>'}: {message}", FcnprotoWarning, stacklevel=5)
