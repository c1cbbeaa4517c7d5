"""`vllm-hybrid top`: what a server says, as a table; and one line where it says nothing."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from tests.oracle.ours import HYBRID
from vllm_hybrid.cli import main
from vllm_hybrid.serving.top import render
from vllm_hybrid.sim.modelfree import World, build, make_request


def answers(scheduler: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    return [{"engine": 0, **scheduler.report.status()}], [{"engine": 0, **scheduler.report.clients(10)}]


def test_the_screen_shows_lanes_clients_and_the_shares_since_the_last_screen() -> None:
    scheduler: Any = build(HYBRID, World(max_seqs=2))
    for i in range(6):
        client = ("alice", "bob")[i % 2]
        scheduler.add_request(make_request(f"r{i}", [i + 1] * 40, 5, 0.0, 0, {"client": client, "lane": "online"}))
    first, tokens = render(*answers(scheduler), {})
    assert "preset hybrid  settings version 1  slots 0/2" in first
    scheduler.schedule()
    screen, _ = render(*answers(scheduler), tokens)
    lines = [line.split() for line in screen.splitlines()]
    assert ["online", "4", "2", "0", "2", "0", "fair_share"] in lines
    alice = next(line for line in lines if line[:1] == ["alice"])
    assert alice[1:5] == ["online", "1", "2", "1"] and alice[-2:] == ["41", "50%"]


def test_a_server_that_does_not_answer_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert main(["top", f"http://127.0.0.1:{port}", "--once"]) == 1
    assert capsys.readouterr().err.startswith(f"http://127.0.0.1:{port} gives no status")
