"""The oracle itself: vLLM's own schedulers pass it, and a scheduler that errs does not."""

import itertools

import pytest
from vllm.v1.core.sched.scheduler import Scheduler

from tests.oracle.recording import Recorder, first_difference
from tests.oracle.shadow import OracleError, expected_output
from tests.oracle.workload import Shape, check_end, draw_load, play, run_and_check
from vllm_hybrid.sim.modelfree import STOCK, Classes, World

pytestmark = pytest.mark.oracle

MODES = pytest.mark.parametrize("async_mode", [False, True], ids=["sync", "async"])


@MODES
@pytest.mark.parametrize("v2_runner", [False, True], ids=["runner-v1", "runner-v2"])
def test_stock_passes(async_mode, v2_runner):
    for seed, blocks, drafts, policy in itertools.product(range(2), (120, 400), (0, 3), ("fcfs", "priority")):
        world = World(async_mode, blocks, drafts=drafts, policy=policy, v2_runner=v2_runner)
        played = run_and_check(STOCK, world, seed, Shape(jobs=40, priorities=3 if blocks > 200 else 1))
        assert played.loop.steps > 50


def test_the_same_load_twice_gives_the_same_steps():
    recorders = [Recorder(), Recorder()]
    for recorder in recorders:
        play(STOCK, World(num_blocks=120), draw_load(3, Shape(jobs=30)), 3, 0.03, on_schedule=recorder)
    assert recorders[0].steps == recorders[1].steps
    assert first_difference(recorders[0].steps[5], recorders[1].steps[6]) is not None


def test_expected_output_depends_on_every_prompt_token():
    prompt = list(range(40))
    outputs = {tuple(expected_output([*prompt[:i], 999, *prompt[i + 1 :]], 8)) for i in range(40)}
    assert len(outputs) == 40


class _CountsOneTooMany(Scheduler):
    def _update_after_schedule(self, scheduler_output):
        super()._update_after_schedule(scheduler_output)
        for request in self.running:
            if request.num_computed_tokens < request.num_tokens - 2:
                request.num_computed_tokens += 1


class _FreesBlocksTooEarly(Scheduler):
    def schedule(self, throttle_prefills=False):
        if self.current_step == 20:
            self.kv_cache_manager.free(self.running[0])
        return super().schedule(throttle_prefills)


class _LosesABlock(Scheduler):
    def _free_request(self, request, delay_free_blocks=False):
        if request.request_id == "r7":
            self.kv_cache_manager.coordinator.pop_blocks_for_free(request.request_id)
        return super()._free_request(request, delay_free_blocks)


@pytest.mark.parametrize(
    ("mistaken", "says"),
    [(_CountsOneTooMany, "goes on at"), (_FreesBlocksTooEarly, "KV wrong"), (_LosesABlock, "blocks leaked")],
)
def test_a_mistaken_scheduler_is_caught(mistaken, says):
    classes = Classes(mistaken, STOCK.asynchronous)
    with pytest.raises(OracleError, match=says):
        check_end(play(classes, World(), draw_load(0, Shape(jobs=20)), 0))
