"""Writing files whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fcnproto.atomic import atomic_write


def test_content_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with atomic_write(path) as file:
        file.write(b"new")
        assert not path.exists() and len(list(tmp_path.iterdir())) == 1
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


def test_text_is_utf8_with_plain_line_ends(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a.txt", "w") as file:
        file.write("é\n")
    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa9\n"


def test_failures_leave_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path):
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError), atomic_write(tmp_path):
        pass
    with pytest.raises(OSError), atomic_write(tmp_path / "missing" / "a.bin"):
        pass
    with pytest.raises(OSError) as caught, atomic_write(tmp_path / "missing" / "a.bin"):
        pass
    assert caught.value.filename == str(tmp_path / "missing" / "a.bin")  # not that of the temporary file
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="permissions and links as POSIX has them")
def test_permissions_and_links_stay(tmp_path: Path) -> None:
    path, link = tmp_path / "a.bin", tmp_path / "link"
    link.symlink_to(path)
    mask = os.umask(0o027)
    try:
        with atomic_write(link) as file:
            file.write(b"1")
    finally:
        os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o640
    path.chmod(0o600)
    with atomic_write(link) as file:
        file.write(b"2")
    assert path.read_bytes() == b"2" and path.stat().st_mode & 0o777 == 0o600 and link.is_symlink()


def test_other_modes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not write a whole file"), atomic_write(tmp_path / "a", "ab"):
        pass
