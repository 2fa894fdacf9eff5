"""A fine-tuning that is ready to start, with its words for people and what tells it from others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fcnproto import zoo
from fcnproto.finetune.data import Pixels
from fcnproto.finetune.nets import Base
from fcnproto.finetune.settings import OPTIMIZATIONS, Settings
from fcnproto.net import Net
from fcnproto.net.assigning import by_name
from fcnproto.schema import caffe_pb2
from fcnproto.surgery import Report


@dataclass
class Plan:
    """A fine-tuning ready to start: its files, its nets and the values they begin with.

    `splits` are the images' names under "train", "val" and "test"; `solver` is the solver.prototxt; `classes` are the
    names by score blob; `pixels` has the masks' pixels by class (`data.Pixels`), if they were counted; `class_weights`
    has a factor for each class of a score blob, or is empty.
    """

    settings: Settings
    base: Base
    net: Net
    report: Report
    splits: dict[str, list[str]]
    solver: caffe_pb2.SolverParameter
    interval: int
    classes: dict[str, tuple[str, ...]]
    pixels: Pixels = field(default_factory=dict)
    class_weights: dict[str, np.ndarray] = field(default_factory=dict)

    def lines(self) -> Iterator[str]:
        """The plan for people."""
        settings, solver, base = self.settings, self.solver, self.base
        images, scores = (", ".join(map(repr, blobs)) for blobs in (base.images, self.classes))
        yield f"net {base.name}: image blob {images}, score blob {scores}"
        for blob, how in base.images.items():
            if how.kind == "bands":
                yield f"images for {blob}: {how}"
        for blob, names in self.classes.items():
            of = f" of {blob}" if len(self.classes) > 1 else ""
            yield f"{len(names)} classes{of}: {', '.join(names)}"
        counts = ", ".join(f"{name} {len(ids)}" for name, ids in self.splits.items())
        yield f"{sum(map(len, self.splits.values()))} images: {counts}"
        yield from self._pixel_lines()
        files = [f"{suffix}={path}" if suffix else str(path) for suffix, path in by_name(settings.weights).items()]
        yield f"weights: {', '.join(files) or 'none, random values'}"
        yield from (f"  {line}" for line in self.report.lines())
        rates = f"base_lr {solver.base_lr:g}, momentum {solver.momentum:g}, iter_size {solver.iter_size}"
        yield f"optimization {settings.optimization}: {OPTIMIZATIONS[settings.optimization].what}"
        yield f"  {solver.type}, {rates}, weight_decay {solver.weight_decay:g}"
        yield f"augmentation: {base.allowed(settings.augmentation) or 'none'}"
        for blob, weights in self.class_weights.items():
            pairs = ", ".join(f"{name} {one:.2f}" for name, one in zip(self.classes[blob], weights, strict=True))
            yield f"class weights: {pairs}"
        yield f"{solver.max_iter} iterations, validated every {self.interval}; results in {settings.output}"

    def _pixel_lines(self) -> Iterator[str]:
        """The shares of the classes in the masks of the training part, a line for each labelling."""
        for one in self.base.scores:
            counts = self.pixels.get(one.label, {}).get("train")
            if counts is None:
                continue
            total = max(1, int(counts.sum()))
            named = zip([*self.classes[one.blob], "void"], counts, strict=True)
            shares = ", ".join(f"{name} {int(count)} ({count / total:.2g})" for name, count in named)
            of = f" of {one.blob}" if len(self.base.scores) > 1 else ""
            yield f"pixels{of} to train on: {shares}"

    def request(self) -> dict[str, Any]:
        """What makes a fine-tuning the same one, for going on with it; how long it takes and where is no part of it."""
        settings = self.settings
        paths = {
            name: {key: os.path.abspath(path) for key, path in by_name(getattr(settings, name)).items()}
            for name in ("weights", "images", "masks")
        }
        model = settings.model if settings.model in zoo.names() else os.path.abspath(settings.model)
        colours = {key: sorted(table.items()) for key, table in by_name(settings.colours).items()}
        read = {name: _plain(value) for name, value in settings.reading.items() if value and value != "caffe"}
        plain = ["optimization", "solver", "class_weights", "seed"]
        if settings.binary_masks:
            plain.append("binary_masks")
        return {
            "model": model,
            **paths,
            "classes": self.classes,
            "colours": colours,
            **{name: getattr(settings, name) for name in plain},
            **{name: _plain(getattr(settings, name)) for name in ("validation", "held_out")},
            **({"lr_finder": True} if settings.lr_finder else {}),
            **({"preprocessing": asdict(settings.preprocessing)} if settings.preprocessing else {}),
            **({"reading": read} if read else {}),
            "augmentation": settings.augmentation.as_dict(),
            "names of images": self.splits,
        }


def _plain(part: float | Path) -> float | str:
    return os.path.abspath(part) if isinstance(part, Path) else part
