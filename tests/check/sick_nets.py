"""Small nets and solvers for the gallery of what keeps a net from learning, and how they are examined."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import fcnproto
from fcnproto.checking import Finding

DUMMY = (
    'layer { name: "data" type: "DummyData" top: "data" top: "label" dummy_data_param {\n'
    "  shape { dim: 1 dim: 3 dim: 16 dim: 16 } shape { dim: 1 dim: 1 dim: 16 dim: 16 }\n"
    '  data_filler { type: "gaussian" std: 1 } data_filler { value: 1 } } }\n'
)
SCORE = (
    'layer { name: "score" type: "Convolution" bottom: "data" top: "score"\n'
    '  convolution_param { num_output: 3 kernel_size: 3 pad: 1 weight_filler { type: "xavier" } } }\n'
)
LOSS = 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "score" bottom: "label" top: "loss" }\n'
SUMMED = LOSS.replace('top: "loss"', 'top: "loss" loss_param { normalize: false }')
SOLVER = 'base_lr: 0.01 lr_policy: "fixed" max_iter: 100 momentum: 0.9 solver_mode: CPU snapshot_after_train: false\n'


def write(folder: Path, net: str = DUMMY + SCORE + LOSS, solver: str | None = SOLVER) -> Path:
    """Write a net, and a solver that trains it; the path of what is examined."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "net.prototxt").write_text(net)
    if solver is None:
        return folder / "net.prototxt"
    (folder / "solver.prototxt").write_text(f'net: "net.prototxt"\n{solver}')
    return folder / "solver.prototxt"


def examined(path: Path, *weights: Path, **options: Any) -> list[Finding]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a check warns of nothing: it finds
        return fcnproto.check(path, weights, **options)


def grave(findings: list[Finding]) -> list[Finding]:
    """The findings that are more than notes."""
    return [finding for finding in findings if finding.level != "note"]


def one(findings: list[Finding], code: str) -> Finding:
    """The finding of that code; there must be just one."""
    (finding,) = [finding for finding in findings if finding.code == code]
    assert finding.seen and finding.why and finding.remedy and "\n" not in str(finding)
    return finding
