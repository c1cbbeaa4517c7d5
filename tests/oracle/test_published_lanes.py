"""The published policies with lanes or deadlines, and the emulations, on vLLM's real scheduler classes.

Outputs are the true ones, nothing leaks, no two steps in a row are empty while somebody could run; `strict` makes any
error of a policy and any step that does not follow its plan an exception.
"""

import pytest

from tests.oracle.ours import HYBRID
from tests.oracle.progress import ProgressWatch
from tests.oracle.workload import Shape, check_end, draw_load, play
from vllm_hybrid.sim.modelfree import World

pytestmark = pytest.mark.oracle

TARGETS = {"slo": {"online": {"ttft_s": 0.3, "tbt_s": 0.05}}}
SETTINGS = {
    "apt": {"preset": "apt", **TARGETS},
    "qoserve": {"preset": "qoserve", **TARGETS},
    "hygen": {"preset": "hygen", "presets": {"hygen": {"step_budget_s": 0.02, "token_budget": 128}}},
    "orca": {"preset": "orca", "presets": {"orca": {"reserve_tokens": 640}}},
    "prefill_first": {"preset": "prefill_first"},
}
WORLDS = {
    "roomy": {"num_blocks": 400},
    "tight": {"num_blocks": 60, "watermark": 0.05},
    "cached": {"num_blocks": 90, "prefix_caching": True, "max_seqs": 4},
    "drafts": {"num_blocks": 90, "drafts": 3, "step_tokens": 64},
    "v2-runner": {"num_blocks": 60, "v2_runner": True, "step_tokens": 64},
}


@pytest.mark.parametrize("async_mode", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("machine", WORLDS.values(), ids=WORLDS)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_load_runs_to_its_end(settings, machine, async_mode):
    world = World(async_mode, **machine, hybrid=(("strict", True), *settings.items()))
    jobs = draw_load(7, Shape(jobs=40))
    played = play(HYBRID, world, jobs, 7, 0.03, prepare=ProgressWatch)
    check_end(played)
    assert played.loop.finished == {job.request_id for job in jobs} - played.aborted
