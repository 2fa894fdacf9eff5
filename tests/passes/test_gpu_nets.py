"""Nets on a GPU: at full width, within their memory, and called by threads in unlike precisions."""

from __future__ import annotations

import gc
import threading

import golden_cases
import pytest
import torch
from golden_cases import deviation

import fcnproto
from fcnproto import zoo

pytestmark = pytest.mark.gpu
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)


@pytest.fixture(scope="module")
def net() -> fcnproto.Net:
    """FCN-8s at full width, with weights that keep signals at their size, on the CPU."""
    torch.manual_seed(0)
    net = fcnproto.load(zoo.path("voc-fcn8s", "deploy"))
    with torch.no_grad():
        for layer in net.layers:
            if layer.type == "Convolution":
                weight, bias = net.params[layer.name]
                weight.normal_(0, (2 / weight[0].numel()) ** 0.5)
                bias.normal_(0, 0.1)
    return net


def image(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 50


@torch.no_grad()
def test_at_full_width_and_within_its_memory(net: fcnproto.Net) -> None:
    x = image(64, 80)
    expected = net(data=x)["score"]
    moved = fcnproto.load(zoo.path("voc-fcn8s", "deploy")).to("cuda")
    moved.load_state_dict(net.state_dict())
    assert deviation(moved(data=x.cuda())["score"].cpu(), expected) <= 1e-4
    gc.collect()
    before = torch.cuda.memory_allocated()
    fast = fcnproto.optimize(moved)
    for _ in range(2):
        found = fast(data=x.cuda())["score"].cpu()
    assert deviation(found, expected) <= 1e-4
    gc.collect()
    weights = sum(tensor.nbytes for tensor in moved.parameters())
    assert torch.cuda.memory_allocated() - before <= 0.05 * weights  # beyond weights and blobs


@pytest.mark.parametrize("optimized", [False, True])
def test_threads_in_unlike_precisions(optimized: bool) -> None:
    """Strict calls stay strict while another thread's may use TF32."""
    case = golden_cases.load("fcn", "voc_fcn8s_forward")
    strict, loose = (case.net().to("cuda") for _ in range(2))
    seen: list[bool] = []
    strict.layer("relu1_1").register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    x = image(32, 40).cuda()
    with torch.no_grad():
        expected = strict(data=x)["score"].cpu()
    fast = fcnproto.optimize(loose, precision="tf32")
    ours = fcnproto.optimize(strict, passes=[]) if optimized else strict
    wrong: list[float] = []

    def call(form: fcnproto.Net) -> None:
        with torch.no_grad():
            for _ in range(10):
                found = deviation(form(data=x)["score"].cpu(), expected)
                if found > (1e-5 if form is ours else 1e-2):
                    wrong.append(found)

    threads = [threading.Thread(target=call, args=(form,)) for form in (ours, fast)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and len(seen) >= 10 and not any(seen)
