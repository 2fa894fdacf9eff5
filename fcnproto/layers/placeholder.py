"""What stands in a net for a layer that can't be computed here: one of an unknown type, or one that may not run.

It holds the layer's message, and the blobs that weight files have under its name, so that everything that does not need
its values works: other blobs, summaries, drawings, surgery, weights by name. Not in the table of layer types.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from fcnproto.errors import UnsupportedLayerError, page
from fcnproto.layers.base import Layer, Shape
from fcnproto.layers.plain import Request, Unsayable
from fcnproto.layers.registry import find, lookup
from fcnproto.schema import caffe_pb2, forks, unknown


class PlaceHolder(Layer):
    """A layer that can't be computed. `held` says why and what to do, for people; `takes_blobs` lets weights add the
    blobs that a file has for it."""

    bottoms = (0, None)
    tops = (0, None)
    holds_place = True
    takes_blobs = True

    def __init__(self, param: caffe_pb2.LayerParameter, num_tops: int | None = None, why: str = "") -> None:
        super().__init__(param, num_tops)
        self.held = why or reason(param)
        self.is_data = not param.bottom  # type: ignore[misc]

    def take_blobs(self, shapes: Sequence[Shape], names: Sequence[str] = ()) -> None:
        """Have blobs of these shapes, called `blob_0` and so on unless there are `names`."""
        for index, shape in enumerate(shapes):
            self.add_blob(names[index] if names else f"blob_{index}", shape)

    def top_shapes(self, shapes: Sequence[Shape]) -> Sequence[Any] | None:
        return [None] * self.num_tops

    def plain(self, request: Request) -> NoReturn:
        raise Unsayable("it only holds a place, and nothing here computes it")

    def forward(self, *bottoms: Any) -> NoReturn:
        self.cannot_run()


class LossPlaceHolder(PlaceHolder):
    """One whose type is a loss by its name: its first top has the loss weight 1, as any loss's."""

    is_loss = True
    kind = "loss"


def class_for(type_name: str, layer_name: str = "") -> type[Layer]:
    """The class registered for a layer type, or the place-holder's. `UnsupportedLayerError` where there is no type."""
    if not type_name:
        return lookup(type_name, layer_name)
    return find(type_name) or (LossPlaceHolder if "loss" in type_name.lower() else PlaceHolder)


def reason(param: caffe_pb2.LayerParameter) -> str:
    """Why a layer can't be computed: its type, or a setting that nobody here knows; empty where it can be."""
    if find(param.type) is None:
        try:
            lookup(param.type, param.name)
        except UnsupportedLayerError as error:
            known = forks.named(forks.having_type(param.type))
            return f"{error}" + (f" (the type is {known})" if known else "")
    values = unknown.unknown_values(param)
    if values:
        return (
            f"layer {param.name!r} ({param.type}): {', '.join(values)} is a setting that nothing here computes; "
            f"register a layer of your own with fcnproto.register_layer({param.type!r}), see {page('custom-layers')}"
        )
    return ""
