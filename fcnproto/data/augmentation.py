"""Random changes of an image and its mask for training: mirroring, scaling, cropping, colours."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from fcnproto.errors import UsageError
from fcnproto.images import Picture

_VOID = 255
_SMALLEST = 16


@dataclass(frozen=True)
class Augmentation:
    """What may be changed; nothing by default.

    Attributes:
        mirror: left and right change places in half of the images.
        scale: both sides are multiplied by a number between 1 / (1 + scale) and 1 + scale, the same for both.
        crop: a window of at most this size, (height, width), is cut out; None for the whole image.
        colour: each channel is multiplied by up to 1 +- colour and moved by up to 128 * colour.
    """

    mirror: bool = False
    scale: float = 0.0
    crop: tuple[int, int] | None = None
    colour: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.scale <= 3 or not 0 <= self.colour <= 1:
            raise UsageError(f"augmentation: scale {self.scale:g} and colour {self.colour:g} lie in 0..3 and 0..1")
        if self.crop is not None and min(self.crop) < 1:
            raise UsageError(f"augmentation: a crop of {self.crop[0]}x{self.crop[1]} is empty")

    def as_dict(self) -> dict[str, Any]:
        """The settings that differ from the defaults, for a layer's `param_str`."""
        return {name: value for name, value in asdict(self).items() if value}

    def __bool__(self) -> bool:
        return bool(self.as_dict())

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" if value is not True else name for name, value in self.as_dict().items())

    def apply(self, image: Picture, mask: np.ndarray, rng: random.Random) -> tuple[Picture, np.ndarray]:
        """A changed RGB image and mask (height, width) uint8."""
        (image,), (mask,) = self.apply_all([image], [mask], rng)
        return image, mask

    def apply_all(
        self, images: Sequence[Picture], masks: Sequence[np.ndarray], rng: random.Random
    ) -> tuple[list[Picture], list[np.ndarray]]:
        """Changed images and masks of one scene, all mirrored, scaled and cropped alike.

        Colours change in the first image alone (if it is RGB): the others are measurements, such as HHA or depth.
        """
        images, masks = list(images), list(masks)
        if self.mirror and rng.random() < 0.5:
            images = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in images]
            masks = [mask[:, ::-1] for mask in masks]
        if self.scale:
            # The logarithm is uniform: twice as large is as likely as half the size.
            factor = (1 + self.scale) ** rng.uniform(-1, 1)
            width, height = (max(_SMALLEST, round(side * factor)) for side in images[0].size)
            images = [image.resize((width, height), Image.Resampling.BILINEAR) for image in images]
            masks = [_enlarged(mask, width, height) for mask in masks]
        if self.crop is not None:
            images, masks = _crop(images, masks, self.crop, rng)
        if self.colour and images[0].mode == "RGB":
            gain = [1 + self.colour * rng.uniform(-1, 1) for _ in range(3)]
            offset = [128 * self.colour * rng.uniform(-1, 1) for _ in range(3)]
            pixels = np.asarray(images[0], dtype=np.float32) * np.array(gain) + np.array(offset)
            images[0] = Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
        return images, [np.ascontiguousarray(mask) for mask in masks]


def _enlarged(mask: np.ndarray, width: int, height: int) -> np.ndarray:
    labels = Image.fromarray(np.ascontiguousarray(mask)).resize((width, height), Image.Resampling.NEAREST)
    return np.asarray(labels)


def _crop(
    images: Sequence[Picture], masks: Sequence[np.ndarray], size: tuple[int, int], rng: random.Random
) -> tuple[list[Picture], list[np.ndarray]]:
    """A window of the size, or of what there is; of a few random ones the first with a label in it."""
    width, height = images[0].size
    height, width = min(size[0], height), min(size[1], width)
    top = left = 0
    for _ in range(4):
        top, left = rng.randint(0, images[0].height - height), rng.randint(0, images[0].width - width)
        if any((mask[top : top + height, left : left + width] != _VOID).any() for mask in masks):
            break
    box = (left, top, left + width, top + height)
    return [image.crop(box) for image in images], [mask[top : top + height, left : left + width] for mask in masks]


Scene = tuple[dict[str, Image.Image], dict[str, np.ndarray]]
"""The images and the masks of an item, by key."""


def through(transform: Callable[..., Any]) -> Callable[[Scene], Scene]:
    """An `augment` for `ImageFolders` that is a transform of albumentations, or of torchvision's v2.

    One of albumentations gets the image and all masks; a scene of several images is for v2 alone, which gets them all.
    What is moved in from outside of a mask must be filled with 255 (void) by the transform. Raises `UsageError` for
    other transforms; `Augmentation` needs neither package.
    """
    package = type(transform).__module__.partition(".")[0]
    if package == "albumentations":
        return functools.partial(_by_albumentations, transform)
    if package == "torchvision":
        return functools.partial(_by_torchvision, transform)
    raise UsageError(
        f"{type(transform).__name__} is no transform of albumentations or torchvision.transforms.v2; "
        "fcnproto.data.augmentation.Augmentation needs neither"
    )


def _by_albumentations(transform: Callable[..., Any], scene: Scene) -> Scene:
    images, masks = scene
    if len(images) > 1:
        raise UsageError(f"albumentations changes one image at a time; the scene has {', '.join(images)}")
    (key, image), names = next(iter(images.items())), list(masks)
    found = transform(image=np.asarray(image), masks=[masks[name] for name in names])
    changed = dict(zip(names, found["masks"], strict=True))
    return {key: Image.fromarray(found["image"])}, changed


def _by_torchvision(transform: Callable[..., Any], scene: Scene) -> Scene:
    from torchvision import tv_tensors
    from torchvision.transforms.v2 import functional

    images, masks = scene
    given = {key: tv_tensors.Image(functional.pil_to_tensor(image)) for key, image in images.items()}
    labels = {key: tv_tensors.Mask(torch.from_numpy(np.ascontiguousarray(mask))) for key, mask in masks.items()}
    given, labels = transform(given, labels)
    back = {key: functional.to_pil_image(image) for key, image in given.items()}
    return back, {key: np.asarray(mask) for key, mask in labels.items()}


def parse_augmentation(text: str) -> Augmentation:
    """What a command line says: "mirror,scale=0.25,crop=200x300,colour=0.2", or "none". Raises `UsageError`."""
    settings: dict[str, Any] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, _, value = part.partition("=")
        try:
            if name == "none":
                continue
            if name == "mirror" and not value:
                settings["mirror"] = True
            elif name in ("scale", "colour"):
                settings[name] = float(value or 0.25)
            elif name == "crop" and value:
                height, _, width = value.partition("x")
                settings["crop"] = (int(height), int(width or height))
            else:
                raise ValueError
        except ValueError:
            expected = "mirror, scale=X, crop=HxW, colour=X or none"
            raise UsageError(f"augmentation {part!r}: expected {expected}") from None
    return Augmentation(**settings)


def from_dict(settings: Mapping[str, Any]) -> Augmentation:
    """The augmentation that `as_dict` described. Raises `UsageError` for other entries."""
    try:
        return Augmentation(**settings)
    except TypeError:
        raise UsageError(f"augmentation: {dict(settings)!r} is not understood") from None
