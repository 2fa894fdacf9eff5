"""Caffe's layers that move values without changing them: joining, cutting, reshaping and repeating."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from fcnproto.graph import maps
from fcnproto.layers.base import Layer, Shape
from fcnproto.layers.plain import Piece, Request
from fcnproto.layers.registry import register
from fcnproto.schema import caffe_pb2


class _AlongAxis(Layer):
    """A layer whose axis is given by `axis`, or by a deprecated unsigned alias of it.

    Settings are read once, in `setup`: messages can't be read in what torch.compile follows.
    """

    old_name: ClassVar[str]
    """The alias: "concat_dim" or "slice_dim"."""
    kind = "shaping"
    moves_values = True

    def keeps_images_apart(self) -> bool:
        return self.given_axis > 0

    def setup(self, shapes: Sequence[Shape]) -> None:
        config = self.config
        self.axis_field = self.old_name if config.HasField(self.old_name) else "axis"
        if self.axis_field != "axis" and config.HasField("axis"):
            self.fail(f"axis and {self.old_name} are both given; {self.old_name} is the old name of axis, remove it")
        self.given_axis: int = getattr(config, self.axis_field)

    def canonical_axis(self, shape: Sequence[int]) -> int:
        """The axis of a bottom of `shape`."""
        return self.axis(self.given_axis, shape, self.axis_field)


@register("Concat")
class Concat(_AlongAxis):
    """Caffe's Concat: the bottoms joined along `axis` (default 1); all other extents must agree. Intel's `per_fla_fuse`
    first makes rows of bottoms (N, C, H, W), the channels of a place together."""

    gradient_memory = "bottom"

    config_field = "concat_param"
    fork_fields = ("concat_param.per_fla_fuse",)
    old_name = "concat_dim"
    replaced_fields = {"concat_dim": "axis"}  # noqa: RUF012
    bottoms = (1, None)
    coordinates = staticmethod(maps.concat)

    @classmethod
    def is_pointwise(cls, param: caffe_pb2.LayerParameter, training: bool = False) -> bool:
        return maps.concat(param) is not None

    @classmethod
    def shares_memory(cls, param: caffe_pb2.LayerParameter) -> bool:
        return len(param.bottom) == 1 and not param.concat_param.per_fla_fuse

    def forward(self, *bottoms: Tensor) -> Tensor:
        if self.config.per_fla_fuse:
            bottoms = tuple(bottom.movedim(1, -1).flatten(1) for bottom in bottoms)
        first = bottoms[0].shape
        axis = self.canonical_axis(first)
        for bottom in bottoms[1:]:
            shape = bottom.shape
            if len(shape) != len(first) or shape[:axis] != first[:axis] or shape[axis + 1 :] != first[axis + 1 :]:
                got = ", ".join(str(tuple(b.shape)) for b in bottoms)
                self.fail(f"bottoms may differ along axis {axis} only, got shapes {got}")
        return bottoms[0] if len(bottoms) == 1 else torch.cat(bottoms, axis)

    def plain(self, request: Request) -> Piece:
        args = request.args
        if self.config.per_fla_fuse:
            args = [f"{arg}.movedim(1, -1).flatten(1)" for arg in args]
        elif len(args) == 1:
            return Piece(None)
        axis = self.canonical_axis(request.shapes[0])
        return Piece(("torch.cat", [f"[{', '.join(args)}]", f"dim={axis}"]))


@register("Slice")
class Slice(_AlongAxis):
    """Caffe's Slice: the bottom cut along `axis` (default 1) at the slice points, or evenly where there are none."""

    gradient_memory = "bottom"

    config_field = "slice_param"
    old_name = "slice_dim"
    replaced_fields = {"slice_dim": "axis"}  # noqa: RUF012
    tops = (1, None)
    coordinates = staticmethod(maps.slices)

    @classmethod
    def is_pointwise(cls, param: caffe_pb2.LayerParameter, training: bool = False) -> bool:
        return maps.slices(param) is not None

    @classmethod
    def shares_memory(cls, param: caffe_pb2.LayerParameter) -> bool:
        return len(param.top) == 1

    def setup(self, shapes: Sequence[Shape]) -> None:
        super().setup(shapes)
        self.points = list(self.config.slice_point)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        axis = self.canonical_axis(x.shape)
        parts = torch.split(x, self.extents(x.shape[axis]), axis)
        return x if self.num_tops == 1 else parts

    def extents(self, size: int) -> list[int]:
        """The tops' extents along the axis, for a bottom that has `size` there."""
        points = self.points
        if not points:
            if size % self.num_tops:
                self.fail(f"can't cut an extent of {size} evenly into {self.num_tops} tops; give slice_point values")
            return [size // self.num_tops] * self.num_tops
        if len(points) != self.num_tops - 1:
            self.fail(f"{len(points)} slice points for {self.num_tops} tops; it needs one fewer than tops")
        bounds = [0, *points, size]
        extents = [end - start for start, end in pairwise(bounds)]
        if min(extents[:-1]) <= 0 or extents[-1] < 0:
            self.fail(f"slice points {points} must grow strictly from above 0 to at most {size}, the extent they cut")
        return extents

    def plain(self, request: Request) -> Piece:
        if self.num_tops == 1:
            return Piece(None)
        axis = self.canonical_axis(request.shapes[0])
        if not self.points:
            return Piece(("torch.chunk", [request.x, str(self.num_tops), f"dim={axis}"]))
        return Piece(("torch.tensor_split", [request.x, str(list(self.points)), f"dim={axis}"]))


@register("Split")
class Split(Layer):
    """Caffe's Split: every top is the bottom; the gradients add up."""

    tops = (1, None)
    in_place = False
    kind = "shaping"
    coordinates = staticmethod(maps.same)
    moves_values = True
    passes_on = True

    @classmethod
    def is_pointwise(cls, param: caffe_pb2.LayerParameter, training: bool = False) -> bool:
        return True

    @classmethod
    def shares_memory(cls, param: caffe_pb2.LayerParameter) -> bool:
        return True

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        return x if self.num_tops == 1 else (x,) * self.num_tops

    def plain(self, request: Request) -> Piece:
        return Piece(("", [request.x] * self.num_tops)) if self.num_tops > 1 else Piece(None)


@register("Crop")
class Crop(Layer):
    """Caffe's Crop: bottom 0 cut to the size of bottom 1 along all axes from `axis` (default 2) on.

    `offset` is 0 where not given, one value for all cut axes, or one for each. Bottom 1 gives its size alone, read at
    each call, and gets no gradient.
    """

    config_field = "crop_param"
    bottoms = (2, 2)
    kind = "shaping"
    coordinates = staticmethod(maps.crop)
    size_bottoms = (1,)
    moves_values = True

    def keeps_images_apart(self) -> bool:
        return bool(self.config.axis > 0)

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.given_axis, self.given_offsets = self.config.axis, list(self.config.offset)
        self.offsets(shapes[0])

    def offsets(self, shape: Sequence[int]) -> list[tuple[int, int]]:
        """(axis, offset) for each axis to cut of a bottom 0 of `shape`."""
        first, given = self.axis(self.given_axis, shape), self.given_offsets
        count = len(shape) - first
        if len(given) not in (0, 1, count):
            self.fail(
                f"{len(given)} offsets for {count} cropped axes (from axis {first} on); give one, or one for each"
            )
        values = given if len(given) == count else (given or [0]) * count
        return list(enumerate(values, first))

    def forward(self, x: Tensor, reference: Tensor) -> Tensor:
        if reference.dim() < x.dim():
            self.fail(f"bottom 1 needs all axes of bottom 0, got {tuple(x.shape)} and {tuple(reference.shape)}")
        y = x
        for axis, offset in self.offsets(x.shape):
            size = reference.shape[axis]
            if x.shape[axis] - offset < size:
                self.fail(
                    f"axis {axis}: offset {offset} + size {size} exceeds {x.shape[axis]}, bottom 0's extent "
                    f"(bottoms {tuple(x.shape)} and {tuple(reference.shape)})"
                )
            y = y.narrow(axis, offset, size)
        return y

    def plain(self, request: Request) -> Piece:
        parts = [":"] * len(request.shapes[0])
        for axis, offset in self.offsets(request.shapes[0]):
            size = f"{request.args[1]}.shape[{axis}]"
            parts[axis] = f"{offset} : {offset} + {size}" if offset else f": {size}"
        return Piece((f"{request.x}[", parts))


@register("Flatten")
class Flatten(Layer):
    """Caffe's Flatten: the axes `axis`..`end_axis` (default 1 to the last) merged into one."""

    config_field = "flatten_param"
    in_place = False
    kind = "shaping"
    gradient_memory = "handed back"
    moves_values = True

    @classmethod
    def shares_memory(cls, param: caffe_pb2.LayerParameter) -> bool:
        return True

    def keeps_images_apart(self) -> bool:
        return bool(self.config.axis > 0)

    def forward(self, x: Tensor) -> Tensor:
        start, end = self.axis(self.config.axis, x.shape), self.axis(self.config.end_axis, x.shape, "end_axis")
        if start > end + 1:
            self.fail(f"axis {start} lies after end_axis {end}")
        merged = math.prod(x.shape[start : end + 1])  # nothing to merge where end is start - 1: a new axis of 1
        return x.reshape(*x.shape[:start], merged, *x.shape[end + 1 :])

    def plain(self, request: Request) -> Piece:
        shape = request.shapes[0]
        start, end = self.axis(self.config.axis, shape), self.axis(self.config.end_axis, shape, "end_axis")
        if end < start:
            return Piece((f"{request.x}.unsqueeze({start})", None))
        return Piece((f"{request.x}.flatten({start}{'' if end == len(shape) - 1 else f', {end}'})", None))


@register("Reshape")
class Reshape(Layer):
    """Caffe's Reshape: the axes [axis, axis + num_axes) replaced by `shape`.

    A 0 in `shape` keeps the bottom's extent at that place, one -1 is inferred. A negative `axis` counts from behind
    the last one: -1 appends. num_axes -1 means to the end. Synopsys' `pixelshuffler` other than 1 makes channels
    C r r positions r times as dense: C, H r, W r.
    """

    config_field = "reshape_param"
    fork_fields = ("reshape_param.pixelshuffler",)
    in_place = False
    kind = "shaping"
    gradient_memory = "bottom"
    moves_values = True

    @classmethod
    def shares_memory(cls, param: caffe_pb2.LayerParameter) -> bool:
        return bool(param.reshape_param.pixelshuffler == 1)

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.dims = list(self.config.shape.dim)

    def forward(self, x: Tensor) -> Tensor:
        shape, factor = self.new_shape(x.shape), self.config.pixelshuffler
        return x.reshape(shape) if factor == 1 else F.pixel_shuffle(x, factor)

    def _denser(self, shape: Sequence[int]) -> Shape:
        """The top's shape by `pixelshuffler`, which leaves `shape` unread."""
        factor = self.config.pixelshuffler
        if factor < 1 or len(shape) != 4 or shape[1] % factor**2:
            self.fail(
                f"pixelshuffler {factor} makes (N, C, Hr, Wr) of (N, Crr, H, W), r = {factor}; got {tuple(shape)}"
            )
        return shape[0], shape[1] // factor**2, shape[2] * factor, shape[3] * factor

    def new_shape(self, shape: Sequence[int]) -> Shape:
        """The top's shape for a bottom of `shape`."""
        if self.config.pixelshuffler != 1:
            return self._denser(shape)
        start, end = self._replaced(len(shape))
        dims = list(self.dims)
        if dims.count(-1) > 1 or min(dims, default=0) < -1:
            self.fail(f"shape {dims} may hold -1 (inferred) once, and nothing below it")
        for i, dim in enumerate(dims):
            if dim == 0:
                if start + i >= len(shape):
                    self.fail(f"shape {dims}: the 0 at place {i} has no axis {start + i} to copy in {tuple(shape)}")
                dims[i] = shape[start + i]
        result = [*shape[:start], *dims, *shape[end:]]
        count = math.prod(shape)
        if -1 in dims:
            known = -math.prod(result)
            if known == 0 or count % known:
                self.fail(
                    f"can't infer the -1: {tuple(shape)} has {count} values, the other extents {result} don't divide it"
                )
            result[start + dims.index(-1)] = count // known
        if math.prod(result) != count:
            self.fail(f"can't reshape {tuple(shape)} with {count} values to {tuple(result)} with {math.prod(result)}")
        return tuple(result)

    def _replaced(self, axes: int) -> tuple[int, int]:
        """The range of axes that `shape` stands for."""
        config = self.config
        start = config.axis + axes + 1 if config.axis < 0 else config.axis
        if not 0 <= start <= axes:
            self.fail(f"axis {config.axis} is outside of {-axes - 1}..{axes} for a bottom of {axes} axes")
        if config.num_axes < -1:
            self.fail(f"num_axes {config.num_axes} must be -1 (to the end) or not negative")
        end = axes if config.num_axes == -1 else start + config.num_axes
        if end > axes:
            self.fail(f"axis {start} + num_axes {config.num_axes} exceeds the bottom's {axes} axes")
        return start, end

    def plain(self, request: Request) -> Piece:
        if self.config.pixelshuffler != 1:
            return Piece(("F.pixel_shuffle", [request.x, str(self.config.pixelshuffler)]))
        start, end = self._replaced(len(request.shapes[0]))
        kept = [f"{request.x}.shape[{i}]" for i in range(len(request.shapes[0]))]
        dims = [kept[start + i] if dim == 0 else str(dim) for i, dim in enumerate(self.dims)]
        return Piece((f"{request.x}.reshape", [*kept[:start], *dims, *kept[end:]] or ["()"]))


@register("Tile")
class Tile(Layer):
    """Caffe's Tile: the bottom repeated `tiles` times along `axis` (default 1)."""

    config_field = "tile_param"
    kind = "shaping"
    moves_values = True

    def keeps_images_apart(self) -> bool:
        return bool(self.config.axis > 0)

    def forward(self, x: Tensor) -> Tensor:
        axis, tiles = self.axis(self.config.axis, x.shape), self.config.tiles
        if tiles <= 0:
            self.fail("tiles must be given and positive")
        return x.repeat(*(tiles if i == axis else 1 for i in range(x.dim())))

    def plain(self, request: Request) -> Piece:
        axes = len(request.shapes[0])
        axis = self.axis(self.config.axis, request.shapes[0])
        return Piece((f"{request.x}.repeat", [str(self.config.tiles) if i == axis else "1" for i in range(axes)]))
