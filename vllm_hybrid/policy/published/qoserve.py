"""QoServe, formerly Niyama (branch `niyama_asplos2026` of Sarathi-Serve): deadlines and a chunk that follows the slack.

Online requests have deadlines for every token; offline ones have one for their last token, from which a deadline for
their prompt is derived. Decodes always run; the largest chunk of a list whose predicted time, with a margin, is within
the smallest slack goes to the prompts by deadline plus a price per token that is left (EDF mixed with shortest first).
A prompt that can no longer make its deadline at the usual prefill speed goes behind all others, once and for all.

Differences: steps are predicted by the model that the engine learns while it runs, not by a profile of one GPU; token
k is due k gaps after the first, the code grants one more; a request that lost its memory, which the code excludes,
comes back first; the throughput is not learned across idle time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from vllm_hybrid.config import HybridConfig
from vllm_hybrid.policy.fairness import VirtualCounters
from vllm_hybrid.policy.latency import StepTimePredictor, StepWork
from vllm_hybrid.policy.plan import StepPlan, StepView
from vllm_hybrid.policy.request import Lane, RequestView

_STEP_TOKENS = (128, *range(256, 2049, 256), 2552)
_SCARCE_STEP_TOKENS = (128, 256, 384, 512)
_SCARCE_FREE_TOKENS = 32_000
_UNTRAINED_STEP_TOKENS = 512
_MARGIN = 1.2  # predicted time is taken this much longer
_START_TOKENS_PER_S = 8500.0
_DECAY = 0.995


@dataclass(slots=True)
class _Chunks:
    """Prompt chunks of one step, decided in order of deadline."""

    caps: dict[str, int] = field(default_factory=dict)
    running: list[RequestView] = field(default_factory=list)
    admitted: list[RequestView] = field(default_factory=list)
    tokens: int = 0


class QoservePlanner:
    """Plans steps by deadlines."""

    always = True

    def __init__(self, config: HybridConfig, counters: VirtualCounters, predictor: StepTimePredictor) -> None:
        options, online = config.presets.qoserve, config.slo.online
        self._predictor = predictor
        self._price_s = options.prompt_token_price_s
        offline_first_s = options.ttlt_s - options.expected_output_tokens * options.offline_tbt_s
        self._first_s = {Lane.ONLINE: online.ttft_s or math.inf, Lane.OFFLINE: offline_first_s}
        self._gap_s = {Lane.ONLINE: online.tbt_s or math.inf, Lane.OFFLINE: options.offline_tbt_s}
        self._prefill_tokens_per_s = _START_TOKENS_PER_S
        self._last_chunks = _Chunks()
        self._planned_s = -math.inf
        self._relegated: set[RequestView] = set()

    def plan(self, view: StepView) -> StepPlan:
        """Decide one step."""
        self._learn(view)
        decodes = [v for v in view.running if not v.prefilling]
        started = [v for v in view.running if v.prefilling]
        line = self._line(view, started)
        decode_tokens = len(decodes) * view.decode_tokens
        total_tokens = decode_tokens
        if line:
            total_tokens = max(decode_tokens, self._step_tokens(view, decodes, line[0].computed_tokens))
        chunks = self._last_chunks = self._chunks(view, set(started), line, total_tokens - decode_tokens)
        paused = [v for v in started if v not in chunks.running]
        return StepPlan(
            token_budget=max(1, min(view.max_tokens, total_tokens)),
            order=decodes + chunks.running + paused,
            paused=paused,
            caps=chunks.caps,
            candidates=_while_they_fit(view, chunks.admitted),
        )

    def reusable(self, work: StepWork, now_s: float, pending_s: float, last_output_s: float, steps: int) -> bool:
        """Decodes run in any case: without a prompt to compute there is nothing to decide."""
        return True

    # -- the chunk -----------------------------------------------------------------------------------------------------
    def _step_tokens(self, view: StepView, decodes: Sequence[RequestView], done_tokens: int) -> int:
        """The largest step of the list that is within the slack of the decodes; the smallest one in any case."""
        scarce = view.free_blocks * view.block_tokens < _SCARCE_FREE_TOKENS
        sizes = _SCARCE_STEP_TOKENS if scarce else _STEP_TOKENS
        if not decodes:
            return min(sizes[-1], view.max_tokens)
        if not self._predictor.ready:
            return min(_UNTRAINED_STEP_TOKENS, view.max_tokens)
        slack_s = self._slack_s(view, decodes)
        context = sum([v.computed_tokens for v in decodes])
        best = sizes[0]
        for total in sizes[1:]:
            tokens = max(0, total - len(decodes))
            work = StepWork(len(decodes), tokens, context, tokens * (done_tokens + tokens / 2))
            if _MARGIN * self._predictor.seconds(work) > slack_s:
                break
            best = total
        return min(best, view.max_tokens)

    def _slack_s(self, view: StepView, decodes: Sequence[RequestView]) -> float:
        """Seconds until the first of the tokens is due that a step over `decodes` produces."""
        due_s = math.inf
        for v in decodes:
            if v.output_tokens and math.isnan(v.deadline_s):  # its first token was just delivered
                v.deadline_s = max(view.last_output_s, v.arrival_s + self._first_s[v.lane])
            first_s = v.deadline_s if v.output_tokens else v.arrival_s + self._first_s[v.lane]
            due_s = min(due_s, first_s + self._gap_s[v.lane] * (v.output_tokens + v.in_flight))
        return due_s - view.now_s - view.pending_s

    # -- the line of prompts -------------------------------------------------------------------------------------------
    def _line(self, view: StepView, started: list[RequestView]) -> list[RequestView]:
        """Prompts under computation and waiting, in the order in which they get tokens."""
        resuming = [v for lane in Lane for v in view.waiting.resuming(lane)]
        before = set(resuming)
        waiting = [v for v in view.waiting if v not in before and view.ready(v)] if view.free_slots > 0 else []
        self._relegated.intersection_update(started, waiting)
        for v in waiting:
            needed_s = v.missing_tokens / self._prefill_tokens_per_s
            if view.now_s + needed_s > v.arrival_s + self._first_s[v.lane]:
                self._relegated.add(v)
        ordered = sorted(started + waiting, key=lambda v: (v in self._relegated, self._key(v)))
        return [v for v in resuming if view.ready(v)] + ordered

    def _key(self, v: RequestView) -> float:
        return v.arrival_s + self._first_s[v.lane] + self._price_s * v.missing_tokens

    @staticmethod
    def _chunks(view: StepView, started: set[RequestView], line: Sequence[RequestView], tokens: int) -> _Chunks:
        """Give `tokens` out along the line; a waiting request that does not fit lets no later one in."""
        chunks = _Chunks()
        blocks, slots = view.free_blocks, view.free_slots
        for v in line:
            if chunks.tokens >= tokens:
                break
            chunk = min(tokens - chunks.tokens, v.missing_tokens, view.max_chunk_tokens)
            if v in started:
                chunks.running.append(v)
            else:
                blocks -= view.blocks_needed(v)
                if slots < 1 or (blocks < 0 and view.running) or not view.admissible_tokens(v, 0):
                    blocks, slots = -1, 0
                    continue
                slots -= 1
                chunks.admitted.append(v)
            if chunk < v.missing_tokens:
                chunks.caps[v.request_id] = chunk
            chunks.tokens += chunk
        return chunks

    def _learn(self, view: StepView) -> None:
        """Prefill tokens per second, from the last step to this one."""
        seconds = view.now_s - self._planned_s
        if self._last_chunks.tokens and view.running and 0 < seconds < math.inf:
            speed = self._last_chunks.tokens / seconds
            self._prefill_tokens_per_s += (1 - _DECAY) * (speed - self._prefill_tokens_per_s)
        self._planned_s = view.now_s


def _while_they_fit(view: StepView, admitted: Sequence[RequestView]) -> Iterator[RequestView]:
    for v in admitted:
        if view.admissible_tokens(v, 0):
            yield v
