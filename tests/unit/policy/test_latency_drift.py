"""A predictor that is wrong, or is told nonsense: it says so, is careful meanwhile, and finds back."""

from __future__ import annotations

import math
import random

import pytest

from tests.unit.policy.test_latency import MACHINE, error, random_work, train
from vllm_hybrid.policy.latency import StepTimePredictor, StepWork

STEP = StepWork(decodes=20, context_tokens=20_000)


def learned(seed: int = 0) -> tuple[StepTimePredictor, random.Random]:
    rng = random.Random(seed)
    return train(StepTimePredictor(), 2_000, rng, noise=0.05), rng


@pytest.mark.parametrize("slower", [0.1, 0.5, 2.0, 10.0])
def test_a_machine_that_changes_its_speed_is_noticed_and_followed(slower):
    predictor, rng = learned()
    train(predictor, 64, rng, noise=0.05, slower=slower)
    assert predictor.drifts == 1
    assert predictor.margin > 0.5  # careful until it has settled
    assert error(predictor, rng, slower) < 0.1
    train(predictor, 2_000, rng, noise=0.05, slower=slower)
    assert predictor.drifts == 1
    assert predictor.margin < 0.2


def test_ordinary_noise_is_no_drift():
    rng = random.Random(1)
    assert train(StepTimePredictor(), 6_000, rng, noise=0.4).drifts == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_coefficients_that_make_no_sense_are_not_budgeted_by(value):
    predictor, rng = learned()
    predictor.coefficients = [value] * len(predictor.coefficients)
    assert not predictor.ready
    train(predictor, 64, rng, noise=0.05)
    assert predictor.ready  # the steps it remembers were right
    assert error(predictor, rng) < 0.05


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_coefficients_that_are_wrong_are_solved_anew_from_memory(factor):
    predictor, rng = learned()
    predictor.coefficients = [factor * value for value in predictor.coefficients]
    train(predictor, 64, rng, noise=0.05)
    assert error(predictor, rng) < 0.05


@pytest.mark.parametrize("bad", [math.nan, 0.0, -1.0, math.inf])
def test_without_usable_times_it_is_not_ready_until_one_comes(bad):
    predictor, rng = learned()
    before = list(predictor.coefficients)
    for _ in range(64):
        predictor.observe(STEP, bad)
    assert not predictor.ready
    assert predictor.coefficients == before
    train(predictor, 1, rng)
    assert predictor.ready


def test_times_that_are_far_too_short_do_not_rule():
    """A clock that ticks coarsely gives every tenth step a thousandth of its time."""
    rng = random.Random(2)
    predictor = train(StepTimePredictor(), 400, rng, noise=0.05)
    for i in range(2_000):
        work = random_work(rng)
        predictor.observe(work, MACHINE.seconds(work) * (1e-3 if i % 10 == 0 else 1.0))
    assert error(predictor, rng) < 0.1


def test_work_that_makes_no_sense_teaches_nothing():
    predictor, rng = learned()
    for _ in range(8):
        predictor.observe(StepWork(decodes=1, context_tokens=math.nan), 0.01)
    train(predictor, 200, rng, noise=0.05)
    assert error(predictor, rng) < 0.05
