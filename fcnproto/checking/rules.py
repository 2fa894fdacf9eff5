"""The rules about a net that is to be trained. Each takes the net as it is, values and all, and returns findings."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fcnproto.checking.findings import Finding, listed
from fcnproto.checking.flow import flow, zero_parameters
from fcnproto.checking.kinds import found
from fcnproto.data.alignment import randomly_moved
from fcnproto.net import Net


def before_training(net: Net) -> Iterator[Finding]:
    """What should be said before a training begins. A net without a loss is not asked what reaches its parameters."""
    none = list(no_loss(net))
    yield from none
    if not none:
        yield from unfilled(net)
        yield from never_learns(net)
    yield from ungrouped_bilinear(net)


def unfilled(net: Net) -> Iterator[Finding]:
    """Layers whose weights are all 0 and are not learned, where a loss is computed of what they give."""
    moves = flow(net, zero_parameters(net))
    frozen = {(ref.layer, ref.index) for ref in net.parameter_places() if ref.lr_mult == 0}
    places = sorted(moves.asleep & frozen & _asked(net))
    if places:
        dead = any(blob in moves.zero for index, _ in places for blob in net.graph.nodes[index].tops)
        what = "what they give is 0 for every image" if dead else "they add nothing but their bias"
        yield found(
            "unfilled",
            [net.layers[index].name for index, _ in places],
            f"all weights are 0 (no weights for them, and no filler) and lr_mult is 0: {what}",
        )


def _asked(net: Net) -> set[tuple[int, int]]:
    """The parameters that a gradient would reach if none were 0."""
    return flow(net, set()).reached


def never_learns(net: Net) -> Iterator[Finding]:
    """Layers that are to be learned, but get no gradient at any time because weights are 0, theirs or others'."""
    moves, asked, layers = flow(net, zero_parameters(net)), _asked(net), net.layers
    lost = asked - moves.reached
    stuck = [ref for ref in net.parameter_places() if ref.lr_mult != 0 and (ref.layer, ref.index) in lost]
    names = list(dict.fromkeys(layers[ref.layer].name for ref in stuck))
    if names:
        guilty = [layers[index].name for index, _ in sorted(moves.asleep)]
        yield found("never-learns", names, f"the weights of {listed(guilty)} are all 0")


def no_loss(net: Net) -> Iterator[Finding]:
    """A net in which nothing is minimised, or nothing that depends on what is learned; that is not asked while layers
    wait for a size, as the first ones do whose data aren't there."""
    where = net.graph.title
    if not net.graph.weighted():
        yield found(
            "no-loss",
            where,
            "no layer of it gives a loss",
            remedy="add a loss layer, such as SoftmaxWithLoss, or look whether its include rules keep it out of TRAIN",
        )
        return
    learned = {(ref.layer, ref.index) for ref in net.parameter_places() if ref.lr_mult != 0}
    if not net.unknown and not learned & _asked(net):
        names = list(dict.fromkeys(blob.producer.name for blob, _ in net.graph.weighted()))
        yield found(
            "no-loss",
            where,
            f"its loss ({listed(names)}) depends on no parameter that is learned",
            remedy="look at lr_mult, propagate_down and at what the loss reads",
            layers=names,
        )


def ungrouped_bilinear(net: Net) -> Iterator[Finding]:
    """Bilinear fillers without group, or with several channels in one: each gets the sum of them, so all have one
    score."""
    names, groups = [], {1}
    for layer in net.layers:
        if layer.type not in ("Convolution", "Deconvolution") or layer.config.weight_filler.type != "bilinear":
            continue
        weight = layer.blob(0).detach()
        if weight.shape[0] > layer.config.group and weight.shape[1] > 1:
            alike = bool(weight.any()) and torch.equal(weight, weight[:1, :1].expand_as(weight))
            names += [layer.name] if alike else []
            groups.add(layer.config.group)
    if names:
        of = " of a group" if max(groups) > 1 else ""
        what = f"a bilinear weight_filler {'with too few groups' if of else 'without group'}"
        yield found("ungrouped-bilinear", names, f"{what} fills every pair of channels{of}")


def unaligned_random(net: Net) -> Iterator[Finding]:
    """Data layers of TRAIN that crop or mirror at random, each for itself: image and labels of it part."""
    names = [layer.name for layer in randomly_moved(net.layers)]
    if len(names) > 1:
        yield found("unaligned-random", names, "each draws its own random crop or mirror")
