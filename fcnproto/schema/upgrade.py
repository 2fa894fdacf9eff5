"""Brings nets and solvers in Caffe's old formats up to the current one, by Caffe's own rules and in Caffe's order.

1. V0 (`layers { layer { ... } }`, padding as layers of its own) to V1; see `upgrade_v0.py`.
2. The transformation settings that V1 data layers held in their own parameters, to `transform_param`.
3. V1 (`layers`, types as enum values, `blobs_lr`) to `layer`.
4. The net's `input`, `input_shape` and `input_dim` to an Input layer.
5. BatchNorm layers with three `param` entries: their rates are zero, since no solver may touch the statistics.
6. A solver's `solver_type` to `type`.

Where Caffe aborts, these raise; where it logs and drops something, they warn and answer False. Not for text or binary
reading: see `text.py` and `weights.py`.
"""

from __future__ import annotations

import warnings

from fcnproto.errors import FcnprotoWarning, PrototxtError
from fcnproto.schema import caffe_pb2, unknown
from fcnproto.schema.fields import fields_of
from fcnproto.schema.upgrade_v0 import has_v0_layers, upgrade_v0_net

V1_TYPES: dict[str, str] = {
    "NONE": "",
    "ABSVAL": "AbsVal",
    "ACCURACY": "Accuracy",
    "ARGMAX": "ArgMax",
    "BNLL": "BNLL",
    "CONCAT": "Concat",
    "CONTRASTIVE_LOSS": "ContrastiveLoss",
    "CONVOLUTION": "Convolution",
    "DECONVOLUTION": "Deconvolution",
    "DATA": "Data",
    "DROPOUT": "Dropout",
    "DUMMY_DATA": "DummyData",
    "EUCLIDEAN_LOSS": "EuclideanLoss",
    "ELTWISE": "Eltwise",
    "EXP": "Exp",
    "FLATTEN": "Flatten",
    "HDF5_DATA": "HDF5Data",
    "HDF5_OUTPUT": "HDF5Output",
    "HINGE_LOSS": "HingeLoss",
    "IM2COL": "Im2col",
    "IMAGE_DATA": "ImageData",
    "INFOGAIN_LOSS": "InfogainLoss",
    "INNER_PRODUCT": "InnerProduct",
    "LRN": "LRN",
    "MEMORY_DATA": "MemoryData",
    "MULTINOMIAL_LOGISTIC_LOSS": "MultinomialLogisticLoss",
    "MVN": "MVN",
    "POOLING": "Pooling",
    "POWER": "Power",
    "RELU": "ReLU",
    "SIGMOID": "Sigmoid",
    "SIGMOID_CROSS_ENTROPY_LOSS": "SigmoidCrossEntropyLoss",
    "SILENCE": "Silence",
    "SOFTMAX": "Softmax",
    "SOFTMAX_LOSS": "SoftmaxWithLoss",
    "SPLIT": "Split",
    "SLICE": "Slice",
    "TANH": "TanH",
    "WINDOW_DATA": "WindowData",
    "THRESHOLD": "Threshold",
    # Of Caffe's forks.
    "BATCH_NORM": "BatchNorm",
    "BIAS": "Bias",
    "BN": "BN",
    "CONVOLUTION3D": "Convolution3D",
    "CROP": "Crop",
    "DECONVOLUTION3D": "Deconvolution3D",
    "DENSE_IMAGE_DATA": "DenseImageData",
    "ELU": "ELU",
    "EMBED": "Embed",
    "IMAGE_SEG_DATA": "ImageSegData",
    "INTERP": "Interp",
    "LOG": "Log",
    "MAT_READ": "MatRead",
    "MAT_WRITE": "MatWrite",
    "PARAMETER": "Parameter",
    "PERMUTE": "Permute",
    "POOLING3D": "Pooling3D",
    "PRELU": "PReLU",
    "PYTHON": "Python",
    "REDUCTION": "Reduction",
    "RELU6": "ReLU6",
    "RESHAPE": "Reshape",
    "ROI_POOLING": "ROIPooling",
    "SCALE": "Scale",
    "SEG_ACCURACY": "SegAccuracy",
    "SMOOTH_L1_LOSS": "SmoothL1Loss",
    "SPP": "SPP",
    "TILE": "Tile",
    "UNPOOLING": "Unpooling",
    "UPSAMPLE": "Upsample",
    "VIDEO_DATA": "VideoData",
}
FURTHER_V1_TYPES: dict[str, str] = {
    "CENTER_LOSS": "CenterLoss",
    "DETECTION_OUTPUT": "DetectionOutput",
    "FLIP": "Flip",
    "INSANITY": "Insanity",
    "NORMALIZE": "Normalize",
    "PRIOR_BOX": "PriorBox",
    "PROPOSAL": "Proposal",
    "PSROI_POOLING": "PSROIPooling",
    "REORG": "Reorg",
    "ROIPOOLING": "ROIPooling",
    "ROI_ALIGN": "ROIAlign",
    "SHUFFLE_CHANNEL": "ShuffleChannel",
    "TRIPLET_LOSS": "TripletLoss",
}
"""Types of forks whose names in the old format the schema's enum lacks."""
V1_NUMBERS: dict[int, str] = {40: "CROP"}
"""Numbers of V1 layer types that Caffe itself never had, but trained nets do: the first branch of the FCN authors."""
SOLVER_TYPES: dict[str, str] = {
    "SGD": "SGD",
    "NESTEROV": "Nesterov",
    "ADAGRAD": "AdaGrad",
    "RMSPROP": "RMSProp",
    "ADADELTA": "AdaDelta",
    "ADAM": "Adam",
}
_TRANSFORMED = {"DATA": "data_param", "IMAGE_DATA": "image_data_param", "WINDOW_DATA": "window_data_param"}
_TRANSFORM_FIELDS = ("scale", "mean_file", "crop_size", "mirror")
_V1_LAYERS = caffe_pb2.V1LayerParameter


def upgrade_net(net: caffe_pb2.NetParameter, file: str | None = None) -> bool:
    """Upgrades a net in place. True if everything in it has a place in the current format, as Caffe's tool reports.

    Each old format found is told once, as FcnprotoWarning; contradictions are PrototxtErrors. `file` is for messages.
    """
    compatible = True
    was_v0 = has_v0_layers(net)
    if was_v0:
        _warn(file, "the net is in Caffe's V0 format (layers { layer { ... } }), which is deprecated")
        compatible = upgrade_v0_net(net, file)
    if _upgrade_data_transformation(net):
        _warn(
            file, "scale, mean_file, crop_size and mirror of data layers are deprecated; they belong in transform_param"
        )
    if net.layers:
        if not was_v0:
            _warn(file, "the net is in Caffe's V1 format (layers { ... }), which is deprecated")
        _upgrade_v1_net(net, file)
    if net.input:
        _warn(file, "the net's input fields are deprecated; an Input layer says the same")
        _upgrade_input(net, file)
    if _upgrade_batch_norm(net):
        _warn(file, "param entries of BatchNorm layers are deprecated; their lr_mult and decay_mult are always 0")
    return compatible


def upgrade_solver(solver: caffe_pb2.SolverParameter, file: str | None = None) -> bool:
    """Upgrades a solver in place; always True. PrototxtError if `solver_type` and `type` are both given."""
    if solver.HasField("solver_type"):
        if solver.HasField("type"):
            raise PrototxtError("the solver has both solver_type (deprecated) and type; remove solver_type", file)
        _warn(file, "solver_type is deprecated; use type")
        solver.type = SOLVER_TYPES[caffe_pb2.SolverParameter.SolverType.Name(solver.solver_type)]
        solver.ClearField("solver_type")
    return True


def needs_upgrade(net: caffe_pb2.NetParameter) -> bool:
    """Whether `upgrade_net` would change anything."""
    return bool(net.layers or net.input or any(_is_old_batch_norm(layer) for layer in net.layer))


def _upgrade_data_transformation(net: caffe_pb2.NetParameter) -> bool:
    """Caffe's second step: V1 data layers only; in current ones such fields stay, and Caffe ignores them."""
    changed = False
    for layer in net.layers:
        own_name = _TRANSFORMED.get(_V1_LAYERS.LayerType.Name(layer.type))
        if own_name is None or not layer.HasField(own_name):
            continue
        own = getattr(layer, own_name)
        for name in _TRANSFORM_FIELDS:
            if own.HasField(name):
                setattr(layer.transform_param, name, getattr(own, name))
                own.ClearField(name)
                changed = True
    return changed


def _upgrade_v1_net(net: caffe_pb2.NetParameter, file: str | None) -> None:
    if net.layer:
        raise PrototxtError("the net has both layer and layers (deprecated) entries; keep one kind", file)
    for old in net.layers:
        _upgrade_v1_layer(old, net.layer.add())
    net.ClearField("layers")


def _upgrade_v1_layer(old: caffe_pb2.V1LayerParameter, new: caffe_pb2.LayerParameter) -> None:
    """Fills a current layer from one in the V1 format. A type that V1 doesn't have becomes one of that name."""
    same = fields_of(new.DESCRIPTOR).by_name
    for text in unknown.kept(old):
        if unknown.name_of(text) == "type":
            type_name = text.removeprefix("type:").strip()
            new.type = FURTHER_V1_TYPES.get(type_name, type_name)
        else:
            unknown.keep(new, text)
    for descriptor, value in old.ListFields():
        name = descriptor.name
        if name == "type":
            new.type = V1_TYPES[_V1_LAYERS.LayerType.Name(value)]
        elif name == "param":
            for index, text in enumerate(value):
                _param(new, index).name = text
        elif name == "blob_share_mode":
            for index, mode in enumerate(value):
                _param(new, index).share_mode = mode
        elif name == "blobs_lr":
            for index, rate in enumerate(value):
                _param(new, index).lr_mult = rate
        elif name == "weight_decay":
            for index, decay in enumerate(value):
                _param(new, index).decay_mult = decay
        elif name == "name":
            new.name = value
        elif same[name].repeated:
            getattr(new, name).extend(value)
        else:
            getattr(new, name).CopyFrom(value)


def _param(layer: caffe_pb2.LayerParameter, index: int) -> caffe_pb2.ParamSpec:
    while len(layer.param) <= index:
        layer.param.add()
    return layer.param[index]


def _upgrade_input(net: caffe_pb2.NetParameter, file: str | None) -> None:
    names, shapes, extents = list(net.input), list(net.input_shape), list(net.input_dim)
    if shapes or extents:
        if not shapes:
            if len(extents) % 4:
                raise PrototxtError(f"input_dim has {len(extents)} values; each input takes 4", file)
            shapes = [caffe_pb2.BlobShape(dim=extents[at : at + 4]) for at in range(0, len(extents), 4)]
        if len(shapes) < len(names):
            raise PrototxtError(f"the net has {len(names)} inputs but {len(shapes)} input shapes", file)
        if len(shapes) > len(names):
            _warn(file, f"the net has {len(names)} inputs but {len(shapes)} input shapes; the last ones are ignored")
        first = caffe_pb2.LayerParameter(name="input", type="Input", top=names)
        first.input_param.shape.extend(shapes[: len(names)])
        layers = [first, *net.layer]
        rest = caffe_pb2.NetParameter(layer=layers)
        net.ClearField("layer")
        net.MergeFrom(rest)
    for field in ("input", "input_shape", "input_dim"):
        net.ClearField(field)


def _is_old_batch_norm(layer: caffe_pb2.LayerParameter) -> bool:
    return layer.type == "BatchNorm" and len(layer.param) == 3


def _upgrade_batch_norm(net: caffe_pb2.NetParameter) -> bool:
    """Caffe's last step. True if a rate was changed from what it was or defaults to."""
    changed = False
    for layer in net.layer:
        if _is_old_batch_norm(layer):
            for param in layer.param:
                changed |= param.lr_mult != 0  # a decay without a rate does nothing
                param.lr_mult = param.decay_mult = 0
    return changed


def _warn(file: str | None, message: str) -> None:
    warnings.warn(f"{file or '<net>'}: {message}", FcnprotoWarning, stacklevel=4)
