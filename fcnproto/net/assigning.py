"""Settings that a net may need several times, once for each blob: a value alone, or values by the blobs' names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fcnproto.errors import UsageError


def by_name(value: Any) -> dict[str, Any]:
    """A setting as a dict by name, "" being that of a value alone. A table of colours is a value, None is nothing."""
    if value is None:
        return {}
    named = isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
    return dict(value) if named else {"": value}


def assign(value: Any, what: str, blobs: Mapping[str, Sequence[str]], needed: bool = True) -> dict[str, Any]:
    """What a setting says for each of the net's blobs; `blobs` has the other names that each goes by.

    Raises `UsageError` for names that no blob has, and (if `needed`) where a blob gets nothing.
    """
    found: dict[str, Any] = {}
    for name, one in by_name(value).items():
        blob = next((key for key, others in blobs.items() if name in (key, *others)), next(iter(blobs)))
        known = sorted({other for key, others in blobs.items() for other in (key, *others)})
        if name and name not in known:
            raise UsageError(f"{what}: the net has nothing called {name!r}; it has {', '.join(known)}")
        if blob in found:
            raise UsageError(f"{what}: {blob!r} is given twice")
        found[blob] = one
    missing = [blob for blob in blobs if blob not in found]
    if needed and missing:
        raise UsageError(f"{what}: the net has {', '.join(blobs)}; say it for {missing[0]!r} too ({missing[0]}=...)")
    return found
