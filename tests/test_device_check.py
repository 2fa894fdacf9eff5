"""The check of a GPU tries its sections without one, and says what is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import device_check
from benchmarks.device.setting import Figures, Setting

QUICK = ["--device", "cpu", "--quick"]


def test_sections_run_without_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ["strict", "default_device", "upsampling", "memory", "layer_times"]
    assert device_check.main([*QUICK, "--only", ",".join(chosen), "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "device_check.json").read_text())
    assert report["device"] == "CPU" and list(report["sections"]) == chosen and list(report["seconds"]) == chosen
    assert all(row["good"] for row in report["sections"]["strict"]) and report["sections"]["memory"] == []
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("strict ") for line in lines) == 3 and lines[-1].endswith("for want of time: nothing")


def test_what_is_wrong_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def bad(setting: Setting) -> Iterator[Figures]:
        yield {"what": "a figure", "deviation": 0.5, "good": False}

    def broken(setting: Setting) -> Iterator[Figures]:
        yield {"what": "before", "good": True}
        raise RuntimeError("no such kernel\nand more")

    monkeypatch.setattr(device_check, "SECTIONS", {"bad": (1, bad), "broken": (1, broken), "late": (2000, bad)})
    assert device_check.main(["--device", "cpu", "--only", "bad,broken,late", "--out", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "NOT GOOD" in out and "broken          failed: RuntimeError: no such kernel" in out
    report = json.loads((tmp_path / "device_check.json").read_text())
    assert report["left out"] == ["late"] and report["sections"]["broken"][0]["what"] == "before"


def test_sections_go_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert device_check.main(["--list"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == list(device_check.SECTIONS) and len(listed) > 20
    with pytest.raises(SystemExit):
        device_check.main([*QUICK, "--only", "nothing"])
    assert "no section 'nothing'" in capsys.readouterr().err
