"""A small net with everything that a resumed run must bring back: shuffled data, dropout, noise, a recurrent layer."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import write_message
from fcnproto.solver import Solver

NET = """
name: "toy"
layer {{ name: "src" type: "HDF5Data" top: "data" top: "label"
  hdf5_data_param {{ source: "{folder}/list.txt" batch_size: 4 shuffle: {shuffle} }} }}
layer {{ name: "conv" type: "Convolution" bottom: "data" top: "conv"
  param {{ lr_mult: 1 decay_mult: 1 }} param {{ lr_mult: 2 decay_mult: 0 }}
  convolution_param {{ num_output: 4 kernel_size: 3 weight_filler {{ type: "xavier" }} }} }}
{extra}
layer {{ name: "ip" type: "InnerProduct" bottom: "conv" top: "ip"
  inner_product_param {{ num_output: 3 weight_filler {{ type: "xavier" }} }} }}
layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }}
layer {{ name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "label" top: "accuracy" include {{ phase: TEST }} }}
"""
DROPOUT = 'layer { name: "drop" type: "Dropout" bottom: "conv" top: "conv" }'


def write(folder: Path, *, shuffle: bool = True, extra: str = DROPOUT, **fields: object) -> Path:
    """Write net, data and solver into a folder; returns the solver's path. `fields` change the solver's."""
    rng = np.random.default_rng(0)
    with h5py.File(folder / "rows.h5", "w") as file:
        labels = rng.integers(0, 3, 24)
        file["data"] = (rng.standard_normal((24, 2, 6, 6)) + labels[:, None, None, None]).astype(np.float32)
        file["label"] = labels.astype(np.float32)
    (folder / "list.txt").write_text(f"{folder}/rows.h5\n")
    (folder / "net.prototxt").write_text(NET.format(folder=folder, shuffle=str(shuffle).lower(), extra=extra))
    return write_solver(folder, **fields)


def write_solver(folder: Path, **fields: object) -> Path:
    """Write the solver alone; a field given as None is left out."""
    settings: dict[str, object] = {
        "net": f"{folder}/net.prototxt",
        "base_lr": 0.01,
        "lr_policy": "fixed",
        "momentum": 0.9,
        "max_iter": 12,
        "snapshot_prefix": f"{folder}/snap",
        "random_seed": 5,
        "solver_mode": caffe_pb2.SolverParameter.CPU,
        **fields,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    write_message(folder / "solver.prototxt", caffe_pb2.SolverParameter(**given))  # type: ignore[arg-type]
    return folder / "solver.prototxt"


def values(solver: Solver) -> list[torch.Tensor]:
    return [entry.tensor.detach().clone() for entry in solver.net.learnable]


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "fcnproto.solver"]
