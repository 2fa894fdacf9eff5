"""SSD's loss: predictions matched with the boxes of the truth, hard examples mined, two losses summed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fcnproto.dialects import boxes as box
from fcnproto.layers.base import Shape
from fcnproto.layers.dtypes import at_least_float32
from fcnproto.layers.examples import SMALLEST, Array, Draw
from fcnproto.layers.loss import LOG_FLT_MIN, LossLayer, divisor, raise_to
from fcnproto.layers.registry import register
from fcnproto.layers.sigmoid_loss import LogisticCost
from fcnproto.schema import caffe_pb2

_Settings = caffe_pb2.MultiBoxLossParameter

# Boxes that overlap less than this don't meet; smaller ones are never taken by suppression.
_LEAST_OVERLAP, _LEAST_AREA = 1e-6, 1e-5
_UNMATCHED, _LEFT_OUT = -1, -2


class Truth(NamedTuple):
    """The objects of one image."""

    boxes: Tensor
    """(G, 4)."""
    labels: Tensor
    """The classes (G,) as the confidences have them."""


class Matches(NamedTuple):
    """What the priors of an image are matched with, for one class of locations."""

    truth: Tensor
    """(P,): a row of the image's `Truth`, -1 for none, -2 for a prior that takes no part."""
    overlap: Tensor
    """(P,): the largest overlap with any of the rows."""


class Examples(NamedTuple):
    """Matched locations of the whole batch, M of them."""

    image: Tensor
    prior: Tensor
    location: Tensor
    """The class of locations, 0 where all classes share them."""
    boxes: Tensor
    """The truth's (M, 4)."""
    labels: Tensor


def _draw_boxes(draw: np.random.Generator, count: int) -> Array:
    """Boxes (count, 4) within 0..1 that are not empty."""
    corners = draw.uniform(0, 1 - SMALLEST, (count, 2))
    return np.concatenate([corners, np.minimum(corners + draw.uniform(SMALLEST, 1, corners.shape), 1)], 1)


def draw_priors(draw: np.random.Generator, shape: Sequence[int]) -> Array:
    """Priors (1, 2, P * 4): boxes, and variances of 0.1."""
    values = np.full((2, math.prod(shape) // 2), 0.1)
    values[0] = _draw_boxes(draw, values.shape[1] // 4).ravel()
    return values.reshape(tuple(shape))


def draw_truth(items: int, label: int) -> Draw:
    """Rows item, label, instance, box, difficult, for images 0 to `items` - 1."""

    def draw_rows(draw: np.random.Generator, shape: Sequence[int]) -> Array:
        values = np.zeros((math.prod(shape) // 8, 8))
        values[:, 0] = np.sort(draw.integers(0, max(items, 1), len(values)))
        values[:, 1], values[:, 3:7] = label, _draw_boxes(draw, len(values))
        return values.reshape(tuple(shape))

    return draw_rows


def match(overlaps: Tensor, out: Tensor | None, threshold: float | None) -> Matches:
    """Match priors with truths by their overlaps (P, G); the first of equal ones wins.

    The pair that overlaps most is matched, and so on until no truth is left that meets a free prior; then, where there
    is a `threshold`, each free prior with the truth that it overlaps most, from the threshold on. Priors of the mask
    `out` (P,) take no part.
    """
    count, truths = overlaps.shape
    found = torch.full((count,), _UNMATCHED, dtype=torch.int64, device=overlaps.device)
    if not truths or not count:
        return Matches(found, overlaps.new_zeros(count))
    overlaps = torch.where(overlaps > _LEAST_OVERLAP, overlaps, 0)
    if out is not None:
        overlaps = overlaps.masked_fill(out[:, None], 0)
        found[out] = _LEFT_OUT
    best, nearest = overlaps.max(1)
    free = overlaps.clone()
    for _ in range(truths):
        prior, truth = divmod(int(free.argmax()), truths)
        if free[prior, truth] == 0:
            break
        found[prior] = truth
        free[prior], free[:, truth] = 0, 0
    if threshold is not None:
        joins = (found == _UNMATCHED) & (best > 0) & (best >= threshold)
        found = torch.where(joins, nearest, found)
    return Matches(found, best)


@register("MultiBoxLoss")
class MultiBoxLoss(LossLayer):
    """SSD's MultiBoxLoss: (loc_weight * costs of matched locations + costs of confidences) / Z.

    Bottoms: locations (N, P * L * 4), confidences (N, P * classes), priors (1, 2, P * 4) and truth (1, 1, G, 8) of
    rows item, label, instance, xmin, ymin, xmax, ymax, difficult; rows of item -1 are none. Each truth takes the prior
    (without `use_prior_for_matching` the predicted box) that overlaps it most; with PER_PREDICTION further ones from
    `overlap_threshold` on join. Mining takes the worst unmatched priors as background (MAX_NEGATIVE, at most
    `neg_pos_ratio` for each match), or the worst of all (HARD_EXAMPLE), if asked after suppression. Z, at least 1, is
    by `loss_param`: VALID (default) the matches, FULL N * P, BATCH_SIZE N, NONE 1. Either sum counts only where
    `propagate_down` is not false for its bottom.
    """

    fork = "SSD"
    config_field = "multibox_loss_param"
    also_reads = ("loss_param",)
    bottoms = (4, 4)
    judges = False
    force_backward_refuses = (2, 3)
    index_bottoms = (2, 3)
    in_place = False
    differences = (
        "examples of equal loss are taken in the order of priors. Where SSD's program writes elsewhere or ends, "
        "LOGISTIC has one-hot targets, and map_object_to_agnostic mines too. With encode_variance_in_target the "
        "gradient is SSD's, which leaves the division by the variance out."
    )

    def setup(self, shapes: Sequence[Shape]) -> None:
        super().setup(shapes)
        config = self.config
        if self.mode_name not in ("FULL", "VALID", "BATCH_SIZE", "NONE"):
            self.fail(
                f"loss_param.normalization {self.mode_name} is unknown to SSD; use VALID, FULL, BATCH_SIZE or NONE"
            )
        self.mines = config.mining_type != _Settings.NONE
        self.suppresses = config.HasField("nms_param") and config.nms_param.nms_threshold > 0
        # SSD adds a sum only where propagate_down, by default true for the predictions, lets its gradient through.
        self.counts = tuple(self.param.propagate_down[:2]) or (True, True)
        self.location_classes = 1 if config.share_location else config.num_classes
        self.threshold = config.overlap_threshold if config.match_type == _Settings.PER_PREDICTION else None
        self._check_settings()
        self._count(shapes)

    def _check_settings(self) -> None:
        config = self.config
        if config.num_classes < 1:
            self.fail("num_classes is missing")
        if config.HasField("do_neg_mining") and config.do_neg_mining != self.mines:
            self.fail("do_neg_mining contradicts mining_type; leave do_neg_mining out")
        if self.mines and not config.share_location:
            self.fail("mining needs share_location: true; with false give mining_type: NONE")
        if config.mining_type == _Settings.HARD_EXAMPLE and config.sample_size < 1:
            self.fail(f"sample_size must be positive, got {config.sample_size}")
        background, softmax = config.background_label_id, config.conf_loss_type == _Settings.SOFTMAX
        if (softmax or self.mines) and background >= config.num_classes:
            self.fail(f"background_label_id {background} is outside of the classes 0..{config.num_classes - 1}")
        if config.map_object_to_agnostic and (config.num_classes, background) != (2, 0):
            self.fail("map_object_to_agnostic needs num_classes: 2 and background_label_id: 0")
        if self.mines and self.suppresses and not config.nms_param.top_k:
            self.warn("nms_param without top_k leaves no example to mine, as in SSD; set top_k")
        unread = ("objectness_score", "ignore_difficult_gt", "oriented_weight", "use_polygon")
        self.warn_unread(unread, "it belongs to another fork's MultiBoxLoss")
        if self.ignore_label is not None:
            self.warn("loss_param.ignore_label has no effect")

    def _count(self, shapes: Sequence[Sequence[int]]) -> int:
        """The number of priors, checked against all bottoms."""
        config, (locations, confidences, priors, truth) = self.config, shapes
        count, items = math.prod(priors) // 8, locations[0]
        wanted = [items * count * self.location_classes * 4, items * count * config.num_classes, count * 8]
        if [math.prod(shape) for shape in shapes[:3]] != wanted or confidences[0] != items or math.prod(truth) % 8:
            self.fail(
                f"{count} priors, {config.num_classes} classes, {self.location_classes} locations each and a truth of "
                f"rows of 8 don't go with bottoms of shapes {', '.join(str(tuple(shape)) for shape in shapes)}"
            )
        return count

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [()]

    def suitable_values(self, bottom: int, first: Shape) -> Draw | None:
        if bottom == 2:
            return draw_priors
        return draw_truth(first[0], 0 if self.config.background_label_id else 1) if bottom == 3 else None

    def forward(self, locations: Tensor, confidences: Tensor, priors: Tensor, truth: Tensor) -> Tensor:
        predicted, scores, anchors, variances = self._prepared(locations, confidences, priors, truth)
        items, count = predicted.shape[:2]
        with torch.no_grad():
            truths = self._truths(truth.detach().to(predicted.dtype).reshape(-1, 8), items)
            found = [self._match(t, p, anchors, variances) for t, p in zip(truths, predicted, strict=True)]
            negatives = self._mine(truths, found, predicted, scores, anchors, variances) if self.mines else None
            examples = self._examples(truths, found, anchors)
        total = predicted.new_zeros(())
        if self.counts[0]:
            costs = self._location_costs(examples, predicted, anchors, variances)
            total = total + self.config.loc_weight * costs.sum()
        if self.counts[1]:
            total = total + self._confidence_cost(examples, negatives, scores)
        matches = max(len(examples.prior), 1)
        return total / (matches if self.mode_name == "VALID" else divisor(self.mode_name, items, count, None))

    def _prepared(
        self, locations: Tensor, confidences: Tensor, priors: Tensor, truth: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Locations (N, P, L, 4), confidences (N, P, classes), and of the priors boxes and variances (P, 4) each."""
        count, items = self._count([t.shape for t in (locations, confidences, priors, truth)]), locations.shape[0]
        predicted = at_least_float32(locations).reshape(items, count, self.location_classes, 4)
        scores = at_least_float32(confidences).reshape(items, count, self.config.num_classes)
        anchors, variances = priors.detach().to(predicted.dtype).reshape(2, count, 4)
        return predicted, scores, anchors, variances

    def near_ties(self, bottoms: Sequence[Tensor], reach: float) -> tuple[int, int, str] | None:
        """Images where the last example that is mined costs hardly more than the first that isn't."""
        if not self.mines:
            return None
        predicted, scores, anchors, variances = self._prepared(*bottoms)
        truths = self._truths(bottoms[3].to(predicted.dtype).reshape(-1, 8), len(predicted))
        found = [self._match(t, p, anchors, variances) for t, p in zip(truths, predicted, strict=True)]
        losses = self._mining_losses(truths, found, predicted, scores, anchors, variances)
        # `reach` is a share of the largest location; the share of the largest loss decides here.
        reach *= float(losses.max()) / max(float(bottoms[0].abs().max()), 1e-30)
        near = total = 0
        for costs, matches in zip(losses, found, strict=True):
            order, wanted = self._mineable(matches[0], costs) if matches else (costs[:0].long(), 0)
            if 0 < wanted < len(order):
                total += 1
                near += bool(0 < costs[order[wanted - 1]] - costs[order[wanted]] <= reach)
        return near, total, "selections of examples"

    def _truths(self, rows: Tensor, items: int) -> list[Truth]:
        """The objects of each image from rows of 8."""
        config = self.config
        item, label = rows[:, 0].long(), rows[:, 1].long()
        wrong = (label < 0) | (label >= (math.inf if config.map_object_to_agnostic else config.num_classes))
        wrong = ((label == config.background_label_id) | wrong) & (item != -1)
        if bool(wrong.any()):
            self.fail(
                f"the truth holds label {int(label[wrong][0])}; objects have labels 0..{config.num_classes - 1} other "
                f"than the background's, {config.background_label_id}"
            )
        label = torch.full_like(label, 1) if config.map_object_to_agnostic else label
        used = torch.ones_like(wrong) if config.use_difficult_gt else rows[:, 7] == 0
        chosen = [(item == number) & used for number in range(items)]
        return [Truth(rows[mask, 3:7], label[mask]) for mask in chosen]

    def _decode(self, values: Tensor, anchors: Tensor, variances: Tensor) -> Tensor:
        config = self.config
        return box.decode(config.code_type, anchors, None if config.encode_variance_in_target else variances, values)

    def _match(self, truth: Truth, predicted: Tensor, anchors: Tensor, variances: Tensor) -> dict[int, Matches]:
        """The matches of one image by class of locations; none where it has no objects. `predicted` is (P, L, 4)."""
        if not len(truth.boxes):
            return {}
        config = self.config
        classes = [c for c in range(self.location_classes) if config.share_location or c != config.background_label_id]
        if config.use_prior_for_matching:
            whole = self._match_boxes(anchors, truth.boxes)
            if config.share_location:
                return {0: whole}
            labels = torch.where(whole.truth >= 0, truth.labels[whole.truth.clamp(min=0)], -1)
            return {c: Matches(torch.where(labels == c, whole.truth, _UNMATCHED), whole.overlap) for c in classes}
        found = {}
        for number in classes:
            rows = torch.arange(len(truth.labels), device=anchors.device)
            rows = rows if config.share_location else rows[truth.labels == number]
            own = self._match_boxes(self._decode(predicted[:, number], anchors, variances), truth.boxes[rows])
            if len(rows):
                own = own._replace(truth=torch.where(own.truth >= 0, rows[own.truth.clamp(min=0)], own.truth))
            found[number] = own
        return found

    def _match_boxes(self, candidates: Tensor, truth: Tensor) -> Matches:
        out = ((candidates < 0) | (candidates > 1)).any(1) if self.config.ignore_cross_boundary_bbox else None
        return match(box.overlaps(candidates, truth), out, self.threshold)

    def _examples(self, truths: Sequence[Truth], found: Sequence[dict[int, Matches]], anchors: Tensor) -> Examples:
        """All matches, by image, class of locations and prior."""
        image, prior, location, boxes_, labels = [], [], [], [anchors[:0]], []
        for number, (truth, matches) in enumerate(zip(truths, found, strict=True)):
            for place, own in matches.items():
                index = (own.truth >= 0).nonzero().flatten()
                prior.append(index)
                image.append(torch.full_like(index, number))
                location.append(torch.full_like(index, place))
                boxes_.append(truth.boxes[own.truth[index]])
                labels.append(truth.labels[own.truth[index]])
        none = torch.zeros(0, dtype=torch.int64, device=anchors.device)
        images, priors, locations, classes = (torch.cat([none, *c]) for c in (image, prior, location, labels))
        return Examples(images, priors, locations, torch.cat(boxes_), classes)

    def _location_costs(self, examples: Examples, predicted: Tensor, anchors: Tensor, variances: Tensor) -> Tensor:
        """The costs (M, 4) of matched locations; `predicted` is (N, P, L, 4)."""
        config = self.config
        anchors, variances = anchors[examples.prior], variances[examples.prior]
        values = predicted[examples.image, examples.prior, examples.location]
        inside_target = config.encode_variance_in_target
        targets = box.encode(config.code_type, anchors, None if inside_target else variances, examples.boxes)
        if config.bp_inside:
            used = anchors if config.use_prior_for_matching else self._decode(values.detach(), anchors, variances)
            values = torch.where((used < 0) | (used > 1), targets, values)
        if inside_target:
            # The value is divided, its gradient is not: adding x - x, zeros, brings the gradient of x alone.
            values = (values / variances).detach() + (values - values.detach())
            targets = targets / variances
        if config.loc_loss_type == _Settings.L2:
            return (values - targets).square() / 2
        return F.smooth_l1_loss(values, targets, reduction="none")

    def _confidence_costs(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The costs (M,) of scores (M, classes) where each row has one class."""
        if self.config.conf_loss_type == _Settings.SOFTMAX:
            return -raise_to(scores.log_softmax(1).gather(1, labels[:, None]), LOG_FLT_MIN).flatten()
        costs: Tensor = LogisticCost.apply(scores, F.one_hot(labels, scores.shape[1]).to(scores.dtype))
        return costs.sum(1)

    def _confidence_cost(self, examples: Examples, negatives: Sequence[Tensor] | None, scores: Tensor) -> Tensor:
        """The cost of the mined and the matched confidences, or of all where nothing is mined."""
        background = self.config.background_label_id
        if negatives is not None:
            numbers = [torch.full_like(prior, number) for number, prior in enumerate(negatives)]
            image, prior = torch.cat([examples.image, *numbers]), torch.cat([examples.prior, *negatives])
            labels = F.pad(examples.labels, (0, len(prior) - len(examples.prior)), value=background)
            return self._confidence_costs(scores[image, prior], labels).sum()
        if self.config.conf_loss_type == _Settings.LOGISTIC:
            # SSD marks the matches alone here, not the background.
            targets = torch.zeros_like(scores)
            targets[examples.image, examples.prior, examples.labels] = 1
            costs: Tensor = LogisticCost.apply(scores, targets)
            return costs.sum()
        labels = torch.full(scores.shape[:2], background, dtype=torch.int64, device=scores.device)
        for number in range(self.location_classes):
            own = examples.location == number
            labels[examples.image[own], examples.prior[own]] = examples.labels[own]
        return self._confidence_costs(scores.flatten(0, 1), labels.flatten()).sum()

    def _mine(
        self,
        truths: Sequence[Truth],
        found: list[dict[int, Matches]],
        predicted: Tensor,
        scores: Tensor,
        anchors: Tensor,
        variances: Tensor,
    ) -> list[Tensor]:
        """The priors mined as background, for each image; matches that HARD_EXAMPLE passes over leave `found`."""
        hard = self.config.mining_type == _Settings.HARD_EXAMPLE
        losses = self._mining_losses(truths, found, predicted, scores, anchors, variances)
        mined = []
        for number, matches in enumerate(found):
            if not matches:
                mined.append(torch.zeros(0, dtype=torch.int64, device=scores.device))
                continue
            own = matches[0]
            picked = self._pick(own, losses[number], predicted[number, :, 0], anchors, variances)
            taken = torch.zeros_like(own.truth, dtype=torch.bool).index_fill(0, picked, True)
            mined.append((taken & (own.truth == _UNMATCHED)).nonzero().flatten())
            if hard:
                kept = torch.where((own.truth >= 0) & ~taken, _UNMATCHED, own.truth)
                found[number] = {0: own._replace(truth=kept)}
        return mined

    def _mining_losses(
        self,
        truths: Sequence[Truth],
        found: Sequence[dict[int, Matches]],
        predicted: Tensor,
        scores: Tensor,
        anchors: Tensor,
        variances: Tensor,
    ) -> Tensor:
        """What each prior costs (N, P), as its match or as background."""
        examples = self._examples(truths, found, anchors)
        labels = torch.full(scores.shape[:2], self.config.background_label_id, device=scores.device)
        labels[examples.image, examples.prior] = examples.labels
        losses = self._confidence_costs(scores.flatten(0, 1), labels.flatten()).view(scores.shape[:2])
        if self.config.mining_type != _Settings.HARD_EXAMPLE:
            return losses
        sums = self._location_costs(examples, predicted, anchors, variances).sum(1)
        return losses.index_put((examples.image, examples.prior), sums, accumulate=True)

    def _mineable(self, own: Matches, losses: Tensor) -> tuple[Tensor, int]:
        """The priors that may be mined, by falling losses, and how many are wanted."""
        config = self.config
        if config.mining_type == _Settings.HARD_EXAMPLE:
            eligible = torch.arange(len(losses), device=losses.device)
            wanted = int(config.sample_size)
        else:
            eligible = ((own.truth == _UNMATCHED) & (own.overlap < config.neg_overlap)).nonzero().flatten()
            # In float32, as SSD multiplies.
            wanted = int(np.float32(int((own.truth >= 0).sum())) * np.float32(config.neg_pos_ratio))
        return eligible[losses[eligible].argsort(descending=True, stable=True)], wanted

    def _pick(self, own: Matches, losses: Tensor, values: Tensor, anchors: Tensor, variances: Tensor) -> Tensor:
        """The priors with the largest losses among those that may be mined."""
        config = self.config
        order, wanted = self._mineable(own, losses)
        if self.suppresses:
            order = order[: config.nms_param.top_k] if config.nms_param.top_k > -1 else order
            candidates = anchors if config.use_prior_for_nms else self._decode(values, anchors, variances)
            order = order[box.area(candidates[order]) >= _LEAST_AREA]
            order = order[box.suppress(candidates[order], config.nms_param.nms_threshold).to(order.device)]
        return order[: max(wanted, 0)]
