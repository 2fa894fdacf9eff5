"""What surgery did to a net, step by step: for programs as objects, for people as lines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

Action = Literal["copied", "coerced", "dropped", "kept", "made", "changed"]


@dataclass(frozen=True)
class Step:
    """One thing done to (or not done with) a layer.

    `action`: "copied" as it is; "coerced" into another shape; "dropped", a layer (or blob) of the source that goes
    nowhere; "kept", a layer of the net that got nothing and keeps its values; "made" from a formula or by combining
    values; "changed" in the definition. `layer` is the net's layer (for "dropped" the source's).
    """

    action: Action
    layer: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.action:8} {self.layer}" + (f": {self.detail}" if self.detail else "")


@dataclass
class Report:
    """The steps of an operation in order."""

    steps: list[Step] = field(default_factory=list)

    def add(self, action: Action, layer: str, detail: str = "") -> None:
        """Note a step."""
        self.steps.append(Step(action, layer, detail))

    def layers(self, action: Action) -> list[str]:
        """The layers that a kind of step was done to, each once, in order."""
        return list(dict.fromkeys(step.layer for step in self.steps if step.action == action))

    def lines(self) -> Iterator[str]:
        """One line per step: `coerced  fc6: blob 0 (4096, 25088) -> (4096, 512, 7, 7)`."""
        return map(str, self.steps)

    def __add__(self, other: Report) -> Report:
        return Report([*self.steps, *other.steps])
