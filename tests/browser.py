"""A headless Chromium for tests of pages: real mouse, wheel and keys, through its debugging pipe.

Nothing but the browser is needed. `find()` gives its path or None.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

_SECONDS = 60.0


def find() -> str | None:
    """The path of a Chromium or Chrome on this machine."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


class Browser:
    """One page of one browser, 1200 by 800. Use it in a `with` statement."""

    def __init__(self, folder: Path) -> None:
        program = find()
        assert program is not None
        self._number, self._waiting = 0, b""
        from_us, to_browser = os.pipe()
        from_browser, to_us = os.pipe()
        # The protocol's file numbers are 3 (commands) and 4 (answers).
        script = f'exec 3<&{from_us} 4>&{to_us}; exec "$@"'
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"]
        options += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        options += ["--window-size=1200,800", f"--user-data-dir={folder / 'profile'}", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", script, "browser", program, *options],
            pass_fds=(from_us, to_us),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(from_us)
        os.close(to_us)
        self._out, self._in = to_browser, from_browser
        self._session: str | None = None
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._call("Emulation.setDeviceMetricsOverride", width=1200, height=800, deviceScaleFactor=1, mobile=False)
        self._call("Page.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for descriptor in (self._out, self._in):
            os.close(descriptor)
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return dict(answer["result"])

    def _read(self) -> dict[str, Any]:
        end = time.monotonic() + _SECONDS
        while b"\0" not in self._waiting:
            ready, _, _ = select.select([self._in], [], [], max(0.0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            part = os.read(self._in, 1 << 16)
            assert part, "the browser has closed its pipe"
            self._waiting += part
        text, _, self._waiting = self._waiting.partition(b"\0")
        return dict(json.loads(text))

    def open(self, page: Path, fragment: str = "") -> None:
        """Go to a file and wait until its scripts have run."""
        self._call("Page.navigate", url=f"file://{page.resolve()}{fragment}")
        self.wait("location.protocol == 'file:' && document.readyState == 'complete'")

    def visit(self, address: str) -> None:
        """Go to an address of a server and wait until the page's scripts have run."""
        self._call("Page.navigate", url=address)
        self.wait("location.protocol == 'http:' && document.readyState == 'complete'")

    def choose(self, selector: str, file: Path) -> None:
        """Choose a file in a file field, as the browser's dialogue would."""
        found = self._call("Runtime.evaluate", expression=f"document.querySelector({json.dumps(selector)})")
        self._call("DOM.setFileInputFiles", files=[str(file)], objectId=found["result"]["objectId"])

    def key(self, name: str) -> None:
        """Press and release a key by its name (`KeyboardEvent.key`)."""
        text = {"text": name} if len(name) == 1 else {}
        self._call("Input.dispatchKeyEvent", type="keyDown", key=name, **text)
        self._call("Input.dispatchKeyEvent", type="keyUp", key=name)

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, script: str) -> None:
        """Wait until an expression in the page is true."""
        end = time.monotonic() + _SECONDS
        while not self.run(script):
            assert time.monotonic() < end, f"never true: {script}"
            time.sleep(0.05)

    def place(self, selector: str) -> tuple[float, float]:
        """The middle of the first element that a CSS selector finds, in the window."""
        area = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        x, y = self.run(f"(a => [a.left + a.width / 2, a.top + a.height / 2])({area})")
        return float(x), float(y)

    def click(self, selector: str) -> None:
        """Press and release the mouse on an element."""
        self.drag(self.place(selector), self.place(selector))

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Press the mouse at one place of the window, move it, release it at another."""
        self._mouse("mousePressed", start, button="left", clickCount=1)
        if start != end:
            self._mouse("mouseMoved", end, button="left", buttons=1)
        self._mouse("mouseReleased", end, button="left", clickCount=1)

    def wheel(self, place: tuple[float, float], down: float) -> None:
        """Turn the mouse's wheel."""
        self._mouse("mouseWheel", place, deltaX=0, deltaY=down)

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self._call("Input.insertText", text=text)

    def picture(self, path: Path) -> None:
        """Save what is seen as PNG."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))

    def _mouse(self, kind: str, place: tuple[float, float], **more: Any) -> None:
        self._call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], **more)
