"""The demo's load: the same for the same inputs, as large as asked for, and from where the output says."""

import statistics
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.demo import text
from benchmarks.demo.load import BATCH, FLOOD, LOAD, QUIET, LoadError, build, calibration
from benchmarks.demo.source import find_source
from vllm_hybrid.workload import TraceRequest, load_profile

TRACE = load_profile("azure_conv_2023").sample(seed=0, duration_s=3500)
OFFLINE = load_profile("arxiv_summarization").sample(seed=0, count=500)
TEMPLATE_TOKENS = 20


def count(words):
    return len(words.split())


def writer(seed=0):
    return text.PromptWriter(count, TEMPLATE_TOKENS, seed)


def built(capacity=500, load=LOAD):
    return build(load, capacity, TRACE, OFFLINE, writer())


def demand(items, tenant):
    """The service the tenant asks for, as the served model would count it."""
    own = [i for i in items if i.tenant == tenant]
    return sum(count(i.prompt) + TEMPLATE_TOKENS + 2 * i.output_tokens for i in own)


def test_equal_inputs_give_equal_requests():
    assert built() == built()
    assert built().digest == built().digest
    assert built().digest != built(load=replace(LOAD, seed=1)).digest


@settings(max_examples=8, deadline=None)
@given(capacity=st.floats(250, 2500))
def test_every_tenant_asks_for_its_share_of_the_capacity(capacity):
    phases = built(capacity)
    wanted = {
        QUIET: LOAD.quiet_share * LOAD.flood_phase_s,
        FLOOD: LOAD.flood_share * LOAD.flood_phase_s,
        BATCH: LOAD.offline_work_s,
    }
    for tenant, work_s in wanted.items():
        # A prompt is padded by whole sentences and never shorter than its question, hence the width.
        assert demand(phases.flood, tenant) == pytest.approx(work_s * capacity, rel=0.35), tenant
    burst_s = LOAD.burst_work_s
    assert demand(phases.burst, QUIET) == pytest.approx(burst_s * capacity, rel=0.2)
    assert demand(phases.burst, FLOOD) == pytest.approx(LOAD.burst_ratio * burst_s * capacity, rel=0.2)


def test_lengths_follow_the_machine_so_that_the_request_rate_does_not():
    slow, fast = built(400), built(1200)
    assert fast.length_factor == pytest.approx(3 * slow.length_factor)
    assert len(fast.flood) == pytest.approx(len(slow.flood), rel=0.2)
    assert built(1e5, LOAD.lasting(0.2)).length_factor == LOAD.most_length_factor


def test_requests_are_sorted_and_only_the_backlog_is_offline_and_due_at_once():
    phases = built()
    for items in (phases.flood, phases.burst):
        assert items == sorted(items, key=lambda i: i.due_s)
    assert {i.due_s for i in phases.flood if i.lane == "offline"} == {0.0}
    assert {i.tenant for i in phases.flood if i.lane == "offline"} == {BATCH}
    assert {i.lane for i in phases.burst} == {"online"}
    assert max(i.due_s for i in phases.flood) <= LOAD.flood_phase_s
    assert max(i.due_s for i in phases.burst) == pytest.approx(LOAD.burst_arrivals_s)


def test_the_quiet_tenant_keeps_the_traces_own_times():
    start_s = LOAD.quiet_at * TRACE[-1].arrival_s
    own_times = {round(r.arrival_s - start_s, 6) for r in TRACE}
    assert {round(i.due_s, 6) for i in built().flood if i.tenant == QUIET} <= own_times


def test_minutes_scale_the_work_of_both_servers():
    assert LOAD.lasting(1).work_s == pytest.approx(30)
    assert LOAD.lasting(1).quiet_share == LOAD.quiet_share


def test_a_trace_too_short_for_the_machine_is_refused():
    short = [TraceRequest(float(i), 100, 10) for i in range(50)]
    with pytest.raises(LoadError, match="too short"):
        build(LOAD, 1000, short, OFFLINE, writer())


def test_calibration_asks_for_everything_at_once():
    items = calibration(LOAD, TRACE, writer())
    assert len(items) == LOAD.calibration_requests
    assert {i.due_s for i in items} == {0.0}


def test_prompts_have_the_wanted_length_and_hardly_share_a_beginning():
    write = writer().write
    prompts = [write(120) for _ in range(200)]
    lengths = [count(p) + TEMPLATE_TOKENS for p in prompts]
    longest_sentence = max(count(s) for s in text.SENTENCES)
    assert max(lengths) <= 120
    assert min(lengths) > 120 - longest_sentence
    openings = [" ".join(p.split()[:16]) for p in prompts]
    assert len(set(openings)) > 0.8 * len(openings)
    assert all(p.endswith("?") for p in prompts)
    assert count(write(1)) <= max(count(q) for q in text.QUESTIONS)


def test_the_vocabulary_covers_every_word_once():
    words = text.vocabulary("assistant :")
    assert len(words) == len(set(words))
    assert {"assistant", "bread", "?", "Nobody"} <= set(words)


def test_the_source_is_named(tmp_path):
    twin = find_source(None, seed=0, data_dir=tmp_path)
    assert "twin of azure_conv_2023" in twin.description
    assert statistics.fmean(r.prompt_tokens for r in twin.online) > 500
    own = tmp_path / "mine.csv"
    own.write_text("arrival_s,prompt_tokens,output_tokens\n0,10,5\n")
    given_trace = find_source(own, seed=0, data_dir=tmp_path)
    assert "trace mine.csv" in given_trace.description
    assert list(given_trace.online) == [TraceRequest(0.0, 10, 5)]
