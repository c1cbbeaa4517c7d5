"""The Ray Serve example runs as its README has it: two replicas start, and three clients get what their weights say."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray")
pytestmark = [pytest.mark.e2e, pytest.mark.ray]

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "examples" / "ray_serve" / "README.md"
CLIENT_LIMIT_S, STOP_LIMIT_S = 500, 60
WEIGHTS = {"alice": 1 / 4, "bob": 1 / 4, "carol": 1 / 2}
STREAMS = {"alice": 32 / 56, "bob": 8 / 56, "carol": 16 / 56}


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
    assert serve.startswith("serve run") and serve.endswith(" &")
    for line in prepare:
        subprocess.run(line, shell=True, check=True, cwd=ROOT, env=environment(), timeout=120)
    log = tmp_path / "serve.log"
    with log.open("wb") as out:
        server = subprocess.Popen(
            f"exec {serve.removesuffix(' &')}",
            shell=True,
            cwd=ROOT,
            env=environment(),
            stdout=out,
            stderr=subprocess.STDOUT,
            process_group=0,  # of its own, but in this session: see the README
            preexec_fn=use_all_cores,
        )
    try:
        (client,) = commands(1)
        done = subprocess.run(
            client, shell=True, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=CLIENT_LIMIT_S
        )
        assert done.returncode == 0, done.stderr[-4000:] + log.read_text()[-4000:]
    finally:
        stop(server)
    got = {name: float(part) for name, part in re.findall(r"(\w+) .* ([\d.]+) of all", done.stdout)}
    assert got.keys() == WEIGHTS.keys(), done.stdout
    # Beside other tests not every stream is always there; but it is the weights that decide.
    for client in WEIGHTS:
        assert abs(got[client] - WEIGHTS[client]) < abs(got[client] - STREAMS[client]), done.stdout
    print(done.stdout)
