"""A recorded run of the real engine, replayed: the simulator must say what the GPU said."""

from __future__ import annotations

import pytest

from benchmarks.sim_vs_vllm import RECORDING, compare, failures
from vllm_hybrid.sim.suites.sources import trace_path

pytestmark = pytest.mark.oracle


@pytest.mark.skipif(
    not trace_path(RECORDING).exists(),
    reason=f"{RECORDING} is not part of the repository; VLLM_HYBRID_TRACES names the folder it lies in",
)
def test_stock_agrees_with_the_recorded_run() -> None:
    assert failures(compare(trace_path(RECORDING))) == []
