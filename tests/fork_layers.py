"""A small layer of each type that Caffe's forks have and that is no source of data: its bottoms and its settings."""

from __future__ import annotations

from collections.abc import Sequence

import fcnproto
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse

Shape = tuple[int, ...]
X: Shape = (2, 4, 6, 8)
ROWS: Shape = (3, 5)
OF_VOLUMES = "num_output: 2 kernel_size: 3 kernel_depth: 2 pad: 1"
LAYERS: dict[str, tuple[list[Shape], str]] = {
    "BoxAnnotatorOHEM": ([ROWS, (3,), (3,), (3, 8)], "box_annotator_ohem_param { roi_per_img: 2 }"),
    "Add": ([X, X], ""),
    "Axpy": ([(2, 4, 1, 1), X, X], ""),
    "BN": ([X], "bn_param { frozen: true }"),
    "BatchToSpaceND": ([(4, 3, 4, 4)], "batch_to_space_nd_param { block_shape: [2, 2] crops: [0, 0, 0, 0] }"),
    "CenterLoss": ([(3, 4), (3,)], "center_loss_param { num_output: 2 }"),
    "ChannelNorm": ([X], ""),
    "ChannelScale": ([X, (2, 1, 6, 8)], ""),
    "Convolution3D": ([(1, 2, 3, 6, 6)], f"convolution3d_param {{ {OF_VOLUMES} }}"),
    "ConvolutionDepthwise": ([X], "convolution_param { num_output: 4 kernel_size: 3 pad: 1 }"),
    "Correlation": ([X, X], "correlation_param { pad: 2 kernel_size: 1 max_displacement: 2 }"),
    "CuDNNBatchNorm": ([X], ""),
    "Deconvolution3D": ([(1, 2, 3, 6, 6)], f"convolution3d_param {{ {OF_VOLUMES} }}"),
    "DepthToSpace": ([X], "depth_to_space_param { block_size: 2 }"),
    "DepthwiseConvolution": ([X], "convolution_param { num_output: 4 kernel_size: 3 group: 4 }"),
    "Downsample": ([X], "downsample_param { top_height: 3 top_width: 4 }"),
    "Flip": ([X], ""),
    "FlowWarp": ([X, (2, 2, 6, 8)], ""),
    "HardSigmoid": ([X], ""),
    "HardSwish": ([X], ""),
    "InnerDistance": ([(3, 4)], "inner_distance_param { num_output: 5 }"),
    "Insanity": ([X], ""),
    "Interp": ([X], "interp_param { height: 11 width: 13 }"),
    "L1Loss": ([X, X], ""),
    "LabelSpecificAdd": ([(3, 4), (3,)], "label_specific_add_param { bias: -0.3 transform_test: true }"),
    "Lstm": ([(6, 1, 3)], "lstm_param { num_output: 4 }"),
    "MaskPooling": ([X, (2, 1, 6, 8)], ""),
    "MaskResize": ([(2, 1, 6, 8)], "mask_resize_param { output_height: 3 output_width: 5 }"),
    "Mish": ([X], ""),
    "Mul": ([X, X], ""),
    "Normalize": ([X], "norm_param { across_spatial: false channel_shared: false }"),
    "Pad": ([X], "pad_param { paddings: [0, 0, 0, 0, 1, 2, 2, 1] }"),
    "Permute": ([X], "permute_param { order: [0, 2, 3, 1] }"),
    "Pooling3D": ([(1, 2, 4, 6, 6)], "pooling3d_param { kernel_size: 2 kernel_depth: 2 stride: 2 temporal_stride: 2 }"),
    "ReLU6": ([X], ""),
    "Reorg": ([X], "reorg_param { stride: 2 }"),
    "Resample": ([X], "resample_param { width: 16 height: 12 }"),
    "Reverse": ([X], "reverse_param { axis: 1 }"),
    "ShuffleChannel": ([X], "shuffle_channel_param { group: 2 }"),
    "SmoothL1Loss": ([X, X], ""),
    "SmoothL1LossOHEM": ([X, X, X], ""),
    "SoftmaxWithLossOHEM": ([(3, 4), (3,)], ""),
    "SpaceToBatchND": ([X], "space_to_batch_nd_param { block_shape: [2, 2] paddings: [0, 0, 0, 0] }"),
    "Squeeze": ([(2, 4, 1, 8)], "squeeze_param { axis: 2 }"),
    "Transpose": ([X], "transpose_param { dim: [0, 2, 3, 1] }"),
    "Unpooling": ([X], "unpooling_param { unpool: AVE kernel_size: 2 stride: 2 }"),
    "Upsample": ([X], "upsample_param { scale: 2 }"),
    "UpsampleDarknet": ([X], "upsample_darknet_param { stride: 2 }"),
}
"""Those that plain PyTorch, torch.export and ONNX say."""

OF_REGIONS: dict[str, tuple[list[Shape], str]] = {
    "ScaleRoute": ([ROWS], "scale_route_param { low_scale: 1 high_scale: 99 }"),
    "HardMining": ([(3,), ROWS], ""),
    "BboxAccuracy": ([(3, 8), ROWS, (3, 6)], ""),
    "PSROIPooling": ([X, ROWS], "psroi_pooling_param { output_dim: 1 group_size: 2 spatial_scale: 0.0625 }"),
    "ROIAlign": ([X, ROWS], "roi_pooling_param { pooled_h: 2 pooled_w: 3 spatial_scale: 0.0625 }"),
    "ROIPooling": ([X, ROWS], "roi_pooling_param { pooled_h: 2 pooled_w: 3 spatial_scale: 0.0625 }"),
    "ROIWarping": ([X, ROWS], "roi_warping_param { pooled_h: 2 pooled_w: 3 spatial_scale: 0.0625 }"),
}
"""Those that plain PyTorch says, but no exported program: what they do from image to image is up to the regions."""

REFUSED: dict[str, tuple[list[Shape], str]] = {
    "ResizeNearestNeighbor": ([X], "resize_nearest_neighbor_param { output_height: 12 output_width: 16 }"),
    "ResizeBilinear": ([X], "resize_bilinear_param { output_height: 9 output_width: 11 }"),
    "Mean": ([X], "mean_param { operation: SUBTRACT value: 1 value: 2 value: 3 value: 4 }"),
    "BoxGroupOutput": (
        [(2, 3, 4, 5), (2, 4, 4, 5)],
        "box_group_output_param { box_group_param { stride: 8 field_w: 20 field_h: 24 } }",
    ),
    "BoxOutput": ([(2, 7, 4, 5)], "box_output_param { field_w: 20 field_h: 24 downsample_rate: 8 }"),
    "DataAugmentation": ([X], "augmentation_param { recompute_mean: 2 }"),
    "DecodeBBox": ([(3, 8), ROWS], ""),
    "DetectionAccuracy": (
        [(2, 6, 5, 6), (2, 6, 5, 6)],
        "detection_accuracy_param { cls_num: 2 field_w: 20 field_h: 24 downsample_rate: 8 }",
    ),
    "DetectionEvaluate": ([(1, 1, 3, 7), (1, 1, 2, 8)], "detection_evaluate_param { num_classes: 3 }"),
    "DetectionGroupAccuracy": (
        [(2, 2, 5, 6), (2, 4, 5, 6), (2, 6, 5, 6)],
        "detection_group_accuracy_param { cls_num: 2 field_w: 20 field_h: 24 stride: 8 }",
    ),
    "DetectionGroupLoss": (
        [(2, 2, 5, 6), (2, 4, 5, 6), (2, 6, 5, 6)],
        "detection_group_loss_param { cls_num: 2 field_w: 20 field_h: 24 stride: 8 }",
    ),
    "DetectionLoss": ([(2, 99), (2, 63)], "detection_loss_param { side: 3 num_class: 1 num_object: 2 }"),
    "DetectionOutput": (
        [(1, 8), (1, 6), (1, 2, 8)],
        "detection_output_param { num_classes: 3 nms_param { nms_threshold: 0.4 } }",
    ),
    "EvalDetection": ([(2, 99), (2, 63)], "eval_detection_param { side: 3 num_class: 1 num_object: 2 }"),
    "FrcnnOutput": ([(3, 2), (3, 8), ROWS, (1, 2)], ""),
    "MultiBoxLoss": ([(1, 8), (1, 6), (1, 2, 8), (1, 1, 2, 8)], "multibox_loss_param { num_classes: 3 }"),
    "PriorBoxClustered": ([X, (2, 3, 60, 80)], "prior_box_param { width: 8 height: 9 }"),
    "PriorBox": ([X, (2, 3, 60, 80)], "prior_box_param { min_size: 8 }"),
    "Proposal": ([(1, 6, 4, 5), (1, 12, 4, 5), (1, 3)], "proposal_param { ratio: 1 scale: [2, 4, 8] }"),
    "ProposalTarget": ([ROWS, (2, 7)], "proposal_target_param { cls_num: 3 batch_size: 2 }"),
    "RegionLoss": (
        [(1, 14, 3, 3), (1, 30, 5)],
        "region_loss_param { side: 3 num_class: 2 num: 2 biases: [1, 2, 3, 4] }",
    ),
    "SegAccuracy": ([X, (2, 1, 6, 8)], ""),
    "YoloDetectionOutput": (
        [(1, 14, 3, 3)],
        "yolo_detection_output_param { side: 3 num_classes: 2 num_box: 2 biases: [1, 2, 3, 4] }",
    ),
    "Yolov3": (
        [(1, 14, 3, 3), (1, 30, 5)],
        "yolov3_param { side: 3 num_class: 2 num: 2 biases: [1, 2, 3, 4] mask: [0, 1] anchors_scale: 32 }",
    ),
    "Yolov3DetectionOutput": (
        [(1, 14, 3, 3)],
        "yolov3_detection_output_param { num_classes: 2 num_box: 2 biases: [1, 2, 3, 4] mask: [0, 1] anchors_scale: 32 mask_group_num: 1 }",
    ),
}
"""Those that select boxes, count, say what a detector is to learn, or read numbers that aren't PyTorch's: Caffe's own
files take them."""


TOPS = {"BoxAnnotatorOHEM": 2, "ProposalTarget": 6}
"""How many tops types have that have several."""


def text_of(name: str) -> str:
    """The layer of a type, with inputs of its own; blobs bear its name."""
    shapes, settings = {**LAYERS, **OF_REGIONS, **REFUSED}[name]
    text = "".join(
        f'layer {{ name: "{name}_in{index}" type: "Input" top: "{name}_in{index}" input_param {{ shape {{ '
        + "".join(f"dim: {extent} " for extent in shape)
        + "} } } "
        for index, shape in enumerate(shapes)
    )
    bottoms = "".join(f'bottom: "{name}_in{index}" ' for index in range(len(shapes)))
    tops = "".join(f'top: "{name}{index or ""}" ' for index in range(TOPS.get(name, 1)))
    return f'{text}layer {{ name: "{name}" type: "{name}" {bottoms} {tops} {settings} }}\n'


def net_of(names: Sequence[str]) -> fcnproto.Net:
    """The layers of several types side by side, with random values in their blobs."""
    import torch

    net = fcnproto.Net(parse("".join(map(text_of, names)), caffe_pb2.NetParameter), "test")
    generator = torch.Generator().manual_seed(3)
    for layer in net.layers:
        for blob in layer.blob_names:
            getattr(layer, blob).data.add_(torch.rand(getattr(layer, blob).shape, generator=generator) * 0.5)
    return net
