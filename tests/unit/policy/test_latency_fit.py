"""The fit of step times: exact where an answer exists, never negative, and not bent by a few disturbed steps."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_hybrid.policy.latency_features import (
    CONTEXT_KNOTS,
    DECODE_KNOTS,
    FEATURES,
    NEIGHBOURS,
    TOKEN_KNOTS,
    StepWork,
    features_of,
    segments,
)
from vllm_hybrid.policy.latency_fit import fit_relative, nnls


def random_work(rng: random.Random, most_chunk: int = 2_000) -> StepWork:
    decodes, chunk, done = rng.choice([0, rng.randrange(1, 200)]), rng.choice([0, rng.randrange(1, most_chunk)]), 500
    if not decodes and not chunk:
        decodes = 1
    context = decodes * rng.uniform(10, 2_000)
    return StepWork(decodes, chunk, context, chunk * (done + chunk / 2), int(chunk > 0), done * (chunk > 0))


PRICES = dict(zip(FEATURES, [0.006, *[2e-5] * 6, *[1e-5] * 4, *[5e-8] * 3, 1e-6, 1e-4, 1e-8, 1e-9, 1e-4, 1e-6, 1e-9]))


def seconds_of(work: StepWork) -> float:
    return sum(price * x for price, x in zip(PRICES.values(), features_of(work)))


def error_of(coefficients: list[float], works: list[StepWork]) -> float:
    predicted = [sum(c * x for c, x in zip(coefficients, features_of(work))) for work in works]
    return sum(abs(p / seconds_of(work) - 1) for p, work in zip(predicted, works)) / len(works)


def test_every_feature_has_a_name_and_the_segments_add_up():
    rng = random.Random(0)
    for _ in range(200):
        work = random_work(rng)
        row = dict(zip(FEATURES, features_of(work), strict=True))
        assert sum(v for k, v in row.items() if k.startswith("tokens_")) == work.decodes + work.prefill_tokens
        assert sum(v for k, v in row.items() if k.startswith("decodes_")) == work.decodes
        assert sum(v for k, v in row.items() if k.startswith("context_")) == pytest.approx(work.context_tokens)
    assert len(NEIGHBOURS) == len(TOKEN_KNOTS) + len(DECODE_KNOTS) + len(CONTEXT_KNOTS)


@given(st.floats(0, 1e7))
@settings(max_examples=100, deadline=None)
def test_segments_fill_from_below(amount):
    parts = segments(amount, TOKEN_KNOTS)
    assert sum(parts) == pytest.approx(amount)
    widths = [high - low for low, high in zip((0, *TOKEN_KNOTS), TOKEN_KNOTS)]
    for i, width in enumerate(widths):
        assert parts[i] == width or not any(parts[i + 1 :])


def test_a_machine_that_is_such_a_sum_is_found():
    rng = random.Random(1)
    works = [random_work(rng) for _ in range(2_000)]
    found = fit_relative([features_of(w) for w in works], [seconds_of(w) for w in works], NEIGHBOURS)
    assert error_of(found, [random_work(rng) for _ in range(500)]) < 0.002


def test_a_few_disturbed_steps_do_not_bend_it():
    rng = random.Random(2)
    works = [random_work(rng) for _ in range(1_000)]
    taken = [seconds_of(w) * (10 if i % 20 == 0 else 1) for i, w in enumerate(works)]
    found = fit_relative([features_of(w) for w in works], taken, NEIGHBOURS)
    assert error_of(found, works) < 0.01


def test_a_segment_never_seen_costs_what_the_one_before_it_costs():
    rng = random.Random(3)
    works = [random_work(rng, most_chunk=300) for _ in range(1_000)]
    found = dict(
        zip(FEATURES, fit_relative([features_of(w) for w in works], [seconds_of(w) for w in works], NEIGHBOURS))
    )
    assert found["tokens_beyond"] == pytest.approx(found["tokens_to_512"], rel=0.05)
    assert found["tokens_beyond"] > 0


@given(st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_the_solution_is_the_best_one_that_is_not_negative(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(40, 8)), rng.normal(size=40)
    gram, moment = a.T @ a, a.T @ b
    x = nnls(gram, moment, np.maximum(0.0, rng.normal(size=8)))
    slope = gram @ x - moment
    assert x.min() >= 0
    assert slope.min() > -1e-6 * abs(moment).max()  # no coordinate wants to grow,
    assert abs(slope[x > 0]).max(initial=0) < 1e-6 * abs(moment).max()  # and none that is free wants to move


def test_coefficients_may_be_negative_only_on_request():
    x = [[1.0, float(i)] for i in range(1, 20)]
    y = [3.0 - 0.1 * i for i in range(1, 20)]
    assert fit_relative(x, y, signed=True)[1] == pytest.approx(-0.1)
    assert min(fit_relative(x, y)) >= 0
