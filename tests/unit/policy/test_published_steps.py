"""Every published policy of this room survives random loads: legal plans, no stall, every request ends.

The loads are those of `test_no_stall.py`, on the toy of vLLM's scheduler loop; the real scheduler is asked the same in
tests/oracle/test_published_lanes.py.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.policy.preset_engine import PresetEngine
from tests.unit.policy.test_no_stall import Load, machines, play
from tests.unit.policy.world import examples

TARGETS = {"slo": {"online": {"ttft_s": 0.2, "tbt_s": 0.05}}}
ALL_LATE = {"slo": {"online": {"ttft_s": 1e-3, "tbt_s": 1e-3}}}
PROFILED = [0.005, 5e-5, 1e-7, 0, 0, 2e-4]
SETTINGS = {
    "apt": {"preset": "apt", **TARGETS},
    "apt-all-late": {"preset": "apt", **ALL_LATE},
    "qoserve": {"preset": "qoserve", **TARGETS},
    "qoserve-all-late": {"preset": "qoserve", **ALL_LATE, "presets": {"qoserve": {"ttlt_s": 0.01}}},
    "hygen": {"preset": "hygen"},
    "hygen-budget": {"preset": "hygen", "presets": {"hygen": {"step_budget_s": 0.02, "token_budget": 48}}},
    "hygen-no-room": {"preset": "hygen", "presets": {"hygen": {"step_budget_s": 1e-6, "coefficients": PROFILED}}},
    "orca": {"preset": "orca", "presets": {"orca": {"batch_requests": 4, "reserve_tokens": 64}}},
    "prefill-first": {"preset": "prefill_first"},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@given(seed=st.integers(0, 2**32), machine=machines)
@examples(25)
def test_every_request_ends_and_no_two_steps_in_a_row_are_empty(settings, seed, machine):
    engine = PresetEngine(machine, settings)
    load = Load(engine, seed, requests=25)
    play(engine, load)
    assert sorted(v.request_id for v in engine.finished) == sorted(v.request_id for v in load.all)
    assert engine.pool.free == engine.pool.total
    assert not len(engine.queue) and not engine.running
