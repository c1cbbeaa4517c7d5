"""The Ray Serve example runs as its README has it: two replicas start, and three clients are served.

Three minutes on two free cores, so it is run where HYBRID_RAY_EXAMPLE is set. The shares are printed, not held to the
weights: measured were .51, .16 and .32, which are rather those of the streams.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("ray")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.ray,
    pytest.mark.skipif("HYBRID_RAY_EXAMPLE" not in os.environ, reason="takes minutes: set HYBRID_RAY_EXAMPLE=1"),
]

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "examples" / "ray_serve" / "README.md"
MODELS_URL = "http://127.0.0.1:8000/v1/models"
START_LIMIT_S, STOP_LIMIT_S = 400, 60


def commands(block: int) -> list[str]:
    """The lines of a block of the README; the environment is the one that the test runs in."""
    blocks = re.findall(r"```bash\n(.*?)```", README.read_text(), re.DOTALL)
    return [line for line in blocks[block].splitlines() if not line.startswith("source ")]


def environment() -> dict[str, str]:
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # beside other tests, replicas at the lowest priority hardly start
    }


def use_all_cores() -> None:
    """Of the machine; a worker of the test run is bound to one of them."""
    os.sched_setaffinity(0, range(os.cpu_count() or 1))


def wait_until_ready(log: Path, process: subprocess.Popen[bytes]) -> None:
    """`serve run FILE` says that it has deployed the file, and nothing when replicas answer."""
    end_s = time.monotonic() + START_LIMIT_S
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(MODELS_URL, timeout=5):
            return
        assert process.poll() is None and time.monotonic() < end_s, log.read_text()[-4000:]
        time.sleep(0.5)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ctrl-C, as the README says; whoever does not go is made to."""
    os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(STOP_LIMIT_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_the_readme_runs_as_written(tmp_path: Path) -> None:
    *prepare, serve = commands(0)
    assert serve.startswith("serve run")
    for line in prepare:
        subprocess.run(line, shell=True, check=True, cwd=ROOT, env=environment(), timeout=120)
    log = tmp_path / "serve.log"
    with log.open("wb") as out:
        server = subprocess.Popen(
            f"exec {serve}",
            shell=True,
            cwd=ROOT,
            env=environment(),
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=use_all_cores,
        )
    try:
        wait_until_ready(log, server)
        (client,) = commands(1)
        done = subprocess.run(
            client, shell=True, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-4000:]
        got = {name: float(part) for name, part in re.findall(r"(\w+) .* ([\d.]+) of all", done.stdout)}
        print(done.stdout)
        assert got.keys() == {"alice", "bob", "carol"} and all(part > 0 for part in got.values()), done.stdout
    finally:
        stop(server)
