"""One layer of each kind under torch.compile, which must be able to follow it whole, and on a GPU against the CPU."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from layer_maker import make_layer, seeded
from torch import Tensor

from fcnproto.layers.base import Layer

IMAGE, PAIRS = (2, 6, 4, 5), (2, 3)
LAYERS: list[tuple[str, list[tuple[int, ...]], int]] = [
    *((f'type: "{name}"', [IMAGE], 1) for name in ("AbsVal", "BNLL", "ELU", "Exp", "Log", "Power", "PReLU", "ReLU")),
    *((f'type: "{name}"', [IMAGE], 1) for name in ("Sigmoid", "Swish", "TanH", "Threshold", "MVN", "Softmax", "LRN")),
    ('type: "Clip" clip_param { min: 0.5 max: 1 }', [IMAGE], 1),
    ('type: "Power" power_param { power: 0 }', [IMAGE], 1),
    ('type: "LRN" lrn_param { norm_region: WITHIN_CHANNEL }', [IMAGE], 1),
    ('type: "BatchNorm" batch_norm_param { use_global_stats: false }', [IMAGE], 1),
    ('type: "BatchNorm" batch_norm_param { use_global_stats: true }', [IMAGE], 1),
    ('type: "SoftmaxWithLoss" loss_param { ignore_label: 1 }', [IMAGE, (2, 4, 5)], 2),
    ('type: "InfogainLoss"', [IMAGE, (2, 4, 5), (6, 6)], 2),
    ('type: "SigmoidCrossEntropyLoss" loss_param { ignore_label: 1 }', [PAIRS, PAIRS], 1),
    ('type: "MultinomialLogisticLoss"', [PAIRS, (2,)], 1),
    ('type: "EuclideanLoss"', [PAIRS, PAIRS], 1),
    ('type: "HingeLoss"', [PAIRS, (2,)], 1),
    ('type: "ContrastiveLoss"', [PAIRS, PAIRS, (2,)], 1),
    ('type: "Accuracy" accuracy_param { ignore_label: 1 }', [IMAGE, (2, 4, 5)], 2),
    ('type: "LSTM" recurrent_param { num_output: 3 }', [(3, 2, 4), (3, 2)], 1),
    ('type: "RNN" recurrent_param { num_output: 3 }', [(3, 2, 4), (3, 2)], 1),
    ('type: "LSTMUnit"', [(1, 2, 3), (1, 2, 12), (1, 2)], 2),
    ('type: "Convolution" convolution_param { num_output: 4 kernel_size: 3 group: 2 pad: 1 stride: 2 }', [IMAGE], 1),
    ('type: "Convolution" convolution_param { num_output: 4 kernel_size: 7 stride: 4 }', [IMAGE], 1),
    ('type: "Convolution" convolution_param { num_output: 4 kernel_size: 2 axis: 0 }', [(2, 3, 3, 3, 3)], 1),
    ('type: "Convolution" convolution_param { num_output: 4 }', [PAIRS], 1),
    ('type: "Deconvolution" convolution_param { num_output: 4 kernel_size: 4 stride: 2 pad: 1 }', [IMAGE], 1),
    ('type: "Deconvolution" convolution_param { num_output: 4 kernel_size: 2 axis: 0 }', [(2, 3, 3, 3, 3)], 1),
    ('type: "Im2col" convolution_param { kernel_size: 3 pad: 1 }', [IMAGE], 1),
    ('type: "Pooling" pooling_param { kernel_size: 2 stride: 2 }', [IMAGE], 2),
    ('type: "Pooling" pooling_param { kernel_size: 1 stride: 3 }', [IMAGE], 2),
    ('type: "Pooling" pooling_param { kernel_size: 3 stride: 2 pad: 2 }', [IMAGE], 1),
    ('type: "Pooling" pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 2 }', [IMAGE], 1),
    ('type: "Pooling" pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 1 }', [IMAGE], 1),
    ('type: "Pooling" pooling_param { pool: STOCHASTIC kernel_size: 3 stride: 2 }', [IMAGE], 1),
    ('type: "SPP" spp_param { pyramid_height: 2 }', [IMAGE], 1),
    ('type: "InnerProduct" inner_product_param { num_output: 4 transpose: true }', [IMAGE], 1),
    ('type: "Concat"', [IMAGE, IMAGE], 1),
    ('type: "Slice" slice_param { slice_point: [1, 3] }', [IMAGE], 3),
    ('type: "Crop" crop_param { offset: 1 }', [IMAGE, (1, 1, 2, 3)], 1),
    ('type: "Reshape" reshape_param { shape { dim: 0 dim: -1 } }', [IMAGE], 1),
    ('type: "Flatten"', [IMAGE], 1),
    ('type: "Tile" tile_param { tiles: 2 }', [IMAGE], 1),
    ('type: "BatchReindex"', [IMAGE, (3,)], 1),
    ('type: "Filter"', [IMAGE, (2,)], 1),
    ('type: "Eltwise" eltwise_param { coeff: [1, 2] }', [IMAGE, IMAGE], 1),
    ('type: "Eltwise" eltwise_param { operation: MAX }', [IMAGE, IMAGE], 1),
    ('type: "Eltwise" eltwise_param { operation: PROD stable_prod_grad: false }', [IMAGE, IMAGE], 1),
    ('type: "Reduction" reduction_param { operation: ASUM axis: 1 }', [IMAGE], 1),
    ('type: "ArgMax" argmax_param { top_k: 2 axis: 1 }', [IMAGE], 1),
    ('type: "ArgMax" argmax_param { out_max_val: true }', [IMAGE], 1),
    ('type: "Scale" scale_param { bias_term: true }', [IMAGE], 1),
    ('type: "Bias"', [IMAGE, (6,)], 1),
]


def bottoms_for(shapes: list[tuple[int, ...]]) -> list[Tensor]:
    """Positive values below 2, so that they serve as labels too."""
    return [seeded(*shape, seed=i).abs().clamp(0.1, 1.9) for i, shape in enumerate(shapes)]


def tops_and_gradient(layer: Layer, run: object, bottoms: list[Tensor]) -> list[Tensor]:
    bottoms = [bottom.detach().clone().requires_grad_(i == 0) for i, bottom in enumerate(bottoms)]
    result = run(*bottoms)  # type: ignore[operator]
    tops = list(result) if isinstance(result, tuple) else [result]
    blobs = [layer.blob(i) for i in range(len(layer.blob_names))]
    wanted = [tensor for tensor in [bottoms[0], *blobs] if tensor.requires_grad]
    total = sum((top * torch.arange(top.numel()).reshape(top.shape).to(top).add(1)).sum() for top in tops)
    gradients = torch.autograd.grad(total, wanted) if tops[0].requires_grad else ()  # type: ignore[arg-type]
    return [tensor.detach().cpu() for tensor in [*tops, *gradients, *blobs]]


@pytest.mark.parametrize(("text", "shapes", "tops"), LAYERS)
def test_torch_compile_follows_the_whole_layer(text: str, shapes: list[tuple[int, ...]], tops: int) -> None:
    layer = make_layer(text, *shapes, tops=tops, dtype=torch.float64)
    twin = copy.deepcopy(layer)
    torch._dynamo.reset()
    compiled = torch.compile(twin, backend="eager", fullgraph=True)
    bottoms = bottoms_for(shapes)
    torch.testing.assert_close(tops_and_gradient(twin, compiled, bottoms), tops_and_gradient(layer, layer, bottoms))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("text", "shapes", "tops"), LAYERS)
def test_gpu_agrees_with_cpu(text: str, shapes: list[tuple[int, ...]], tops: int, dtype: torch.dtype) -> None:
    layer = make_layer(text, *shapes, tops=tops, dtype=torch.float64)
    twin = copy.deepcopy(layer).to("cuda", dtype)
    bottoms = bottoms_for(shapes)
    found = tops_and_gradient(twin, twin, [bottom.to("cuda", dtype) for bottom in bottoms])
    for ours, expected in zip(found, tops_and_gradient(layer, layer, bottoms), strict=True):
        limit = (1e-5 if dtype == torch.float32 else 1e-12) * max(expected.abs().max().item(), 1e-30)
        torch.testing.assert_close(ours.double(), expected, rtol=0, atol=limit)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("type_name", ["SoftmaxWithLoss", "Accuracy", "HingeLoss", "MultinomialLogisticLoss"])
def test_a_wrong_label_on_the_gpu_gives_nan_and_leaves_the_device_usable(type_name: str) -> None:
    layer = make_layer(f'type: "{type_name}"', (2, 3), (2,), device="cuda")
    scores = torch.rand(2, 3, device="cuda")
    assert math.isnan(layer(scores, torch.tensor([0, 7], device="cuda")).item())
    assert math.isfinite(layer(scores, torch.tensor([0, 2], device="cuda")).item())
