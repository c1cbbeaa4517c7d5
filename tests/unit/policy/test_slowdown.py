"""Online tokens get longer by the limit and no more, and the time goes where few of them wait for it."""

import pytest

from vllm_hybrid.policy.latency import StepTimePredictor, StepWork
from vllm_hybrid.policy.latency_features import FEATURES
from vllm_hybrid.policy.slowdown import Slowdown

LIMIT = 0.1


def trained(**prices: float) -> StepTimePredictor:
    """A predictor that knows these prices by the name of their feature."""
    predictor = StepTimePredictor()
    predictor.coefficients = [prices.get(name, 0.0) for name in FEATURES]
    predictor.windows = 1000
    return predictor


PREDICTOR = trained(constant=0.010, tokens_to_256=1e-4, tokens_to_512=1e-4, tokens_to_1024=1e-4, tokens_beyond=1e-4)


def play(decodes_of, offline_s: float, steps: int) -> tuple[float, dict[int, list[bool]]]:
    """Steps whose offline decodes take `offline_s` where they are worth it; the mean gap, and what was granted."""
    slowdown, now_s, gaps_s, alone_s, granted = Slowdown(LIMIT, PREDICTOR), 0.0, 0.0, 0.0, {}
    for number in range(steps):
        decodes = decodes_of(number)
        slowdown.settle(now_s)
        slowdown.note(decodes, 0, 0, 512)
        grant = slowdown.grant()
        granted.setdefault(decodes, []).append(grant.decodes)
        own_s = PREDICTOR.seconds(StepWork(decodes=decodes))
        step_s = own_s + offline_s * grant.decodes
        now_s += step_s
        gaps_s += decodes * step_s
        alone_s += decodes * own_s
    return gaps_s / alone_s, granted


@pytest.mark.parametrize("offline_s", [0.002, 0.02, 0.1])
def test_the_mean_gap_is_longer_by_the_limit(offline_s):
    ratio, _ = play(lambda number: 4, offline_s, 20_000)
    assert 1 + 0.9 * LIMIT <= ratio <= 1 + LIMIT


def test_a_step_with_few_online_decodes_is_filled_first():
    ratio, granted = play(lambda number: 1 if number % 10 else 9, 0.0015, 20_000)
    light, heavy = (sum(granted[n]) / len(granted[n]) for n in (1, 9))
    assert light > 2 * heavy
    assert ratio <= 1 + LIMIT


def test_nothing_online_nothing_limited():
    slowdown = Slowdown(LIMIT, PREDICTOR)
    slowdown.settle(0.0)
    slowdown.note(0, 0, 0, 512)
    assert slowdown.grant().decodes and slowdown.grant().chunk_worth is None


def test_without_balance_nothing_is_granted():
    slowdown = Slowdown(LIMIT, PREDICTOR)
    slowdown.settle(0.0)
    slowdown.note(3, 0, 0, 512)
    grant = slowdown.grant()
    assert not grant.decodes and grant.chunk_worth == 0.0


def test_an_online_chunk_ends_where_tokens_stop_being_free():
    knee = trained(constant=0.010, tokens_to_256=1e-4, tokens_to_512=1e-4, tokens_beyond=1e-4)
    assert Slowdown(LIMIT, knee).online_chunk(StepWork(decodes=8), 504, 0) == 128 - 8
    flat = trained(constant=0.010)
    assert Slowdown(LIMIT, flat).online_chunk(StepWork(decodes=8), 504, 0) in (0, 504)
