"""The demo, shortened, from end to end: two real servers, the real client, every output.

How much better one scheduler is than the other depends on an otherwise idle machine and is not asserted here;
that nothing was lost and that the policy was at work all the time does not.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.demo.__main__ import main

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]

HOLD_ON_ANY_MACHINE = {
    "stock: every request finished",
    "hybrid: every request finished",
    "hybrid: offline work finished",
    "hybrid: policy errors",
    "hybrid: steps with two live clients that ran a plan",
}


def test_the_demo_runs_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "tiny", "--quick", "--out", str(tmp_path)]) == 0
    document = json.loads((tmp_path / "demo.json").read_text())
    failed = {check["name"] for check in document["checks"] if not check["ok"]}
    assert not failed & HOLD_ON_ANY_MACHINE
    assert {check["name"] for check in document["checks"]} >= HOLD_ON_ANY_MACHINE
    stock, hybrid = document["schedulers"]["stock"], document["schedulers"]["hybrid"]
    for phase in ("flood", "burst"):
        assert stock[phase]["total_input_tokens"] == hybrid[phase]["total_input_tokens"]
        assert stock[phase]["total_output_tokens"] == hybrid[phase]["total_output_tokens"]
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "Phase 1" in printed
    assert "azure_conv_2023" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trace", "absent.csv"], "absent.csv: no such file"),
        (["--model", "gpt9"], "MODEL=gpt9: must be one of smollm2, tiny"),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main([*arguments, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
