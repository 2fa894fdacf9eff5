"""The images of a fine-tuning: what is in the folders, which are trained on, and how the classes are distributed."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fcnproto.data.datasets import VOID, ImageFolders, Images, Masks
from fcnproto.data.mask_sources import names_classes
from fcnproto.data.statistics import band_statistics
from fcnproto.errors import DataError, UsageError
from fcnproto.finetune.nets import Base
from fcnproto.finetune.settings import Settings
from fcnproto.image_files import find_images
from fcnproto.images import read_bands
from fcnproto.net.assigning import assign, by_name
from fcnproto.preprocessing import Chosen
from fcnproto.scoring.scoring import nothing_to_see

_MOST_COUNTED = 500


def class_names(settings: Settings, base: Base) -> dict[str, tuple[str, ...]]:
    """The names of the classes by score blob. Raises `UsageError` where one has none."""
    found = assign(settings.classes, "classes", base.labels)
    return {one.blob: tuple(found[one.label]) for one in base.scores}


def folders(settings: Settings, base: Base, ids: Sequence[str] | None = None, part: str | None = None) -> ImageFolders:
    """The images and masks, by the net's names of image and label blobs; `part` ("val", "test") may have its own place.

    Raises `UsageError` where a blob of the net gets no folder, `DataError` where files are missing.
    """
    images = assign(settings.images, "images", dict.fromkeys(base.images, ()))
    masks = assign(settings.masks, "masks", base.labels)
    classes = assign(settings.classes, "classes", base.labels)
    colours = assign(settings.colours, "colours", base.labels, needed=False)
    own, own_masks = _own_place(settings, part)
    if own is not None:
        if len(images) > 1 or len(masks) > 1:
            raise UsageError(
                f"{own}: a folder of its own is for nets of one image and one labelling; give a list of names"
            )
        images = dict.fromkeys(images, own)
        masks = dict.fromkeys(masks, own_masks) if own_masks is not None else masks
    return ImageFolders(
        {blob: Images(images[blob], how) for blob, how in base.images.items()},
        {
            label: Masks(
                masks[label], len(classes[label]), colours.get(label), settings.binary_masks, tuple(classes[label])
            )
            for label in base.labels
        },
        ids=ids,
    )


def _own_place(settings: Settings, part: str | None) -> tuple[Path | None, Path | None]:
    """The folder of a part's own images, and the place of their masks, where it has such."""
    places = {
        "val": (settings.validation, settings.validation_masks),
        "test": (settings.held_out, settings.held_out_masks),
    }
    place, masks = places.get(part or "", (0.0, None))
    return (place, masks) if isinstance(place, Path) and place.is_dir() else (None, None)


def band_counts(settings: Settings, base: Base) -> dict[str, int]:
    """How many bands the images of each image blob have that are to become images of bands, by the first file."""
    found = {}
    images = assign(settings.images, "images", dict.fromkeys(base.images, ()))
    kinds = Chosen(settings.preprocessing.kinds)
    for blob, how in base.images.items():
        if kinds.apply(how, blob, list(base.images)).kind == "bands":
            paths = find_images([images[blob]], recursive=True, arrays=True)
            if not paths:
                raise DataError(f"{images[blob]}: holds no images")
            found[blob] = read_bands(paths[0][0]).count
    return found


def with_statistics(settings: Settings, base: Base, data: ImageFolders, train: Sequence[str]) -> Base:
    """The net with mean and scale of the training images for images of bands of which nobody said them."""
    images = dict(base.images)
    for blob, how in images.items():
        if how.kind == "bands" and how.mean is None and not settings.preprocessing.means:
            found = band_statistics([data.paths(id)[blob] for id in train], how.bands)
            if found.failures:
                raise DataError(found.failures[0])
            scale = found.scale if how.scale == 1 else how.scale
            images[blob] = replace(how, mean=found.mean, scale=scale, why="of the training images")
    return replace(base, images=images)


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
        if one.preprocessing.scale != 1:
            images[-1]["scale"] = one.preprocessing.scale
        if one.preprocessing.bands:
            images[-1]["bands"] = one.preprocessing.bands
    masks: list[dict[str, Any]] = []
    for labelling in data.masks.values():
        masks.append({"folder": os.path.abspath(labelling.folder), "classes": labelling.classes})
        if labelling.colours is not None:
            masks[-1]["colours"] = list(labelling.colours.items())
        if labelling.binary:
            masks[-1]["binary"] = True
        if labelling.names and names_classes(labelling.folder):
            masks[-1]["names"] = list(labelling.names)
    source: dict[str, Any] = {"images": images, "masks": masks, "split": split_file}
    if len(images) == len(masks) == 1 and images[0]["kind"] == "bgr":
        # The short form, for the usual case.
        rest = {key: value for key, value in masks[0].items() if key != "folder"}
        numbers = images[0]["mean"] or (0.0, 0.0, 0.0)
        source |= {"images": images[0]["folder"], "masks": masks[0]["folder"], "mean": numbers, **rest}
        if "scale" in images[0]:
            source["scale"] = images[0]["scale"]
    if random_order:
        source |= {"randomize": True, "seed": settings.seed}
        if augmentation := base.allowed(settings.augmentation):
            source["augment"] = augmentation.as_dict()
    return source


def split(ids: Sequence[str], settings: Settings, base: Base | None = None) -> dict[str, list[str]]:
    """The images' names for training, validation and the final score; each in alphabetical order.

    Those of a list or a folder are the ones named there, shares are drawn of the others by the seed. `base` is needed
    where one is a folder.
    """
    parts: dict[str, list[str]] = {}
    shares: dict[str, float] = {}
    for part, chosen in (("val", settings.validation), ("test", settings.held_out)):
        if not isinstance(chosen, Path):
            shares[part] = chosen
        elif base is not None and chosen.is_dir():
            parts[part] = list(folders(settings, base, part=part).ids)
        else:
            parts[part] = _listed(chosen, ids)
    taken = {id for part in parts.values() for id in part}
    twice = set(parts.get("val", ())) & set(parts.get("test", ()))
    if twice and settings.validation != settings.held_out:
        raise UsageError(f"{min(twice)!r} is in the validation part and in the held-out one")
    rest = [id for id in ids if id not in taken]
    if len(rest) < 1 + len(shares):
        (images, *_) = by_name(settings.images).values()
        wanted = "to train" + ", to validate" * ("val" in shares) + " and to score" * ("test" in shares)
        raise UsageError(f"{images}: {len(rest)} images; {1 + len(shares)} are needed, {wanted}")
    shuffled = list(rest)
    random.Random(settings.seed).shuffle(shuffled)
    counts = [max(1, round(share * len(ids))) for share in shares.values()]
    while sum(counts) >= len(rest):
        counts[counts.index(max(counts))] -= 1
    for part, count in zip(shares, counts, strict=True):
        parts[part], shuffled = shuffled[:count], shuffled[count:]
    return {name: sorted(part) for name, part in (("train", shuffled), ("val", parts["val"]), ("test", parts["test"]))}


def _listed(path: Path, ids: Sequence[str]) -> list[str]:
    """The names of images in a text file, one a line, with or without suffix. Raises `UsageError`."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: neither a share, a list of names nor a folder of images ({error})") from None
    known, found = set(ids), []
    for number, line in enumerate(map(str.strip, lines), start=1):
        name = line if line in known else os.path.splitext(line)[0]
        if line and name not in known:
            raise UsageError(f"{path}:{number}: no image is called {line!r}")
        if line and name not in found:
            found.append(name)
    if not found:
        raise UsageError(f"{path}: names no image")
    return found


Pixels = dict[str, dict[str, np.ndarray]]
"""By label blob and part ("train", "val", "test"): the pixels of each class, then those of void, int64."""


def count_pixels(parts: Mapping[str, ImageFolders]) -> Pixels:
    """Read every image and mask, and count the masks' pixels by class. Raises `DataError` for what can't be used."""
    found: Pixels = {label: {} for label in parts["train"].classes}
    for part, data in parts.items():
        for label, classes in data.classes.items():
            found[label][part] = np.zeros(classes + 1, dtype=np.int64)
        for id in data.ids:
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
