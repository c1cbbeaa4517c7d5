"""While no memory is free the last plan stands: cheaper, and the same step for step as planning anew.

Without what a policy learns at its plans (lengths of answers, bursts), which depends on how often it plans.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.sim.test_run import SMALL, device
from vllm_hybrid.engine.scheduler import HybridMixin
from vllm_hybrid.policy.burst import Burst
from vllm_hybrid.sim.run import Contender, RunRecord, SimRequest, simulate

pytestmark = pytest.mark.oracle


def overload(lanes: tuple[str, str]) -> RunRecord:
    """Two clients that together ask for several times what the pool holds."""
    load = [
        SimRequest(f"{client}{i}", i * gap_s, 150 + 37 * i % 90, 100, client=client, lane=lane)
        for client, gap_s, lane in (("a", 0.02, lanes[0]), ("b", 0.04, lanes[1]))
        for i in range(30)
    ]
    return simulate(load, Contender("ours", hybrid={"memory": {"gate": "none"}}), device(), replace(SMALL, max_seqs=64))


@pytest.mark.parametrize("lanes", [("online", "online"), ("online", "offline")], ids="-".join)
def test_reused_plans_decide_nothing_otherwise(lanes: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Burst, "reserve_blocks", lambda *args: 0)
    reusing = overload(lanes)
    monkeypatch.setattr(HybridMixin, "_is_shut", lambda self: False)
    replanning = overload(lanes)
    assert [r.token_s for r in reusing.requests] == [r.token_s for r in replanning.requests]
    assert reusing.planned_steps < replanning.planned_steps
