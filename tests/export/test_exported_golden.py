"""Every recorded layer case through the exported module: the original Caffe's outputs and gradients."""

from __future__ import annotations

import golden_cases
import numpy as np
import pytest
import torch
from golden_cases import assert_close
from torch import Tensor, nn

import fcnproto
from fcnproto.export.shapes import blob_shapes
from fcnproto.export.source import Source, endpoints, make_source, run_source, state_for

TOLERANCE = 1e-5
# Pure cancellation: one value per channel minus its own mean, divided by sqrt(eps); the exact result is 0.
LOOSER = {"batchnorm_single_pixel_batch": 1e-3}
WRONG_GRADIENT_IN_CAFFE = {"power_inplace", "clip_inplace"}
OF_THE_NET = {"net_loss_used_below", "net_lr_mult_zero_stops", "net_propagate_down_false"}
"""Cases whose gradients follow rules of Caffe's nets, not of layers: where a gradient stops, which loss counts."""
CANCELLING = ("net_siamese", "infogain_")
"""Cases with gradients that cancel, of which Caffe recorded nothing but rounding: their outputs alone are compared."""
NO_INPUT = ("data_lmdb", "hdf5", "dummy_data", "memory_data", "python_data", "dropout_train", "input_")
"""Cases whose blobs come from files, from random numbers, or from nowhere: nothing of them is exported."""
UNSAYABLE = {
    "python_layer": "runs code of its own module",
    "python_loss_layer": "runs code of its own module",
    "infogain_file": "the matrix lies in a file of its own",
    "net_shared_params_permissive": "one parameter has two shapes",
}
NAMES = [name for name in golden_cases.names("layers") if not name.startswith(NO_INPUT)]


def exported(net: fcnproto.Net, inputs: dict[str, Tensor], losses: bool) -> tuple[Source, nn.Module]:
    names, _ = endpoints(net, losses=losses)
    shapes = blob_shapes(net, {name: tuple(inputs[name].shape) for name in names})
    source = make_source(net, shapes, "w.safetensors", losses=losses)
    module = run_source(source)
    module.load_state_dict(state_for(net, module))
    return source, module.train(net.phase == "train")


@pytest.mark.parametrize("name", [name for name in NAMES if name not in UNSAYABLE])
def test_recorded_numbers(name: str) -> None:
    case = golden_cases.load("layers", name)
    net, tolerance = case.net(), LOOSER.get(name, TOLERANCE)
    wants_gradient = bool(case.facts.get("backward"))
    inputs = {key: torch.from_numpy(value).float() for key, value in case.keys("in").items()}
    for key in case.keys("gin"):
        inputs[key].requires_grad_(wants_gradient)
    source, module = exported(net, inputs, losses=True)
    for step in range(case.facts.get("pre_steps", 0)):
        given = [torch.from_numpy(case.arrays[f"pre.{step}.{key}"]).float() for key in source.inputs]
        with torch.no_grad():
            module(*given)
    result = module(*(inputs[key] for key in source.inputs))
    found = result if isinstance(result, dict) else {source.outputs[0]: result}
    recorded = case.keys("out")
    compared = [blob for blob in source.outputs if blob in recorded]  # automatic copies are not recorded
    assert compared
    for blob in compared:
        assert_close(found[blob], recorded[blob], tolerance, f"blob {blob}")
    for key, value in case.keys("param_after").items():
        assert_close(parameter(net, module, key), value, tolerance, f"parameter {key} after forward")
    left_out = WRONG_GRADIENT_IN_CAFFE | OF_THE_NET
    if wants_gradient and name not in left_out and not name.startswith(CANCELLING):
        compare_gradients(case, net, module, inputs, found, tolerance)


def parameter(net: fcnproto.Net, module: nn.Module, key: str) -> Tensor:
    """The module's parameter or statistic with the recording's name `<layer>.<index>`."""
    layer, index = key.rsplit(".", 1)
    at = next(i for i, one in enumerate(net.layers) if one.name == layer and one.blob_names)
    owner = module.get_submodule(net._module_names[at])
    return getattr(owner, net.layers[at].blob_names[int(index)])


def compare_gradients(
    case: golden_cases.Case,
    net: fcnproto.Net,
    module: nn.Module,
    inputs: dict[str, Tensor],
    found: dict[str, Tensor],
    tolerance: float,
) -> None:
    given = case.keys("gout")
    weighted = {blob.name: weight for blob, weight in net.graph.weighted()}
    total = sum(((found[blob] * torch.from_numpy(value)).sum() for blob, value in given.items()), torch.zeros(()))
    total = total + sum(found[blob].sum() * weight for blob, weight in weighted.items() if blob in found)
    if total.requires_grad:
        total.backward()
    for blob, value in case.keys("gin").items():
        gradient = inputs[blob].grad
        gradient = torch.zeros(value.shape) if gradient is None else gradient
        assert_close(gradient, value, tolerance, f"gradient of {blob}")
    for key, value in case.keys("gparam").items():
        ours = parameter(net, module, key)
        gradient = torch.zeros(ours.shape) if ours.grad is None else ours.grad
        assert_close(gradient.reshape(value.shape), value, tolerance, f"gradient of parameter {key}")


@pytest.mark.parametrize("name", UNSAYABLE)
def test_what_cannot_be_said(name: str) -> None:
    case = golden_cases.load("layers", name)
    inputs = {key: torch.from_numpy(value).float() for key, value in case.keys("in").items()}
    with pytest.raises(fcnproto.UnsupportedLayerError):
        exported(case.net(), inputs, losses=True)


def test_cases_left_out_are_few() -> None:
    assert len(NAMES) > 0.9 * len(golden_cases.names("layers"))
    assert np.isin(list(UNSAYABLE), NAMES).all()
