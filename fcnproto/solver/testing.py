"""Running a solver's test nets: means of their outputs over test_iter batches, shown in Caffe's lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fcnproto.net import Net
from fcnproto.solver import debug
from fcnproto.solver.log import figure, output_lines

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
            self.totals[name] = self.totals[name] + value if name in self.totals else value

    def result(self) -> dict[str, list[float]]:
        """The means by name, flattened."""
        return {name: (total / self.count).tolist() for name, total in self.totals.items()}


def run_test(solver: Solver, index: int, inputs: Mapping[str, Any]) -> dict[str, list[float]] | None:
    """Test net `index` on `test_iter` batches, with the train net's weights. None where a request stopped it.

    The net keeps its place in the data between tests. `inputs` feed the Input layers of test nets that have any.
    """
    net, param = solver.test_nets[index], solver.param
    solver.say(f"Iteration {solver.iter}, Testing net (#{index})")
    solver.share_weights(net)
    given = {name: value for name, value in inputs.items() if name in net.inputs}
    means, total = Means(), 0.0
    with torch.no_grad():
        for _ in range(param.test_iter[index]):
            solver.obey(testing=True)
            if solver.stopping:
                solver.say("Test interrupted.")
                return None
            with debug.traced(net, solver.say, param.debug_info):
                outputs = net(given)
            if param.test_compute_loss:
                total += float(net.loss(outputs))
            means.add(outputs)
    scores = means.result()
    if param.test_compute_loss and means.count:
        solver.say(f"Test loss: {figure(total / means.count)}")
    for line in output_lines("Test", scores, loss_weights(net)):
        solver.say(line)
    if param.test_compute_loss and means.count:
        scores.setdefault("loss", [total / means.count])
    return scores
