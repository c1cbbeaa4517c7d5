"""A headless Chromium, driven through its own debugging protocol: no driver, no package beside `websockets`."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

from websockets.sync.client import ClientConnection, connect

_LIMIT_S = 60.0


class Browser:
    """One page of one browser; `errors` are the uncaught errors of its scripts."""

    def __init__(self, program: str, folder: Path) -> None:
        self._log = folder / "chromium.log"
        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--remote-debugging-port=0",
        ]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [program, *flags, f"--user-data-dir={folder / 'profile'}", "--window-size=1100,700", "about:blank"],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.errors: list[str] = []
        self._serial = 0

    def __enter__(self) -> Browser:
        self._connection = self._connect()
        for domain in ("Page", "Runtime"):
            self._ask(f"{domain}.enable")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._connection.close()
        self._process.terminate()
        self._process.wait(30)

    def _connect(self) -> ClientConnection:
        until_s = time.monotonic() + _LIMIT_S
        while (found := re.search(r"ws://([\d.:]+)/", self._log.read_text(errors="replace"))) is None:
            assert time.monotonic() < until_s and self._process.poll() is None, self._log.read_text(errors="replace")
            time.sleep(0.1)
        with urllib.request.urlopen(f"http://{found[1]}/json/list", timeout=30) as answer:
            page = next(target for target in json.load(answer) if target["type"] == "page")
        return connect(page["webSocketDebuggerUrl"], max_size=None)

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._serial += 1
        self._connection.send(json.dumps({"id": self._serial, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._connection.recv(timeout=_LIMIT_S))
            if message.get("method") == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(message["params"])[:500])
            if message.get("id") == self._serial:
                assert "error" not in message, message
                return message["result"]

    def open(self, url: str) -> None:
        """Go to a page."""
        self._ask("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        result = self._ask("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Until an expression is true."""
        until_s = time.monotonic() + _LIMIT_S
        while not self.run(condition):
            assert time.monotonic() < until_s, f"never: {condition}\n{self.run('document.body.innerText')}"
            time.sleep(0.1)

    def screenshot(self) -> bytes:
        """The page as a PNG."""
        return base64.b64decode(self._ask("Page.captureScreenshot", format="png")["data"])
