"""How far a fine-tuning has come, on disk beside its results: what an interrupted one goes on from.

`progress.json` says what was asked for, and names the solver's snapshot of the last validation with all that was
measured until then. It is replaced as a whole, after the snapshot is complete; the one before is deleted after that.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fcnproto.atomic import atomic_write
from fcnproto.errors import UsageError
from fcnproto.pictures.chart import Curves

_FILE = "progress.json"


@dataclass
class Progress:
    """What has been reached: `request` is what was asked for, `iteration` the last one that was validated (-1: none).

    `validations` are (iteration, mean IU), a NaN where nothing could be measured; `best` is an iteration, `finished`
    how many iterations were to be done when the final score was written.
    """

    request: dict[str, Any]
    iteration: int = -1
    snapshot: str = ""
    validations: list[tuple[int, float]] = field(default_factory=list)
    best: int = 0
    finished: int | None = None
    curves: Curves = field(default_factory=Curves)

    @property
    def best_value(self) -> float:
        """The mean IU of the best iteration; NaN where there is none yet."""
        return dict(self.validations).get(self.best, math.nan)

    def has_done(self, iterations: int) -> bool:
        """Whether so many iterations are done and scored."""
        return self.finished is not None and self.finished >= iterations

    def write(self, folder: Path) -> None:
        """Write it into the folder of the results."""
        content = asdict(self)
        with atomic_write(folder / _FILE, "w") as file:
            json.dump(content, file)


def read(folder: Path) -> Progress | None:
    """What a fine-tuning has left in a folder. Raises `UsageError` where the file is damaged."""
    path = folder / _FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        curves = Curves(**content.pop("curves"))
        curves.tests = {name: [(step, value) for step, value in points] for name, points in curves.tests.items()}
        content["validations"] = [(step, value) for step, value in content["validations"]]
        return Progress(**content, curves=curves)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: damaged ({error}); choose a new folder for the results") from None


def begun(folder: Path, request: Mapping[str, Any]) -> Progress | None:
    """The progress of the same fine-tuning in this folder; None where the folder holds none.

    Raises `UsageError` where it holds the results of another one.
    """
    found = read(folder)
    if found is None:
        if (folder / "weights.caffemodel").exists():
            raise UsageError(f"{folder}: holds the results of another fine-tuning; choose a new folder")
        return None
    if found.iteration < 0:  # nothing was trained
        return found
    wanted = json.loads(json.dumps(dict(request)))
    unlike = [name for name in {**wanted, **found.request} if wanted.get(name) != found.request.get(name)]
    if unlike:
        raise UsageError(
            f"{folder}: holds the results of another fine-tuning, with other {', '.join(unlike)}; choose a new folder"
        )
    return found
