"""Every policy by name on the real scheduler: outputs right, nothing leaks, all requests end, whatever the pool."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracle.ours import HYBRID
from tests.oracle.workload import Shape, check_end, draw_load, play
from vllm_hybrid.config.presets import NEED_TARGETS, READS
from vllm_hybrid.engine.scheduler import HybridMixin
from vllm_hybrid.engine.tally import StepMode
from vllm_hybrid.policy.presets import PRESETS
from vllm_hybrid.policy.request import Lane
from vllm_hybrid.sim.modelfree import World

pytestmark = pytest.mark.oracle

TARGETS = {"online": {"ttft_s": 0.5, "tbt_s": 0.05}}
GATED = sorted(name for name, read in READS.items() if "memory" in read)


def settings_of(preset: str, **more: object) -> tuple:
    """Settings of a `World` that select the policy."""
    targets = {"slo": TARGETS} if preset in NEED_TARGETS else {}
    return tuple({"strict": True, "preset": preset, **targets, **more}.items())


@pytest.mark.parametrize("async_mode", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("num_blocks", [48, 400], ids=["tight", "wide"])
@pytest.mark.parametrize("preset", PRESETS)
def test_outputs_are_right_and_everything_ends(preset: str, num_blocks: int, async_mode: bool) -> None:
    for seed in range(3):
        world = World(async_mode, num_blocks=num_blocks, step_tokens=128, hybrid=settings_of(preset))
        played = play(HYBRID, world, draw_load(seed, Shape(jobs=40)), seed, abort_rate=0.02)
        check_end(played)
        assert played.loop.scheduler.tally.policy_errors == 0


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    preset=st.sampled_from(GATED),
    async_mode=st.booleans(),
    num_blocks=st.sampled_from((48, 60, 120)),
    max_seqs=st.sampled_from((4, 16, 40)),
    step_tokens=st.sampled_from((48, 128, 512)),
    drafts=st.sampled_from((0, 0, 3)),
    output_tokens=st.sampled_from((20, 150)),
    seed=st.integers(0, 10_000),
)
def test_behind_the_gate_nothing_is_preempted_for_memory(
    preset, async_mode, num_blocks, max_seqs, step_tokens, drafts, output_tokens, seed
):
    hybrid = settings_of(preset, memory={"gate": "max_tokens"})
    world = World(
        async_mode,
        num_blocks=num_blocks,
        max_seqs=max_seqs,
        step_tokens=max(step_tokens, max_seqs * (1 + drafts)),
        drafts=drafts,
        hybrid=hybrid,
    )
    shape = Shape(jobs=40, output_tokens=output_tokens)
    unplanned = []

    def watch(loop):
        scheduler = loop.scheduler
        preempt = scheduler._preempt_request

        def noted(request, *args, **kwargs):
            planned = scheduler.plan_queue._candidates is None  # before vLLM's own step begins
            unplanned.extend([] if planned else [request.request_id])
            preempt(request, *args, **kwargs)

        scheduler._preempt_request = noted

    played = play(HYBRID, world, draw_load(seed, shape), seed, abort_rate=0.02, prepare=watch)
    check_end(played)
    assert unplanned == []
    if not PRESETS[preset].lanes:
        assert sum(played.loop.scheduler.tally.preemptions[lane] for lane in Lane) == 0


@pytest.mark.parametrize("async_mode", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("preset", ["fcfs", "sarathi", "vtc"])
def test_a_head_that_finds_no_memory_is_not_asked_in_every_step_and_nothing_is_missed(preset, async_mode, monkeypatch):
    def steps_and_modes():
        world = World(async_mode, num_blocks=60, hybrid=settings_of(preset))
        steps = []
        jobs = draw_load(3, Shape(jobs=40, output_tokens=150, arrival_steps=1))
        played = play(HYBRID, world, jobs, on_schedule=lambda step: steps.append(dict(step.num_scheduled_tokens)))
        return steps, played.loop.scheduler.tally.steps

    steps, modes = steps_and_modes()
    monkeypatch.setattr(HybridMixin, "_is_shut", lambda scheduler: False)
    steps_asked, modes_asked = steps_and_modes()
    assert steps == steps_asked
    assert modes[StepMode.PLAN] < 0.6 * modes_asked[StepMode.PLAN]
