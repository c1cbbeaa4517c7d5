"""The search for settings, on the real scheduler: what it takes keeps the SLO, and what it leaves would be more."""

from __future__ import annotations

import random

import pytest

from tests.unit.policy.world import trained
from vllm_hybrid.config.profile import Profile
from vllm_hybrid.policy.latency_features import FEATURES
from vllm_hybrid.profile.search import Found, search, workload
from vllm_hybrid.profile.target import parse
from vllm_hybrid.workload import TraceRequest

pytestmark = pytest.mark.oracle

MACHINE = trained(0.01, 1e-4, 6e-5, 2e-7, 1e-9)
PROFILE = Profile.model_validate(
    {
        "schema": 1,
        "model": "org/model",
        "dtype": "float16",
        "hardware": "1 x GPU",
        "vllm": "0.32.0",
        "kv_tokens": 60_000,
        "max_seqs": 64,
        "step_tokens": 2_048,
        "max_model_len": 4_096,
        "coefficients": dict(zip(FEATURES, MACHINE.coefficients, strict=True)),
        "errors": {},
        "samples": [],
    }
)


def found_for(slo: str) -> Found:
    rng = random.Random(0)
    rows = [TraceRequest(0.5 * i, rng.randrange(50, 1_500), rng.randrange(10, 200)) for i in range(60)]
    rows += [TraceRequest(0.0, rng.randrange(500, 3_000), rng.randrange(50, 300), lane="offline") for _ in range(400)]
    requests = workload(sorted(rows, key=lambda row: row.arrival_s), PROFILE)
    return search(PROFILE, requests, parse(slo), lambda shares: shares)


def test_the_setting_that_is_taken_keeps_a_relative_slo():
    found = found_for("tbt_mean=+50%,ttft_p99=5")
    assert found.best is not None
    assert found.best.metrics["tbt_mean"] <= 1.5 * found.alone["tbt_mean"]
    assert found.best.metrics["ttft_p99"] <= 5
    assert found.best.offline_tokens_per_s > 0
    broken = [trial for trial in found.trials if not trial.keeps]
    assert broken  # and there was something to search for
    assert max(t.offline_tokens_per_s for t in broken) > found.best.offline_tokens_per_s


def test_nothing_is_taken_where_nothing_keeps_the_slo():
    assert found_for("tbt_p99=0.001").best is None
