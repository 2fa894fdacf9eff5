"""The images of a fine-tuning: what is in the folders, which are trained on, and how the classes are distributed."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fcnproto.data.datasets import VOID, ImageFolders, Images, Masks
from fcnproto.errors import DataError, UsageError
from fcnproto.finetune.nets import Base
from fcnproto.finetune.settings import Settings
from fcnproto.net.assigning import assign, by_name
from fcnproto.scoring.scoring import nothing_to_see

_MOST_COUNTED = 500


def class_names(settings: Settings, base: Base) -> dict[str, tuple[str, ...]]:
    """The names of the classes by score blob. Raises `UsageError` where one has none."""
    found = assign(settings.classes, "classes", base.labels)
    return {one.blob: tuple(found[one.label]) for one in base.scores}


def folders(settings: Settings, base: Base, ids: Sequence[str] | None = None) -> ImageFolders:
    """The images and masks, by the net's names of image and label blobs.

    Raises `UsageError` where a blob of the net gets no folder, `DataError` where files are missing.
    """
    images = assign(settings.images, "images", dict.fromkeys(base.images, ()))
    masks = assign(settings.masks, "masks", base.labels)
    classes = assign(settings.classes, "classes", base.labels)
    colours = assign(settings.colours, "colours", base.labels, needed=False)
    return ImageFolders(
        {blob: Images(images[blob], how) for blob, how in base.images.items()},
        {
            label: Masks(masks[label], len(classes[label]), colours.get(label), settings.binary_masks)
            for label in base.labels
        },
        ids=ids,
    )


def layer_options(
    settings: Settings, base: Base, data: ImageFolders, split_file: str, random_order: bool
) -> dict[str, Any]:
    """The options of an `ImageMaskLayer` on these folders: in random order and augmented for training."""
    images: list[dict[str, Any]] = []
    for one in data.images.values():
        mean = one.preprocessing.mean
        if mean is not None:
            mean = np.broadcast_to(mean.reshape(len(mean), -1).mean(1), one.preprocessing.channels)
        numbers = None if mean is None else tuple(float(value) for value in mean)
        images.append({"folder": os.path.abspath(one.folder), "kind": one.preprocessing.kind, "mean": numbers})
    masks: list[dict[str, Any]] = []
    for labelling in data.masks.values():
        masks.append({"folder": os.path.abspath(labelling.folder), "classes": labelling.classes})
        if labelling.colours is not None:
            masks[-1]["colours"] = list(labelling.colours.items())
        if labelling.binary:
            masks[-1]["binary"] = True
    source: dict[str, Any] = {"images": images, "masks": masks, "split": split_file}
    if len(images) == len(masks) == 1 and images[0]["kind"] == "bgr":
        # The short form, for the usual case.
        rest = {key: value for key, value in masks[0].items() if key != "folder"}
        numbers = images[0]["mean"] or (0.0, 0.0, 0.0)
        source |= {"images": images[0]["folder"], "masks": masks[0]["folder"], "mean": numbers, **rest}
    if random_order:
        source |= {"randomize": True, "seed": settings.seed}
        if augmentation := base.allowed(settings.augmentation):
            source["augment"] = augmentation.as_dict()
    return source


def split(ids: Sequence[str], settings: Settings) -> dict[str, list[str]]:
    """The images' names for training, validation and the final score, drawn by the seed; each in alphabetical order."""
    if len(ids) < 3:
        (images, *_) = by_name(settings.images).values()
        raise UsageError(f"{images}: {len(ids)} images; 3 are needed, to train, to validate and to score")
    shuffled = list(ids)
    random.Random(settings.seed).shuffle(shuffled)
    counts = [max(1, round(share * len(ids))) for share in (settings.validation, settings.held_out)]
    while sum(counts) >= len(ids):
        counts[counts.index(max(counts))] -= 1
    ends = counts[0], counts[0] + counts[1]
    parts = {"train": shuffled[ends[1] :], "val": shuffled[: ends[0]], "test": shuffled[ends[0] : ends[1]]}
    return {name: sorted(part) for name, part in parts.items()}


Pixels = dict[str, dict[str, np.ndarray]]
"""By label blob and part ("train", "val", "test"): the pixels of each class, then those of void, int64."""


def count_pixels(data: ImageFolders, splits: Mapping[str, Sequence[str]]) -> Pixels:
    """Read every image and mask, and count the masks' pixels by class. Raises `DataError` for what can't be used."""
    found: Pixels = {label: {} for label in data.classes}
    for part, ids in splits.items():
        for label, classes in data.classes.items():
            found[label][part] = np.zeros(classes + 1, dtype=np.int64)
        for id in ids:
            item = data.load(id)
            for label, classes in data.classes.items():
                mask = item[label].numpy().astype(np.uint8)
                counts = np.bincount(mask.ravel(), minlength=256)
                found[label][part] += np.array([*counts[:classes], counts[VOID]])
    return found


def check_classes(pixels: Pixels, names: Mapping[str, Sequence[str]], folders: Mapping[str, Any]) -> None:
    """Raise `DataError` where no training mask holds a class, naming the ways out.

    `names` are the classes' by label blob, `folders` the masks'.
    """
    for label, parts in pixels.items():
        train, everything = parts["train"][:-1], np.sum(list(parts.values()), axis=0)[:-1]
        where = f"{folders[label]}"
        if not everything[1:].any():
            held = f"nothing but label 0 ({names[label][0]!r}) and void" if everything[0] else "nothing but void"
            raise DataError(f"{where}: {nothing_to_see(held)}")
        missing = np.flatnonzero(train == 0)
        if len(missing):
            listed = ", ".join(f"{names[label][int(index)]!r} (label {index})" for index in missing)
            elsewhere = everything[missing].any()
            raise DataError(
                f"{where}: no mask of the training part holds {listed}"
                + (" (others do: another --seed may help)" if elsewhere else "")
                + "; masks of 0 and 255 are read with --binary-masks, colours with --colours; --allow-empty-classes"
                " trains without"
            )


def balanced_weights(data: ImageFolders, label: str) -> np.ndarray:
    """Median frequency balancing of a labelling: for each class the median frequency over its own, (classes,) float64.

    A class's frequency is its share of the pixels of the images in which it occurs; one that never occurs weighs 1. At
    most 500 images are counted.
    """
    classes = data.classes[label]
    pixels, totals = np.zeros(classes), np.zeros(classes)
    step = -(-len(data.ids) // _MOST_COUNTED)
    for id in data.ids[::step]:
        mask = data.scene(id)[1][label]
        counts = np.bincount(mask.ravel(), minlength=256)[:classes]
        pixels += counts
        totals += np.where(counts > 0, counts.sum(), 0)
    seen = pixels > 0
    weights = np.ones(classes)
    if seen.any():
        frequencies = pixels[seen] / totals[seen]
        weights[seen] = np.median(frequencies) / frequencies
    return weights
