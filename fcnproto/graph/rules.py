"""Which layers a net keeps: NetState against the include and exclude rules of each layer."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from fcnproto.errors import FcnprotoWarning, GraphError, net_title
from fcnproto.schema import caffe_pb2


def phase_value(phase: str | int) -> int:
    """The number of a phase given as "train" or "test" (any case) or as Caffe's number (TRAIN 0, TEST 1)."""
    if isinstance(phase, str) and phase.upper() in ("TRAIN", "TEST"):
        return int(caffe_pb2.Phase.Value(phase.upper()))
    if phase in (caffe_pb2.TRAIN, caffe_pb2.TEST):
        return int(phase)
    raise GraphError(f"phase {phase!r}: expected 'train' or 'test'")


def net_state(
    net: caffe_pb2.NetParameter, phase: str | int, level: int = 0, stages: Sequence[str] = ()
) -> caffe_pb2.NetState:
    """The state a net is built under: the caller's phase and level, the file's stages and the caller's after them.

    Warns where the file says another phase or level, which Caffe passes over. Raises `GraphError` for what is no phase
    or level."""
    if isinstance(stages, str):
        stages = (stages,)
    state = caffe_pb2.NetState()
    state.CopyFrom(net.state)
    state.phase = phase_value(phase)
    try:
        state.level = level
    except (TypeError, ValueError):
        raise GraphError(f"level {level!r}: expected a whole number") from None
    for name, label in (("phase", caffe_pb2.Phase.Name), ("level", str)):
        if net.state.HasField(name) and getattr(net.state, name) != getattr(state, name):
            theirs, ours = label(getattr(net.state, name)), label(getattr(state, name))
            message = (
                f"{net_title(net.name)}: its state says {name} {theirs}, but it is built with {ours}, as asked for"
            )
            warnings.warn(message, FcnprotoWarning, stacklevel=2)
    state.stage.extend(stages)
    return state


def rule_is_met(rule: caffe_pb2.NetStateRule, state: caffe_pb2.NetState) -> bool:
    """Whether every part that the rule gives holds; an empty rule always does."""
    stages = set(state.stage)
    return (
        (not rule.HasField("phase") or rule.phase == state.phase)
        and (not rule.HasField("min_level") or state.level >= rule.min_level)
        and (not rule.HasField("max_level") or state.level <= rule.max_level)
        and stages.issuperset(rule.stage)
        and stages.isdisjoint(rule.not_stage)
    )


def is_kept(layer: caffe_pb2.LayerParameter, state: caffe_pb2.NetState) -> bool:
    """Whether the layer is part of a net in this state.

    Raises `GraphError` where a layer has both kinds of rules.
    """
    if layer.include and layer.exclude:
        raise GraphError(f"layer {layer.name!r}: give include rules or exclude rules, not both")
    if layer.include:
        return any(rule_is_met(rule, state) for rule in layer.include)
    return not any(rule_is_met(rule, state) for rule in layer.exclude)
