"""The Split layers that Caffe inserts after a blob with several readers: how it names them, how to tell them."""

from __future__ import annotations

from fcnproto.schema import caffe_pb2


def split_name(blob: str, layer: str, top: int) -> str:
    """Caffe's name of the Split inserted after top number `top` of a layer; its own tops are this name and `_<k>`."""
    return f"{blob}_{layer}_{top}_split"


def is_inserted(param: caffe_pb2.LayerParameter, layer: str, top: int) -> bool:
    """Whether a layer is the Split that Caffe inserts after top number `top` of the layer called `layer`.

    Told by everything that Caffe sets: the type, the only bottom, the name made from it and the tops' names. A Split
    of the user's own, whatever its name ends in, is none.
    """
    return (
        param.type == "Split"
        and len(param.bottom) == 1
        and param.name == split_name(param.bottom[0], layer, top)
        and all(name == f"{param.name}_{k}" for k, name in enumerate(param.top))
    )
