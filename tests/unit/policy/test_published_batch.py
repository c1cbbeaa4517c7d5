"""Sarathi's batch: decodes always and first, started prompts next, then the head of the line and nobody before it."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.unit.policy.preset_engine import PresetEngine
from tests.unit.policy.test_no_stall import Load, machines, play
from tests.unit.policy.toy_engine import Machine
from tests.unit.policy.world import OFFLINE, ONLINE, Pool, admissions, decode, examples, prefill, request, step_view
from tests.unit.policy.world import waiting as queue_of
from vllm_hybrid.policy.plan import check_plan
from vllm_hybrid.policy.published.batch import BatchPlanner
from vllm_hybrid.policy.published.orders import by_arrival

GATE = {"memory": {"gate": "max_tokens"}}
NAMES = ("fcfs", "sarathi", "vtc", "lcf", "drr", "rpm")
SETTINGS = {name: {"preset": name} for name in NAMES}
SETTINGS |= {f"{name}-gated": {"preset": name, **GATE} for name in (*NAMES, "sarathi_pp", "hybrid")}
SETTINGS["sarathi-budget"] = {"preset": "sarathi", "presets": {"sarathi": {"token_budget": 24}}}
SETTINGS["sarathi_pp"] = {"preset": "sarathi_pp", "presets": {"sarathi_pp": {"token_budget": 40}}}
LANELESS = [name for name in SETTINGS if name not in ("sarathi_pp", "sarathi_pp-gated", "hybrid-gated")]


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@given(seed=st.integers(0, 2**32), machine=machines)
@example(seed=66980, machine=Machine(20, watermark_blocks=5, slots=3, step_tokens=16))  # the watermark alone is short
@examples(20)
def test_every_request_ends_and_no_two_steps_in_a_row_are_empty(settings, seed, machine):
    engine = PresetEngine(machine, settings)
    load = Load(engine, seed, requests=25)
    play(engine, load)
    assert sorted(v.request_id for v in engine.finished) == sorted(v.request_id for v in load.all)
    assert engine.pool.free == engine.pool.total
    assert not len(engine.queue) and not engine.running


@pytest.mark.parametrize("name", LANELESS)
@given(seed=st.integers(0, 2**32), machine=machines)
@examples(15)
def test_a_running_decode_is_never_paused(name, seed, machine):
    def check(view, plan):
        decodes = sum(not v.prefilling for v in view.running)
        assert not plan.paused and not plan.preempt and not plan.caps
        assert plan.token_budget >= min(decodes, view.max_tokens)
        assert name.startswith("fcfs") or all(not v.prefilling for v in plan.order[:decodes])

    engine = PresetEngine(machine, SETTINGS[name], check)
    play(engine, Load(engine, seed, requests=15))


running = st.lists(st.builds(decode, context_tokens=st.integers(1, 200)), max_size=6)
started = st.lists(st.builds(prefill, prompt_tokens=st.integers(10, 200), done_tokens=st.integers(0, 9)), max_size=3)
waiting = st.lists(st.builds(request, prompt_tokens=st.integers(1, 300)), max_size=8)


@given(running, started, waiting, st.integers(0, 40), st.integers(1, 64))
@examples(200)
def test_the_head_that_does_not_fit_stops_all_admissions(decodes, prompts, line, free, token_budget):
    pool, queue = Pool(1000, free), queue_of(line)
    view = step_view(decodes + prompts, queue, pool, slots=32)
    plan = BatchPlanner(by_arrival, token_budget).plan(view)
    check_plan(view, plan)
    admitted = list(admissions(pool, queue, plan.candidates))
    assert admitted == line[: len(admitted)]
    left = line[len(admitted) :]
    assert plan.shut_by is (left[0] if left else None)
    if left:
        assert not pool.admissible_tokens(left[0], 0)


def test_who_cannot_run_yet_stops_nobody():
    first, second = request(), request()
    pool = Pool(blocked={first})
    plan = BatchPlanner(by_arrival).plan(step_view(queue=queue_of([first, second]), pool=pool))
    assert list(plan.candidates) == [second]


def test_the_step_grows_to_hold_its_decodes():
    decodes = [decode() for _ in range(20)]
    plan = BatchPlanner(by_arrival, 8).plan(step_view(decodes, slots=32))
    assert plan.token_budget == 20


def test_who_lost_its_memory_comes_back_before_anybody_new():
    late, early = (request(arrival_s=at, started=True, disturbed_s=50.0) for at in (9.0, 3.0))
    new = request(arrival_s=1.0)
    plan = BatchPlanner(by_arrival).plan(step_view(queue=queue_of([new, late, early])))
    assert list(plan.candidates) == [early, late, new]


def test_online_work_goes_first_and_offline_work_fills_the_step():
    engine = PresetEngine(Machine(blocks=200, slots=8, step_tokens=64), {"preset": "sarathi_pp"})
    offline = [request("batch", OFFLINE, 200) for _ in range(3)]
    for view in offline:
        engine.add(view, 20)
    engine.step()
    chat = request("chat", ONLINE, 50)
    engine.add(chat, 5)
    assert engine.step() == 64
    assert chat.output_tokens == 1 and sum(v.computed_tokens for v in offline) == 64 + 14


def test_hygen_star_lets_offline_requests_in_at_its_rate():
    settings = {"preset": "hygen_star", "presets": {"hygen_star": {"offline_rate": 2.0}}}
    engine = PresetEngine(Machine(blocks=500, slots=16, coefficients=(0.01, 0, 0, 0, 0)), settings)
    for _ in range(30):
        engine.add(request("batch", OFFLINE, 16), 2)
    engine.add(request("chat", ONLINE, 16), 1000)
    while engine.now_s < 5.0:
        engine.step()
        let_in = len(engine.finished) + len(engine.running) - 1
        assert let_in <= 1 + 2.0 * engine.now_s
    assert let_in >= 9
