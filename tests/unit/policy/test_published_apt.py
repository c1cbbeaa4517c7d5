"""Apt-Serve: the greedy's factor two, the two kinds of iterations, and what becomes of late requests."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.policy.preset_engine import PresetEngine
from tests.unit.policy.test_no_stall import Load, machines, play
from tests.unit.policy.toy_engine import Machine
from tests.unit.policy.world import Pool, decode, examples, plain_counters, request, step_view, waiting
from vllm_hybrid.config import ConfigError, load_config
from vllm_hybrid.policy.latency import StepTimePredictor
from vllm_hybrid.policy.published.apt import AptPlanner
from vllm_hybrid.policy.published.apt_choice import Entry, densest, densest_in_forms

APT = {"preset": "apt", "slo": {"online": {"ttft_s": 1.0, "tbt_s": 1.0}}}


def planner():
    return AptPlanner(load_config(APT), plain_counters(), StepTimePredictor())


def entry(value, blocks, tokens=1):
    return Entry(request(), value, blocks, tokens)


def lp_optimum(entries, room_blocks):
    """The best value if requests could be cut: by density until the memory is full."""
    value = 0.0
    for e in sorted(entries, key=lambda e: e.value / e.blocks, reverse=True):
        taken = min(e.blocks, room_blocks)
        value += e.value * taken / e.blocks
        room_blocks -= taken
    return value


entries = st.lists(st.builds(entry, st.floats(0, 1e3), st.integers(1, 60)), min_size=1, max_size=30)


@given(entries, st.integers(60, 200))
@examples(500)
def test_the_greedy_is_worth_half_the_optimum_at_least(entries, room_blocks):
    chosen = densest(entries, room_blocks)
    assert sum(e.blocks for e in chosen) <= room_blocks
    assert 2 * sum(e.value for e in chosen) >= lp_optimum(entries, room_blocks) * (1 - 1e-9)


def best_in_forms(entries, price_s, room_blocks):
    """The best value of any choice of requests and forms, by trying all."""
    best = 0.0
    for forms in itertools.product((None, False, True), repeat=len(entries)):
        blocks = sum(e.blocks // (2 if half else 1) for e, half in zip(entries, forms) if half is not None)
        if blocks <= room_blocks:
            best = max(
                best, sum(e.value - price_s * e.blocks * half for e, half in zip(entries, forms) if half is not None)
            )
    return best


even = st.lists(st.builds(lambda v, b: entry(v, 2 * b), st.floats(0, 50), st.integers(1, 20)), min_size=1, max_size=6)


@given(even, st.floats(0, 2), st.integers(40, 80))
@examples(500)
def test_with_forms_it_is_worth_half_the_optimum_at_least(entries, price_s, room_blocks):
    best = best_in_forms(entries, price_s, room_blocks)
    chosen = densest_in_forms(entries, 2, price_s, room_blocks)
    assert sum(e.blocks // (2 if e.view.wants_half else 1) for e in chosen) <= room_blocks
    value = sum(e.value - price_s * e.blocks * e.view.wants_half for e in chosen)
    assert 2 * value >= best - 1e-6


def in_forms(entries, price_s, room_blocks, halves=2, **limits):
    """What each request gets: KV, half, or nothing."""
    chosen = densest_in_forms(entries, halves, price_s, room_blocks, **limits)
    return ["-" if e not in chosen else "half" if e.view.wants_half else "KV" for e in entries]


def test_the_half_form_goes_to_those_who_wait_long_for_few_blocks():
    long_ago, lately = entry(9.0, 4), entry(1.0, 4)  # 2.25 and .25 s per block
    assert in_forms([long_ago, lately], price_s=0.5, room_blocks=6) == ["KV", "-"]  # the upgrade comes before the other
    assert in_forms([long_ago, lately], price_s=0.1, room_blocks=5) == ["half", "half"]
    assert in_forms([long_ago, lately], price_s=0.1, room_blocks=8) == ["KV", "KV"]
    assert in_forms([long_ago, lately], price_s=2.0, room_blocks=4) == ["KV", "-"]  # it pays for nobody


def test_who_is_late_gets_kv_from_spare_memory_only():
    late = entry(1e-6, 4)
    late.late = True
    assert in_forms([late, entry(5.0, 4)], price_s=0.01, room_blocks=8) == ["KV", "KV"]
    assert in_forms([late, entry(5.0, 4)], price_s=0.01, room_blocks=4) == ["-", "KV"]


def test_where_slots_end_blocks_still_upgrade():
    assert in_forms([entry(5.0, 4), entry(4.0, 4)], 0.1, 8, room_slots=1) == ["KV", "-"]
    assert in_forms([entry(5.0, 4, 600), entry(4.0, 4, 600)], 0.1, 8, room_tokens=512) == ["KV", "-"]


def test_blocks_that_do_not_halve_evenly_upgrade_after_their_request():
    assert in_forms([entry(2.0, 3)], 0.33, 2) == ["-"]  # alone it would not fit in KV
    assert in_forms([entry(2.0, 3)], 0.33, 3) == ["KV"]
    assert in_forms([entry(2.0, 1)], 0.0, 1) == ["KV"]  # one block is not less than one


def test_one_of_great_value_is_taken_alone_where_the_greedy_would_miss_it():
    small, great = entry(2.0, 1), entry(90.0, 100)  # densities 2 and .9: the greedy alone would stop at 2.0
    assert densest([great, small], 100) == [great]


def test_what_does_not_fit_alone_stops_nobody():
    huge, small = entry(1e6, 101), entry(1.0, 50)
    assert densest([huge, small], 100) == [small]


def test_the_first_prompt_may_exceed_the_step_and_then_comes_alone():
    first, second = entry(9.0, 1, tokens=900), entry(1.0, 1, tokens=10)
    assert densest([second, first], 10, room_tokens=512) == [first]


@given(seed=st.integers(0, 2**32), machine=machines)
@examples(30)
def test_an_iteration_prefills_or_decodes(seed, machine):
    def never_both(view, plan):
        runs = [v for v in plan.order if v not in plan.paused]
        admits = plan.candidates != ()
        assert not (admits and any(not v.prefilling for v in runs))
        assert len({v.prefilling for v in runs}) <= 1

    engine = PresetEngine(machine, APT, never_both)
    play(engine, Load(engine, seed, requests=25))


def test_prompts_go_first_while_they_wait_longer_than_the_running():
    running = decode(context_tokens=32, arrival_s=90.0, dated_tokens=1, last_token_s=99.9)
    view = step_view([running], waiting([request(arrival_s=99.8)]))
    plan = planner().plan(view)
    assert plan.paused == [running] and len(list(plan.candidates)) == 1


def test_decodes_go_first_once_they_wait_longer_in_sum():
    running = [decode(context_tokens=32, arrival_s=90.0, dated_tokens=1, last_token_s=99.7) for _ in range(3)]
    plan = planner().plan(step_view(running, waiting([request(arrival_s=99.8)])))
    assert plan.order == running and not plan.paused and not list(plan.candidates)


def test_the_longest_wait_per_block_is_admitted_first():
    long_wait = request(prompt_tokens=160, arrival_s=99.2)  # .8 s over 10 blocks
    short_prompt = request(prompt_tokens=16, arrival_s=99.8)  # .2 s over 1 block
    plan = planner().plan(step_view(queue=waiting([long_wait, short_prompt])))
    assert list(plan.candidates) == [short_prompt, long_wait]


def test_a_request_past_its_target_takes_what_others_leave():
    late, fresh = request(prompt_tokens=16, arrival_s=90.0), request(prompt_tokens=160, arrival_s=99.9)
    plan = planner().plan(step_view(queue=waiting([late, fresh])))
    assert list(plan.candidates) == [fresh, late]


def test_running_requests_that_memory_does_not_serve_lose_it():
    rich = decode(context_tokens=160, arrival_s=0.0, dated_tokens=1, last_token_s=99.9)
    dense = decode(context_tokens=16, arrival_s=0.0, dated_tokens=1, last_token_s=99.9)
    pool = Pool(total=11, free=0)  # both need one more block
    plan = planner().plan(step_view([rich, dense], pool=pool))
    assert plan.preempt == [rich] and plan.order == [dense]


@pytest.mark.parametrize("online", [{}, {"ttft_s": 1.0}, {"tbt_s": 1.0}])
def test_it_needs_both_targets(online):
    with pytest.raises(ConfigError, match="ttft_s and tbt_s"):
        load_config({"preset": "apt", "slo": {"online": online}})


def test_a_prompt_longer_than_a_step_is_computed_in_chunks():
    engine = PresetEngine(Machine(step_tokens=64), APT)
    engine.add(request(prompt_tokens=300), 3)
    for _ in range(20):
        if engine.busy:
            assert engine.step()
    assert len(engine.finished) == 1
