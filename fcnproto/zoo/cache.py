"""What `fcnproto zoo fetch` has brought: trained weights in a cache of the user's, each with its size and hash.

Reading alone; the fetching is in `zoo/fetching.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

PLACE = "FCNPROTO_CACHE"
"""The environment variable that names another folder for the cache."""
RECORD = "fetched.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_BLOCK = 2**22


@dataclass(frozen=True)
class Fetched:
    """A file of weights in the cache: its bytes, their SHA-256, and where they came from."""

    path: Path
    size: int
    sha256: str
    url: str


def folder() -> Path:
    """The cache: `$FCNPROTO_CACHE`, else where the system keeps such things (by platformdirs, if it is installed)."""
    chosen = os.environ.get(PLACE)
    if chosen:
        return Path(chosen)
    try:
        from platformdirs import user_cache_path
    except ImportError:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fcnproto"
    return Path(user_cache_path("fcnproto", appauthor=False))


def fetched() -> dict[str, Fetched]:
    """The weights that were fetched, by the net's name; those whose file has gone or changed its size are left out."""
    place = folder()
    try:
        rows = json.loads((place / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    found = {}
    for name, row in rows.items() if isinstance(rows, dict) else ():
        try:
            one = Fetched(place / os.path.basename(row["file"]), int(row["size"]), str(row["sha256"]), str(row["url"]))
            if _SHA256.fullmatch(one.sha256) and one.path.stat().st_size == one.size:
                found[name] = one
        except (OSError, KeyError, TypeError, ValueError):
            continue
    return found


def sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal digits."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
    return found.hexdigest()
