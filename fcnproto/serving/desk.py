"""What the page works on: the nets, the images that were dropped, and what the nets made of them. No web here."""

from __future__ import annotations

import io
import secrets
import threading
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from fcnproto import zoo
from fcnproto.errors import DataError, GraphError, UsageError
from fcnproto.images import as_image, limit_side, visible
from fcnproto.net import Net
from fcnproto.net.reach import reach, within
from fcnproto.pictures.labels import label_image
from fcnproto.pictures.weights import activation_grid
from fcnproto.preprocessing import background_labels
from fcnproto.segment import Segmentation, Segmenter

_RESULTS = 4
_NUMBERS = 32


@dataclass(frozen=True)
class Limits:
    """What strangers may ask for: bytes and pixels of an image, and how many images are kept (the oldest go)."""

    megabytes: float = 20
    megapixels: float = 8
    images: int = 16


@dataclass
class Served:
    """One net of the page. `segmenter` computes probabilities; `plain` gives any blob."""

    title: str
    segmenter: Segmenter
    plain: Net

    @property
    def blobs(self) -> list[str]:
        """Every blob's name in the order in which they come about, those of data layers first."""
        return list(
            dict.fromkeys(top.name for node in self.plain.graph.nodes if not node.automatic for top in node.tops)
        )


@dataclass
class Desk:
    """Images by a number that nobody guesses, and results; several threads may ask, one computes at a time."""

    nets: Sequence[Served]
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        self._images: OrderedDict[str, Image.Image] = OrderedDict()
        self._results: OrderedDict[tuple[Any, ...], list[Segmentation]] = OrderedDict()
        self._lock, self._computing = threading.Lock(), threading.Lock()

    def add(self, data: bytes) -> tuple[str, Image.Image]:
        """Keep an image, given as its file's bytes. Raises `DataError`."""
        image = _decoded(data, self.limits)
        key = secrets.token_urlsafe(12)
        with self._lock:
            self._images[key] = image
            while len(self._images) > self.limits.images:
                gone, _ = self._images.popitem(last=False)
                for known in [known for known in self._results if gone in known]:
                    del self._results[known]
        return key, image

    def image(self, key: str) -> Image.Image:
        """An image that was added. Raises `KeyError`."""
        with self._lock:
            return self._images[key]

    def net(self, number: int) -> Served:
        """A net by its place. Raises `KeyError`."""
        if not 0 <= number < len(self.nets):
            raise KeyError(number)
        return self.nets[number]

    def segment(self, number: int, keys: Mapping[str, str]) -> list[Segmentation]:
        """What net `number` makes of the images in `keys` (by input). Raises `KeyError`, `DataError`, `UsageError`."""
        net, images = self.net(number), {name: self.image(key) for name, key in keys.items()}
        known = (number, *(part for pair in sorted(keys.items()) for part in pair))
        with self._computing:
            with self._lock:
                if known in self._results:
                    self._results.move_to_end(known)
                    return self._results[known]
            found = net.segmenter(images)
            with self._lock:
                self._results[known] = found
                while len(self._results) > _RESULTS:
                    self._results.popitem(last=False)
            return found

    def one(self, number: int, keys: Mapping[str, str], blob: str) -> Segmentation:
        """The result of one score blob (the first if ""). Raises `KeyError` too where there is none."""
        found = {one.blob: one for one in self.segment(number, keys)}
        return found[blob or next(iter(found))]

    def pixel(self, number: int, keys: Mapping[str, str], blob: str, x: int, y: int) -> dict[str, Any]:
        """Probabilities of all classes at one pixel, the likeliest first, and the box of pixels that they come of."""
        one = self.one(number, keys, blob)
        height, width = one.labels.shape
        if not (0 <= x < width and 0 <= y < height) or one.probabilities is None:
            raise DataError(f"pixel {x}, {y} lies outside of {width}x{height}")
        values = one.probabilities[:, y, x]
        order = np.argsort(-values, kind="stable")
        return {
            "x": x,
            "y": y,
            "probabilities": [{"label": int(k), "name": one.name(int(k)), "value": float(values[k])} for k in order],
            "field": self._field(self.net(number), one, x, y),
        }

    def _field(self, net: Served, one: Segmentation, x: int, y: int) -> list[int] | None:
        """The receptive field as [left, top, right, bottom] in pixels of the image, None where it holds none of it."""
        size = one.labels.shape
        seen = net.segmenter.fixed_size or limit_side((size[0], size[1]), net.segmenter.longest_side)
        down, across = seen[0] / size[0], seen[1] / size[1]
        boxes = reach(net.plain, one.blob, int((y + 0.5) * down), int((x + 0.5) * across))
        inputs = [boxes[name] for name in net.segmenter.inputs if name in boxes]
        if not inputs:
            return None
        found = inputs[0]
        for box in inputs[1:]:
            found = found.around(box)
        inside = within(found, seen)
        if inside is None:
            return None
        top, left, bottom, right = inside
        return [round(left / across), round(top / down), round(right / across), round(bottom / down)]

    def overlay(self, number: int, keys: Mapping[str, str], blob: str) -> Image.Image:
        """The labels as colours, see-through where the class is the background."""
        one = self.one(number, keys, blob)
        picture = label_image(one.labels).convert("RGBA")
        bare = np.isin(one.labels, background_labels(one.names))
        picture.putalpha(Image.fromarray(np.where(bare, 0, 255).astype(np.uint8)))
        return picture

    def legend(self, one: Segmentation) -> list[dict[str, Any]]:
        """The classes that occur: label, name, colour and share of the pixels, the largest first."""
        colours = zoo.palette(256)
        names = {one.name(label): label for label in np.unique(one.labels).tolist()}
        return [
            {"label": names[name], "name": name, "colour": list(colours[names[name]]), "share": share}
            for name, share in one.shares().items()
        ]

    @torch.no_grad()
    def blob(self, number: int, keys: Mapping[str, str], name: str) -> tuple[Image.Image | None, dict[str, Any]]:
        """A blob as a grid of its channels, where it has any, with its shape, least, mean and largest value."""
        net, images = self.net(number), {key: self.image(value) for key, value in keys.items()}
        with self._computing:
            scene = net.segmenter.prepare(images)
            values = {key: value.to(net.plain.device, net.plain.dtype) for key, value in scene.values.items()}
            found = net.plain(**values, blobs=[name])[name].detach().float().cpu()
        about: dict[str, Any] = {"name": name, "shape": list(found.shape)}
        if found.numel():
            about |= {"least": float(found.min()), "mean": float(found.mean()), "largest": float(found.max())}
        try:
            return activation_grid(found), about
        except GraphError:
            about["values"] = [float(value) for value in found.flatten()[:_NUMBERS]]
            return None, about


def _decoded(data: bytes, limits: Limits) -> Image.Image:
    if len(data) > limits.megabytes * 1e6:
        raise DataError(f"the image has {len(data) / 1e6:.1f} MB, at most {limits.megabytes:g} are taken")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
            pixels = image.width * image.height
            if pixels > limits.megapixels * 1e6:
                raise DataError(f"the image has {pixels / 1e6:.1f} megapixels, at most {limits.megapixels:g} are taken")
            image.load()
    except UnidentifiedImageError:
        raise DataError("not an image of a known kind") from None
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, MemoryError) as error:
        raise DataError(f"can't be read as an image: {error or type(error).__name__}") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"too many pixels to be taken for an honest image ({error})") from None
    return image if image.mode in ("I", "I;16", "F") else visible(as_image(image))


def served(title: str, net: Net, fast: Net, **options: Any) -> Served:
    """A net made ready. Raises `UsageError` where it gives no scores or takes no images."""
    segmenter = Segmenter(fast, probabilities=True, **options)
    if not segmenter.inputs:
        raise UsageError(f"{title}: the net takes no images")
    return Served(title, segmenter, net)
