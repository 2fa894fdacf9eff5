"""Running a solver's test nets: means of their outputs over test_iter batches, or the precision of detections, shown in
Caffe's lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fcnproto.errors import SolverError
from fcnproto.net import Net
from fcnproto.solver import debug
from fcnproto.solver.detection import Detections
from fcnproto.solver.log import figure, output_lines
from fcnproto.solver.scores import TestScores

if TYPE_CHECKING:
    from fcnproto.solver.solver import Solver


def loss_weights(net: Net) -> dict[str, float]:
    """The loss weights of a net's blobs, by name."""
    return {blob.name: weight for blob, weight in net.graph.weighted()}


class Means:
    """Means of every element of each output over several forward passes; shapes may not change on the way."""

    def __init__(self) -> None:
        self.totals: dict[str, Tensor] = {}
        self.count = 0

    def add(self, outputs: Mapping[str, Tensor]) -> None:
        """Take in the outputs of a pass."""
        self.count += 1
        for name, value in outputs.items():
            value = value.detach().double().flatten()
            if name in self.totals and self.totals[name].shape != value.shape:
                raise SolverError(
                    f"output {name!r} has {value.numel()} values after batches of {self.totals[name].numel()}, so it "
                    "has no mean; for DetectionEvaluate's rows set eval_type: 'detection' in a solver"
                )
            self.totals[name] = self.totals[name] + value if name in self.totals else value

    def result(self) -> dict[str, list[float]]:
        """The means by name, flattened."""
        return {name: (total / self.count).tolist() for name, total in self.totals.items()}


def run_test(solver: Solver, index: int, inputs: Mapping[str, Any]) -> dict[str, list[float]] | None:
    """Test net `index` on `test_iter` batches, with the train net's weights. None where a request stopped it.

    The results are the means of the outputs; with `eval_type: "detection"` their mean average precision. The net keeps
    its place in the data between tests; with `score_tests` mean IU is added. `inputs` feed the Input layers of test
    nets that have any.
    """
    net, param = solver.test_nets[index], solver.param
    solver.say(f"Iteration {solver.iter}, Testing net (#{index})")
    solver.share_weights(net)
    given = {name: value for name, value in inputs.items() if name in net.inputs}
    gathered: Means | Detections = Detections() if param.eval_type == "detection" else Means()
    judged, total = TestScores(net) if solver.score_tests else None, 0.0
    with torch.no_grad():
        for _ in range(param.test_iter[index]):
            solver.obey(testing=True)
            if solver.stopping:
                solver.say("Test interrupted.")
                return None
            with debug.traced(net, solver.say, param.debug_info):
                outputs = net(given, blobs=judged.blobs if judged else ())
            if param.test_compute_loss:
                total += float(net.loss(outputs))
            if judged:
                judged.add(outputs)
                outputs = {name: outputs[name] for name in net.outputs if name in outputs}
            gathered.add(outputs)
    batches = param.test_iter[index]
    if param.test_compute_loss and batches:
        solver.say(f"Test loss: {figure(total / batches)}")
    scores = gathered.result() if isinstance(gathered, Means) else _precisions(solver, gathered)
    for line in output_lines("Test", scores, loss_weights(net)):
        solver.say(line)
    if param.test_compute_loss and batches:
        scores.setdefault("loss", [total / batches])
    if judged and batches:
        for line in judged.lines():
            solver.say(line)
        scores |= {name: [value] for name, value in judged.means().items()}
    return scores


def _precisions(solver: Solver, gathered: Detections) -> dict[str, list[float]]:
    """The mean average precision by output; classes are shown as SSD shows them."""
    results = gathered.result(solver.param.ap_version or "Integral")
    for precision in results.values():
        for label, value in precision.classes.items():
            if value is None:
                solver.say(f"Missing true_pos for label: {label}")
            elif solver.param.show_per_class_result:
                solver.say(f"class{label}: {figure(value)}")
    return {name: [precision.mean] for name, precision in results.items()}
