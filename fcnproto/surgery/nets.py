"""Changing definitions: classification nets made fully convolutional, scoring heads, other numbers of classes.

All work on upgraded `NetParameter`s, give a new one and a `Report`; weights follow by `weights.transplant`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from fcnproto.errors import GraphError, UsageError, net_title
from fcnproto.graph import coord_map
from fcnproto.graph.rules import is_kept, net_state
from fcnproto.graph.windows import WINDOW_FIELDS
from fcnproto.inspect.summary import LayerSummary, summarise
from fcnproto.layers.placeholder import class_for
from fcnproto.schema import caffe_pb2
from fcnproto.surgery.report import Report

_AVERAGE = caffe_pb2.PoolingParameter.AVE
# Layers after a classifier that bring its scores into another form, which maps of scores need not.
_RESHAPING = {"Flatten", "Reshape", "Pooling"}
LEARNED = ({"lr_mult": 1, "decay_mult": 1}, {"lr_mult": 2, "decay_mult": 0})


def convolutionalise(
    net: caffe_pb2.NetParameter,
    *,
    pad: int | None = None,
    classifier: bool = True,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> tuple[caffe_pb2.NetParameter, Report]:
    """A classification net as one that gives a map of scores for an image of any size.

    The layers of its test phase that lead to the last layer with parameters stay. Inner products become convolutions
    (the first as large as the map that it reads), an average pooling over the whole map before them and flattenings
    are dropped, as are auxiliary classifiers, losses and softmaxes; inputs become an Input layer. On an image of the
    original size the map is the old answer itself, or, where an average was dropped, its mean is.

    Args:
        pad: the padding of the first convolution (100 in the published nets); by default as it is.
        classifier: keep the last layer; without, the features that it reads are the output.
        shapes: shapes of the net's inputs where neither an Input layer nor a crop_size tells them.

    Raises:
        GraphError: the net has no layer with parameters, or one that can't be turned into a convolution.
    """
    work = _Convolution(net)
    result = work.rebuild(shapes or {})
    if not classifier:
        work.drop_last(result)
    if pad is not None:
        first = next((layer for layer in result.layer if layer.type == "Convolution"), None)
        if first is None:
            raise GraphError(f"{net_title(net.name)} has no convolution whose padding could be set")
        settings = first.convolution_param
        for name in ("pad", "pad_h", "pad_w", *WINDOW_FIELDS):
            settings.ClearField(name)
        settings.pad.append(pad)
        work.report.add("changed", first.name, f"pad {pad}")
    return result, work.report


def _source_shape(layer: caffe_pb2.LayerParameter, index: int, given: Sequence[int] | None) -> Sequence[int]:
    """The shape of a data layer's top: as given, an Input's own, or that of the crops that are cut from its images."""
    if given is not None:
        return given
    if layer.type == "Input" and layer.input_param.shape:
        return list(layer.input_param.shape[min(index, len(layer.input_param.shape) - 1)].dim)
    size = layer.transform_param.crop_size
    if not size or index:
        raise GraphError(
            f"layer {layer.name!r} ({layer.type}): nothing tells the shape of its top {layer.top[index]!r}; give it "
            f"(--shape {layer.top[index]}=1,3,224,224)"
        )
    return [1, 1 if layer.transform_param.force_gray else 3, size, size]


@dataclass
class _Convolution:
    """The rebuilding of one net: `blobs` maps names of dropped layers' tops to what stands for them now."""

    net: caffe_pb2.NetParameter
    report: Report = field(default_factory=Report)
    blobs: dict[str, str] = field(default_factory=dict)
    facts: dict[str, LayerSummary] = field(default_factory=dict)

    def __post_init__(self) -> None:
        state = net_state(self.net, "test")
        self.layers = [layer for layer in self.net.layer if is_kept(layer, state)]

    def rebuild(self, shapes: Mapping[str, Sequence[int]]) -> caffe_pb2.NetParameter:
        """The new net; `report` says what became of each layer."""
        kept = self._leading_to_the_scores()
        result = self._inputs(kept, shapes)
        old = caffe_pb2.NetParameter()
        old.CopyFrom(result)
        old.layer.extend(kept)
        self.facts = {layer.name: layer for layer in summarise(old, phase="test").layers}
        pool = self._last_average(kept)
        for layer in kept:
            if layer is pool:
                self._drop(layer, "the average over the map")
            elif layer.type == "Flatten" or (layer.type == "Reshape" and self._flattens(layer)):
                self._drop(layer, "flattens the map")
            else:
                self._add(result, layer)
        return result

    def _leading_to_the_scores(self) -> list[caffe_pb2.LayerParameter]:
        """The layers that the last layer with parameters needs, itself and what follows it in place included."""
        learned = [layer for layer in self.layers if layer.type in ("InnerProduct", "Convolution")]
        if not learned:
            raise GraphError(
                f"{net_title(self.net.name)} has no convolution or inner product; is it a classification net?"
            )
        last = learned[-1]
        wanted, kept = set(last.top), []
        for layer in reversed(self.layers):
            if is_source(layer):
                continue
            after = layer is not last and self.layers.index(layer) > self.layers.index(last)
            if wanted.isdisjoint(layer.top) or (after and _follows_scores(layer)):
                self.report.add("dropped", layer.name, f"{layer.type}: not needed for the scores {last.top[0]!r}")
                continue
            wanted.update(layer.bottom)
            kept.append(layer)
        self.report.steps.reverse()
        return kept[::-1]

    def _last_average(self, kept: Sequence[caffe_pb2.LayerParameter]) -> caffe_pb2.LayerParameter | None:
        """The last pooling, if it averages the whole map before an inner product (or a 1x1 convolution)."""
        pools = [layer for layer in kept if layer.type == "Pooling"]
        if not pools or pools[-1].pooling_param.pool != _AVERAGE:
            return None
        tops = next(iter(self.facts[pools[-1].name].tops.values()))
        return pools[-1] if tuple(tops[2:]) == (1, 1) else None

    def _flattens(self, layer: caffe_pb2.LayerParameter) -> bool:
        return all(len(shape) == 2 for shape in self.facts[layer.name].tops.values())

    def _inputs(
        self, kept: Sequence[caffe_pb2.LayerParameter], given: Mapping[str, Sequence[int]]
    ) -> caffe_pb2.NetParameter:
        """A net of one Input layer with the blobs that these layers read of the data layers, one image each."""
        result = caffe_pb2.NetParameter(name=self.net.name)
        read = {name for layer in kept for name in layer.bottom}
        shapes = {}
        for layer in filter(is_source, self.layers):
            for index, name in enumerate(layer.top):
                if name in read:
                    shapes[name] = [1, *_source_shape(layer, index, given.get(name))[1:]]
        if not shapes:
            raise GraphError(f"{net_title(self.net.name)} has no data layer whose blob is read")
        name = "input" if len(shapes) > 1 else next(iter(shapes))
        new = result.layer.add(name=name, type="Input", top=list(shapes))
        for shape in shapes.values():
            new.input_param.shape.add(dim=shape)
        return result

    def _drop(self, layer: caffe_pb2.LayerParameter, why: str) -> None:
        self.blobs[layer.top[0]] = self.blobs.get(layer.bottom[0], layer.bottom[0])
        self.report.add("dropped", layer.name, f"{layer.type}: {why}")

    def _add(self, result: caffe_pb2.NetParameter, layer: caffe_pb2.LayerParameter) -> None:
        new = result.layer.add()
        new.CopyFrom(layer)
        for name in ("include", "exclude", "phase"):
            new.ClearField(name)
        bottoms = [self.blobs.get(name, name) for name in layer.bottom]
        # What worked in place on a dropped layer's top works in place on the blob that stands for it.
        tops = [bottoms[list(layer.bottom).index(name)] if name in layer.bottom else name for name in layer.top]
        for name in tops:
            self.blobs.pop(name, None)
        del new.bottom[:], new.top[:]
        new.bottom.extend(bottoms)
        new.top.extend(tops)
        if layer.type == "InnerProduct":
            self._convolve(new, layer)

    def _convolve(self, new: caffe_pb2.LayerParameter, old: caffe_pb2.LayerParameter) -> None:
        """Turn an inner product into the convolution that computes the same on a map of the original size."""
        settings = old.inner_product_param
        shape = next(iter(self.facts[old.name].bottoms.values()))
        if settings.transpose or settings.axis not in (1, 1 - len(shape)):
            raise GraphError(f"layer {old.name!r} (InnerProduct): with transpose or another axis it is no convolution")
        shape = self._map_shape(old.bottom[0], shape)
        new.type = "Convolution"
        new.ClearField("inner_product_param")
        convolution = new.convolution_param
        convolution.num_output = settings.num_output
        if not settings.bias_term:
            convolution.bias_term = False
        if shape[0] == shape[1]:
            convolution.kernel_size.append(shape[0])
        else:
            convolution.kernel_h, convolution.kernel_w = shape
        for name in ("weight_filler", "bias_filler"):
            if settings.HasField(name):
                getattr(convolution, name).CopyFrom(getattr(settings, name))
        self.report.add("changed", old.name, f"InnerProduct -> Convolution, kernel {shape[0]}x{shape[1]}")

    def _map_shape(self, blob: str, shape: Sequence[int]) -> tuple[int, int]:
        """Height and width of the map that an inner product reads, seen through dropped layers."""
        producers = {top: layer for layer in self.layers for top in layer.top if top not in layer.bottom}
        while len(shape) == 2 and blob in producers and producers[blob].type in ("Flatten", "Reshape"):
            shape = next(iter(self.facts[producers[blob].name].bottoms.values()))
            blob = producers[blob].bottom[0]
        return (int(shape[2]), int(shape[3])) if len(shape) == 4 else (1, 1)

    def drop_last(self, net: caffe_pb2.NetParameter) -> None:
        """Take the last layer with parameters, and what follows it, off the net."""
        last = max(index for index, layer in enumerate(net.layer) if layer.type == "Convolution")
        for layer in net.layer[last:]:
            self.report.add("dropped", layer.name, f"{layer.type}: the classifier")
        del net.layer[last:]


def add_scores(
    net: caffe_pb2.NetParameter, classes: int, *, label: bool = False
) -> tuple[caffe_pb2.NetParameter, Report]:
    """Put an FCN's coarse head on a convolutional net: score_fr, a fixed upscore and the crop `score` to the image.

    The stride and the crop's offset come from the net's coordinate maps. With `label` the input gets the blob `label`
    and the net a loss (summed over the pixels, 255 ignored). Raises `GraphError` where the map would begin inside the
    image (the first layer needs more padding), or the stride is no whole number.
    """
    result, report = caffe_pb2.NetParameter(), Report()
    result.CopyFrom(net)
    blobs = coord_map.link(result)
    image = result.layer[0].top[0]
    features = result.layer[-1].top[0]
    found = coord_map.coord_map_from_to(blobs[features], blobs[image])
    stride = found.scale[0]
    if stride.denominator != 1 or any(scale != stride for scale in found.scale) or stride < 1:
        raise GraphError(
            f"{net_title(net.name)}: its output has the stride {', '.join(map(str, found.scale))}; whole is needed"
        )
    score = result.layer.add(name="score_fr", type="Convolution", bottom=[features], top=["score_fr"])
    for settings in LEARNED:
        score.param.add(**settings)
    score.convolution_param.num_output = classes
    score.convolution_param.kernel_size.append(1)
    score.convolution_param.pad.append(0)
    up = result.layer.add(name="upscore", type="Deconvolution", bottom=["score_fr"], top=["upscore"])
    up.param.add(lr_mult=0)
    up.convolution_param.num_output = classes
    up.convolution_param.bias_term = False
    up.convolution_param.stride.append(int(stride))
    up.convolution_param.kernel_size.append(_kernel(found.shift[0], int(stride)))
    crop = result.layer.add(name="score", type="Crop", bottom=["upscore", image], top=["score"])
    blobs = coord_map.link(result)
    crop.crop_param.CopyFrom(coord_map.crop(blobs["upscore"], blobs[image]))
    for layer in (score, up, crop):
        report.add("made", layer.name, layer.type)
    if label:
        _add_loss(result, report)
    return result, report


def _kernel(shift: Fraction, stride: int) -> int:
    """2 * stride, or one less where the map's positions lie on pixels instead of between them."""
    begins = -shift + Fraction(2 * stride - 1, 2)
    return 2 * stride if begins.denominator == 1 else 2 * stride - 1


def _add_loss(net: caffe_pb2.NetParameter, report: Report) -> None:
    net.layer[0].top.append("label")
    image = list(net.layer[0].input_param.shape[0].dim)
    net.layer[0].input_param.shape.add(dim=[image[0], 1, *image[2:]])
    loss = net.layer.add(name="loss", type="SoftmaxWithLoss", bottom=["score", "label"], top=["loss"])
    loss.loss_param.ignore_label = 255
    loss.loss_param.normalize = False
    report.add("made", "loss", "SoftmaxWithLoss")


def set_classes(net: caffe_pb2.NetParameter, classes: int | Mapping[str, int]) -> tuple[caffe_pb2.NetParameter, Report]:
    """The net with another number of classes: its score layers and what enlarges their maps get it.

    `classes` is a number, or a number for each score blob where there are several. Found from the blobs that losses,
    accuracies and softmaxes judge (else from the net's outputs), back to the convolutions (or inner products) that make
    the scores. The layers keep their names: weights of the old number don't fit them any more.

    Raises `UsageError` for an unknown score blob, `GraphError` where scores don't come from such layers.
    """
    result, report = caffe_pb2.NetParameter(), Report()
    result.CopyFrom(net)
    scores = _score_blobs(result)
    if isinstance(classes, int):
        if len(scores) != 1:
            raise UsageError(f"the net has the score blobs {', '.join(scores)}; say the number of classes of each")
        classes = dict.fromkeys(scores, classes)
    for name, count in classes.items():
        if name not in scores:
            raise UsageError(f"{name!r} is no score blob of the net; these are {', '.join(scores)}")
        if count < 2:
            raise UsageError(f"score blob {name!r}: needs 2 classes or more, not {count}")
        _change(scores[name], count, report)
    return result, report


def is_source(layer: caffe_pb2.LayerParameter) -> bool:
    """Whether a layer gives data: those of the data types, and Python layers without bottoms, as in a net's graph."""
    known = class_for(layer.type, layer.name)
    return bool(known.is_data) or ((known.holds_place or layer.type == "Python") and not layer.bottom)


def _judges(layer: caffe_pb2.LayerParameter) -> bool:
    """Whether a layer says how good scores are or ranks them: then its first bottom is the scores."""
    known = class_for(layer.type, layer.name)
    return known.is_loss or known.judges or known.ranks(layer)


def _follows_scores(layer: caffe_pb2.LayerParameter) -> bool:
    """Whether a layer after a classifier has no part in a map of scores."""
    known = class_for(layer.type, layer.name)
    return known.judges or known.ranks(layer) or known.idle or known.passes_on or layer.type in _RESHAPING


def _score_blobs(net: caffe_pb2.NetParameter) -> dict[str, coord_map.LinkedBlob]:
    """The blobs of class scores by name, in their last version."""
    blobs = coord_map.link(net)
    judged = {layer.bottom[0] for layer in net.layer if layer.bottom and _judges(layer)}
    if not judged:
        read = {name for layer in net.layer for name in layer.bottom if name not in layer.top}
        data = {name for layer in net.layer if is_source(layer) for name in layer.top}
        judged = set(blobs) - read - data
    return {name: blobs[name] for name in blobs if name in judged}


def score_layers(net: caffe_pb2.NetParameter) -> dict[str, list[str]]:
    """For each score blob the layers with weights that make its classes: those that `set_classes` would change.

    Raises `GraphError` where scores don't come from such layers.
    """
    return {
        name: [layer.name for layer in _makers(blob) if layer.type in _SIZED]
        for name, blob in _score_blobs(net).items()
    }


_SIZED = ("Convolution", "InnerProduct", "Deconvolution")


def _change(start: coord_map.LinkedBlob, count: int, report: Report) -> None:
    for param in _makers(start):
        if param.type in _SIZED:
            settings = param.inner_product_param if param.type == "InnerProduct" else param.convolution_param
            if settings.num_output != count:
                report.add("changed", param.name, f"{settings.num_output} -> {count} classes")
            if param.type == "Deconvolution" and settings.group == settings.num_output:
                settings.group = count
            settings.num_output = count


def _makers(start: coord_map.LinkedBlob) -> Iterator[caffe_pb2.LayerParameter]:
    """The layers from a score blob back to the convolutions (or inner products) that its classes come from."""
    todo, seen = [start], set()
    while todo:
        layer = todo.pop().producer
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        param = layer.param
        if param.type not in _SIZED and (not layer.bottoms or param.type in ("Concat", "Slice")):
            raise GraphError(
                f"the scores come from layer {param.name!r} ({param.type}), whose channels can't be changed"
            )
        yield param
        if param.type not in ("Convolution", "InnerProduct"):
            todo += layer.bottoms[:1] if param.type == "Crop" else layer.bottoms
