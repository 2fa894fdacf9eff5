"""The nets that come with the package: where their files are, and what is known of each.

A model is a folder with `model.json` and prototxt files (`models/` in a checkout, `fcnproto/_models` once installed);
adding one takes no change here. Knows nothing of running nets; what was fetched from elsewhere is in `zoo/cache.py`.
"""

from __future__ import annotations

import filecmp
import functools
import importlib.util
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from fcnproto.errors import Error, PrototxtError, UsageError, WeightsError
from fcnproto.schema.fields import suggestion
from fcnproto.zoo import cache

# The files that a kind may be in, the preferred one first: some nets were published with train and val files, others
# with trainval and test files.
_FILES = {
    "train": ("train.prototxt", "trainval.prototxt"),
    "trainval": ("trainval.prototxt", "train.prototxt"),
    "val": ("val.prototxt", "test.prototxt"),
    "test": ("test.prototxt", "val.prototxt"),
    "deploy": ("deploy.prototxt",),
    "solver": ("solver.prototxt",),
    "weights": ("weights.caffemodel",),
}

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Input:
    """One image blob and its preprocessing.

    `kind` "image": values 0..255 in the order of `channels` (BGR), less `mean`; "hha": the three channels as they
    are stored, less `mean`; "depth": the natural logarithm of the depth, less `mean`. `mean` has one value per channel,
    in the blob's channel order.
    """

    blob: str
    kind: str
    channels: str
    mean: tuple[float, ...]


@dataclass(frozen=True)
class Output:
    """One score blob (1 x classes x height x width): its class names in order, and the label blob that trains it."""

    blob: str
    label: str
    ignore_label: int
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Score:
    """Published figures, from 0 to 1, on `data` (`model.json` has them in percent, as they were published).

    Those that are not `verified` are recalled: nobody looked them up.
    """

    data: str
    metrics: dict[str, float]
    source: str
    verified: bool


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a net.

    `weights_url` is where its authors published trained weights (None: nowhere); `initial_weights` the nets that
    its training starts from: names of the zoo, or the classification net whose weights are transplanted first.
    """

    name: str
    dataset: str
    base: str
    weights_url: str | None
    initial_weights: tuple[str, ...]
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    scores: tuple[Score, ...]

    @property
    def mean(self) -> tuple[float, ...]:
        """The first input's mean, in the blob's channel order."""
        return self.inputs[0].mean

    @property
    def classes(self) -> tuple[str, ...]:
        """The first output's class names."""
        return self.outputs[0].classes

    @property
    def ignore_label(self) -> int:
        """The label value of pixels that take no part in training and scoring."""
        return self.outputs[0].ignore_label

    @property
    def palette(self) -> list[Colour]:
        """One RGB colour per class of the first output."""
        return palette(len(self.classes))


def names() -> list[str]:
    """The names of all models, sorted."""
    return sorted(file.parent.name for file in _root().glob("*/model.json"))


def path(name: str, kind: str) -> Path:
    """The file of a model.

    Kinds: train or trainval, val or test (each finds the other where only that was published), deploy, solver, and
    weights where they come with the package or were fetched. Raises `UsageError` for an unknown name or kind and for
    weights that are not here; its message says where they are published.
    """
    folder = _folder(name)
    if kind not in _FILES:
        raise UsageError(f"unknown kind of file {kind!r}{suggestion(kind, _FILES)}; kinds are {', '.join(_FILES)}")
    for file in _FILES[kind]:
        if (folder / file).is_file():
            return folder / file
    if kind == "weights" and (found := cache.fetched().get(name)):
        return found.path
    url = info(name).weights_url if kind == "weights" else None
    hint = f"; its authors published them at {url}, and `fcnproto zoo fetch {name}` gets them" if url else ""
    raise UsageError(f"{name} comes without a {kind} file{hint}")


def located(model: str | os.PathLike[str], kind: str = "deploy") -> str | os.PathLike[str]:
    """The file that a program's user means: a path as it is, or the net's file of that kind where there is no such file
    and the zoo has a net of that name. A folder of that name (the FCN repository has one for each of its nets) is no
    file. Raises `UsageError` where that net has no such file; `PrototxtError` or `WeightsError`, which say what is
    near, for what is neither but nearly a name."""
    text = os.fspath(model)
    if os.path.lexists(text) and not os.path.isdir(text):
        return model
    if text in names():
        return path(text, kind)
    if not os.path.lexists(text) and (near := suggestion(text, names())):
        reason = f"can't be read: no such file, and no net of the zoo{near}"
        raise WeightsError(f"{text}: {reason}") if kind == "weights" else PrototxtError(reason, text)
    return model


def owner(file: str | os.PathLike[str]) -> str | None:
    """The model whose own prototxt this is, at its place; None for other files."""
    folder = os.path.dirname(os.path.realpath(file))
    return next((name for name in names() if folder == os.path.realpath(_folder(name))), None)


def weights_of(file: str | os.PathLike[str]) -> str | None:
    """The model whose weights a file holds, by its bytes: those that come along, and those that were fetched."""
    place = Path(file)
    try:
        size = place.stat().st_size
    except OSError:
        return None
    for name in names():
        weights = _folder(name) / "weights.caffemodel"
        if weights.is_file() and weights.stat().st_size == size and filecmp.cmp(place, weights, shallow=False):
            return name
    alike = {one.sha256: name for name, one in cache.fetched().items() if one.size == size}
    return alike.get(cache.sha256(place)) if alike else None


@functools.cache
def info(name: str) -> ModelInfo:
    """What is known of a model. Raises `UsageError` for an unknown name."""
    record: dict[str, Any] = json.loads((_folder(name) / "model.json").read_text(encoding="utf-8"))
    outputs = [Output(**{**output, "classes": tuple(output["classes"])}) for output in record["outputs"]]
    return ModelInfo(
        name=name,
        dataset=record["dataset"],
        base=record["base"],
        weights_url=record["weights_url"],
        initial_weights=tuple(record["initial_weights"]),
        inputs=tuple(Input(**{**entry, "mean": tuple(entry["mean"])}) for entry in record["inputs"]),
        outputs=tuple(outputs),
        scores=tuple(_score(score) for score in record["scores"]),
    )


def _score(entry: dict[str, Any]) -> Score:
    figures = {metric: round(value / 100, 6) for metric, value in entry["metrics"].items()}
    return Score(**{**entry, "metrics": figures})


def definitions(module: str) -> ModuleType:
    """A module of the nets' Python definitions ("fcn", "sources", "catalog"), for nets of other widths and classes.

    >>> definitions("fcn").fcn8s(spec, classes=9, widths=(16, 32, 64, 96, 96, 256))
    """
    package = "fcnproto._models"
    if package not in sys.modules and importlib.util.find_spec(package) is None:
        # A checkout that is not installed: its folder has another name than the package.
        root = _root()
        spec = importlib.util.spec_from_file_location(
            package, root / "__init__.py", submodule_search_locations=[str(root)]
        )
        assert spec is not None and spec.loader is not None
        sys.modules[package] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[package])
    return importlib.import_module(f"{package}.{module}")


def palette(count: int = 256) -> list[Colour]:
    """The first `count` RGB colours of the PASCAL VOC palette.

    The bits of the index go in turn to red, green and blue, each colour filling from its highest bit down.
    """
    colours = []
    for index in range(count):
        colour = [0, 0, 0]
        for bit in range(24):
            colour[bit % 3] |= (index >> bit & 1) << (7 - bit // 3)
        colours.append((colour[0], colour[1], colour[2]))
    return colours


@functools.cache
def _root() -> Path:
    """The folder of the models: installed with the package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for root in (package / "_models", package.parent / "models"):
        if (root / "catalog.py").is_file():
            return root
    raise Error(f"the models are missing from this installation (neither _models in {package} nor models beside it)")


def _folder(name: str) -> Path:
    if name not in names():
        near = suggestion(name, names())
        raise UsageError(f"unknown model {name!r}{near or '; known are ' + ', '.join(names())}")
    return _root() / name
