"""Why requests wait, on the real scheduler classes: told truthfully, every moment of a wait put down to a reason."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.oracle.ours import HYBRID
from tests.oracle.workload import Played, Shape, draw_load, play
from vllm_hybrid.policy.request import Lane, RequestView
from vllm_hybrid.policy.waits import Reason
from vllm_hybrid.sim.modelfree import EngineLoop, World

UNGATED = (("strict", True), ("memory", {"gate": "none"}))  # so that who waits for memory lacks blocks now
TIGHT = World(num_blocks=120, max_seqs=12, step_tokens=128, hybrid=UNGATED)
WIDE = World(num_blocks=400, max_seqs=6, hybrid=UNGATED)
TIMED = World(max_seqs=16, hybrid=(*UNGATED, ("slo", {"online": {"ttft_s": 1.0, "tbt_s": 0.03}})))
SHAPE = Shape(jobs=80, arrival_steps=80)


class Witness:
    """Watches a loop from outside: when each request began to wait, when it came in, and what was said meanwhile."""

    def __init__(self, loop: EngineLoop) -> None:
        self.loop = loop
        self.scheduler: Any = loop.scheduler
        self.since_s: dict[str, float] = {}
        self.arrived_s: dict[str, float] = {}
        self.said: Counter[Reason] = Counter()
        self.ended = 0
        self.offered: Any = None  # the last plan's admissions: what they leave to bursts is the policy's to say
        offer = self.scheduler.planner._admission

        def note_admission(*args: Any) -> Any:
            self.offered = offer(*args)
            return self.offered

        self.scheduler.planner._admission = note_admission
        add, came_in, lost = loop.add, self.scheduler.waits.came_in, self.scheduler._lost_memory

        def note_arrival(request: Any) -> None:
            self.since_s[request.request_id] = self.arrived_s[request.request_id] = loop.now_s
            add(request)

        def note_loss(request: Any) -> None:
            self.since_s[request.request_id] = loop.now_s
            lost(request)

        def check_wait(view: RequestView) -> None:
            told_s = dict(view.waited_s or {})
            assert sum(told_s.values()) == pytest.approx(loop.now_s - self.since_s[view.request_id], abs=1e-6)
            assert min(told_s.values(), default=0.0) >= 0
            self.ended += 1
            came_in(view)

        loop.add, self.scheduler._lost_memory = note_arrival, note_loss  # type: ignore[method-assign]
        self.scheduler.waits.came_in = check_wait
        loop.on_schedule = self.check_reasons

    def check_reasons(self, step: Any) -> None:
        """What an operator is told of each waiting request, against what this step did."""
        s = self.scheduler
        ages_s = dict.fromkeys(Lane, 0.0)
        for name, request in s.requests.items():
            lane = s.viewer.view_of(request).lane
            ages_s[lane] = max(ages_s[lane], self.loop.now_s - self.arrived_s[name])
        assert s.report.oldest_s() == pytest.approx(ages_s)
        came = {s.viewer.view_of(s.requests[new.req_id]).key for new in step.scheduled_new_reqs}
        came |= {s.viewer.view_of(s.requests[r]).key for r in step.scheduled_cached_reqs.resumed_req_ids}
        for view in list(s.waiting_requests):
            told = s.report.request(view.request_id)
            reason = Reason(told["reason"])
            self.said[reason] += 1
            line = list(s.waiting_requests.line(view.key))
            assert told["requests_before_it_in_its_line"] == line.index(view)
            assert (reason in (Reason.OWN_QUEUE, Reason.RELEGATED)) == (line[0] is not view)
            assert (reason is Reason.RELEGATED) == (line[0] is not view and view.late)
            assert sum(told["waited_s"].values()) == pytest.approx(self.loop.now_s - self.since_s[view.request_id])
            self.check(reason, view, step, came)

    def check(self, reason: Reason, view: RequestView, step: Any, came: set[Any]) -> None:
        s = self.scheduler
        if reason is Reason.SLOTS:
            assert s.viewer.free_slots() <= 0
        elif reason is Reason.FAIR_SHARE:
            assert any(lane is view.lane for lane, _ in came)
        elif reason is Reason.ONLINE_FIRST:
            assert view.lane is Lane.OFFLINE
            assert s.waiting_requests.lane_length(Lane.ONLINE) or any(lane is Lane.ONLINE for lane, _ in came)
        elif reason is Reason.REST:
            assert view.lane is Lane.OFFLINE and s.waiting_requests.resuming(Lane.OFFLINE)
        elif reason is Reason.MEMORY:
            pool = s.kv_cache_manager.block_pool
            reserve = len(s.running) + max(int(0.05 * pool.num_gpu_blocks), self.offered.burst_blocks) + 1
            needed = [
                s.viewer.blocks_needed(s.waiting_requests.first_of(k)) for k in s.waiting_requests.clients(view.lane)
            ]
            assert max(needed) > pool.get_num_free_blocks() - reserve
        else:
            assert reason in (Reason.BUDGET, Reason.OWN_QUEUE, Reason.RELEGATED)


def watched(world: World, seed: int) -> tuple[Witness, Played]:
    witnesses: list[Witness] = []
    played = play(
        HYBRID, world, draw_load(seed, SHAPE), seed, 0.03, prepare=lambda loop: witnesses.append(Witness(loop))
    )
    return witnesses[0], played


@pytest.mark.parametrize(
    ("world", "expected"),
    [
        (TIGHT, {Reason.MEMORY, Reason.ONLINE_FIRST, Reason.OWN_QUEUE}),
        (WIDE, {Reason.SLOTS, Reason.FAIR_SHARE, Reason.OWN_QUEUE}),
        (TIMED, {Reason.BUDGET, Reason.OWN_QUEUE}),
    ],
    ids=["memory", "slots", "targets"],
)
def test_reasons_are_true_and_add_up_to_the_wait(world: World, expected: set[Reason]) -> None:
    said: Counter[Reason] = Counter()
    for seed in range(4):
        witness, played = watched(world, seed)
        assert witness.ended >= SHAPE.jobs - len(played.aborted)
        said += witness.said
    assert expected <= said.keys(), said
    assert Reason.NEXT_STEP not in said


def test_what_ended_is_what_the_metrics_get() -> None:
    witness, _ = watched(WIDE, 1)
    drained = witness.scheduler.report.drain()
    assert sum(sum(waited_s.values()) for waited_s in drained["waited_s"].values()) > 0
    assert all(count == 0 for lane in drained["waiting"].values() for count in lane.values())
    again = witness.scheduler.report.drain()
    assert sum(sum(waited_s.values()) for waited_s in again["waited_s"].values()) == 0
    assert all(row["waiting"] == row["waiting_tokens"] == 0 for row in drained["clients"])
    served = {kind: sum(row[kind] for row in drained["clients"]) for kind in ("prompt", "output")}
    assert served == {kind: sum(lane[kind] for lane in drained["tokens"].values()) for kind in served}
