"""The real commands, as far as their usage: what the parsers hold in process, seen once from outside."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

VLLM = str(Path(sys.executable).with_name("vllm"))


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_vllm_serve_refuses_a_config_without_the_scheduler_in_one_line() -> None:
    ended = run(VLLM, "serve", "some-model", "--hybrid-config", '{"strict": true}')
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    last = ended.stderr.strip().splitlines()[-1]
    assert last.endswith("error: --hybrid-config has no effect without --scheduler hybrid: give both or none")


def test_the_module_form_of_the_server_has_the_flags_too() -> None:
    ended = run(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--help=HybridScheduler")
    assert ended.returncode == 0
    assert "--scheduler {vllm,hybrid}" in ended.stdout
    assert "--hybrid-config JSON|FILE" in ended.stdout
