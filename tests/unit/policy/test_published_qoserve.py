"""QoServe: the chunk follows the slack, the line follows deadlines, who cannot make it any more goes last."""

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.policy.world import (
    OFFLINE,
    ONLINE,
    Pool,
    decode,
    examples,
    plain_counters,
    prefill,
    request,
    step_view,
    trained,
    waiting,
)
from vllm_hybrid.config import load_config
from vllm_hybrid.policy.published.qoserve import QoservePlanner

MS_PER_TOKEN = {"constant_s": 0.01, "prefill_token_s": 1e-4}
ROOMY = {"pool": Pool(10_000, 10_000), "max_tokens": 8192, "slots": 64}


def planner(predictor=None, ttft_s=6.0, tbt_s=0.05, **options):
    config = load_config(
        {
            "preset": "qoserve",
            "slo": {"online": {"ttft_s": ttft_s, "tbt_s": tbt_s}},
            "presets": {"qoserve": options},
        }
    )
    return QoservePlanner(config, plain_counters(), predictor or trained(**MS_PER_TOKEN))


def running(slack_s, **fields):
    """An online decode whose next token is due in `slack_s`."""
    return decode(deadline_s=100.0 + slack_s - 0.05, output_tokens=1, arrival_s=50.0, **fields)


def test_the_chunk_is_the_largest_whose_time_and_margin_are_within_the_slack():
    queue = waiting([request(prompt_tokens=5000, arrival_s=99.0)])
    for slack_s, tokens in ((0.05, 256), (0.1, 512), (0.3, 2304), (5.0, 2552)):
        plan = planner().plan(step_view([running(slack_s)], queue, **ROOMY))
        plan.candidates.close()
        # 1.2 * (.01 + 1e-4 * (tokens - 1)) <= slack
        expected = max(t for t in (128, *range(256, 2049, 256), 2552) if 1.2 * (0.01 + 1e-4 * (t - 1)) <= slack_s)
        assert plan.token_budget == expected <= tokens


def test_without_slack_the_smallest_step_still_computes_prompts():
    queue = waiting([request(prompt_tokens=5000, arrival_s=99.0)])
    plan = planner().plan(step_view([running(-1.0)], queue, **ROOMY))
    assert plan.token_budget == 128 and len(list(plan.candidates)) == 1


def test_scarce_memory_keeps_the_steps_short():
    queue = waiting([request(prompt_tokens=3000, arrival_s=99.0)])
    scarce = ROOMY | {"pool": Pool(10_000, 1_000)}
    assert planner().plan(step_view([running(9.0)], queue, **scarce)).token_budget == 512


def test_shorter_prompts_go_first_and_older_ones_too():
    long, short = request(prompt_tokens=900, arrival_s=99.0), request(prompt_tokens=100, arrival_s=99.5)
    old = request(prompt_tokens=900, arrival_s=95.0)
    plan = planner().plan(step_view(queue=waiting([old, long, short]), **ROOMY))
    assert list(plan.candidates) == [short, old, long]  # keys 106.3, 108.2, 112.2


def test_offline_prompts_wait_for_online_ones_while_their_deadline_is_far():
    offline = request("b", OFFLINE, prompt_tokens=100, arrival_s=50.0)
    online = request("a", ONLINE, prompt_tokens=1000, arrival_s=99.0)
    plan = planner().plan(step_view(queue=waiting([offline, online]), **ROOMY))
    assert list(plan.candidates) == [online, offline]


def test_who_cannot_make_the_deadline_any_more_goes_last_for_good():
    hopeless = request(prompt_tokens=1000, arrival_s=93.95)  # 1,000 tokens take .12 s, .05 s are left
    fresh = request(prompt_tokens=2000, arrival_s=99.9)
    policy, queue = planner(), waiting([hopeless, fresh])
    for _ in range(2):
        plan = policy.plan(step_view(queue=queue, **ROOMY))
        assert list(plan.candidates) == [fresh, hopeless]


def test_a_started_prompt_that_is_less_urgent_pauses():
    started = prefill(prompt_tokens=4000, done_tokens=100, arrival_s=99.0)
    urgent = request(prompt_tokens=2600, arrival_s=95.0)
    plan = planner().plan(step_view([started], waiting([urgent]), **ROOMY))
    assert plan.paused == [started] and list(plan.candidates) == [urgent]


@given(st.lists(st.floats(-1, 1), max_size=30), st.lists(st.integers(1, 3000), max_size=8))
@examples(200)
def test_every_decode_runs_in_every_step(slacks, prompts):
    decodes = [running(slack_s) for slack_s in slacks]
    queue = waiting([request(prompt_tokens=n, arrival_s=99.0) for n in prompts])
    plan = planner().plan(step_view(decodes, queue, **ROOMY))
    assert plan.order == decodes and not plan.paused
    assert plan.token_budget >= len(decodes)
    plan.candidates.close()
