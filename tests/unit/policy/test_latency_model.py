"""The model's fast paths: pieces add up to the step, and seconds turn back into tokens exactly."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.policy.world import examples
from vllm_hybrid.policy.latency_features import FEATURES, StepWork, feature_rows, features_of, figures_of
from vllm_hybrid.policy.latency_model import StepTimeModel

prices = st.sampled_from([0.0, 1e-9, 1e-7, 1e-6, 1e-5, 1e-4])
models = st.lists(prices, min_size=len(FEATURES), max_size=len(FEATURES)).map(StepTimeModel)
contexts, chunks, befores = st.integers(1, 50_000), st.integers(1, 8_192), st.integers(0, 100_000)


@st.composite
def steps(draw) -> StepWork:
    decodes, chunk, done = draw(st.integers(0, 300)), draw(st.integers(0, 4_096)), draw(befores)
    context = decodes * draw(contexts)
    some = int(chunk > 0)
    return StepWork(decodes, chunk, context, chunk * (done + chunk / 2), some, some * done)


@given(models, steps())
@examples(200)
def test_seconds_are_prices_times_features(model, step):
    expected = math.fsum(c * x for c, x in zip(model.coefficients, features_of(step), strict=True))
    assert model.seconds(step) == pytest.approx(expected, rel=1e-9, abs=1e-15)


@given(models, steps(), contexts)
@examples(200)
def test_a_decode_adds_what_the_step_gains_by_it(model, step, context):
    more = StepWork(step.decodes + 1, step.prefill_tokens, step.context_tokens + context, step.pairs)
    more.prefills, more.done_tokens = step.prefills, step.done_tokens
    gain = model.seconds(more) - model.seconds(step)
    assert model.decode_seconds(context, step) == pytest.approx(gain, rel=1e-6, abs=1e-9)


@given(models, steps(), chunks, befores)
@examples(200)
def test_a_chunk_adds_what_the_step_gains_by_it(model, step, tokens, done):
    more = StepWork(step.decodes, step.prefill_tokens + tokens, step.context_tokens)
    more.pairs, more.prefills = step.pairs + tokens * (done + tokens / 2), step.prefills + 1
    more.done_tokens = step.done_tokens + done
    gain = model.seconds(more) - model.seconds(step)
    assert model.prefill_seconds(tokens, done, step) == pytest.approx(gain, rel=1e-6, abs=1e-9)


@given(models, steps(), befores, st.floats(1e-6, 100))
@examples(300)
def test_what_is_sold_fits_and_nothing_more_would(model, step, done, seconds):
    tokens = model.prefill_tokens_within(seconds, done, step)
    if tokens == math.inf:
        assert model.prefill_seconds(1e9, done, step) <= seconds
        return
    if tokens > 0:
        assert model.prefill_seconds(tokens, done, step) == pytest.approx(seconds, rel=1e-6)
    assert model.prefill_seconds(1.001 * tokens + 1e-6, done, step) > seconds * (1 - 1e-6)


@given(models, steps(), befores, st.floats(0, 10), st.floats(0, 10))
@examples(200)
def test_more_seconds_never_buy_fewer_tokens(model, step, done, one, other):
    less, more = sorted([one, other])
    assert model.prefill_tokens_within(less, done, step) <= model.prefill_tokens_within(more, done, step)


def test_a_token_is_dear_where_the_step_is_full():
    """The hinge: beside 64 tokens another 64 are nearly free, beside 1,024 they are not."""
    price = dict.fromkeys(FEATURES, 0.0) | {"constant": 0.01, "tokens_to_1024": 5e-5, "tokens_beyond": 5e-5}
    model = StepTimeModel(list(price.values()))
    assert model.prefill_seconds(64, 0, StepWork(decodes=64)) == 0
    assert model.prefill_seconds(64, 0, StepWork(decodes=64, prefill_tokens=960, prefills=1)) == pytest.approx(
        64 * 5e-5
    )


@given(st.lists(steps(), min_size=1, max_size=8))
@examples(100)
def test_rows_of_many_steps_are_those_of_each(works):
    assert feature_rows([figures_of(work) for work in works]).tolist() == [features_of(work) for work in works]
