"""What a fine-tuning is to do: the choices of a user, and the optimizations that can be chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fcnproto.data.augmentation import Augmentation
from fcnproto.data.masks import Colour
from fcnproto.errors import UsageError
from fcnproto.net.assigning import by_name
from fcnproto.preprocessing import Chosen


@dataclass(frozen=True)
class Optimization:
    """How to learn: fields of the solver, and whether the loss is a mean over the pixels instead of their sum."""

    solver: dict[str, Any]
    mean_loss: bool
    what: str


OPTIMIZATIONS = {
    "heavy": Optimization(
        {"type": "SGD", "base_lr": 1e-10, "momentum": 0.99, "iter_size": 1, "weight_decay": 0.0005},
        False,
        "one image a step, high momentum, summed loss: as the published nets were trained",
    ),
    "accumulated": Optimization(
        {"type": "SGD", "base_lr": 1e-4, "momentum": 0.9, "iter_size": 20, "weight_decay": 0.0005},
        True,
        "20 images a step, mean loss: as the published FCN-AlexNet was trained",
    ),
    "adam": Optimization(
        {
            "type": "Adam",
            "base_lr": 1e-3,
            "momentum": 0.9,
            "momentum2": 0.999,
            "iter_size": 1,
            "weight_decay": 0.0,
            "lr_policy": "poly",
            "power": 1.0,
        },
        True,
        "Adam on a mean loss, the rate falling to 0: for slim nets and nets without pretrained weights",
    ),
}


Table = dict[Colour, int]


@dataclass(frozen=True)
class Settings:
    """A fine-tuning.

    What a net of several image inputs or several maps of scores needs more than once is a dict by the blob's name; the
    key "" (and a value alone) stands for the first one.

    Attributes:
        model: a name of the zoo, or the path of a prototxt.
        weights: what to begin with: weights of that net, of a coarser one, or of the classification net that it is
            made from. In a dict the keys are suffixes of the net's layers ({"color": A, "hha": B}: late fusion). None
            to begin from random values.
        images: a folder, or one by image blob ({"color": A, "hha": B}); files are matched by name.
        masks: a folder with files of the images' names, or one by label or score blob ({"sem": A, "geo": B}).
        classes: their names, label 0 first; or in a dict, likewise.
        output: the folder for everything that is made.
        colours: for masks whose colours stand for classes; or in a dict, likewise.
        binary_masks: values 0 and 255 of the masks are the labels 0 and 1.
        allow_empty_classes: train though no training mask holds a class.
        optimization: a key of OPTIMIZATIONS; `solver` holds fields that are to be different.
        iterations, interval: training steps, and after how many to validate; None for the defaults.
        validation, held_out: the images for choosing the best weights, and for the final score: their share, a text
            file of their names, or a folder of further images. Masks of a folder's images are where the others are, or
            at `validation_masks`, `held_out_masks`.
        preprocessing: how images become inputs, where the net doesn't say it or others are wanted. Images of bands
            without a mean get mean and scale of the training part.
        augmentation: random changes of the training images.
        class_weights: "none", or "balanced" (median frequency balancing).
        lr_finder: find the learning rate by a short training in which it grows (`rates.find_rate`).
        seed: of the split, the order and the random numbers.
        device: where to train; None for a GPU if there is one.
        reading: how the prototxt is read: `level`, `stages`, `allow_python`, `crop`, `dialect`, `strict`, `caffe_proto`
            of `load`. The output's own nets have crops' offsets; they need the dialect and the fork's schema again.
    """

    model: str
    weights: Path | Mapping[str, Path] | None
    images: Path | Mapping[str, Path]
    masks: Path | Mapping[str, Path]
    classes: tuple[str, ...] | Mapping[str, tuple[str, ...]]
    output: Path
    colours: Table | Mapping[str, Table] | None = None
    optimization: str = "heavy"
    solver: dict[str, Any] = field(default_factory=dict)
    iterations: int | None = None
    interval: int | None = None
    validation: float | Path = 0.15
    held_out: float | Path = 0.15
    validation_masks: Path | None = None
    held_out_masks: Path | None = None
    preprocessing: Chosen = field(default_factory=Chosen)
    augmentation: Augmentation = field(default_factory=Augmentation)
    class_weights: str = "none"
    binary_masks: bool = False
    allow_empty_classes: bool = False
    lr_finder: bool = False
    seed: int = 1337
    device: str | None = None
    reading: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for names in by_name(self.classes).values():
            if len(names) < 2 or len(names) > 255:
                raise UsageError(f"2 to 255 classes can be learned, not {len(names)}; the background is one, too")
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise UsageError(f"two classes have the same name, {twice!r}")
            if self.binary_masks and len(names) != 2:
                raise UsageError(f"binary masks hold two classes, labels 0 and 1; {len(names)} are named")
        if self.optimization not in OPTIMIZATIONS:
            raise UsageError(f"optimization {self.optimization!r}: choose one of {', '.join(OPTIMIZATIONS)}")
        shares = [share for share in (self.validation, self.held_out) if not isinstance(share, Path)]
        if any(share <= 0 for share in shares) or sum(shares) >= 1:
            raise UsageError("the shares for validation and held out images must be above 0, and below 1 together")
        if self.class_weights not in ("none", "balanced"):
            raise UsageError(f"class weights {self.class_weights!r}: choose none or balanced")
        for name in ("iterations", "interval"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UsageError(f"{name} must be 1 or more, not {value}")
