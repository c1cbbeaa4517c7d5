"""The step-time predictor: recovers what a machine costs, never bends the wrong way, and gets over bad measurements."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.policy.world import examples, trained
from vllm_hybrid.policy.latency import StepTimePredictor, StepWork

MACHINE = trained(8e-3, 1e-4, 6e-5, 1.5e-8, 2e-9)


def random_work(rng: random.Random) -> StepWork:
    decodes = rng.randrange(0, 128)
    chunk, done = rng.choice([0, rng.randrange(1, 2048)]), rng.randrange(0, 8192)
    context, prefills = decodes * rng.uniform(100, 8000), int(chunk > 0)
    return StepWork(decodes, chunk, context, chunk * (done + chunk / 2), prefills, prefills * done)


def train(predictor: StepTimePredictor, steps: int, rng: random.Random, noise: float = 0.0, slower: float = 1.0):
    for _ in range(steps):
        work = random_work(rng)
        predictor.observe(work, slower * MACHINE.seconds(work) * rng.lognormvariate(0, noise))
    return predictor


def error(predictor: StepTimePredictor, rng: random.Random, slower: float = 1.0) -> float:
    """Mean relative error on fresh steps, against the true time without noise."""
    works = [random_work(rng) for _ in range(500)]
    return sum(abs(predictor.seconds(w) / (slower * MACHINE.seconds(w)) - 1) for w in works) / len(works)


def same(one: StepTimePredictor, other: StepTimePredictor) -> bool:
    return (one.coefficients, one.margin, one.windows) == (other.coefficients, other.margin, other.windows)


@pytest.mark.parametrize("seed", range(5))
def test_recovers_the_machine_from_clean_steps(seed):
    predictor = train(StepTimePredictor(), 4_000, random.Random(seed))
    assert error(predictor, random.Random(seed)) < 0.01


@pytest.mark.parametrize("seed", range(5))
def test_predicts_better_than_the_noise_of_its_steps(seed):
    rng = random.Random(seed)
    predictor = train(StepTimePredictor(), 4_000, rng, noise=0.2)
    assert error(predictor, rng) < 0.12


def test_follows_a_machine_that_becomes_twice_as_slow():
    rng = random.Random(1)
    predictor = train(StepTimePredictor(), 3_000, rng, noise=0.05)
    train(predictor, 3_000, rng, noise=0.05, slower=2.0)
    assert error(predictor, rng, slower=2.0) < 0.05


def test_what_is_not_exercised_is_not_forgotten():
    rng = random.Random(2)
    predictor = train(StepTimePredictor(), 4_000, rng)
    for _ in range(4_000):
        work = StepWork(decodes=rng.randrange(1, 64), context_tokens=rng.uniform(1e3, 1e5))
        predictor.observe(work, MACHINE.seconds(work))
    assert predictor.prefill_seconds(512, 0) == pytest.approx(MACHINE.prefill_seconds(512, 0), rel=0.1)


def test_is_ready_only_after_some_windows():
    predictor = StepTimePredictor()
    assert not predictor.ready
    assert predictor.seconds(StepWork(decodes=3)) == 0
    train(predictor, 47, random.Random(0))
    assert not predictor.ready
    train(predictor, 1, random.Random(0))
    assert predictor.ready


works = st.builds(StepWork, st.integers(0, 4096), st.integers(0, 10**5), st.floats(0, 1e9), st.floats(0, 1e12))
times = st.one_of(st.floats(1e-6, 100), st.sampled_from([0.0, -1.0, math.nan, math.inf, -math.inf, 1e4]))


@given(st.lists(st.tuples(works, times), max_size=120))
@examples(100)
def test_no_coefficient_is_ever_negative_or_undefined(steps):
    predictor = StepTimePredictor()
    for work, seconds in steps:
        predictor.observe(work, seconds)
        assert all(math.isfinite(c) and c >= 0 for c in predictor.coefficients)
        assert 0.05 <= predictor.margin <= 1


@given(st.integers(0, 2**32), works, works)
@examples(60)
def test_more_work_is_never_predicted_to_take_less_time(seed, work, more):
    predictor = train(StepTimePredictor(), 200, random.Random(seed), noise=0.5)
    both = StepWork(
        work.decodes + more.decodes,
        work.prefill_tokens + more.prefill_tokens,
        work.context_tokens + more.context_tokens,
        work.pairs + more.pairs,
    )
    assert predictor.seconds(both) >= predictor.seconds(work)


costs = st.sampled_from([0.0, 1e-9, 1e-7, 1e-5, 1e-3])


@given(token_s=costs, pair_s=costs, seconds=st.floats(1e-6, 1e3), done=st.integers(0, 200_000))
@examples(300)
def test_tokens_within_is_the_exact_inverse_of_seconds(token_s, pair_s, seconds, done):
    predictor = trained(1.0, 1.0, token_s, 1.0, pair_s)
    tokens = predictor.prefill_tokens_within(seconds, done)
    if token_s == 0 and pair_s == 0:
        assert tokens == math.inf
    else:
        assert predictor.prefill_seconds(tokens, done) == pytest.approx(seconds, rel=1e-9)


@given(token_s=costs, pair_s=costs, tokens=st.integers(1, 10**6), done=st.integers(0, 200_000))
@examples(200)
def test_seconds_of_a_chunk_buy_that_chunk(token_s, pair_s, tokens, done):
    predictor = trained(prefill_token_s=token_s, pair_s=pair_s)
    seconds = predictor.prefill_seconds(tokens, done)
    if seconds > 0:
        assert predictor.prefill_tokens_within(seconds, done) == pytest.approx(tokens, rel=1e-9)


@given(st.floats(max_value=0))
@examples(20)
def test_no_time_buys_no_tokens(seconds):
    assert trained(prefill_token_s=1e-4).prefill_tokens_within(seconds, 0) == 0
    assert trained().prefill_tokens_within(seconds, 0) == 0


def test_the_pieces_add_up_to_the_step():
    base = MACHINE.seconds(StepWork())
    whole = MACHINE.seconds(StepWork(2, 300, 1_000 + 50, 300 * (700 + 150)))
    parts = MACHINE.decode_seconds(1_000) + MACHINE.decode_seconds(50) + MACHINE.prefill_seconds(300, 700)
    assert whole == pytest.approx(base + parts)


@pytest.mark.parametrize("bad", [0.0, -0.01, math.nan, math.inf, -math.inf])
def test_a_time_that_is_none_is_as_if_it_had_not_been_measured(bad):
    learned, disturbed = (train(StepTimePredictor(), 800, random.Random(3)) for _ in range(2))
    disturbed.observe(StepWork(decodes=5), bad)
    assert same(learned, disturbed)


@pytest.mark.parametrize("jump_s", [10.0, 3600.0])
def test_a_clock_that_jumps_is_forgiven(jump_s):
    rng = random.Random(4)
    predictor = train(StepTimePredictor(), 2_000, rng, noise=0.1)
    before = error(predictor, random.Random(5))
    predictor.observe(StepWork(decodes=10, context_tokens=1e4), jump_s)
    train(predictor, 400, rng, noise=0.1)
    assert error(predictor, random.Random(5)) < before + 0.03


def test_time_booked_on_the_neighbouring_step_does_no_harm():
    """Under async scheduling outputs come in pairs: the first late, the second at once."""
    rng = random.Random(6)
    predictor = StepTimePredictor()
    for _ in range(2_000):
        late, at_once = random_work(rng), random_work(rng)
        predictor.observe(late, MACHINE.seconds(late) + MACHINE.seconds(at_once) - 1e-6, alone=False)
        predictor.observe(at_once, 1e-6, alone=False)
    assert error(predictor, rng) < 0.02


@pytest.mark.parametrize("noise", [0.05, 0.2, 0.4])
def test_the_margin_covers_nine_steps_in_ten(noise):
    rng = random.Random(7)
    predictor = train(StepTimePredictor(), 12_000, rng, noise=noise)
    late = 0
    for _ in range(4_000):
        work = random_work(rng)
        late += MACHINE.seconds(work) * rng.lognormvariate(0, noise) > predictor.seconds(work) * (1 + predictor.margin)
    assert late / 4_000 == pytest.approx(0.1, abs=0.06) or (late / 4_000 < 0.1 and predictor.margin == 0.05)


def test_the_error_it_reports_is_the_error_it_makes():
    rng = random.Random(8)
    predictor = train(StepTimePredictor(), 6_000, rng, noise=0.2)
    assert predictor.error_ratio == pytest.approx(0.16, abs=0.06)  # mean |e^x - 1| of that noise, roughly
