"""What the scheduler tells others, between two steps: figures for the metrics, and answers to an operator's questions.

Everything is plain numbers, strings, lists and dicts, because it crosses a process boundary. Client ids leave the
engine as they are; what may be shown to whom is decided where it is shown (`serving/`).
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from vllm.v1.request import Request

from vllm_hybrid.engine.ledger import per_lane
from vllm_hybrid.policy.fairness import is_group
from vllm_hybrid.policy.gap import EngineShape, gap_bounds
from vllm_hybrid.policy.request import ClientKey, Lane, RequestView
from vllm_hybrid.policy.waits import REMEDIES, Reason

if TYPE_CHECKING:
    from vllm_hybrid.engine.scheduler import HybridMixin

_MOST_PLACES = 10_000  # requests counted through for somebody's place in its line
_PREFIXES = ("", "cmpl-", "chatcmpl-", "resp_", "generate-tokens-")


class Reporter:
    """Reads one scheduler. Every question is O(clients + running), none of them is asked in a step."""

    def __init__(self, scheduler: HybridMixin) -> None:
        self._s = scheduler
        self._finished_s = [dict[Reason, float]() for _ in Lane]
        self._predicted = (0.0, 0.0)
        self._last_gaps = dict.fromkeys(Lane, 0.0)

    # -- for the metrics -------------------------------------------------------------------------------------------
    def drain(self, named: Iterable[str] = ()) -> dict[str, Any]:
        """What happened since the last call, and how things stand now. named: clients with figures of their own."""
        s = self._s
        s.clients.follow(named)
        s.tally.bad_identities, s.viewer.bad_identities = s.viewer.bad_identities, 0
        drained = s.tally.drain(s.ledger.drain(), self.requests(), s.predictor)
        return {
            **drained,
            "clients": s.clients.drain(),
            "waiting": {lane.label: self._waiting(lane) for lane in Lane},
            "waited_s": {lane.label: self._waited(lane) for lane in Lane},
            "oldest_s": {lane.label: age_s for lane, age_s in self.oldest_s().items()},
            "service_gap": {lane.label: gap for lane, gap in self._gaps().items()},
            "service_gap_bound": {lane.label: bound for lane, bound in self.service_gap_bounds().items()},
            "step_seconds": self._step_seconds(),
            "cache_blocks": self.cache_blocks(),
            "cache_requests": self.cache_requests(),
            "config_version": s.live.version,
        }

    def requests(self) -> dict[str, dict[str, int]]:
        """How many requests of each lane wait, run and pause now."""
        s = self._s
        running = per_lane(s.viewer.view_of(r) for r in s.running)
        parked = per_lane(s.viewer.view_of(r) for r in s.parked.values())
        return {
            lane.label: {
                "waiting": s.waiting_requests.lane_length(lane),
                "running": running[lane],
                "paused": s._paused_now[lane] + parked[lane],
            }
            for lane in Lane
        }

    def oldest_s(self) -> dict[Lane, float]:
        """Seconds since the oldest request of each lane arrived that is not finished; 0 where there is none.

        O(requests that are older than both, or all if a lane is empty): vLLM keeps them in the order of arrival.
        """
        s, now_s = self._s, self._s.clock()
        oldest: dict[Lane, float] = {}
        for request in s.requests.values():
            view = s.viewer.view_of(request)
            oldest.setdefault(view.lane, now_s - view.arrival_s)
            if len(oldest) == len(Lane):
                break
        return {lane: oldest.get(lane, 0.0) for lane in Lane}

    def cache_blocks(self) -> dict[str, int]:
        """Blocks of the pool that hold KV, that are split into halves (the form beside KV), and that are free."""
        pool, blocks = self._s.kv_cache_manager.block_pool, self._s.blocks
        free, half = pool.get_num_free_blocks(), 0 if blocks is None else blocks.half_blocks.ids.split_blocks
        return {"kv": pool.num_gpu_blocks - 1 - free - half, "half": half, "free": free}

    def cache_requests(self) -> dict[str, int]:
        """Running requests by the form of their blocks."""
        running, blocks = self._s.running, self._s.blocks
        half = 0 if blocks is None else sum(blocks.halves_of(r.request_id) > 1 for r in running)
        return {"kv": len(running) - half, "half": half}

    def _waiting(self, lane: Lane) -> dict[str, int]:
        """Waiting requests by reason: the first of every line has its lane's, the others stand behind their own."""
        waiting = self._s.waiting_requests
        firsts, length = waiting.clients_waiting(lane), waiting.lane_length(lane)
        count = {reason.value: 0 for reason in Reason}
        count[Reason.RELEGATED] = waiting.relegated() if lane is Lane.ONLINE else 0
        count[Reason.OWN_QUEUE] = length - firsts - count[Reason.RELEGATED]
        count[self._s.waits.reason(lane)] += firsts
        return count

    def _waited(self, lane: Lane) -> dict[str, float]:
        before, now = self._finished_s[lane], self._s.waits.finished_s[lane]
        self._finished_s[lane] = dict(now)
        return {reason.value: seconds - before.get(reason, 0.0) for reason, seconds in now.items()}

    def _gaps(self) -> dict[Lane, float]:
        self._s.ledger.settle()
        self._last_gaps = self._s.gaps.take()
        return self._last_gaps

    def _step_seconds(self) -> dict[str, float]:
        before, predictor = self._predicted, self._s.predictor
        self._predicted = (predictor.predicted_s, predictor.real_s)
        return {"predicted": self._predicted[0] - before[0], "real": self._predicted[1] - before[1]}

    def service_gap_bounds(self) -> dict[Lane, float | None]:
        """The bound on the gap that holds in this configuration; None where none does."""
        s = self._s
        shape = EngineShape(
            pool_tokens=s.kv_cache_manager.block_pool.num_gpu_blocks * s.block_size,
            longest_tokens=s.max_model_len,
            slots=s.max_num_active_reqs,
            drafts=s.num_spec_tokens,
            one_prefill=not s.scheduler_config.long_prefill_token_threshold,
            allowed_gap=s.waiting_requests.allowed_gap,
        )
        return gap_bounds(s.hybrid_config, s.counters, shape)

    # -- for an operator -------------------------------------------------------------------------------------------
    def status(self) -> dict[str, Any]:
        """The engine at a glance."""
        s = self._s
        pool = s.kv_cache_manager.block_pool
        requests, waiting, bounds = self.requests(), s.waiting_requests, self.service_gap_bounds()
        oldest_s = self.oldest_s()
        return {
            "preset": s.hybrid_config.preset,
            "config_version": s.live.version,
            "lanes": {
                lane.label: {
                    **requests[lane.label],
                    "oldest_s": oldest_s[lane],
                    "clients_waiting": waiting.clients_waiting(lane),
                    "held_back_by": s.waits.reason(lane).value if waiting.lane_length(lane) else None,
                    "service_gap": max(self._last_gaps[lane], s.gaps.largest[lane]),
                    "service_gap_bound": bounds[lane],
                }
                for lane in Lane
            },
            "slots": {"most": s.max_num_active_reqs, "free": s.viewer.free_slots()},
            "blocks": {"total": pool.num_gpu_blocks, **self.cache_blocks()},
            "predictor": {"ready": s.predictor.ready, "error_ratio": s.predictor.error_ratio},
        }

    def clients(self, most: int) -> dict[str, Any]:
        """The `most` clients of each lane that have requests or were counted, those with the largest counters first."""
        s = self._s
        s.ledger.settle()
        cells = {(lane, client): cell for lane, client, cell in s.clients.named() if client is not None}
        keys = {*(key for key in s.counters.values if not is_group(key)), *s._live, *cells}
        chosen = heapq.nlargest(most, keys, key=lambda key: (s._live[key] > 0, s.counters.value(key)))
        return {"clients": [self._client(key) for key in chosen], "left_out": len(keys) - len(chosen)}

    def _client(self, key: ClientKey) -> dict[str, Any]:
        s = self._s
        waiting, first = s.waiting_requests.length_of(key), s.waiting_requests.first_of(key)
        cell = s.clients.own(key)
        return {
            "lane": key[0].label,
            "client": key[1],
            "group": None if (config := s.hybrid_config.clients.get(key[1])) is None else config.group,
            "weight": s.counters.weight(key),
            "counter": s.counters.value(key),
            "waiting": waiting,
            "running": s._live[key] - waiting,
            "first_waits_s": None if first is None else s.clock() - first.arrival_s,
            "prompt_tokens": None if cell is None else cell.prompt_tokens,
            "output_tokens": None if cell is None else cell.output_tokens,
        }

    def request(self, request_id: str) -> dict[str, Any] | None:
        """All about one request, by the id its caller was given or by the engine's own; None if it is not here."""
        request = self._s.requests.get(request_id)
        if request is None:  # vLLM adds a suffix to the id in an answer, and a prefix to the caller's X-Request-Id
            heads = tuple(f"{prefix}{request_id}-" for prefix in _PREFIXES)
            request = next((r for r in self._s.requests.values() if r.request_id.startswith(heads)), None)
        return None if request is None else self._request(request)

    def _request(self, request: Request) -> dict[str, Any]:
        s = self._s
        view, now_s = s.viewer.view_of(request), s.clock()
        answer = {
            "id": request.request_id,
            "lane": view.lane.label,
            "client": view.client,
            "age_s": now_s - view.arrival_s,
            "prompt_tokens": request.num_prompt_tokens,
            "computed_tokens": request.num_computed_tokens,
            "output_tokens": request.num_output_tokens,
            "preemptions": request.num_preemptions,
        }
        if request.request_id in s.parked:
            return {**answer, "state": "paused", "would_change_it": "an online request leaves its slot"}
        if view in s.waiting_requests or not math.isnan(view.left_s):
            return {**answer, **self._wait(view, now_s)}
        return {**answer, "state": "running", "waited_s": self._waited_s(view, now_s)}

    def _waited_s(self, view: RequestView, now_s: float) -> dict[str, float]:
        return {reason.value: seconds for reason, seconds in self._s.waits.waited_s(view, now_s).items()}

    def _wait(self, view: RequestView, now_s: float) -> dict[str, Any]:
        s = self._s
        reason = self._reason(view)
        value = s.counters.standing(view.key)
        others = (s.counters.standing(key) for key in s.waiting_requests.clients(view.lane))
        place = next(
            (at for at, v in enumerate(itertools.islice(s.waiting_requests.line(view.key), _MOST_PLACES)) if v is view),
            None,
        )
        return {
            "state": "waiting",
            "reason": reason.value,
            "would_change_it": REMEDIES[reason],
            "waited_s": self._waited_s(view, now_s),
            "requests_before_it_in_its_line": place,
            "clients_before_its_client": sum(other < value for other in others),
        }

    def _reason(self, view: RequestView) -> Reason:
        if not math.isnan(view.left_s):
            return Reason.NOT_READY
        if view.first_mark is None:
            return Reason.OWN_QUEUE if math.isnan(view.late_s) else Reason.RELEGATED
        return self._s.waits.reason(view.lane)
