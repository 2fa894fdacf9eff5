"""Loss sampling: how many cells stay, what the loss and its gradient become, and how the batch grows."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fcnproto
from fcnproto.errors import SolverError
from fcnproto.netspec import NetSpec
from fcnproto.netspec import layers as L
from fcnproto.schema import caffe_pb2
from fcnproto.schema.weights import write_blob
from fcnproto.solver import Options
from fcnproto.solver.sampling import LossSampling

SIZE = (40, 56)


def definition(**loss: Any) -> caffe_pb2.NetParameter:
    net = NetSpec()
    net.data, net.label = L.Input(shape=[{"dim": [1, 2, *SIZE]}, {"dim": [1, 1, *SIZE]}], ntop=2)
    net.score = L.Convolution(net.data, num_output=3, kernel_size=1, weight_filler={"type": "xavier"})
    net.loss = L.SoftmaxWithLoss(net.score, net.label, **{"ignore_label": 255, "normalize": False, **loss})
    return net.to_proto()


def batch(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (1, 1, *SIZE), generator=generator).float()
    return {"data": torch.randn(1, 2, *SIZE, generator=generator), "label": labels}


@pytest.mark.parametrize("cell", [1, 8])
def test_the_share_and_the_shape_of_what_stays(cell: int) -> None:
    torch.manual_seed(0)
    masks = torch.stack([LossSampling(0.3, cell).mask(torch.Size((1, 1, *SIZE))) for _ in range(400)]).float()
    assert masks.mean() == pytest.approx(0.3, abs=0.01)
    assert masks.mean(dim=0).sub(0.3).abs().max() < 0.15  # every place is as likely
    if cell > 1:  # neighbours mostly share their fate: an edge of a cell every `cell` pixels
        changes = (masks[..., 1:] != masks[..., :-1]).float().mean()
        assert changes == pytest.approx(2 * 0.3 * 0.7 / cell, rel=0.1)


@pytest.mark.parametrize("normalize", [False, True])
def test_the_gradient_is_right_on_average(normalize: bool) -> None:
    torch.manual_seed(1)
    net = fcnproto.load(definition(normalize=normalize), phase="train")
    sampled = copy.deepcopy(net)
    LossSampling(0.25, 4).install(sampled)
    inputs = batch()

    def gradient(of: Any) -> torch.Tensor:
        of.zero_grad()
        of.loss(of(**inputs)).backward()
        return of.params["score"][0].grad.clone()

    expected = gradient(net)
    several = torch.stack([gradient(sampled) for _ in range(300)])
    assert (several[0] - expected).abs().max() > 0
    assert (several.mean(dim=0) - expected).abs().max() < 0.1 * expected.abs().max()


def test_one_call_counts_the_labels_that_stay() -> None:
    net = fcnproto.load(definition(normalize=False), phase="train")
    with torch.no_grad():
        for blob in net.params["score"]:
            blob.zero_()  # then every label costs ln 3
    LossSampling(0.5, 8).install(net)
    torch.manual_seed(3)
    loss = float(net.loss(net(**batch())).detach())
    torch.manual_seed(3)
    kept = int(LossSampling(0.5, 8).mask(torch.Size((1, 1, *SIZE))).sum())
    assert loss == pytest.approx(kept * 1.0986123 / 0.5, rel=1e-5)
    pickle.loads(pickle.dumps(net))


def test_class_weights_are_sampled_alike(tmp_path: Path) -> None:
    """With ones on its diagonal, InfogainLoss is SoftmaxWithLoss, sampled too."""
    write_blob(tmp_path / "h.binaryproto", np.eye(3, dtype=np.float32).reshape(1, 1, 3, 3))
    nets = []
    for settings in ({}, {"type": "InfogainLoss", "source": str(tmp_path / "h.binaryproto")}):
        param = definition()
        loss = param.layer[-1]
        if settings:
            loss.type = settings["type"]
            loss.loss_param.ClearField("normalize")
            loss.loss_param.normalization = caffe_pb2.LossParameter.BATCH_SIZE
            loss.infogain_loss_param.source, loss.infogain_loss_param.axis = settings["source"], 1
        torch.manual_seed(0)
        nets.append(fcnproto.load(param, phase="train"))
        LossSampling(0.4, 8).install(nets[-1])
    found = []
    for net in nets:
        torch.manual_seed(5)
        found.append(float(net.loss(net(**batch())).detach()))
    assert found[0] == pytest.approx(found[1], rel=1e-5) and found[0] > 0


def test_solver_option() -> None:
    param = caffe_pb2.SolverParameter(base_lr=0.001, lr_policy="fixed", iter_size=2, max_iter=3, solver_mode=0)
    param.net_param.CopyFrom(definition())
    param.random_seed = 3
    solver = fcnproto.Solver(param, options=Options(sampling=LossSampling(0.25)))
    assert solver.param.iter_size == 8 and param.iter_size == 2
    solver.step(1, **batch())
    assert len(solver.losses) == 8 and len(set(solver.losses)) > 1


def test_refusals() -> None:
    for keep in (0.0, 1.5):
        with pytest.raises(SolverError, match="above 0 and up to 1"):
            LossSampling(keep)
    with pytest.raises(SolverError, match="1 pixel a side"):
        LossSampling(0.5, 0)
    net = definition()
    net.layer[-1].loss_param.ClearField("ignore_label")
    with pytest.raises(SolverError, match="needs an ignore_label"):
        LossSampling(0.5).install(fcnproto.load(net))
    del net.layer[-1]
    with pytest.raises(SolverError, match="no loss to sample"):
        LossSampling(0.5).install(fcnproto.load(net))
