"""Prices of service: the profiled quadratic adds up whatever the chunks, seconds are those of the predictor."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.policy.world import ONLINE, examples, request
from vllm_hybrid.config import ConfigError, load_config
from vllm_hybrid.policy.cost import UNTRAINED_S, ProfiledPrices, SecondPrices, TokenPrices
from vllm_hybrid.policy.fairness import VirtualCounters
from vllm_hybrid.policy.latency import StepTimePredictor, StepWork
from vllm_hybrid.policy.latency_model import NOTHING

PAPER = (1.146, 0.21002, 0.10075, 0.0039868, 0.0032473)


def whole(prompt: int, output: int) -> float:
    """h(n_p, n_q) of the VTC artifact."""
    a, b, c, d, e = PAPER
    return a + b * prompt + c * output + d * prompt * output + e * output**2


@given(prompt=st.integers(1, 3000), outputs=st.lists(st.integers(1, 40), min_size=1, max_size=20), cut=st.floats(0, 1))
@examples(200)
def test_the_profiled_cost_of_a_request_is_its_quadratic_however_it_is_cut(prompt, outputs, cut):
    prices, first = ProfiledPrices(PAPER), int(cut * prompt)
    paid = prices.prompt(first, 0, True, NOTHING) if first else 0.0
    paid += prices.prompt(prompt - first, first, not first, NOTHING)
    done = 0
    for tokens in outputs:
        paid += prices.outputs(prompt, done, tokens, NOTHING)
        done += tokens
    assert paid == pytest.approx(whole(prompt, done))


@given(at=st.lists(st.integers(1, 500), min_size=1, max_size=8), steps=st.integers(1, 60))
@examples(100)
def test_steps_that_repeat_are_charged_together_what_they_would_be_alone(at, steps):
    prices = ProfiledPrices(PAPER)
    last = sum(prices.outputs(100, k - 1, 1, NOTHING) for k in at)
    alone = sum(prices.outputs(100, k - 1 + step, 1, NOTHING) for k in at for step in range(1, steps + 1))
    context = sum(100 + k for k in at)
    assert prices.repeated(len(at), last, context, steps, NOTHING) == pytest.approx(alone)


def trained() -> StepTimePredictor:
    predictor = StepTimePredictor()
    steps = [
        (StepWork(decodes=d, context_tokens=d * c, prefill_tokens=p, prefills=bool(p), pairs=p * p / 2), 0.0)
        for d in (1, 4, 16, 32)
        for c in (100, 400, 1000)
        for p in (0, 64, 256)
    ]
    predictor.learn(
        [(w, 0.01 + 1e-4 * w.prefill_tokens + 2e-4 * w.decodes + 1e-6 * w.context_tokens) for w, _ in steps]
    )
    return predictor


def test_seconds_are_what_the_tokens_add_to_their_step():
    predictor = trained()
    prices, beside = SecondPrices(predictor, TokenPrices(1.0, 2.0)), StepWork(decodes=4, context_tokens=2000)
    assert prices.prompt(100, 50, True, beside) == predictor.prefill_seconds(100, 50, beside)
    assert prices.outputs(300, 10, 1, beside) == pytest.approx(predictor.decode_seconds(310.5, beside))
    # A decode that reads a long context costs more, which tokens do not tell.
    assert prices.outputs(4000, 0, 1, beside) > 2 * prices.outputs(100, 0, 1, beside)
    repeated = prices.repeated(2, 0.0, 600, 10, beside)
    alone = sum(2 * predictor.decode_seconds(300 + step, beside) for step in range(1, 11))
    assert repeated == pytest.approx(alone, rel=0.02)


def test_before_step_times_are_known_seconds_are_weighted_tokens():
    prices = SecondPrices(StepTimePredictor(), TokenPrices(1.0, 2.0))
    assert prices.prompt(100, 0, True, NOTHING) == pytest.approx(100 * UNTRAINED_S)
    assert prices.outputs(100, 0, 3, NOTHING) == pytest.approx(6 * UNTRAINED_S)


def test_what_is_promised_has_the_same_prices():
    counters = VirtualCounters(1.0, 2.0, {"a": 2.0})
    counters.prices = ProfiledPrices(PAPER)
    promised: dict = {}
    counters.add_promise(promised, request("a", prompt_tokens=50), 50)
    assert promised == {(ONLINE, "a"): pytest.approx((PAPER[0] + 50 * PAPER[1]) / 2)}


def test_constants_without_their_cost_are_refused():
    with pytest.raises(ConfigError, match=r"fairness\.profiled = .* has no effect with cost = 'tokens'"):
        load_config({"fairness": {"profiled": [1, 1, 1, 1, 1]}})
    with pytest.raises(ConfigError, match="must be 'tokens' with preset = 'drr'"):
        load_config({"preset": "drr", "fairness": {"cost": "seconds"}})
