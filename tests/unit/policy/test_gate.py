"""The memory gate: its peak is exact, its bound is kept by every run, and it shuts nobody out of an idle engine."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.policy.preset_engine import PresetEngine
from tests.unit.policy.test_no_stall import Load, machines, play
from tests.unit.policy.toy_engine import Machine
from tests.unit.policy.world import OFFLINE, ONLINE, Pool, decode, examples, request, step_view, waiting
from vllm_hybrid.policy.gate import Gate, GatedPlanner, peak_blocks
from vllm_hybrid.policy.plan import StepPlan
from vllm_hybrid.policy.published.batch import BatchPlanner
from vllm_hybrid.policy.published.orders import by_arrival

GATE = {"memory": {"gate": "max_tokens"}}
PRESETS = ("fcfs", "sarathi", "vtc", "lcf", "drr", "rpm", "sarathi_pp", "hybrid")

stays = st.lists(st.tuples(st.integers(-60, 0), st.integers(1, 100)), max_size=12).map(sorted)


@given(stays, st.sampled_from([1, 4, 16]))
@examples(300)
def test_the_peak_is_the_most_that_is_held_at_any_step(stays, block_tokens):
    def held_blocks(step):
        return sum(-(-(tokens + step) // block_tokens) for minus_steps, tokens in stays if step <= -minus_steps)

    assert peak_blocks(stays, block_tokens) == max(map(held_blocks, range(61)), default=0)


@pytest.mark.parametrize("preset", PRESETS)
@given(seed=st.integers(0, 2**32), machine=machines)
@examples(25)
def test_behind_the_gate_no_decode_ever_lacks_a_block(preset, seed, machine):
    engine = PresetEngine(machine, {"preset": preset, **GATE})
    play(engine, Load(engine, seed, requests=25))
    assert not [victim for _, victim, in_step in engine.preemptions if in_step]


def test_without_the_gate_the_same_loads_do():
    victims = 0
    for seed in range(10):
        engine = PresetEngine(Machine(blocks=20, slots=8, step_tokens=64), {"preset": "fcfs"})
        play(engine, Load(engine, seed, requests=25))
        victims += len(engine.preemptions)
    assert victims > 10


def plan_of(running, line, blocks, **fields):
    """Who is admitted behind the gate into a pool of so many blocks beside vLLM's null block."""
    held = sum(-(-v.computed_tokens // 16) for v in running)
    pool = Pool(blocks + 1, blocks - held)
    taken = pool.taken
    plan = GatedPlanner(BatchPlanner(by_arrival), 512).plan(step_view(running, waiting(line), pool, **fields))
    admitted = []
    for v in plan.candidates:
        taken.add(v)
        admitted.append(v)
    return admitted


def sized(prompt_tokens, max_output_tokens, lane=ONLINE):
    return request(lane=lane, prompt_tokens=prompt_tokens, max_output_tokens=max_output_tokens)


def test_requests_that_leave_before_others_have_grown_make_room_for_them():
    leaves_soon = decode(context_tokens=160, max_output_tokens=3)  # 11 blocks
    grows_late = sized(16, 160)  # 2 blocks by then, 12 in the end
    assert Gate.of(step_view([leaves_soon]), 512).demand_blocks(grows_late) == 2
    assert plan_of([leaves_soon], [grows_late], blocks=13) == [grows_late]
    assert plan_of([leaves_soon], [grows_late], blocks=12) == []


def test_who_is_admitted_counts_for_the_next():
    line = [sized(32, 20), sized(32, 20), sized(32, 20)]  # 4 blocks each in the end
    assert plan_of([], line, blocks=11) == line[:2]
    assert plan_of([], line, blocks=12) == line


def test_an_idle_engine_takes_whoever_vllm_takes():
    oversized = sized(64, 10_000)
    assert plan_of([], [oversized, sized(16, 1)], blocks=8) == [oversized]


def test_offline_work_counts_in_full_because_it_may_pause():
    gate = Gate.of(step_view([decode(lane=OFFLINE, context_tokens=16, max_output_tokens=161)]), 512)
    assert gate.fixed_blocks == 11 and not gate.stays


def test_speculation_counts_everybody_in_full_with_the_drafts():
    gate = Gate.of(step_view([decode(context_tokens=16, max_output_tokens=15)], decode_tokens=4), 512)
    assert gate.fixed_blocks == 3 and not gate.stays  # 30 tokens and 3 drafts


def test_a_prompt_that_others_may_overtake_counts_in_full():
    assert Gate.of(step_view(), 0).demand_blocks(sized(16, 161)) == 11


def test_what_vllm_lacks_now_is_wanting_though_there_is_room_in_the_end():
    offline = decode(lane=OFFLINE, context_tokens=16, max_output_tokens=17)  # 2 blocks in the end
    head = sized(240, 9)  # 16
    seen = []

    class Asks:
        def plan(self, view):
            seen.append((view.blocks_needed(head) - view.free_blocks, view.reclaimable_blocks(offline)))
            return StepPlan(token_budget=512, order=[offline])

    for watermark in (0, 4):
        pool = Pool(20, 18, watermark)
        GatedPlanner(Asks(), 512).plan(step_view([offline], waiting([head]), pool))
    assert seen == [(-1, 2), (1, 2)]  # room for 17; 15 are taken at once, with the watermark 14 are there
