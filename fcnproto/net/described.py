"""What belongs to a net beside its layers: what it was trained on, how images become its inputs, how it is shown.

`Described` is the part of `Net` that says so. Its work is done in rooms below this one, which are imported when they
are asked; nothing here happens in a call of the net.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from fcnproto.errors import DataError, Error, FcnprotoWarning
from fcnproto.lazy import later
from fcnproto.meta import KEY, Meta, from_comment, from_text, read_beside
from fcnproto.net.tensor_files import read_metadata

if TYPE_CHECKING:
    from fcnproto.net.net import Net

PathLike = str | os.PathLike[str]

NEW_NAMES = (
    *("meta", "preprocess", "segment", "unknown", "feature_info", "save_pretrained", "from_pretrained"),
    *("push_to_hub", "give_sizes", "take_sizes"),
)
"""Attributes of nets whose names were free for layers once: state dicts of that time are read too."""


class Described:
    """Mixed into `Net`."""

    _given: Meta | None = None
    """What was set as `meta`."""
    _told: tuple[Meta, ...] = ()
    """What the files say that the net was read from, the most reliable first."""
    _meta: Meta | None = None

    @property
    def meta(self) -> Meta:
        """Classes, palette, inputs (channels, order, mean, scale) and published scores; `meta.source` says where they
        are known from.

        What images need is said by the net's data layer, by the files that the net was read from (`fcnproto` writes it
        into them), by the zoo for its own nets and those with the same layers; else it is assumed. Class names are
        those that the files say, or the zoo's where the net was loaded by its name or has its weights, byte by byte; of
        other nets the classes are called "class 0", "class 1", ... May be set. Raises `DataError` where a file that a
        data layer names (a mean image) can't be read.
        """
        if self._meta is None:
            self._meta = cast("Meta", later("fcnproto.preprocessing:meta_of")(self))
        return self._meta

    @meta.setter
    def meta(self, value: Meta) -> None:
        self._given, self._meta = value, None

    def preprocess(self, images: Any) -> dict[str, Tensor]:
        """The inputs for an image, on the net's device: `net(**net.preprocess("cat.jpg"))`.

        An image is a path, a PIL image of any mode, or an array of uint8 (height, width, 3) in RGB; for a net of
        several image inputs a mapping of their blobs to images of one size. Nets made for images of one size alone
        (classifiers) get them scaled to it. Raises `DataError` for what is no image, `UsageError` for a missing one.
        """
        return cast("dict[str, Tensor]", later("fcnproto.preprocessing:prepared")(self, images))

    def segment(self, images: Any, **options: Any) -> list[Any]:
        """The label maps of an image: a `Segmentation` for each score blob, with `labels` (height, width) in its size.

        Images are given as for `preprocess`; `options` are those of `fcnproto.segment.Segmenter`, for instance
        `probabilities=True`, which is also faster for many images. Raises as `preprocess`, and `UsageError` where the
        net gives no map of scores.
        """
        return cast("list[Any]", later("fcnproto.segment.segmenter:segment_image")(self, images, **options))

    @property
    def feature_info(self) -> Any:
        """The stages of resolution, as timm calls them: `channels()`, `reduction()`, `module_name()` and `blobs()`, the
        names with which `net(x, blobs=net.feature_info.blobs())` gives them."""
        return later("fcnproto.inspect.stages:feature_info")(self)

    def save_pretrained(self, folder: PathLike) -> list[Path]:
        """Write the net to a folder in the layout of the Hugging Face hub (deploy.prototxt, model.safetensors,
        config.json, README.md); returns the files."""
        return cast("list[Path]", later("fcnproto.net.pretrained:save_pretrained")(self, folder))

    def push_to_hub(self, name: str, **options: Any) -> str:
        """Bring the net to a repository of the Hugging Face hub ("user/name"), made where there is none; returns the
        address of the commit. What is written is what `save_pretrained` writes, a README.md that is there stays.

        Options are huggingface_hub's: `commit_message`, `private`, `token` (else the one of its login), `branch`,
        `create_pr`. Raises `UsageError` without that package, `DataError` where the hub refuses or can't be reached.
        """
        return cast("str", later("fcnproto.net.pretrained:push_to_hub")(self, name, **options))

    @classmethod
    def from_pretrained(cls, name: PathLike, revision: str | None = None, **options: Any) -> Net:
        """The net in a folder that `save_pretrained` wrote, or in a repository of the hub (needs huggingface_hub).

        `options` are those of `load`. Nothing in the folder is run. Raises `DataError` where there is no such net.
        """
        return cast("Net", later("fcnproto.net.pretrained:from_pretrained")(name, revision, **options))

    def _repr_html_(self) -> str:
        """For notebooks: a table of the layers and the drawing, folded up."""
        return cast("str", later("fcnproto.notebook:of_net")(self))


def known_meta(net: Described) -> Meta | None:
    """The part of a net's `meta` that goes into files that it is written to: what is more than an assumption."""
    try:
        return net.meta.known
    except Error:  # a mean file that isn't here, for one: then nothing is known
        return None


def take_meta(net: Described, file: Path, read: Callable[[Path], Meta | None] | None = None) -> None:
    """Let a net take in what a file that it is read from says of it: a prototxt, or weights; `read` reads others."""
    try:
        found = (read or told_in)(file)
    except DataError as error:
        warnings.warn(f"{error}; it is left out", FcnprotoWarning, stacklevel=4)
        found = None
    net._told, net._meta = (net._told if found is None else (found, *net._told)), None


_WEIGHTS = (".caffemodel", ".h5", ".safetensors")


def told_in(file: Path) -> Meta | None:
    """What a file says of its net: a .safetensors file, the JSON beside other weights, or the comment at the head of a
    prototxt. Raises `DataError` where that is damaged."""
    name = file.name.lower()
    if name.endswith(".safetensors"):
        text = read_metadata(file).get(KEY)
        return None if text is None else from_text(text, file.name)
    return read_beside(file) if name.endswith(_WEIGHTS) else from_comment(file) or read_beside(file)


def with_new_names(net: Net, state: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A state dict with the names that the net's layers have now, where it has those of before `NEW_NAMES`."""
    modules = net._modules
    renamed = {
        name: module
        for name in NEW_NAMES
        if name not in modules
        for module in modules
        if module.rstrip("_") == name and len(module) == len(name) + 1
    }
    if not renamed:
        return dict(state)
    found = {}
    for key, value in state.items():
        first, dot, rest = key.removeprefix(prefix).partition(".")
        old = dot and key.startswith(prefix) and first in renamed
        found[f"{prefix}{renamed[first]}.{rest}" if old else key] = value
    return found
