"""One `vllm serve` process: started on a free port, waited for, asked for its metrics, stopped.

Both servers of the demo get `common_flags()`; a scheduler adds its own and nothing else, so that what
differs between two runs is the scheduler.  Eager mode: compiling makes a step a fifth faster and a start a minute
longer, and the load is scaled to what the machine does either way.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.demo import machine

MODEL_NAME = "demo"
_COMMON_FLAGS = (
    *("--max-model-len", "2048"),
    *("--max-num-seqs", "16"),
    *("--max-num-batched-tokens", "256"),
    *("--kv-cache-memory-bytes", str(1 << 30)),
    *("--enable-prefix-caching", "--enforce-eager"),
)
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
_START_LIMIT_S = 600
_STOP_LIMIT_S = 60
_LOG_TAIL_LINES = 20
_SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class ServerError(RuntimeError):
    """The server did not come up, or went down."""


class Server:
    """A running `vllm serve`, ready for requests at `base_url`."""

    def __init__(self, name: str, command: Sequence[str], log: Path, port: int) -> None:
        self.name = name
        self.command = command
        self.base_url = f"http://127.0.0.1:{port}"
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **_ENVIRONMENT},
                start_new_session=True,
            )

    def wait_until_healthy(self) -> float:
        """Seconds until /health answered."""
        start = time.monotonic()
        while not self._healthy():
            waited_s = time.monotonic() - start
            self._check_alive()
            if waited_s > _START_LIMIT_S:
                raise ServerError(f"{self.name}: not healthy after {_START_LIMIT_S} s\n{self._log_tail()}")
            if sys.stdout.isatty():
                print(f"\r{self.name}: starting, {waited_s:.0f} s", end="", flush=True)
            time.sleep(0.5)
        return time.monotonic() - start

    def metrics(self) -> list[tuple[str, dict[str, str], float]]:
        """Every sample on /metrics: (name, labels, value)."""
        with urllib.request.urlopen(f"{self.base_url}/metrics", timeout=30) as response:
            return parse_metrics(response.read().decode())

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.base_url}/health", timeout=2) as response:
                return response.status == 200
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return False

    def _check_alive(self) -> None:
        code = self._process.poll()
        if code is not None:
            raise ServerError(f"{self.name}: ended with status {code}; end of {self._log}:\n{self._log_tail()}")

    def _log_tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:])


@contextmanager
def serve(name: str, model: Path, flags: Sequence[str], log: Path) -> Iterator[Server]:
    """A healthy server for the length of a `with` block."""
    port = _free_port()
    common = common_flags()
    command = [
        str(Path(sys.executable).with_name("vllm")),
        *("serve", str(model), "--served-model-name", MODEL_NAME),
        *("--host", "127.0.0.1", "--port", str(port)),
        *common,
        *flags,
    ]
    print(f"{name}: vllm serve MODEL {shlex.join([*common, *flags])}", flush=True)
    server = Server(name, command, log, port)
    try:
        started_s = server.wait_until_healthy()
        print(f"\r{name}: healthy after {started_s:.0f} s", flush=True)
        yield server
    finally:
        server.stop()


def common_flags() -> list[str]:
    return [*_COMMON_FLAGS, "--dtype", machine.fast_dtype()]


def parse_metrics(text: str) -> list[tuple[str, dict[str, str], float]]:
    samples = (_SAMPLE.match(line) for line in text.splitlines())
    return [(m["name"], dict(_LABEL.findall(m["labels"] or "")), float(m["value"])) for m in samples if m]


def total(samples: Sequence[tuple[str, Mapping[str, str], float]], name: str, **labels: str) -> float | None:
    """The sum of a metric over all series that carry `labels`; None where the server has no such metric."""
    values = [v for n, of, v in samples if n == name and labels.items() <= of.items()]
    return sum(values) if values else None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
