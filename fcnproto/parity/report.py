"""What a comparison found: one `Entry` for each array, the first `Departure`, and the `Report` of both as data.

Finding it is in `comparison.py`; printing and drawing it is done elsewhere.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from fcnproto.lazy import later
from fcnproto.parity.measures import Measures

Array = npt.NDArray[Any]
Kind = Literal["parameter", "blob", "parameter gradient", "input gradient"]


@dataclass(frozen=True)
class Judgement:
    """Deviations of both sides from the same layer in float64, and whether they are no more than float32's rounding."""

    ours: float
    reference: float
    is_rounding: bool

    def __str__(self) -> str:
        return f"the reference's own {self.reference:.2g}, ours {self.ours:.2g}, both against the layer in float64"


@dataclass(frozen=True)
class Entry:
    """One array compared: `name` is a blob's, or `<layer>.<i>`; `measures` is None where the shapes differ."""

    kind: Kind
    layer: str
    type: str
    name: str
    shape: tuple[int, ...]
    reference_shape: tuple[int, ...]
    tolerance: float
    measures: Measures | None
    rounding: float = 0.0
    """An absolute difference that is rounding whatever the reference's own size: gradients that cancel to nothing."""
    judgement: Judgement | None = None
    """Of a blob beyond the tolerance, where the layer can be judged by itself."""

    @property
    def deviation(self) -> float:
        """The largest relative deviation; infinite where the shapes differ or a value is not finite."""
        found = math.nan if self.measures is None else self.measures.max_rel
        return found if math.isfinite(found) else math.inf

    @property
    def agrees(self) -> bool:
        """Whether the shapes are equal and the deviation is within the tolerance, or is float32's rounding."""
        if self.measures is None:
            return False
        if self.is_rounding:
            return True
        return self.deviation <= self.tolerance or self.measures.max_abs <= self.rounding

    @property
    def is_rounding(self) -> bool:
        """Whether it is beyond the tolerance by the rounding of float32 alone."""
        return self.judgement is not None and self.judgement.is_rounding

    @property
    def severity(self) -> float:
        """The deviation in multiples of the tolerance; 1 at most where the entry agrees."""
        if self.tolerance == 0:
            return 0.0 if self.agrees else math.inf
        return min(1.0, self.deviation / self.tolerance) if self.agrees else self.deviation / self.tolerance


@dataclass(frozen=True)
class Departure:
    """The first entry beyond its tolerance, what it looks like, and the layer's deviation by itself.

    `own` is the deviation of the blob when its layers are run on the reference's own values of what they read; None
    where the reference hasn't got these, or for gradients.
    """

    entry: Entry
    looks_like: str
    own: float | None = None

    @property
    def cause(self) -> str:
        """Whether the layer itself is at fault, as far as known."""
        if self.own is None:
            return ""
        if self.own <= self.entry.tolerance:
            return f"given the reference's inputs the layer agrees ({self.own:.2g}): the cause lies before it"
        judged = "" if self.entry.judgement is None else f" ({self.entry.judgement})"
        return f"given the reference's inputs the layer still departs ({self.own:.2g}): the cause is in it{judged}"


@dataclass
class Report:
    """A comparison: entries in the order of layers (unequal parameters, blobs, then gradients in backward order)."""

    net: str
    reference: str
    entries: list[Entry]
    not_compared: list[str]
    """Blobs of ours that the reference lacks."""
    unknown: list[str]
    """Blobs of the reference that the net lacks or can't compute."""
    equal_parameters: int = 0
    """Parameters that the reference recorded and that are the same; they are not among the entries."""
    departure: Departure | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    """How to repeat the comparison (`provenance.py`): date, versions, files with hashes, inputs, tolerances."""
    maps: dict[str, tuple[Array, Array]] = field(default_factory=dict)
    """Label maps (height, width) of the score blobs, ours and the reference's, for pictures."""

    @property
    def agrees(self) -> bool:
        """Whether everything compared lies within its tolerance."""
        return all(entry.agrees for entry in self.entries)

    @property
    def worst(self) -> float:
        """The largest relative deviation of all entries but those that are rounding."""
        return max((entry.deviation for entry in self.entries if not entry.is_rounding), default=0.0)

    @property
    def roundings(self) -> list[Entry]:
        """The entries that lie beyond the tolerance by rounding alone."""
        return [entry for entry in self.entries if entry.is_rounding]

    def _repr_html_(self) -> str:
        """For notebooks: the verdict, and a row for each blob, folded up."""
        return cast("str", later("fcnproto.notebook:of_report")(self))

    def to_dict(self) -> dict[str, Any]:
        """The report in dicts, lists, texts and numbers, for JSON (numbers that are not finite as texts)."""
        departure = self.departure
        return _plain(
            {
                "net": self.net,
                "reference": self.reference,
                "agrees": self.agrees,
                "worst": self.worst,
                "first_departure": departure
                and {
                    "kind": departure.entry.kind,
                    "layer": departure.entry.layer,
                    "name": departure.entry.name,
                    "looks_like": departure.looks_like,
                    "own_deviation": departure.own,
                    "cause": departure.cause,
                },
                "equal_parameters": self.equal_parameters,
                "entries": [{**asdict(entry), "agrees": entry.agrees} for entry in self.entries],
                "not_compared": self.not_compared,
                "not_in_net": self.unknown,
                "provenance": self.provenance,
            }
        )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not np.isfinite(value) else value
