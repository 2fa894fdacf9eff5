"""`optimize`: a net that computes the same outputs faster, sharing its weights with the net it is made from."""

from __future__ import annotations

import difflib
import operator
import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, fx

from fcnproto import precision
from fcnproto.errors import FcnprotoWarning, UsageError
from fcnproto.layers.activation import ReLU
from fcnproto.layers.arithmetic import Scale
from fcnproto.layers.base import Layer
from fcnproto.layers.batch_norm import BatchNorm
from fcnproto.layers.convolution import Convolution, Deconvolution
from fcnproto.layers.pooling import Pooling
from fcnproto.layers.shaping import Crop
from fcnproto.net import Net, Outputs, calling
from fcnproto.net.plan import Plan
from fcnproto.passes import joining, normalising
from fcnproto.passes.choosing import ChosenPlan
from fcnproto.passes.folding import FoldedChain, Step
from fcnproto.passes.graphs import GraphedPlan, Recorder
from fcnproto.passes.keeping import Latest, Watch
from fcnproto.passes.kernels import FastConvolution, FastPooling, stored_blobs
from fcnproto.passes.tuning import is_on
from fcnproto.passes.upsampling import FastDeconvolution
from fcnproto.precision import canonical
from fcnproto.schema import caffe_pb2

PASSES = ("remove_dropout", "fold_padding", "convolutions", "normalisation", "pooling", "deconvolutions", "onednn")
"""The passes, in the order in which they run: each finds what the ones before left of the graph."""

_PLANS_KEPT = 8


@dataclass(frozen=True)
class Change:
    """What a pass of `PASSES` did at one place: the layers it took, and the module that runs for them (None: none)."""

    made_by: str
    layers: tuple[Layer, ...]
    module: torch.nn.Module | None


class OptimizedNet(Net):
    """A net whose calls run a rewritten plan. Parameters are those of the net it was made from.

    Values derived from them are made anew when they change. `precision`, `cuda_graphs` and `passes` are as given to
    `optimize`; `tuning` tells whether ways are timed.
    """

    precision: str
    cuda_graphs: bool
    passes: tuple[str, ...] = PASSES
    tuning: bool = False
    _fast_plans: Latest[tuple[object, ...], Plan]
    _watch: Watch
    _recorder: Recorder

    def forward(
        self, /, *args: Tensor | Mapping[str, Tensor], blobs: Sequence[str] | str | None = None, **inputs: Tensor
    ) -> Outputs:
        """As `Net.forward`, computed in the net's `precision`; outputs are in the net's dtype all the same."""
        if type(args) is not tuple:  # torch.fx traces
            return cast("Outputs", calling.traced(self, args, blobs, inputs))
        if self.precision == "fp32":  # the setting of the process holds
            return super().forward(*args, blobs=blobs, **inputs)
        with precision.computing(self.precision, self.device):
            outputs = super().forward(*args, blobs=blobs, **inputs)
        if precision.PRECISIONS[self.precision] == torch.float32:
            return outputs
        result = Outputs((name, _at_least_float32(value)) for name, value in outputs.items())
        result.weighted = tuple((_at_least_float32(value), *how) for value, *how in outputs.weighted)  # type: ignore[misc]
        return result

    def _find_plan(self, inputs: tuple[str, ...], blobs: tuple[str, ...]) -> Plan:
        training = tuple(layer.training for layer in self.layers)
        key = (inputs, blobs, training)
        plan = self._fast_plans.get(key)
        if plan is None:
            plan = self._made_plan(key)
        if not isinstance(plan.module, ChosenPlan):
            self._watch.look()
        return plan

    def _made_plan(self, key: tuple[tuple[str, ...], tuple[str, ...], tuple[bool, ...]]) -> Plan:
        inputs, blobs, training = key
        with self._planning:
            plan = self._fast_plans.get(key)
            if plan is None:
                plain = self.plan(inputs, blobs)
                plan = rewrite(plain, self._watch, self.passes, self.tuning)[0]
                module: Any = plan.module
                if self.cuda_graphs and not any(training):
                    module = GraphedPlan(module, self._state, self._recorder, self.layers)
                elif not any(training) and self.precision == "fp32" and self.passes == PASSES:
                    module = ChosenPlan(plan, plain, self._watch.look, tuned=self.tuning)
                plan = replace(plan, module=module)
                self._fast_plans.put(key, plan)
        return plan

    def _state(self) -> Hashable:
        """What a recorded graph relies on: where the blobs lie, and what was made from them."""
        blobs = tuple((blob.data_ptr(), blob.dtype) for layer in self.layers for blob in stored_blobs(layer))
        return blobs, self._watch.changes

    def _apply(self, fn: Any, recurse: bool = True) -> Net:
        self.__dict__.update(_nothing_kept())
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **_nothing_kept()}


def _nothing_kept() -> dict[str, Any]:
    return {"_fast_plans": Latest(_PLANS_KEPT), "_watch": Watch(), "_recorder": Recorder()}


def _at_least_float32(value: Tensor) -> Tensor:
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def optimize(
    net: Net,
    *,
    precision: str = "fp32",
    cuda_graphs: bool = False,
    passes: Sequence[str] | None = None,
    tuning: bool | None = None,
) -> OptimizedNet:
    """A net that takes the same calls and gives the same outputs (to rounding, 1e-5) faster, in either phase.

    `net` stays as it is; the two share their parameters, and a change of weights through either is seen by both.
    Gradients are those of the plain net. Fastest under `torch.no_grad()`, where border maps are kept from call to call
    for the latest sizes. However weights are changed, the next call notices; on a GPU a call or some later where it is
    by ways that torch doesn't count (`.data`), since to know at once the CPU would have to wait for the GPU.

    Args:
        net: a net in any phase, plain or optimised.
        precision: "fp32"; "tf32x3" (CUDA, without gradients; else as "fp32") computes convolutions on tensor cores, as
            three products each, and agrees with Caffe as "fp32" does; "tf32" (CUDA alone), "bf16" and "fp16" compute
            convolutions and matrix products less exactly, and don't agree to 1e-5. Parameters and outputs stay float32.
        cuda_graphs: on a GPU and without gradients, record each size's work at its second call and replay it from
            then on. A net with a layer that keeps a state or reads values on the host runs as it is, with a warning
            that names the layer.
        passes: some of `PASSES`, by name (`fcnproto optimize --explain` shows what each does); all by default. They run
            in their own order, whatever order is given.
        tuning: on a CPU and without gradients, time the ways that are close to one another at the first calls of a size
            and take the fastest from then on: outputs of these calls differ in rounding. By default as the environment
            variable `FCNPROTO_TUNING` says, "on" or "off"; where off, the same inputs give the same bits at every call.

    Raises:
        UsageError: an unknown precision or pass, another value of the variable.
    """
    chosen, wanted = canonical(precision), chosen_passes(passes)
    if cuda_graphs and net.device.type != "cuda":
        warnings.warn(
            f"CUDA graphs are for GPUs; this net is on the {net.device.type.upper()}, where they change nothing",
            FcnprotoWarning,
            stacklevel=2,
        )
    fast = OptimizedNet.__new__(OptimizedNet)
    state = net.__getstate__()
    state["_modules"] = dict(state["_modules"])
    own = {"precision": chosen, "cuda_graphs": cuda_graphs, "passes": wanted, "tuning": is_on(tuning)}
    fast.__setstate__({**state, **_nothing_kept(), **own})
    return fast


def chosen_passes(passes: Sequence[str] | None) -> tuple[str, ...]:
    """The passes of these names in the order of `PASSES`; `UsageError` for unknown names."""
    if passes is None:
        return PASSES
    for name in [passes] if isinstance(passes, str) else passes:
        if name not in PASSES:
            near = difflib.get_close_matches(str(name), PASSES, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UsageError(f"pass {name!r} is unknown; {hint}the passes are {', '.join(PASSES)}")
    return tuple(name for name in PASSES if name in passes)


def rewrite(
    plan: Plan, watch: Watch, passes: Sequence[str] = PASSES, tuning: bool = False
) -> tuple[Plan, list[Change]]:
    """A plan with the same inputs and outputs, rewritten by some of `PASSES`, and what these did.

    Each pass keeps all outputs. With `tuning`, ways to compute a layer that are close are timed when it runs.
    """
    graph = fx.Graph()
    graph.output(graph.graph_copy(plan.module.graph, {}))
    trace = fx.GraphModule(plan.module, graph, "OptimizedPlan")
    rewriter = Rewriter(trace, watch, tuning)
    for name in passes:
        getattr(rewriter, name)()
    rewriter.drop_unread()
    rewriter.contiguous_outputs()
    trace.recompile()
    return Plan(trace, plan.inputs, plan.keys, plan.weighted), rewriter.changes


class Rewriter:
    """The passes, each over the fx graph of one plan; `changes` tells what they did."""

    def __init__(self, trace: fx.GraphModule, watch: Watch, tuning: bool = False) -> None:
        self.trace, self.watch, self.tuning = trace, watch, tuning
        self.count = 0
        self.changes: list[Change] = []
        # Layers that nobody reads, but that run for what they do (HDF5Output, a BatchNorm's sums).
        self.ends = {node for node in trace.graph.nodes if not node.users}

    def layer(self, node: fx.Node) -> Layer | None:
        """The layer that a node calls, None for other nodes."""
        module = self.module(node)
        return module if isinstance(module, Layer) else None

    def module(self, node: fx.Node) -> torch.nn.Module | None:
        """The module that a node calls, None for other nodes."""
        return self.trace.get_submodule(str(node.target)) if node.op == "call_module" else None

    def note(self, name: str, layers: Sequence[Layer], module: torch.nn.Module) -> None:
        """Tell what a pass did."""
        self.changes.append(Change(name, tuple(layers), module))

    def layers_of(self, node: fx.Node) -> tuple[Layer, ...]:
        """The layers that the module of a node took the place of."""
        module = self.module(node)
        return next((change.layers for change in self.changes if change.module is module), ())

    def put(self, at: fx.Node, module: torch.nn.Module, arguments: Sequence[fx.Node]) -> fx.Node:
        """A call of a new module in front of node `at`."""
        name = f"fast_{self.count}"
        self.count += 1
        self.trace.add_submodule(name, module)
        with self.trace.graph.inserting_before(at):
            return self.trace.graph.call_module(name, tuple(arguments))

    def replace(self, node: fx.Node, value: fx.Node) -> None:
        """Let `value` be read in the place of `node`, which goes."""
        node.replace_all_uses_with(value)
        self.trace.graph.erase_node(node)

    def remove_dropout(self) -> None:
        """Dropout, and what else hands its bottom on in the TEST phase, is not there in it.

        Given a layer of one top that passes its bottom on and isn't training.
        Result: its readers read its bottom; nothing is called for it.
        """
        for node in list(self.trace.graph.nodes):
            layer = self.layer(node)
            if layer is not None and layer.hands_on() and layer.num_tops == 1:
                self.changes.append(Change("remove_dropout", (layer,), None))
                self.replace(node, _source(node))

    def drop_unread(self) -> None:
        """Remove what the rewriting left without a reader."""
        self.trace.graph.eliminate_dead_code(lambda node: node in self.ends or node.is_impure())

    def only_reader(self, node: fx.Node) -> tuple[fx.Node, Layer] | None:
        """The layer that alone reads a node's blob, with its node."""
        if len(node.users) != 1:
            return None
        (user,) = node.users
        layer = self.layer(user)
        return None if layer is None else (user, layer)

    def fuse(self, node: fx.Node) -> tuple[FastConvolution, fx.Node, tuple[Layer, ...]]:
        """A convolution with the BatchNorm, Scale and ReLU that alone read what is before them, the last's node, and
        the layers."""
        convolution = self.layer(node)
        assert isinstance(convolution, Convolution)
        layers: list[Layer] = [convolution]
        norm: BatchNorm | None = None
        scale: Scale | None = None
        found = self.only_reader(node)
        if found and isinstance(found[1], BatchNorm) and found[1].is_plain() and _is_pointwise(found[1]):
            node, norm = found[0], found[1]
            layers.append(norm)
            found = self.only_reader(node)
            if found and isinstance(found[1], Scale) and _is_pointwise(found[1]):
                node, scale = found[0], found[1]
                layers.append(scale)
                found = self.only_reader(node)
        relu = bool(found and isinstance(found[1], ReLU) and _is_plain_relu(found[1]))
        if found and relu:
            node = found[0]
            layers.append(found[1])
        return FastConvolution(self.watch, convolution, relu, norm, scale), node, tuple(layers)

    def fold_padding(self) -> None:
        """Chains that begin with a heavily padded convolution run on the part of their blobs that the image reaches.

        Given a plain convolution padded by more than half its extent, followed by plain convolutions, max poolings
        without padding (one at least) and pointwise layers, each the only reader of the one before or the only one with
        a window.
        Result: one `FoldedChain` that gives, in full, the blobs of the chain that others read. Whether a size leaves
        anything out is found when it comes.
        """
        for node in list(self.trace.graph.nodes):
            if _is_foldable_start(self.layer(node)):
                steps, nodes = self._chain(node)
                if any(isinstance(step.layer, Pooling) for step in steps):
                    self._replace_chain(node, steps, nodes)

    def _chain(self, start: fx.Node) -> tuple[list[Step], list[fx.Node]]:
        """The longest chain of foldable layers from `start`: its steps and the node that holds each one's blob."""
        steps: list[Step] = []
        nodes: list[fx.Node] = []
        node: fx.Node | None = start
        while node is not None:
            layer = self.layer(node)
            assert layer is not None
            if isinstance(layer, Convolution):
                fast, node, layers = self.fuse(node)
                steps.append(Step(layer, fast, layers))
            else:
                steps.append(Step(layer, layers=(layer,)))
            nodes.append(node)
            node = self._next(node)
        return steps, nodes

    def _next(self, node: fx.Node) -> fx.Node | None:
        """The reader of a blob along which a chain goes on: the only one, or among several the one with a window."""
        readers = [user for user in node.users if _continues(self.layer(user))]
        if len(node.users) > 1:
            readers = [user for user in readers if _has_window(self.layer(user))]
        return readers[0] if len(readers) == 1 else None

    def _replace_chain(self, start: fx.Node, steps: list[Step], nodes: list[fx.Node]) -> None:
        following = [self._next(node) for node in nodes]
        outside = [[user for user in node.users if user is not nxt] for node, nxt in zip(nodes, following, strict=True)]
        taps = [i for i, users in enumerate(outside) if users]
        chain = FoldedChain(self.watch, steps, taps)
        self.changes.append(Change("fold_padding", tuple(layer for step in steps for layer in step.layers), chain))
        call = self.put(start, chain, [_source(start)])
        for k, i in enumerate(taps):
            with self.trace.graph.inserting_before(start):
                value = self.trace.graph.call_function(operator.getitem, (call, k))
            for user in outside[i]:
                user.replace_input_with(nodes[i], value)
        self.drop_unread()

    def convolutions(self) -> None:
        """Convolutions run with channels innermost, each with the BatchNorm, Scale and ReLU after it.

        Given a plain convolution; a BatchNorm by stored statistics, a Scale per channel and a ReLU without slope, each
        the only reader of the one before.
        Result: one `FastConvolution` for them all, with weights scaled and shifted as BatchNorm and Scale do.
        """
        for node in list(self.trace.graph.nodes):
            layer = self.layer(node)
            if isinstance(layer, Convolution) and _is_plain(layer):
                fast, last, layers = self.fuse(node)
                self.changes.append(Change("convolutions", layers, fast))
                self.replace(last, self.put(node, fast, [_source(node)]))
        self.drop_unread()

    def normalisation(self) -> None:
        """BatchNorm by stored statistics, the Scale and the activation behind it as one product and sum per channel.

        Given a BatchNorm by stored statistics that no convolution has taken in; a Scale per channel and a ReLU or Clip,
        each the only reader of the one before.
        Result: one `FastNorm` for them all.
        """
        normalising.join(self)

    def pooling(self) -> None:
        """Max pooling without the positions of its maxima.

        Given a max pooling of one top without padding.
        Result: a `FastPooling`, which takes maxima of rows, then of columns, where no gradient is asked for.
        """
        for node in list(self.trace.graph.nodes):
            layer = self.layer(node)
            if isinstance(layer, Pooling) and _has_window(layer):
                fast = FastPooling(layer)
                self.changes.append(Change("pooling", (layer,), fast))
                self.replace(node, self.put(node, fast, [_source(node)]))

    def deconvolutions(self) -> None:
        """Deconvolutions: per channel where their weights are so, and no more than what a Crop keeps of them.

        Given a plain deconvolution whose windows leave no gaps, and a Crop of spatial axes that alone reads it.
        Result: one `FastDeconvolution` for both, which looks at its weights when they change.
        """
        for node in list(self.trace.graph.nodes):
            layer = self.layer(node)
            if not isinstance(layer, Deconvolution) or not _is_plain(layer) or _has_gaps(layer):
                continue
            found = self.only_reader(node)
            crop = found[1] if found and isinstance(found[1], Crop) and _source(found[0]) is node else None
            if found is None or crop is None or crop.axis(crop.config.axis, (0,) * 4) < 2:
                fast = FastDeconvolution(self.watch, layer)
                self.changes.append(Change("deconvolutions", (layer,), fast))
                self.replace(node, self.put(node, fast, [_source(node)]))
                continue
            fast = FastDeconvolution(self.watch, layer, crop)
            self.changes.append(Change("deconvolutions", (layer, crop), fast))
            self.replace(found[0], self.put(found[0], fast, [_source(node), _source(found[0], 1)]))
            self.trace.graph.erase_node(node)

    def onednn(self) -> None:
        """Convolutions and inner products with what follows them in one operator of oneDNN, on weights arranged once.

        Given a `FastConvolution`; the sum of its top and another blob; a ReLU or Clip; each the only reader of the one
        before. An InnerProduct, with a ReLU or Clip.
        Result: one `FusedConvolution` or `FusedProduct`, and one `Ready` that says to all whether the call is fit for
        them: float32 on a CPU, no gradients, finite numbers. Other calls run as before.
        """
        joining.join(self)

    def contiguous_outputs(self) -> None:
        """Outputs as the plain net gives them, whatever order of axes they were computed in."""
        (output,) = (node for node in self.trace.graph.nodes if node.op == "output")
        for node in output.all_input_nodes:
            if node.op != "placeholder":
                with self.trace.graph.inserting_before(output):
                    output.replace_input_with(node, self.trace.graph.call_function(_as_given, (node,)))


def _as_given(value: Tensor) -> Tensor:
    """An output in order, and in float32 where autocast alone made it another dtype, both in one copy."""
    lower = not torch.is_grad_enabled() and torch.is_autocast_enabled(value.device.type)
    if lower and value.dtype == torch.get_autocast_dtype(value.device.type):
        return value.to(torch.float32, memory_format=torch.contiguous_format)
    return value.contiguous()


def _source(node: fx.Node, index: int = 0) -> fx.Node:
    """The node that a layer's bottom `index` comes from."""
    source = node.args[index]
    assert isinstance(source, fx.Node)
    return source


def _is_plain(layer: Convolution | Deconvolution) -> bool:
    """One bottom, two spatial axes after the channels, padded alike at both ends of each."""
    return layer.num_tops == 1 and layer.axes == 2 and layer.channel_axis == 1 and layer.window.is_even


def _is_plain_relu(layer: ReLU) -> bool:
    return layer.config.negative_slope == 0 and layer.ceiling is None


def _has_gaps(layer: Deconvolution) -> bool:
    """Whether some positions of the top are reached by no position of the bottom."""
    return any(s > e for s, e in zip(layer.window.stride, layer.window.extent, strict=True))


def _is_foldable_start(layer: Layer | None) -> bool:
    return (
        isinstance(layer, Convolution)
        and _is_plain(layer)
        and any(p > e // 2 for p, e in zip(layer.window.pad, layer.window.extent, strict=True))
    )


def _has_window(layer: Layer | None) -> bool:
    if isinstance(layer, Convolution):
        return _is_plain(layer) and max(layer.window.kernel) > 1
    return (
        isinstance(layer, Pooling)
        and layer.method == caffe_pb2.PoolingParameter.MAX
        and layer.kernel is not None
        and not any(layer.windows.pad)
        and layer.windows.is_even
        and layer.num_tops == 1
    )


def _continues(layer: Layer | None) -> bool:
    return _is_pointwise(layer) or _has_window(layer) or (isinstance(layer, Convolution) and _is_plain(layer))


def _is_pointwise(layer: Layer | None) -> bool:
    """Whether a layer makes of one blob another one of its size, each position for itself."""
    if layer is None or len(layer.param.bottom) != 1 or layer.num_tops != 1:
        return False
    return layer.is_pointwise(layer.param, layer.training)
