"""The engine of the VTC paper as its benchmark emulates it: when, whom and how much it admits, what a prompt costs."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from benchmarks.paper_vtc import Parts, beside_others
from benchmarks.papers import vtc_engine
from benchmarks.papers.common import timing_of
from benchmarks.papers.vtc_engine import ADMISSION_STEPS, CLIENT_TOKENS, ClientGate, IntervalPlanner, RejoiningOrder
from benchmarks.vtc_stored import read_responses
from tests.unit.policy.world import Pool, decode, request, step_view, waiting
from vllm_hybrid.policy.fairness import VirtualCounters
from vllm_hybrid.policy.gate import Gate
from vllm_hybrid.policy.published.batch import BatchPlanner
from vllm_hybrid.policy.published.orders import by_arrival
from vllm_hybrid.sim.device import load_device
from vllm_hybrid.sim.records import SimRequest


def test_admissions_begin_again_ten_steps_after_the_last_one() -> None:
    planner = IntervalPlanner(BatchPlanner(by_arrival))
    admitted = []
    for step in range(3 * ADMISSION_STEPS):
        pool = Pool(1000, 500)
        plan = planner.plan(step_view([decode()], waiting([request()]), pool))
        for view in plan.candidates:
            pool.taken.add(view)
            admitted.append(step)
    assert admitted == [ADMISSION_STEPS - 1, 2 * ADMISSION_STEPS - 1, 3 * ADMISSION_STEPS - 1]


def test_a_head_that_did_not_fit_is_tried_at_every_step_from_then_on() -> None:
    planner = IntervalPlanner(BatchPlanner(by_arrival))
    for _ in range(ADMISSION_STEPS + 3):
        assert not list(planner.plan(step_view([decode()], waiting([request()]), Pool(1000, 0))).candidates)
    assert list(planner.plan(step_view([decode()], waiting([request()]), Pool(1000, 500))).candidates)


def test_every_client_that_runs_takes_its_tokens_off_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    running, same, other = decode("a"), request("a"), request("b")
    names = {running.request_id: "a", same.request_id: "a", other.request_id: "b"}
    monkeypatch.setattr(vtc_engine, "_clients", names)
    view = step_view([running])
    plain, gate = Gate.of(view, 512), ClientGate.of(view, 512)
    each = CLIENT_TOKENS // view.block_tokens
    assert gate.room_blocks == plain.room_blocks - each
    assert gate.demand_blocks(same) == plain.demand_blocks(same)
    assert gate.demand_blocks(other) == plain.demand_blocks(other) + each
    gate.admit(other)
    plain.admit(other)
    assert gate.room_blocks == plain.room_blocks - 2 * each


def test_who_lost_its_memory_waits_for_its_clients_turn() -> None:
    counters = VirtualCounters(1.0, 2.0, {})
    back, new = request("served", started=True), request("poor")
    queue = waiting([back, new], counters)
    counters.values[back.key], counters.values[new.key] = 1000.0, 0.0
    assert list(RejoiningOrder(counters)(step_view([], queue))) == [new, back]
    counters.values[new.key] = 2000.0
    assert list(RejoiningOrder(counters)(step_view([], queue))) == [back, new]


def test_a_short_prompt_costs_a_pass_over_the_weights() -> None:
    plain = load_device("a10g_llama2_7b")
    paper = vtc_engine.paper_device(plain)
    assert paper.step_seconds([(8, 0)], []) == pytest.approx(plain.decode_s)
    assert paper.step_seconds([(512, 0)], []) == plain.step_seconds([(512, 0)], [])
    assert paper.step_seconds([], [100]) == plain.step_seconds([], [100])
    real = vtc_engine.as_a_real_one(paper)
    assert real.step_seconds([], [100]) == pytest.approx(plain.step_seconds([], [100]) + vtc_engine.ENGINE_S)


def test_what_is_sent_together_arrives_soon_in_the_order_of_a_seed() -> None:
    sent = [SimRequest(f"r{i}", float(i // 2), 10, 10, f"c{i % 2}") for i in range(200)]
    arrived = vtc_engine.as_they_arrive(sent, seed=1)
    assert arrived == vtc_engine.as_they_arrive(sent, seed=1)
    assert all(a.arrival_s <= b.arrival_s for a, b in itertools.pairwise(arrived))
    assert {request.request_id for request in arrived} == {request.request_id for request in sent}
    first = [request.client for request in arrived[::2]]
    assert 30 < first.count("c0") < 70  # of 100: either client comes first in about half of the seconds


def test_a_part_measured_anew_leaves_the_other_runs_of_the_file(tmp_path: Path) -> None:
    out = tmp_path / "paper_vtc.json"
    old = {"overload/vtc": {"throughput": 1}, "real/vtc": {"throughput": 2}}
    for path in (out, timing_of(out)):
        path.write_text(json.dumps({"runs": old}))
    new: Parts = {"real/vtc": {"throughput": 3}, "proportional/vtc": {"throughput": 4}}
    results, timing = beside_others(out, new, new)
    assert list(results) == ["overload/vtc", "proportional/vtc", "real/vtc"]  # as in the whole command
    assert results == timing == {**old, **new}


def test_the_responses_of_the_artifact_are_read_as_requests(tmp_path: Path) -> None:
    later = {"adapter_dir": "a", "prompt_len": 3, "output_len": 4, "req_time": 2.0, "first_token_latency": 0.5}
    first = {"adapter_dir": "b", "prompt_len": 5, "output_len": 6, "req_time": 1.0, "first_token_latency": 0.5}
    file = tmp_path / "all_results_real.jsonl"
    file.write_text(json.dumps({"result": {"responses": [later, first]}}) + "\n")
    requests = read_responses(file)
    assert [(r.client, r.arrival_s, r.prompt_tokens, r.output_tokens) for r in requests] == [
        ("b", 1.0, 5, 6),
        ("a", 2.0, 3, 4),
    ]
