"""Which fork of Caffe a net was written for, by what its text alone shows.

Fields that one fork alone has decide, and for PriorBox how many boxes the convolution beside it makes room for. Where
nothing decides, layers read the text as the fork does whose nets are commonest, unless the caller names another.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

from fcnproto.errors import FcnprotoWarning, net_title
from fcnproto.schema import caffe_pb2

# The most telling first: forks took fields of others over. A sign is a settings field, a field within one, or such a
# field with its value.
_SIGNS: tuple[tuple[str, frozenset[str]], ...] = (
    ("textboxes++", frozenset({"prior_box_param.denser_prior_boxes"})),
    ("ctpn", frozenset({"lstm_param", "bn_param.axis"})),
    ("imcl", frozenset({"bn_param.var_eps", "bn_param.decay", "bn_param.moving_average"})),
    (
        "synopsys",
        frozenset(
            {"convolution_param.pad_type", "pooling_param.pad_type", "pooling_param.pool=AVE_EXC_PAD"}
            | {"convolution_param.pad_l", "pooling_param.pad_l", "relu_param.maximum", "bn_param.icnet"}
            | {
                "smooth_l1_loss_param.abssum",
                "prior_box_param.faceboxes",
                "prior_box_param.tf",
                "prior_box_param.keras",
            }
        ),
    ),
    ("deconvnet", frozenset({"unpooling_param"})),
    ("segnet", frozenset({"bn_param.bn_mode", "loss_param.class_weighting", "dense_image_data_param"})),
    ("pspnet", frozenset({"bn_param.slope_filler", "bn_param.frozen", "bn_param.momentum"})),
    ("deeplab1", frozenset({"convolution_param.hole", "convolution_param.hole_h", "softmaxloss_param"})),
    (
        "mscnn",
        frozenset(
            {"image_gt_data_param", "box_output_param", "detection_accuracy_param", "detection_loss_param.cls_num"}
        ),
    ),
    ("cascade-rcnn", frozenset({"bbox_reg_param", "box_group_output_param", "roi_pooling_param.pad_ratio"})),
    ("happynear", frozenset({"normalize_param", "flip_param", "insanity_param"})),
    ("nvidia", frozenset({"batch_norm_param.scale_bias", "pooling_param.torch_pooling"})),
    ("intel", frozenset({"batch_norm_param.use_weight_bias", "pooling_param.avg_include_pad"})),
    (
        "yolo",
        frozenset(
            {"yolov3_detection_output_param", "yolo_detection_output_param", "region_loss_param", "yolov3_param"}
        ),
    ),
    (
        "ssd",
        frozenset({"prior_box_param", "multibox_loss_param", "detection_output_param", "annotated_data_param"}),
    ),
)
_FACEBOXES_ROOM = 21
_FACEBOXES_SIZES = 3


def dialect_of(net: caffe_pb2.NetParameter) -> str | None:
    """The fork that a net (upgraded) was written for; None where nothing in its text says it."""
    found = {sign for layer in net.layer for sign in _signs(layer)}
    for name, signs in _SIGNS:
        if name == "ssd" and (boxes := _by_room_for_boxes(net)):
            return boxes
        if found & signs:
            return name
    return None


def warn_undecided(net: caffe_pb2.NetParameter, dialect: str | None) -> None:
    """Warn, once for a net and type, of BN and Normalize layers of which nothing says whose they are: SegNet's, and
    SSD's, are the commonest."""
    if dialect is not None:
        return
    batch_norms = [layer.name for layer in net.layer if layer.type == "BN"]
    normalizes = [layer.name for layer in net.layer if layer.type == "Normalize" and _is_undecided(layer)]
    for names, kind, commonest, others in (
        (batch_norms, "BN", "SegNet", 'load(..., dialect="imcl"), --dialect imcl or ctpn, pspnet say otherwise'),
        (normalizes, "Normalize", "SSD", 'load(..., dialect="happynear"), --dialect happynear say otherwise'),
    ):
        if names:
            listed = ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")
            warnings.warn(
                f"{net_title(net.name)}: {kind} is another layer in several forks, and nothing says which is meant "
                f"({listed}); read as {commonest}'s ({others})",
                FcnprotoWarning,
                stacklevel=3,
            )


def _is_undecided(layer: caffe_pb2.LayerParameter) -> bool:
    """Whether neither settings nor a second top say whose Normalize a layer is."""
    return len(layer.top) < 2 and not layer.HasField("norm_param") and not layer.HasField("normalize_param")


def _signs(layer: caffe_pb2.LayerParameter) -> Iterator[str]:
    for field, value in layer.ListFields():
        if field.name.endswith("_param") and field.name != "phase":
            yield field.name
            for inner, setting in value.ListFields():
                yield f"{field.name}.{inner.name}"
                if inner.enum_type is not None and isinstance(setting, int):
                    known = inner.enum_type.values_by_number.get(setting)
                    yield f"{field.name}.{inner.name}={known.name if known else setting}"


def _by_room_for_boxes(net: caffe_pb2.NetParameter) -> str | None:
    """TextBoxes or FaceBoxes, where the convolution of locations beside a PriorBox has room for its boxes."""
    for layer in net.layer:
        if layer.type != "PriorBox" or not layer.bottom:
            continue
        rooms = {
            one.convolution_param.num_output // 4
            for one in net.layer
            if one.type == "Convolution" and "loc" in one.name.lower() and one.bottom[:1] == layer.bottom[:1]
        }
        boxes = _ssd_boxes(layer.prior_box_param)
        if len(rooms) != 1 or boxes in rooms:
            continue
        room = rooms.pop()
        if room == 2 * boxes:
            return "textboxes"
        if room == _FACEBOXES_ROOM and len(layer.prior_box_param.min_size) == _FACEBOXES_SIZES:
            return "faceboxes"
    return None


def _ssd_boxes(settings: caffe_pb2.PriorBoxParameter) -> int:
    """How many boxes SSD's PriorBox makes at a position."""
    ratios = [1.0]
    for ratio in settings.aspect_ratio:
        if all(abs(ratio - one) >= 1e-6 for one in ratios):
            ratios += [ratio, 1 / ratio] if settings.flip else [ratio]
    return len(settings.min_size) * len(ratios) + len(settings.max_size)
