"""Recorded cases of detectors and of segmentation nets' layers through the exported module."""

from __future__ import annotations

import golden_cases
import pytest
import torch
from golden_cases import assert_close

from fcnproto.export.shapes import blob_shapes
from fcnproto.export.source import endpoints, make_source, run_source, state_for

PREFIXES = ("ohem_smoothl1", "ohem_softmax", "smoothl1_")
PREFIXES += ("conv", "deconv_", "dwconv_", "eltwise_", "hed_", "pool_", "relu", "softmax_", "unpooling_", "upsample_")
PREFIXES += ("bn_psp_test", "bn_psp_frozen", "bn_segnet", "bn_deconvnet", "normalize_", "l1loss")
NAMES = [name for name in golden_cases.names("dialects") if name.startswith(PREFIXES)]


@pytest.mark.parametrize("name", NAMES)
def test_exported_module(name: str) -> None:
    case = golden_cases.load("dialects", name)
    net = case.net(**({"dialect": case.facts["dialect"]} if case.facts["needs_dialect"] else {}))
    inputs = {key: torch.from_numpy(value).requires_grad_() for key, value in case.keys("in").items()}
    names, _ = endpoints(net, losses=True)
    source = make_source(
        net, blob_shapes(net, {key: tuple(inputs[key].shape) for key in names}), "w.safetensors", losses=True
    )
    module = run_source(source)
    module.load_state_dict(state_for(net, module))
    assert "fcnproto" not in "".join(line for line in source.text.splitlines() if "import" in line)
    result = module.train(net.phase == "train")(*(inputs[key] for key in source.inputs))
    found = result if isinstance(result, dict) else {source.outputs[0]: result}
    recorded = case.keys("out")
    compared = [blob for blob in source.outputs if blob in recorded]
    assert compared
    for blob in compared:
        assert_close(found[blob], recorded[blob], 1e-5, f"blob {blob}")
    if case.facts["backward"]:
        weights = case.facts["loss_weights"]
        if not any(weights.get(blob) for blob in compared):
            return
        torch.stack([found[blob].sum() * weights[blob] for blob in compared if weights.get(blob)]).sum().backward()
        for blob, value in case.keys("gin").items():
            assert_close(inputs[blob].grad, value, 1e-5, f"gradient of {blob}")
