"""The examples run as they are, on the tiny model, and show what their text says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.e2e

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def output_of(example: str, *arguments: str) -> str:
    command = [sys.executable, str(EXAMPLES / example), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=dict(os.environ))
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_offline_batch_serves_online_first_and_tenants_in_turn(tiny_model: Path) -> None:
    printed = output_of("offline_batch.py", str(tiny_model))
    order = [name.split("-")[0] for name in re.search(r"in this order: (.*)", printed)[1].split()]
    assert sorted(order) == ["alice"] + ["archive"] * 8 + ["reports"] * 4
    # All were there before the first step: the online request shares that step's two slots with one other.
    assert "alice" in order[:2]
    # While both tenants had work, they got equal parts, although one asked for twice as much and first.
    offline = [name for name in order if name != "alice"]
    assert offline[:8].count("reports") in (3, 4)


def test_online_offline_http_answers_the_question_before_the_backlog(start_server: Callable[..., Any]) -> None:
    server = start_server("--scheduler", "hybrid", "--max-num-seqs", "4")
    printed = output_of("online_offline_http.py", "--base-url", f"{server.url}/v1")
    done_s = {lane: float(re.search(rf"{lane} .*done after +([\d.]+) s", printed)[1]) for lane in ("online", "offline")}
    assert done_s["online"] < done_s["offline"]
    assert "the slowest of 24" in printed
