"""One net after the other: loaded, compared with its references, converted, the converted files compared too.

What is known of each net is written to the report at once, so that a run that was ended goes on where it stopped: nets
whose files are the same, and whose converted files still lie there as they were written, are not done again.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import fcnproto
from fcnproto.atomic import atomic_write
from fcnproto.errors import Error, UsageError, WeightsError, first_line
from fcnproto.escaping import json_text
from fcnproto.export import about_inputs, check_output, convert
from fcnproto.migration import reading
from fcnproto.migration.finding import Candidate, find
from fcnproto.migration.page import to_html
from fcnproto.net import Net
from fcnproto.parity import Recording, compare, float64_reference, opencv_reference, random_inputs, read_recording
from fcnproto.parity.measures import measure
from fcnproto.parity.provenance import command_line, file_record, now, versions
from fcnproto.parity.references import SEED

Array = npt.NDArray[Any]

TARGETS = ("py", "safetensors", "onnx", "pt2")
TOLERANCES = {"recording": 1e-5, "float64": 1e-5, "OpenCV": 1e-4, "converted": 1e-5}
"""Largest difference over the reference's largest value, by reference."""
_ROUNDINGS = 4.0
"""A converted file may depart by so many times what the net itself departs from float64."""
_SIZE = (96, 96)
_FACTORS, _SURE = (1.0, 0.1, 0.01, 0.001), 1e-6
_TRIES = 3
_AGREES, _DEPARTS, _FAILED, _BARE = "agrees", "departs", "failed", "no weights"


@dataclass(frozen=True)
class Outcome:
    """The report's content, and the files that it was written to."""

    report: dict[str, Any]
    files: tuple[Path, ...]

    @property
    def sound(self) -> bool:
        """Whether no net failed or departs."""
        return not any(net["verdict"] in (_FAILED, _DEPARTS) for net in self.report["nets"])


def migrate(
    folder: Path,
    out: Path,
    targets: Sequence[str] = ("py", "safetensors"),
    *,
    tell: Callable[[int, int, dict[str, Any]], None] = lambda index, count, entry: None,
    **loading: Any,
) -> Outcome:
    """Convert every net in a folder, compare it with what there is to compare with, and report.

    Args:
        folder: where to look, all folders below included.
        out: for the converted files, in folders as they are in `folder`, and for report.html and report.json.
        targets: of `TARGETS`.
        tell: called after each net with its place (from 1), their number, and its entry in the report.
        loading: how each net is loaded: arguments of `fcnproto.load` (`phase`, `dialect`, `device`, ...).

    Raises `UsageError` where the folder holds no net, or a target's package is missing.
    """
    unknown = [target for target in targets if target not in TARGETS]
    if unknown or not targets:
        raise UsageError(f"targets are {', '.join(TARGETS)}, not {', '.join(unknown) or 'none'}")
    if not folder.is_dir():
        raise UsageError(f"{folder}: is no folder")
    for target in targets:
        check_output(out / f"net.{target}")
    nets = find(folder, out)
    if not nets:
        raise UsageError(f"{folder}: holds no net (.prototxt)")
    out.mkdir(parents=True, exist_ok=True)
    how = {name: value for name, value in loading.items() if value not in (None, False, (), 0)}
    how = {name: list(value) if isinstance(value, tuple) else str(value) for name, value in sorted(how.items())}
    known = _known(out, how)
    report: dict[str, Any] = {
        "date": now(),
        "versions": versions(),
        "command": command_line(),
        "folder": os.fspath(folder),
        "loading": how,
        "targets": list(targets),
        "tolerances": TOLERANCES,
        "nets": [],
    }
    files = (out / "report.html", out / "report.json")
    for index, candidate in enumerate(nets, 1):
        place = candidate.path.relative_to(folder)
        stem = _stem(place, nets, folder)
        entry = _again(known.get(place.as_posix()), candidate, folder, out, targets)
        if entry is None:
            entry = _Move(candidate, folder, out, stem, targets, loading).entry()
        report["nets"].append(entry)
        _write(report, len(nets), files)
        tell(index, len(nets), entry)
    return Outcome(report, files)


def _stem(place: Path, nets: Sequence[Candidate], folder: Path) -> Path:
    """The converted files' path without ending; with the text's own ending where two texts differ in that alone."""
    stem = place.with_suffix("")
    alike = sum(net.path.relative_to(folder).with_suffix("") == stem for net in nets)
    return stem if alike == 1 else place.with_name(place.name.replace(".", "_"))


def _known(out: Path, how: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The entries of an earlier run by net; none where there was none, its nets were loaded otherwise, or its report
    can't be read."""
    try:
        found = json.loads((out / "report.json").read_text(encoding="utf-8"))
        same = found["versions"] == versions() and found["loading"] == how
        return {entry["net"]: entry for entry in found["nets"] if same}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _again(
    entry: dict[str, Any] | None, candidate: Candidate, folder: Path, out: Path, targets: Sequence[str]
) -> dict[str, Any] | None:
    """An earlier run's entry where it still holds: same files, same targets, converted files as they were written."""
    if entry is None or entry["verdict"] == _FAILED or entry["targets"] != list(targets):
        return None
    files = [candidate.path, *candidate.recordings, *(one.path for one in candidate.weights)]
    try:
        seen = {path.relative_to(folder).as_posix() for path in files}
        if seen != {*(one["path"] for one in entry["files"]), *entry["other weights"]}:
            return None
        made = [(out, one) for done in entry["converted"] for one in done["files"]]
        for base, one in [*((folder, one) for one in entry["files"]), *made]:
            if file_record(base / one["path"], one["path"]) != one:
                return None
    except (OSError, KeyError, TypeError):
        return None
    return entry


def _write(report: dict[str, Any], count: int, files: tuple[Path, Path]) -> None:
    verdicts = [net["verdict"] for net in report["nets"]]
    report["counts"] = {"nets": count, **{name: verdicts.count(name) for name in (_AGREES, _DEPARTS, _FAILED, _BARE)}}
    for path, text in zip(files, (to_html(report), json_text(report, indent=2) + "\n"), strict=True):
        with atomic_write(path, "w") as file:
            file.write(text)


def _inputs(net: Net) -> dict[str, Array]:
    """Random inputs: of the net's own size where it says one, a batch of one where it can do with that; none for a net
    that makes its data. An image of one pixel holds the place of a size (pose nets have it so) and proves little."""
    if all(layer.makes_data for layer in net.layers if layer.is_data):
        return {}
    try:
        inputs = random_inputs(net)
    except UsageError:
        inputs = random_inputs(net, _SIZE)
    if any(value.ndim == 4 and value.shape[2:] == (1, 1) for value in inputs.values()):
        with contextlib.suppress(Error, RuntimeError):  # it is made for one pixel, or of another number of values
            larger = random_inputs(net, _SIZE)
            reading.own_outputs(net, larger)
            inputs = larger
    single = {name: value[:1] for name, value in inputs.items()}
    if single.keys() and all(value.ndim and value.shape[0] > 1 for value in inputs.values()):
        try:
            reading.own_outputs(net, single)
        except (Error, RuntimeError):  # a layer speaks of the batch's size
            return inputs
        return single
    return inputs


def _telling(net: Net, inputs: dict[str, Array]) -> tuple[dict[str, Array], float]:
    """The inputs, and the factor by which they are smaller than random images where those give certainties alone:
    probabilities of 0 and 1 hide what departs before them."""
    if not inputs:
        return inputs, 1.0
    for factor in _FACTORS:
        # Whole numbers are labels, indices, switches.
        scaled = {
            name: value if np.array_equal(value, np.rint(value)) else (factor * value).astype(value.dtype)
            for name, value in inputs.items()
        }
        if not all(map(_is_certain, reading.own_outputs(net, scaled).values())):
            return scaled, factor
    return inputs, 1.0


def _is_certain(values: Array) -> bool:
    """Whether values are probabilities of 0 and 1, to rounding."""
    near = (np.abs(values) < _SURE) | (np.abs(values - 1) < _SURE)
    return values.size > 1 and bool(near.all()) and float(values.max()) > 0.5


class _Move:
    """The work on one net."""

    def __init__(
        self,
        candidate: Candidate,
        folder: Path,
        out: Path,
        stem: Path,
        targets: Sequence[str],
        loading: dict[str, Any],
    ) -> None:
        self.candidate, self.folder, self.out, self.stem = candidate, folder, out, stem
        self.targets, self.loading = targets, loading
        self.found: dict[str, Any] = {}

    def entry(self) -> dict[str, Any]:
        """What becomes of the net, for the report."""
        begin = time.monotonic()
        self.found = {
            "net": self.candidate.path.relative_to(self.folder).as_posix(),
            "verdict": _FAILED,
            "error": self.candidate.error,
            "targets": list(self.targets),
            "files": [self._record(path) for path in (self.candidate.path, *self.candidate.recordings)],
            "other weights": [],
            "inputs": {},
            "compared": [],
            "converted": [],
            "warnings": [],
        }
        if not self.candidate.error:
            with self._warnings(), self._errors():
                self.found["verdict"] = self._work()
        self.found["seconds"] = round(time.monotonic() - begin, 2)
        return self.found

    def _record(self, path: Path) -> dict[str, Any]:
        return file_record(path, path.relative_to(self.folder).as_posix())

    @contextmanager
    def _warnings(self) -> Iterator[None]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
        told = [str(one.message) for one in caught if issubclass(one.category, fcnproto.FcnprotoWarning)]
        self.found["warnings"] = list(dict.fromkeys(told))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """What stops one net is told in its entry; the next goes on."""
        try:
            yield
        except (Error, OSError, RuntimeError, MemoryError) as error:
            self.found["error"] = first_line(error)

    def _work(self) -> str:
        net = self._load()
        reference = self._references(net)
        if not self.candidate.weights:
            return _BARE
        agrees = all(one["agrees"] for one in self.found["compared"] if "agrees" in one)
        if reference is not None:
            self._convert(net, reference)
        made = self.found["converted"]
        if reference is None or any("error" in one for one in made):
            return _FAILED
        return _AGREES if agrees and all(one["agrees"] for one in made) else _DEPARTS

    def _load(self) -> Net:
        """The net with the first of its weights that fit."""
        path, failures = self.candidate.path, []
        tried = self.candidate.weights[:_TRIES]
        for number, one in enumerate(tried):
            try:
                net = fcnproto.load(path, one.path, **self.loading)
            except WeightsError as error:
                failures.append(first_line(error))
                continue
            rest = [other.path for other in self.candidate.weights if other is not one]
            self.found["files"].insert(1, self._record(one.path))
            self.found["weights"] = one.path.relative_to(self.folder).as_posix()
            self.found["other weights"] = [other.relative_to(self.folder).as_posix() for other in rest]
            if number:
                self.found["refused weights"] = failures
            return net
        if failures:
            raise WeightsError(failures[0])
        return fcnproto.load(path, **self.loading)

    def _references(self, net: Net) -> Recording | None:
        """Compare with all references; the one that converted files are compared with, None where there is none."""
        for path in self.candidate.recordings:
            name = path.relative_to(self.folder).as_posix()
            self._compare(net, name, "recording", lambda path=path: read_recording(path))  # type: ignore[misc]
        inputs, factor = _telling(net, _inputs(net))
        self.found["inputs"] = {name: list(value.shape) for name, value in inputs.items()} | {
            "values": f"random, seed {SEED}" + (f", values {factor:g} times an image's" if factor < 1 else "")
        }
        exact = self._compare(
            net, "float64", "float64", lambda: float64_reference(net, inputs, with_gradients=False), needed=True
        )
        self._compare(net, "OpenCV", "OpenCV", lambda: opencv_reference(net, inputs))
        return exact

    def _compare(
        self, net: Net, name: str, kind: str, make: Callable[[], Recording], needed: bool = False
    ) -> Recording | None:
        """One comparison, told in the entry; a reference that can't be had is no departure unless it is `needed`."""
        told: dict[str, Any] = {"reference": name, "tolerance": TOLERANCES[kind]}
        self.found["compared"].append(told)
        try:
            reference = make()
            report = compare(copy.deepcopy(net), reference, tolerance=TOLERANCES[kind])
        except (Error, OSError, RuntimeError, MemoryError) as error:
            told["not compared"] = first_line(error)
            if needed:
                raise
            return None
        told |= {"agrees": report.agrees, "arrays": len(report.entries), "worst": report.worst}
        if report.departure is not None:
            entry = report.departure.entry
            told["departs"] = f"{entry.kind} {entry.name!r} of layer {entry.layer!r}: {report.departure.looks_like}"
        return reference

    def _convert(self, net: Net, reference: Recording) -> None:
        """The converted files: each checked when it is written, then all read back and compared with the reference.

        A .py and the .safetensors share a file of weights: it is the .py's, and both are read after it was written.
        """
        title, about = net.graph.name or self.candidate.path.stem, about_inputs(net)
        made: list[tuple[Path, dict[str, Any], tuple[Path, ...]]] = []
        for target in sorted(self.targets, key=lambda target: target != "safetensors"):
            path = self.out / self.stem.with_name(f"{self.stem.name}.{target}")
            told: dict[str, Any] = {"target": target, "files": []}
            self.found["converted"].append(told)
            with _told_in(told):
                made.append((path, told, convert(net, path, title=title, about=about).files))
        for path, told, files in made:
            with _told_in(told):
                told["files"] = [file_record(file, file.relative_to(self.out).as_posix()) for file in files]
                self._read_back(net, reference, path, told)

    def _read_back(self, net: Net, reference: Recording, path: Path, told: dict[str, Any]) -> None:
        given = reading.outputs(path, net, self.candidate.path, reference.inputs, self.loading)
        own = reading.own_outputs(net, reference.inputs)
        deviations = {name: measure(value, reference.blobs[name]).max_rel for name, value in given.items()}
        allowed = {
            name: max(TOLERANCES["converted"], _ROUNDINGS * measure(own[name], reference.blobs[name]).max_rel)
            for name in given
        }
        told["worst"] = max(deviations.values(), default=0.0)
        told["agrees"] = all(np.isfinite(value) and value <= allowed[name] for name, value in deviations.items())


@contextmanager
def _told_in(told: dict[str, Any]) -> Iterator[None]:
    """What prevents one converted file is told; the next is tried."""
    try:
        yield
    except (Error, OSError, RuntimeError, MemoryError, ValueError) as error:
        told["error"] = first_line(error)
