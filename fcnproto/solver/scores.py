"""Scores of a solver's test nets: mean IU and IU by class, beside what Caffe shows.

Its lines are of a kind of their own, so that what reads Caffe's logs passes them over.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
from torch import Tensor

from fcnproto.escaping import printable
from fcnproto.layers.loss import LossLayer
from fcnproto.net import Net
from fcnproto.net.roles import judged_blobs, unsplit
from fcnproto.preprocessing import class_names
from fcnproto.scoring.metrics import confusion_matrix, metrics
from fcnproto.solver.log import LONGEST_NAME, figure


class TestScores:
    """Confusion matrices of the score maps of a test net, whose labels its losses and accuracies name."""

    def __init__(self, net: Net) -> None:
        self.net = net
        self.pairs = judged_blobs(net)
        self._matrices: dict[str, np.ndarray] = {}
        self._ignored = {
            unsplit(node.bottoms[1]).name: layer.ignore_label
            for node, layer in zip(net.graph.nodes, net.layers, strict=True)
            if isinstance(layer, LossLayer) and len(node.bottoms) > 1
        }

    @property
    def blobs(self) -> list[str]:
        """The blobs that a pass must give."""
        return list(dict.fromkeys([*self.pairs, *self.pairs.values()]))

    def add(self, outputs: Mapping[str, Tensor]) -> None:
        """Take in a pass. Scores (N, C, H, W) count whose labels have as many places."""
        for blob, label in self.pairs.items():
            scores = outputs[blob]
            if scores.dim() != 4 or outputs[label].numel() != scores[:, 0].numel():
                continue
            prediction = scores.argmax(1).cpu().numpy()
            truth = outputs[label].reshape(prediction.shape).cpu().numpy().astype(np.int64)
            counts = confusion_matrix(truth, prediction, scores.shape[1], self._ignored.get(label))
            self._matrices[blob] = self._matrices.get(blob, 0) + counts

    def means(self) -> dict[str, float]:
        """Mean IU, by "mean IU" where there is one score map, else with its name."""
        alone = len(self._matrices) == 1
        return {
            "mean IU" if alone else f"mean IU of {blob}": metrics(matrix).mean_iu
            for blob, matrix in self._matrices.items()
        }

    def lines(self) -> Iterator[str]:
        """A line for the mean of each score map, and one for each class that occurs."""
        for blob, matrix in self._matrices.items():
            found, where = metrics(matrix), printable(blob, LONGEST_NAME)
            accuracy = figure(found.pixel_accuracy)
            yield f"    Test score: {where} mean IU {figure(found.mean_iu)}, pixel accuracy {accuracy}"
            names = class_names(blob, len(matrix), self.net.meta) or [f"class {k}" for k in range(len(matrix))]
            for name, value in zip(names, found.class_iu, strict=True):
                if not math.isnan(value):
                    yield f"    Test score: {where} {printable(name, LONGEST_NAME)} IU {figure(value)}"
