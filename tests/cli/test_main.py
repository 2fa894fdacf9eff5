"""The program as a whole: help, versions, errors as one line, exit statuses."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType

import click
import pytest
from tiny_nets import colour_net

import fcnproto
from fcnproto.cli import _main, _options
from fcnproto.cli._main import main


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> object:
    """A function that puts a command `trial` with the given body in the place of the command `demo`."""

    def install(body: object) -> None:
        module = ModuleType("fcnproto.cli.demo")
        module.command = click.command("demo")(body)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "fcnproto.cli.demo", module)

    return install


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fcnproto {fcnproto.__version__}\n"


def test_help_lists_commands_without_importing_them() -> None:
    code = (
        "import sys; from fcnproto.cli._main import main; status = main(['--help']); "
        "sys.exit(status or [m for m in sys.modules if m.startswith('fcnproto.cli.') and '._' not in m] "
        "or 'torch' in sys.modules or 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("demo", "segment", "run", "extract", "summary", "upgrade", "zoo", "train", "test", "time"):
        assert f"\n  {name} " in done.stdout


def test_python_m() -> None:
    done = subprocess.run([sys.executable, "-m", "fcnproto", "zoo", "path", "no"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", _main.commands.list_commands(click.Context(_main.commands)))
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert f"fcnproto {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["segmnt"], "no command 'segmnt'; did you mean 'segment'? (see: fcnproto --help)"),
        (["--nonsense"], "No such option '--nonsense'"),
        (["zoo", "path"], "Missing argument 'NAME' (see: fcnproto zoo path --help)"),
        (["segment", "a", "b", "c", "-o", "d", "--max-side", "0"], "'--max-side'"),
        (["summary", "a", "--input-size", "10x"], "'10x': expected HEIGHTxWIDTH"),
        (["run", "a", "--device", "tpu9"], "--device tpu9: not a device of this machine"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("fcnproto: error: ")
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1


def test_no_arguments_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "Commands:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (fcnproto.WeightsError("x.caffemodel: the file\nis empty"), 1, "x.caffemodel: the file is empty"),
        (
            fcnproto.UsageError("a and b exclude each other."),
            2,
            "a and b exclude each other (see: fcnproto demo --help)",
        ),
        (FileNotFoundError(2, "No such file or directory", "x.txt"), 1, "x.txt: No such file or directory"),
        (OSError("disk on fire"), 1, "disk on fire"),
        (MemoryError(), 1, "out of memory: MemoryError"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried"), 1, "out of memory: "),
        (ZeroDivisionError("division by zero"), 1, f"{__file__}, line "),  # raised in code of the user's own
    ],
)
def test_errors_are_one_line(
    error: BaseException, status: int, line: str, command: object, capsys: pytest.CaptureFixture[str]
) -> None:
    def body() -> None:
        raise error

    command(body)  # type: ignore[operator]
    assert main(["demo"]) == status
    captured = capsys.readouterr()
    assert captured.err.startswith(f"fcnproto: error: {line}")
    assert len(captured.err.splitlines()) == 1


def test_a_fault_of_the_package_is_said_to_be_one(command: object, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    exec(compile("def body():\n    1 / 0\n", fcnproto.__file__, "exec"), names)
    command(names["body"])  # type: ignore[operator]
    assert main(["demo"]) == 1
    line = (
        "fcnproto: error: unexpected ZeroDivisionError: division by zero (a fault of the program; --debug shows where)"
    )
    assert capsys.readouterr().err == line + "\n"


def test_interrupted(command: object, capsys: pytest.CaptureFixture[str]) -> None:
    def body() -> None:
        raise KeyboardInterrupt

    command(body)  # type: ignore[operator]
    assert main(["demo"]) == 130
    assert capsys.readouterr().err.strip() == "fcnproto: interrupted"


@pytest.mark.parametrize("arguments", [["--debug", "demo"], ["demo", "--debug"]])
def test_debug_shows_the_traceback(arguments: list[str], command: object, capsys: pytest.CaptureFixture[str]) -> None:
    def body() -> None:
        raise fcnproto.GraphError("no such blob")

    command(body)  # type: ignore[operator]
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert "Traceback" in captured.err
    assert captured.err.endswith("fcnproto: error: no such blob\n")


def test_warnings_are_one_line_each(command: object, capsys: pytest.CaptureFixture[str]) -> None:
    def body() -> None:
        for text in ("first\nthing", "second [bold] thing"):
            warnings.warn(text, fcnproto.FcnprotoWarning, stacklevel=1)

    command(body)  # type: ignore[operator]
    assert main(["demo"]) == 0
    expected = "fcnproto: warning: first thing\nfcnproto: warning: second [bold] thing\n"
    assert capsys.readouterr().err == expected


def test_exit_status_of_a_command(command: object) -> None:
    command(lambda: 1)  # type: ignore[operator]
    assert main(["demo"]) == 1


def test_reader_that_goes_away(tmp_path: Path) -> None:
    script = f"{sys.executable} -m fcnproto zoo info voc-fcn8s --json | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_missing_model_and_missing_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, _ = colour_net(tmp_path)
    assert main(["run", str(tmp_path / "no.prototxt"), "--image", "a.png"]) == 1
    assert "no.prototxt: can't be read" in capsys.readouterr().err
    assert main(["run", str(model), str(tmp_path / "no.caffemodel"), "--image", "a.png"]) == 1
    assert "no.caffemodel: can't be read" in capsys.readouterr().err


def test_sizes_and_lists() -> None:
    assert _options.parse_size("500x375") == (500, 375)
    assert _options.parse_size("64") == (64, 64)
    for text in ("0x5", "5x", "axb", "1x2x3", "-1x4", ""):
        with pytest.raises(ValueError, match="expected HEIGHTxWIDTH"):
            _options.parse_size(text)
    assert _options.names(None, None, "a, b,,c") == ("a", "b", "c")
    assert _options.shapes(["data=1,3,5,5", "label=7"]) == {"data": (1, 3, 5, 5), "label": (7,)}
    for texts in (["data"], ["data=a,b"], ["data=1", "data=2"]):
        with pytest.raises(fcnproto.UsageError):
            _options.shapes(texts)
