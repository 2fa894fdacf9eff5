"""What a run came to: counts, failed items, throughput; as an object, as JSON, as the sink's manifest."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MANIFEST = "manifest.json"


@dataclass
class Summary:
    """What a run over a corpus came to.

    Attributes:
        command: what was done: "segment", "score folders", "score net", "features".
        sources, sink: the addresses; no sink for a score that is only told.
        done: items done in this run.
        kept: items whose results an earlier run has left in the sink.
        failed: (name, reason) of every other item.
        bytes_read, bytes_written: of images and of results, in this run.
        seconds, seconds_to_first: how long it took, and how long of this until the first results came.
        workers: how many computed.
        done_at_first: items in the first results.
    """

    command: str
    sources: tuple[str, ...] = ()
    sink: str | None = None
    done: int = 0
    kept: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    bytes_read: int = 0
    bytes_written: int = 0
    seconds: float = 0.0
    seconds_to_first: float = 0.0
    workers: int = 0
    done_at_first: int = 0
    began: float = field(default_factory=time.time)

    @property
    def items(self) -> int:
        """All items of the corpus."""
        return self.done + self.kept + len(self.failed)

    @property
    def images_per_second(self) -> float:
        """Items done a second after the first results, so that starting doesn't count; of all where that's all."""
        later, working = self.done - self.done_at_first, self.seconds - self.seconds_to_first
        if later > 0 and working > 0:
            return later / working
        return self.done / self.seconds if self.seconds > 0 else 0.0

    def as_dict(self) -> dict[str, Any]:
        """All of it in dicts, lists, texts and numbers, for JSON."""
        return {
            "command": self.command,
            "sources": list(self.sources),
            "sink": self.sink,
            "items": self.items,
            "done": self.done,
            "kept": self.kept,
            "failures": len(self.failed),
            "failed": [{"name": name, "reason": reason} for name, reason in sorted(self.failed)],
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
            "seconds": round(self.seconds, 3),
            "seconds_to_first": round(self.seconds_to_first, 3),
            "images_per_second": round(self.images_per_second, 3),
            "workers": self.workers,
        }

    @staticmethod
    def of(found: Mapping[str, Any]) -> Summary:
        """The summary that a manifest holds, of a run that is complete: everything is kept, nothing is done."""
        failed = [(entry["name"], entry["reason"]) for entry in found["failed"]]
        return Summary(
            found["command"], tuple(found["sources"]), found["sink"], kept=found["done"] + found["kept"], failed=failed
        )
