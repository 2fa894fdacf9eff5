"""The base class of all layers: one Caffe layer as one small `torch.nn.Module`.

A layer knows its own `LayerParameter` and its bottoms' shapes, nothing of files, graphs or solvers.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor, nn

from fcnproto.errors import FcnprotoWarning, LayerError
from fcnproto.graph import maps
from fcnproto.layers.backward import Found, Reads
from fcnproto.layers.examples import Draw, integers
from fcnproto.layers.plain import Piece, Request
from fcnproto.schema import caffe_pb2
from fcnproto.schema.brief import brief_settings

Shape = tuple[int, ...]

NO_BIAS = "there is no bias without bias_term"
"""Why a bias_filler is not read."""

_MOST_VALUES = 2**31 - 1

Activation = tuple[str, tuple[float, ...]]
"""A function of one value: ("relu", ()), ("leaky_relu", (slope,)), ("hardtanh", (least, most))."""


class Layer(nn.Module):
    """One layer of a net.

    A subclass sets the class attributes, makes its parameter blobs in `setup` and computes in `forward`.
    `forward` takes one tensor per bottom and returns one tensor, or a tuple where there are several tops (an
    empty one where there are none). It must not change its inputs, and must not read tensor values into
    Python (`.item()`, `if tensor`) unless the class overrides `top_shapes`, because the shapes of the tops are
    found by running it on tensors of the meta device.

    Attributes set for every layer: `caffe_exact` (whether Caffe's accidents are to be copied), `name`, `param` (the
    `LayerParameter`), `num_tops`, `base_dir` (the folder of the prototxt, from which file names are looked up too),
    `prototxt` (its path, for messages), `allow_python`, `allow_writes`, `dialect` (the fork that the net was written
    for, None where nobody said it), `held` (why it can't be computed for now, a sentence; empty as a rule), `follows`
    (that is only for the sake of layers before it), and after `setup` `blob_names`, `blob_shapes` and `blob_fillers` in
    Caffe's order of the blobs.
    """

    type: ClassVar[str] = ""  # type: ignore[assignment]
    """Caffe's name of the type, set by `register`."""
    bottoms: ClassVar[tuple[int, int | None]] = (1, 1)
    """Fewest and most bottoms; None where there is no upper bound."""
    tops: ClassVar[tuple[int, int | None]] = (1, 1)
    """Fewest and most tops. A loss layer given fewer gets automatic ones."""
    fork_bottoms: ClassVar[int] = 0
    """The most bottoms that a fork's layer of this type of Caffe's own takes: with more than `bottoms` says, the fork's
    is meant, which holds its place. 0 where no fork takes more."""
    config_field: ClassVar[str | None] = None
    """The field of `LayerParameter` with this type's settings, such as "convolution_param"."""
    also_reads: ClassVar[tuple[str, ...]] = ()
    """Further settings fields that the type reads, such as "loss_param"; others draw a warning."""
    fork: ClassVar[str] = ""
    """The forks of Caffe that have the type, for docs/layers.md; empty for Caffe's own."""
    fork_fields: ClassVar[tuple[str, ...]] = ()
    """The fields that Caffe's forks add to these messages and the type acts on, such as "pooling_param.ceil_mode"."""
    replaced_fields: ClassVar[Mapping[str, str]] = {}
    """Deprecated fields of the settings, with the field that says the same now."""
    is_loss: ClassVar[bool] = False
    """A loss layer: its first top has loss weight 1 unless the prototxt says otherwise."""
    is_data: ClassVar[bool] = False
    """A source of data (no bottoms): bypassed when one of its tops is given as an input of the call."""
    in_place: ClassVar[bool] = True
    """Whether Caffe accepts a top with the name of the bottom (AbsVal, Flatten, Reshape and Split refuse it)."""
    differences: ClassVar[str] = ""
    """Where the type departs from Caffe on purpose, one sentence or more, for docs/layers.md."""
    force_backward_refuses: ClassVar[tuple[int, ...]] = ()
    """The bottoms that never get a gradient in Caffe, such as the labels of a loss."""
    index_bottoms: ClassVar[tuple[int, ...]] = ()
    """The bottoms that hold class numbers or indices: given as inputs, they stay float32 in nets of half precision."""

    # What others ask of a type instead of keeping lists of type names. Further down, methods with the same purpose.

    kind: ClassVar[str] = "other"
    """The family, which a drawing shows as a colour: "convolution", "deconvolution", "linear", "pooling", "activation",
    "normalisation", "arithmetic", "shaping", "data", "loss" or "other"."""
    coordinates: ClassVar[staticmethod[[caffe_pb2.LayerParameter], maps.CoordMap | None]] = staticmethod(maps.nowhere)
    """From the settings to the coordinate map from bottom to top, None where there is none: a static method, such as
    the rules in `fcnproto.graph.maps`. Crops, receptive fields and shift-and-stitch are derived from it."""
    size_bottoms: ClassVar[tuple[int, ...]] = ()
    """The bottoms that lend their size and not their values, such as the reference of a Crop."""
    idle: ClassVar[bool] = False
    """There is nothing to run (Silence): plans leave the layer out."""
    moves_values: ClassVar[bool] = False
    """The tops hold values of the first bottom, unchanged: what is an index in one is one in the other."""
    passes_on: ClassVar[bool] = False
    """In the TEST phase the tops are the bottom itself (Dropout, Split)."""
    judges: ClassVar[bool] = False
    """It says how good its first bottom is by its second: scores and labels (Accuracy, the losses)."""
    makes_data: ClassVar[bool] = False
    """A source of data that reads nothing from outside (DummyData)."""
    may_overwrite: ClassVar[bool] = False
    """`forward` takes `overwrite=True`, by which the layer may write over its bottom's memory."""
    holds_place: ClassVar[bool] = False
    """It stands for a layer that can't be computed (`layers/placeholder.py`)."""
    stops_gradient: ClassVar[bool] = False
    """No gradient passes from a top to the bottoms, or it depends on the values whether one does (ArgMax, Filter)."""
    loose_blobs: tuple[int, ...] = ()
    """The parameter blobs, by index, that take no part as the layer is set, and which a weight file may have in another
    size: they stay as they are then."""
    gradient_reads_top: ClassVar[bool] = True
    """The gradient may need what the layer gave; False where it surely needs the bottoms and blobs alone, so that a
    layer behind may overwrite the top."""

    def __init__(self, param: caffe_pb2.LayerParameter, num_tops: int | None = None) -> None:
        super().__init__()
        self.param = param
        self.name = param.name
        self.num_tops = len(param.top) if num_tops is None else num_tops
        self.base_dir: str | None = None
        self.prototxt: str | None = None
        self.allow_python = False
        self.caffe_exact = False
        self.allow_writes = False
        self.dialect: str | None = None
        self.notes: list[tuple[Layer, str]] | None = None
        self.held = ""
        self.follows = False
        self.blob_names: list[str] = []
        self.blob_shapes: list[Shape] = []
        self.blob_fillers: list[caffe_pb2.FillerParameter] = []

    @property
    def config(self) -> Any:
        """The type's own settings message (defaults where the prototxt gives none); AttributeError if it has none."""
        if self.config_field is None:
            raise AttributeError(f"layers of type {self.type} have no settings")
        return getattr(self.param, self.config_field)

    # What subclasses write.

    def setup(self, shapes: Sequence[Shape]) -> None:
        """Check the settings against the bottoms' shapes and make the parameter blobs (`add_blob`).

        Called once, before the first `forward`; the blobs get memory and values later. Raise with `self.fail`.
        """

    def top_shapes(self, shapes: Sequence[Shape]) -> Sequence[Any] | None:
        """The tops' shapes where they can't be found by running `forward` on meta tensors; None otherwise.

        A source of data may leave what only the data say open, with None for an extent or for a whole shape.
        """
        return None

    @classmethod
    def bottoms_of(cls, param: caffe_pb2.LayerParameter) -> tuple[int, int | None]:
        """Fewest and most bottoms with these settings."""
        return cls.bottoms

    @classmethod
    def is_pointwise(cls, param: caffe_pb2.LayerParameter, training: bool = False) -> bool:
        """Whether, with these settings and in this phase, each position of the tops depends on the same position of the
        bottoms alone, in the same way everywhere, so that what is constant over all positions stays so.

        Channels may mix; the statistics of a batch, random numbers or neighbours may not take part. Such layers are
        folded into chains with padded convolutions, run in strips, and taken along by `surgery.rarefy`.
        """
        return False

    def keeps_images_apart(self) -> bool:
        """Whether each item of a batch is computed by itself, in its settings and phase; where not, images are not
        taken together. The default says so of pointwise layers."""
        return self.is_pointwise(self.param, self.training)

    @classmethod
    def shares_memory(cls, param: caffe_pb2.LayerParameter) -> bool:
        """Whether in Caffe the tops are the first bottom's memory, so that in-place layers change both."""
        return False

    @classmethod
    def ranks(cls, param: caffe_pb2.LayerParameter) -> bool:
        """Whether the top only ranks or normalises the scores of classes that the bottom holds along its channels."""
        return False

    def of_zeros(self) -> str:
        """What zeros do: "kept", where bottoms of zeros give zeros; "linear", where the first blob multiplies the
        bottoms and further ones are added; "product", where one bottom of zeros suffices; else "", anything."""
        return "kept" if self.moves_values or self.passes_on else ""

    def is_flat_at_zero(self) -> bool:
        """Whether the slope is 0 where the bottom is 0, so that no gradient passes a bottom of zeros."""
        return False

    @classmethod
    def fixes_image_size(cls, param: caffe_pb2.LayerParameter) -> bool:
        """Whether a net with such a layer is made for one size of image: its weights, or by custom its use, need it."""
        return False

    def draws_numbers(self) -> bool:
        """Whether, in its phase, random numbers take part."""
        return False

    def near_ties(self, bottoms: Sequence[Tensor], reach: float) -> tuple[int, int, str] | None:
        """How many decisions are so close that values `reach` apart may decide them otherwise, of how many, and what
        they are called; None where a layer decides nothing. A gradient may rightly go another way there."""
        return None

    def activation(self) -> Activation | None:
        """What a pointwise layer does to each value, where that is said by a few numbers; None for anything else."""
        return None

    def keeps_finite(self) -> bool:
        """Whether finite bottoms surely give finite tops, overflow aside: no parameter blob, logarithm, root or
        quotient could make infinity or NaN of them."""
        return self.moves_values or self.passes_on or self.activation() is not None

    def hands_on(self) -> bool:
        """Whether in its phase the tops are the bottom itself."""
        return self.passes_on and not self.training

    # What Caffe's backward pass does with memory, for the places where that is not the derivative.

    gradient_memory: ClassVar[str] = "own"
    """Where Caffe's gradients of bottom 0 and top 0 lie: "own" memory each; "bottom", the top's is the bottom's, as in
    Reshape; "handed back", the bottom is given the top's at the backward pass (Flatten); "inner", the layer reads the
    top's from memory inside of it, whatever the top has been given since (LSTM)."""

    def backward_reads(self, in_place: bool) -> Reads:
        """The bottoms and tops whose memory Caffe's backward pass reads, with these settings and in this phase."""
        return Reads()

    def caffe_gradients(self, found: Found) -> Sequence[Tensor] | None:
        """The gradients of the bottoms by Caffe's formula from what memory holds; None where they are the derivative at
        what the bottoms hold. For types that read tops or say `mixes`; they have no parameter blobs."""
        return None

    def forward_in_place(self, *bottoms: Tensor) -> Any:
        """The tops as Caffe computes them in place, for types that destroy what they still have to read."""
        return self(*bottoms)

    def overwrites_gradients(self) -> tuple[int, ...]:
        """The parameter blobs whose gradient Caffe's backward pass overwrites instead of adding to it."""
        return ()

    def in_place_keeps(self) -> str:
        """What in place stays of what the memory held before: "values" (all), "signs" (which values are above 0, as far
        as a gradient passes there), or "" (nothing that others may rely on)."""
        return ""

    def multiply_adds(self, bottoms: Sequence[Shape], tops: Sequence[Shape]) -> int:
        """The multiply-adds of one forward pass for blobs of these shapes; 0 where they don't count beside others."""
        return 0

    @classmethod
    def settings_text(cls, param: caffe_pb2.LayerParameter) -> str:
        """The settings in a few words, as a drawing shows them: "64 of 3×3, pad 1"."""
        return "" if cls.config_field is None else brief_settings(getattr(param, cls.config_field))

    def suitable_values(self, bottom: int, first: Shape) -> Draw | None:
        """How random values for a bottom are drawn where not every number will do (classes, indices, switches,
        regions); None where any will. `first` is the shape of what comes into bottom 0."""
        return integers(2) if bottom in self.index_bottoms else None

    def plain(self, request: Request) -> Piece:
        """How the layer is said in plain PyTorch, by what it runs itself (see `fcnproto.layers.plain`).

        The default says it by the source of the class's own `forward`. `Unsayable` where there are no words.
        """
        return Piece(None, own=True)

    def files_written(self) -> list[str]:
        """The files that `forward` writes, by the names in the prototxt. A layer writes where `allow_writes` is set
        alone, and goes on without writing elsewhere."""
        return []

    # What subclasses call.

    def add_blob(
        self,
        name: str,
        shape: Sequence[int],
        filler: caffe_pb2.FillerParameter | None = None,
        *,
        learnable: bool = True,
    ) -> None:
        """Append a parameter blob, named as in a `state_dict` ("weight", "bias", ...).

        Learnable blobs become `nn.Parameter`s, others buffers. Their first values come from `filler`
        (missing: zero), unless weights are loaded before.
        """
        shape = tuple(int(extent) for extent in shape)
        if min(shape, default=0) < 0:
            self.fail(f"parameter blob {name!r} can't have the shape {shape}; extents are from 0 on")
        if math.prod(shape) > _MOST_VALUES:
            self.fail(f"parameter blob {name!r} of shape {shape} has more than {_MOST_VALUES} values, Caffe's limit")
        data = torch.empty(shape, dtype=torch.float32, device="meta")
        if learnable:
            self.register_parameter(name, nn.Parameter(data))
        else:
            self.register_buffer(name, data)
        self.blob_names.append(name)
        self.blob_shapes.append(shape)
        self.blob_fillers.append(caffe_pb2.FillerParameter() if filler is None else filler)

    def blob(self, index: int) -> Tensor:
        """Parameter blob `index` in this layer's own shape.

        Read parameters through this, not through the attribute: a blob shared by name with PERMISSIVE checking
        is the owner's object in the owner's shape.
        """
        tensor: Tensor = getattr(self, self.blob_names[index])
        shape = self.blob_shapes[index]
        return tensor if tensor.shape == shape else tensor.view(shape)

    def optional_blob(self, index: int) -> Tensor | None:
        """Parameter blob `index`, or None where the layer has fewer (no bias)."""
        return self.blob(index) if index < len(self.blob_names) else None

    def axis(self, axis: int, shape: Sequence[int], what: str = "axis") -> int:
        """Caffe's canonical axis: `axis` counted from the end where negative; an error outside -n..n-1."""
        count = len(shape)
        if not -count <= axis < count:
            self.fail(
                f"{what} {axis} is outside of {-count}..{count - 1}, the axes of a bottom of shape {tuple(shape)}"
            )
        return axis % count

    def withheld(self) -> str:
        """Why a layer of a known type may not run in this net, as a sentence; empty where it may."""
        return ""

    def cannot_run(self) -> NoReturn:
        """Raise a `LayerError` that says why the layer can't be computed (`held`)."""
        raise LayerError(self.held)

    def fail(self, message: str) -> NoReturn:
        """Raise a `LayerError` whose message begins with the layer's name and type."""
        raise LayerError(f"layer {self.name!r} ({self.type or self.param.type}): {message}")

    def warn(self, message: str) -> None:
        """Warn of something in the prototxt or the data that is understood but not acted on.

        While a net is built its layers' warnings are gathered in `notes`, and alike ones are told together."""
        if self.notes is not None:
            self.notes.append((self, message))
            return
        warnings.warn(f"layer {self.name!r} ({self.type}): {message}", FcnprotoWarning, stacklevel=3)

    def warn_unread(self, names: Sequence[str], why: str) -> None:
        """Warn of the fields of the layer's own settings among `names` that the prototxt gives."""
        for field, _ in self.config.ListFields():
            if field.name in names:
                self.warn(f"{self.config_field}.{field.name} has no effect; {why}")

    # What the net calls.

    def train(self, mode: bool = True) -> Layer:
        """Set the phase, unless the layer's own `phase` field fixes it (Caffe: NetParameter.state)."""
        if self.param.HasField("phase"):
            mode = self.param.phase == caffe_pb2.TRAIN
        return super().train(mode)  # type: ignore[return-value]

    def extra_repr(self) -> str:
        shapes = ", ".join(f"{n}={s}" for n, s in zip(self.blob_names, self.blob_shapes, strict=True))
        return f"{self.name!r}, {self.type}" + (f", {shapes}" if shapes else "")


class SameShape(Layer):
    """A layer with one bottom, whose top has the same shape.

    Saying so spares loading the shape run on the meta device, for which torch imports its whole compiler (a second
    and 80 MB) at the first ReLU.
    """

    def top_shapes(self, shapes: Sequence[Shape]) -> Sequence[Any] | None:
        return [tuple(shapes[0])]


class Pointwise(SameShape):
    """A layer each of whose values depends on the bottoms' values at the same place alone; only `forward` is needed.

    The top has the shape of the bottom (of all bottoms, where a subclass takes several). Everything else follows:
    coordinate maps pass through it, images of a batch stay apart, constants stay constants (pad folding, strips),
    `surgery.rarefy` takes it along, a drawing shows it as an activation. A subclass that reads further values, of
    other positions, a whole batch or a random generator, says so in `is_pointwise`.
    """

    kind = "activation"
    coordinates = staticmethod(maps.same)

    @classmethod
    def is_pointwise(cls, param: caffe_pb2.LayerParameter, training: bool = False) -> bool:
        return True

    def top_shapes(self, shapes: Sequence[Shape]) -> Sequence[Any] | None:
        if any(tuple(shape) != tuple(shapes[0]) for shape in shapes):
            self.fail(f"bottoms must have one shape, got {', '.join(str(tuple(shape)) for shape in shapes)}")
        return [tuple(shapes[0])] * self.num_tops


Elementwise = Pointwise
"""The name that `Pointwise` had in modules written before it was public."""
