"""Bringing trained weights into the cache: from where their authors published them, a mirror, or a file.

pooch downloads and checks the hash; what it lacks is here: a download that was cut off goes on where it stopped, and a
web page in the place of a model is recognised. Nothing gets its name in the cache before it is a caffemodel that has
the net's layers.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fcnproto.atomic import atomic_write
from fcnproto.errors import DataError, Error, UsageError, WeightsError, first_line
from fcnproto.escaping import printable
from fcnproto.schema.text import read_net
from fcnproto.schema.weights import open_weights
from fcnproto.zoo import cache, nets
from fcnproto.zoo.cache import Fetched

Told = Callable[[int, int], None]
"""Told of bytes that are there and of all (0: not known)."""

_BLOCK = 2**16
_TIMEOUT = 30.0
_HTML = re.compile(rb"^\s*(<!doctype html|<html|<head|<\?xml[^>]*>\s*<!doctype html|<script|<!--)", re.I)
_TITLE = re.compile(rb"<title[^>]*>(.*?)</title>", re.I | re.S)
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


def fetch(
    name: str,
    *,
    source: str | None = None,
    mirror: str | None = None,
    sha256: str | None = None,
    accept_new: bool = False,
    told: Told = lambda done, total: None,
) -> Fetched:
    """The trained weights of a net of the zoo in the cache, brought there unless they are there already.

    Args:
        name: a net of the zoo.
        source: the address (http, https) or the file to take them from, instead of where they were published.
        mirror: the address of a folder that has the file under its published name.
        sha256: what the file's SHA-256 must be.
        accept_new: take a file of another hash than the one that was fetched from there before.

    Raises:
        UsageError: an unknown net, one whose weights were published nowhere, or a package that is missing.
        DataError: the file can't be had, is a web page, or has another hash than it should have.
        WeightsError: it is no caffemodel, or not the net's.
    """
    record = nets.info(name)
    if sha256 is not None and not _SHA256.fullmatch(sha256):
        raise UsageError(f"{printable(sha256, 80)}: a SHA-256 has 64 hexadecimal digits")
    place = _source(name, record.weights_url, source, mirror)
    here = cache.fetched().get(name)
    wanted = here is not None and place in (here.url, None) and (sha256 is None or sha256.lower() == here.sha256)
    if here is not None and wanted and cache.sha256(here.path) == here.sha256:
        return here
    if place is None:
        raise UsageError(f"{name}: nobody has published weights of it; --from says where they are")
    folder = cache.folder()
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / f".{name}.new"
    made.unlink(missing_ok=True)
    try:
        if urlsplit(place).scheme in ("http", "https"):
            _download(place, made, told)
        else:
            _copy(Path(place), made)
        found = cache.sha256(made)
        _check_hash(name, place, found, sha256, here, accept_new)
        _check(name, made, place)
        target = folder / f"{name}.caffemodel"
        os.replace(made, target)
    finally:
        made.unlink(missing_ok=True)
    result = Fetched(target, target.stat().st_size, found, place)
    _remember(folder, name, result)
    return result


def _source(name: str, published: str | None, source: str | None, mirror: str | None) -> str | None:
    """Where to take the weights from: an address, or the whole path of a file; None where nobody says it."""
    if source is not None and mirror is not None:
        raise UsageError("--from says the whole address, --mirror a folder; give one of them")
    if source is not None:
        scheme = urlsplit(source).scheme
        if scheme in ("http", "https"):
            return source
        if "://" in source:
            raise UsageError(f"--from {printable(source, 200)}: expected an http or https address, or a file")
        return os.path.abspath(source)
    if mirror is None or published is None:
        return published
    if urlsplit(mirror).scheme not in ("http", "https"):
        raise UsageError(f"--mirror {printable(mirror, 200)}: expected an http or https address")
    return f"{mirror.rstrip('/')}/{os.path.basename(urlsplit(published).path)}"


def _copy(source: Path, made: Path) -> None:
    try:
        shutil.copyfile(source, made)
    except OSError as error:
        raise DataError(f"{source}: can't be read: {error.strerror or error}") from None


def _download(url: str, made: Path, told: Told) -> None:
    try:
        import pooch
    except ImportError:
        raise UsageError("zoo fetch needs the package pooch; install it with: pip install 'fcnproto[zoo]'") from None
    part = made.with_name(f"{made.name}.part")
    pooch.get_logger().disabled = True
    try:
        pooch.retrieve(url, None, fname=made.name, path=made.parent, downloader=_Resuming(part, told))
    except Error:
        raise
    except (OSError, ValueError) as error:  # requests' errors are OSErrors
        there = part.stat().st_size if part.exists() else 0
        kept = f"; {there:,} bytes are kept, and the same command goes on from there" if there else ""
        raise DataError(f"{url}: can't be fetched: {printable(first_line(error), 300)}{kept}") from error
    for file in (part, _state(part)):
        file.unlink(missing_ok=True)


def _state(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


class _Resuming:
    """A downloader for pooch that writes to a file of its own first, and goes on with it the next time.

    The server is asked for the rest of the same version of the file only (If-Range)."""

    def __init__(self, part: Path, told: Told) -> None:
        self.part, self.told = part, told

    def __call__(self, url: str, output_file: Any, pooch: Any, check_only: bool = False) -> bool | None:
        """As pooch calls it: the content of `url` into `output_file`, a path or an open file."""
        import requests

        if check_only:
            return bool(requests.head(url, timeout=_TIMEOUT, allow_redirects=True).ok)
        begun, version = self._begun(url)
        headers = {"Accept-Encoding": "identity"}
        if begun:
            headers |= {"Range": f"bytes={begun}-", "If-Range": version}
        with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as answer:
            if answer.status_code == 416:  # nothing is left, or it has become shorter: from the start
                self.part.unlink(missing_ok=True)
                return self(url, output_file, pooch)
            answer.raise_for_status()
            begun = begun if answer.status_code == 206 else 0
            length = answer.headers.get("Content-Length", "")
            total = begun + int(length) if length.isdecimal() else 0
            self._note(url, answer.headers)
            self._receive(url, answer, begun, total)
        if total and self.part.stat().st_size != total:
            raise OSError(f"the connection ended after {self.part.stat().st_size:,} of {total:,} bytes")
        with open(self.part, "rb") as content:
            if hasattr(output_file, "write"):
                shutil.copyfileobj(content, output_file, _BLOCK)
            else:
                with open(output_file, "wb") as target:
                    shutil.copyfileobj(content, target, _BLOCK)
        return None

    def _receive(self, url: str, answer: Any, begun: int, total: int) -> None:
        """Write what comes; a web page is refused once its beginning is there."""
        with open(self.part, "ab" if begun else "wb") as file:
            for block in answer.iter_content(_BLOCK):
                if file.tell() == 0 and _HTML.match(block[:1024]):
                    _refuse_page(url, block, self.part)
                file.write(block)
                self.told(file.tell(), total)

    def _begun(self, url: str) -> tuple[int, str]:
        """How many bytes are there of which version of the file; none where that can't be told."""
        try:
            said = json.loads(_state(self.part).read_text(encoding="utf-8"))
            size = self.part.stat().st_size
        except (OSError, ValueError):
            return 0, ""
        if not isinstance(said, dict) or said.get("url") != url or not isinstance(said.get("version"), str):
            return 0, ""
        return (size, said["version"]) if said["version"] else (0, "")

    def _note(self, url: str, headers: Any) -> None:
        tag = headers.get("ETag", "")
        version = tag if tag and not tag.startswith("W/") else headers.get("Last-Modified", "")
        with atomic_write(_state(self.part), "w") as file:
            file.write(json.dumps({"url": url, "version": version}))


def _refuse_page(place: str, content: bytes, part: Path | None = None) -> None:
    if part is not None:
        part.unlink(missing_ok=True)
    title = _TITLE.search(content)
    called = f" called {printable(title.group(1).decode('utf-8', 'replace').strip(), 80)!r}" if title else ""
    raise DataError(f"{place}: gives a web page{called}, not a model; fetch the file with a browser, then: --from FILE")


def _check_hash(
    name: str, place: str, found: str, wanted: str | None, before: Fetched | None, accept_new: bool
) -> None:
    """Raise `DataError` where the hash isn't the one that was asked for, or that the same address gave before."""
    if wanted is not None and found != wanted.lower():
        raise DataError(f"{place}: its SHA-256 is {found}, expected {wanted.lower()}")
    known = before.sha256 if before is not None and before.url == place else None
    if known is not None and found != known and wanted is None and not accept_new:
        raise DataError(
            f"{place}: is another file than {name}'s of before (SHA-256 {found}, was {known}); --new takes it"
        )


def _check(name: str, made: Path, place: str) -> None:
    """Raise where a file is no caffemodel, or has none of the net's layers."""
    with open(made, "rb") as file:
        start = file.read(2**16)
    if _HTML.match(start[:1024]):
        _refuse_page(place, start)
    layers = {layer.name for layer in read_net(nets.path(name, "deploy")).layer}
    try:
        with open_weights(made) as stored:
            filled = {layer.name for layer in stored.layers if layer.blobs}
    except WeightsError as error:
        raise WeightsError(str(error).replace(str(made), place)) from error
    if not filled & layers:
        some = ", ".join(sorted(filled)[:4]) or "none"
        raise WeightsError(f"{place}: has weights of none of {name}'s layers (its layers are {some}, ...)")


def _remember(folder: Path, name: str, result: Fetched) -> None:
    try:
        rows = json.loads((folder / cache.RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        rows = {}
    if not isinstance(rows, dict):
        rows = {}
    rows[name] = {"file": result.path.name, "size": result.size, "sha256": result.sha256, "url": result.url}
    with atomic_write(folder / cache.RECORD, "w") as file:
        file.write(json.dumps(rows, indent=1) + "\n")
