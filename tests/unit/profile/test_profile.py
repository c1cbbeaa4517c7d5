"""The profiler's pure parts: the grid, the SLO's grammar, the fit, the choice of a setting."""

from __future__ import annotations

import random

import pytest

from tests.unit.policy.world import trained
from vllm_hybrid.config.profile import Machine
from vllm_hybrid.policy.latency import StepTimePredictor
from vllm_hybrid.profile.fit import fitted, region
from vllm_hybrid.profile.grid import Room, grid
from vllm_hybrid.profile.measure import Measurement
from vllm_hybrid.profile.search import Found, Trial, workload
from vllm_hybrid.profile.target import Target, TargetError, parse
from vllm_hybrid.sim.device_fit import profiled_device
from vllm_hybrid.workload import TraceRequest

ROOM = Room(kv_tokens=65_536, max_seqs=64, step_tokens=1_024, max_model_len=4_096)
TRUTH = trained(0.01, 1e-4, 6e-5, 2e-8, 1e-9)


def measurement(noise: float = 0.02) -> Measurement:
    from tests.unit.policy.test_latency import random_work

    rng = random.Random(0)
    works = [random_work(rng) for _ in range(400)]
    steps = [(work, TRUTH.seconds(work) * rng.lognormvariate(0, noise)) for work in works]
    return Measurement(steps, ROOM, Machine("org/model", "float16", "1 x GPU", "0.32.0"))


@pytest.mark.parametrize("room", [ROOM, Room(16_384, 16, 512, 1_024), Room(512, 2, 64, 256)])
def test_every_point_of_the_grid_fits_the_engine(room):
    points = grid(room)
    assert any(point.decodes for point in points)
    for point in points:
        assert point.tokens <= room.kv_tokens
        assert point.decodes < room.max_seqs
        assert point.chunk + point.decodes <= room.step_tokens
        assert max(point.context, point.chunk) < room.max_model_len


def test_slos_are_seconds_or_relative():
    assert parse("ttft_p99=2, tbt_mean=+10%") == [Target("ttft_p99", 2.0), Target("tbt_mean", 0.1, relative=True)]
    assert parse("tbt_mean=+10%")[0].limit_s({"tbt_mean": 0.05}) == pytest.approx(0.055)
    for wrong in ("tbt=1", "tbt_p99", "tbt_p99=-1", "tbt_p99=0", "tbt_p99=fast", "tbt_p99=10%", "ttft_p99=inf"):
        with pytest.raises(TargetError):
            parse(wrong)


def test_a_profile_says_how_far_off_it_is_by_kind_of_step():
    profile = fitted(measurement())
    assert {"all", "decode", "mixed"} <= set(profile.errors)
    assert profile.errors["all"] < 0.04
    assert len(profile.samples) == 400
    with pytest.raises(ValueError, match="100 are needed"):
        fitted(Measurement(measurement().steps[:50], ROOM, measurement().machine))


def test_a_predictor_that_starts_from_a_profile_is_ready_and_right():
    measured = measurement()
    predictor = StepTimePredictor()
    predictor.learn(measured.steps)
    assert predictor.ready
    errors = [abs(predictor.seconds(work) / TRUTH.seconds(work) - 1) for work, _ in measured.steps]
    assert sum(errors) / len(errors) < 0.03


def test_the_simulated_device_takes_what_the_profile_says():
    profile = fitted(measurement(noise=0.0))
    device = profiled_device(profile)
    for work, seconds in measurement(noise=0.0).steps[:50]:
        if region(work) == "decode":
            context = round(work.context_tokens)
            assert device.batch_seconds([], work.decodes, context, context) == pytest.approx(seconds, rel=0.02)


def test_a_trace_without_offline_work_gets_a_backlog_of_its_own_lengths():
    profile = fitted(measurement())
    rows = [TraceRequest(float(i), 10 + i, 5) for i in range(20)] + [TraceRequest(1.0, 100_000, 5)]
    requests = workload(sorted(rows, key=lambda row: row.arrival_s), profile)
    assert sum(r.lane == "online" for r in requests) == 20  # the one that does not fit is left out
    offline = [r for r in requests if r.lane == "offline"]
    assert len(offline) == 40
    assert {r.prompt_tokens for r in offline} <= {row.prompt_tokens for row in rows}
    with pytest.raises(ValueError, match="no request of the trace fits"):
        workload([TraceRequest(1.0, 100_000, 5)], profile)


def test_the_setting_with_most_offline_work_that_keeps_the_slo_is_taken():
    trials = [Trial(0.1, {}, 10.0, True), Trial(0.2, {}, 30.0, True), Trial(0.4, {}, 90.0, False)]
    assert Found({}, {}, trials, 1.0).best is trials[1]
    assert Found({}, {}, trials[2:], 1.0).best is None
