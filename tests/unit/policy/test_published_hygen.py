"""HyGen: the budget binds offline work and nothing else; online requests take offline memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.policy.preset_engine import PresetEngine
from tests.unit.policy.test_no_stall import Load, machines, play
from tests.unit.policy.world import OFFLINE, ONLINE, Pool, decode, examples, plain_counters, request, step_view, waiting
from vllm_hybrid.config import load_config
from vllm_hybrid.policy.latency import StepWork
from vllm_hybrid.policy.published.hygen import HygenPlanner
from vllm_hybrid.policy.published.hygen_predictor import Batch, HygenPredictor

PROFILED = (0.01, 1e-4, 1e-6, 1e-8, 1e-3, 2e-4)


def planner(step_budget_s=None, token_budget=None, coefficients=PROFILED):
    options = {"step_budget_s": step_budget_s, "token_budget": token_budget, "coefficients": coefficients}
    config = load_config({"preset": "hygen", "presets": {"hygen": options}})
    return HygenPlanner(config, plain_counters(), HygenPredictor(config.presets.hygen.coefficients))


def predicted_s(plan, admitted=()):
    """What the predictor says of the whole step."""
    batch = Batch(HygenPredictor(PROFILED), StepWork())
    for v in set(plan.order) - set(plan.paused):
        if v.prefilling:
            batch.add_chunk(plan.caps.get(v.request_id, v.missing_tokens))
        else:
            batch.add_decode(v.computed_tokens)
    for v in admitted:
        batch.add_chunk(plan.caps.get(v.request_id, v.missing_tokens))
    return batch.seconds


offline_decodes = st.lists(st.integers(1, 4000), max_size=20)


@given(offline_decodes, st.lists(st.integers(1, 4000), min_size=1, max_size=5), st.floats(1e-3, 0.2))
@examples(200)
def test_offline_work_stays_within_the_budget(offline, online, budget_s):
    running = [decode(lane=ONLINE, context_tokens=n) for n in online]
    running += [decode(lane=OFFLINE, context_tokens=n) for n in offline]
    queue = waiting([request(lane=OFFLINE, prompt_tokens=n) for n in (100, 700)])
    plan = planner(budget_s).plan(step_view(running, queue, Pool(10_000, 10_000), slots=64, max_tokens=1024))
    admitted = list(plan.candidates)
    added = admitted or any(v.lane is OFFLINE for v in set(plan.order) - set(plan.paused))
    assert not added or predicted_s(plan, admitted) <= budget_s * (1 + 1e-9)
    assert all(v not in plan.paused for v in running if v.lane is ONLINE)


def test_online_work_is_not_bound_by_the_budget():
    plan = planner(1e-6).plan(step_view(queue=waiting([request(lane=ONLINE, prompt_tokens=400)])))
    admitted = list(plan.candidates)
    assert len(admitted) == 1 and not plan.caps


def test_without_a_budget_offline_work_fills_the_step():
    queue = waiting([request(lane=OFFLINE, prompt_tokens=300) for _ in range(3)])
    plan = planner(token_budget=512).plan(step_view(queue=queue))
    admitted = list(plan.candidates)
    assert [plan.caps.get(v.request_id, v.missing_tokens) for v in admitted] == [300, 212]


def test_a_token_budget_holds_no_online_decode_back():
    running = [decode(lane=ONLINE) for _ in range(20)]
    plan = planner(token_budget=8).plan(step_view(running, slots=64))
    assert plan.token_budget == 20 and not plan.paused
    plan.candidates.close()


def test_an_online_request_evicts_the_offline_one_admitted_last():
    first, last = decode(lane=OFFLINE, context_tokens=160), decode(lane=OFFLINE, context_tokens=160)
    head = request(lane=ONLINE, prompt_tokens=100)
    plan = planner().plan(step_view([first, last], waiting([head]), Pool(total=20, free=0)))
    assert plan.preempt == [last] and first in plan.order
    plan.candidates.close()


def test_nobody_is_evicted_for_a_request_that_cannot_come_in_anyway():
    offline, online = decode(lane=OFFLINE, context_tokens=16), decode(lane=ONLINE, context_tokens=160)
    head = request(lane=ONLINE, prompt_tokens=100)
    plan = planner().plan(step_view([offline, online], waiting([head]), Pool(total=11, free=0)))
    assert not plan.preempt and not list(plan.candidates)


def test_offline_decodes_stand_last_so_that_they_lose_blocks_first():
    offline, online = decode(lane=OFFLINE), decode(lane=ONLINE)
    assert planner().plan(step_view([offline, online])).order == [online, offline]


@given(seed=st.integers(0, 2**32), machine=machines)
@examples(20)
def test_an_online_decode_runs_in_every_step(seed, machine):
    def online_decodes_run(view, plan):
        held_back = {*plan.paused, *plan.preempt}
        assert not any(v in held_back for v in view.running if v.lane is ONLINE and not v.prefilling)

    settings = {"preset": "hygen", "presets": {"hygen": {"step_budget_s": 0.01}}}
    engine = PresetEngine(machine, settings, online_decodes_run)
    play(engine, Load(engine, seed, requests=25))


# -- the predictor -----------------------------------------------------------------------------------------------------
@given(
    st.integers(0, 2000),
    st.floats(0, 0.5),
    st.sampled_from([PROFILED, (0.01, 0, 0, 1e-8, 0, 0), (0, 1e-4, 0, 0, 0, 0)]),
)
@examples(300)
def test_the_largest_chunk_is_exact(tokens, budget_s, coefficients):
    batch = Batch(HygenPredictor(coefficients), StepWork())
    batch.add_chunk(tokens)
    fits = int(min(1e9, batch.chunk_within(budget_s)))
    for chunk, expected in ((fits, True), (fits + 2, False)):
        grown = Batch(batch.predictor, StepWork(prefill_tokens=tokens, prefills=1))
        grown.add_chunk(chunk)
        if chunk > 0 or not expected:
            assert (grown.seconds <= budget_s * (1 + 1e-6) + 1e-9) is expected


def test_it_learns_its_own_features():
    truth, learned = HygenPredictor((0.01, 1e-4, 1e-6, 0.0, 0.0, 2e-4)), HygenPredictor()
    works = [StepWork(d, 64 * p, 500.0 * d, 0.0, p) for d in range(20) for p in range(5)]
    for _ in range(40):
        for work in works:
            learned.observe(work, truth.seconds(work))
    assert learned.ready
    for work in works[5:]:
        assert learned.seconds(work) == pytest.approx(truth.seconds(work), rel=0.15)


def test_given_coefficients_are_not_learned_over():
    predictor = HygenPredictor(PROFILED)
    for _ in range(100):
        predictor.observe(StepWork(decodes=1), 1.0)
    assert tuple(predictor.coefficients) == PROFILED
