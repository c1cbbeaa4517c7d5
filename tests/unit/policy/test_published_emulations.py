"""Orca and the prefill-first vLLM: whole prompts, mixed with decodes or before them; refused on a server."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.policy.preset_engine import PresetEngine
from tests.unit.policy.test_no_stall import Load, machines, play
from tests.unit.policy.world import Pool, decode, examples, plain_counters, request, step_view, waiting
from vllm_hybrid.config import ConfigError, load_config
from vllm_hybrid.policy.latency import StepTimePredictor
from vllm_hybrid.policy.presets import PRESETS
from vllm_hybrid.settings import wrap

BIG = {"max_tokens": 8192, "slots": 64}


def planner(name, **options):
    config = load_config({"preset": name, "presets": {name: options}} if options else {"preset": name})
    return PRESETS[name].planner(config, plain_counters(), StepTimePredictor())


def test_orca_mixes_whole_prompts_with_decodes():
    running, queue = decode(), waiting([request(prompt_tokens=3000) for _ in range(2)])
    plan = planner("orca").plan(step_view([running], queue, **BIG))
    assert plan.order == [running] and not plan.paused and len(list(plan.candidates)) == 2 and not plan.caps


@pytest.mark.parametrize(("batch", "reserve", "admitted"), [(4, 16, 3), (16, 4000, 3), (16, 8000, 1)])
def test_orca_runs_as_many_as_the_pool_holds_at_full_length(batch, reserve, admitted):
    queue = waiting([request() for _ in range(9)])
    plan = planner("orca", batch_requests=batch, reserve_tokens=reserve).plan(step_view([decode()], queue, **BIG))
    assert len(list(plan.candidates)) == admitted  # the pool has 16,000 tokens, one request runs


def test_prefill_first_pauses_all_decodes_while_a_prompt_fits():
    running, queue = decode(), waiting([request(prompt_tokens=3000) for _ in range(4)])
    plan = planner("prefill_first").plan(step_view([running], queue, **BIG))
    assert plan.paused == [running] and len(list(plan.candidates)) == 2  # 8,192 tokens hold two whole prompts


def test_prefill_first_decodes_when_the_head_does_not_fit():
    running, queue = decode(), waiting([request(prompt_tokens=3000), request(prompt_tokens=16)])
    plan = planner("prefill_first").plan(step_view([running], queue, Pool(total=100, free=20), **BIG))
    assert not plan.paused and not list(plan.candidates)


@given(seed=st.integers(0, 2**32), machine=machines)
@examples(20)
def test_prefill_first_never_mixes(seed, machine):
    def never_both(view, plan):
        runs = [v for v in plan.order if v not in plan.paused]
        assert plan.candidates == () or all(v.prefilling for v in runs)

    engine = PresetEngine(machine, {"preset": "prefill_first"}, never_both)
    play(engine, Load(engine, seed, requests=25))


@pytest.mark.parametrize("name", ["orca", "prefill_first"])
def test_a_server_refuses_them(name):
    with pytest.raises(ConfigError, match="simulator only"):
        wrap({"hybrid": {"preset": name}})
