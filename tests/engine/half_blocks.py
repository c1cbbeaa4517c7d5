"""Schedulers whose requests take the form that a test wants, and how far log probabilities lie apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tests.engine.engines import Call, scheduler_of, serve
from vllm_hybrid.cache.scheduler import HalfBlockScheduler


class Ruled(HalfBlockScheduler):
    """Forms by `rule`, which may change while nothing is served; counts what the tests hold it against.

    none, all: of the requests are of the half form. odd: every other pair as they are looked at first, so that
    requests with a shared prefix are of both. preempted: in KV at first, of the half form once they lost that.
    restless: all, and whoever decodes is moved to KV. pressure: our own.
    """

    rule = "all"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.begin(self.rule)

    def begin(self, rule: str) -> None:
        """A new load under a rule."""
        assert not self.requests
        self.rule = rule
        self.turns: dict[str, bool] = {}
        self.were_half: set[str] = set()
        self.were_kv: set[str] = set()
        self.became_half: set[str] = set()
        self.preempted_half = self.mixed_steps = self.most_tokens = self.found_tokens = 0
        self.batches: list[int] = []
        self.moves_before = self.blocks.moves
        self.reset_prefix_cache()

    @property
    def moves(self) -> int:
        return self.blocks.moves - self.moves_before

    def takes_half(self, request: Any) -> bool:
        if self.rule == "odd":
            return self.turns.setdefault(request.request_id, len(self.turns) // 2 % 2 == 0)
        if self.rule == "preempted":
            return request.request_id in self.were_kv
        return super().takes_half(request) if self.rule == "pressure" else self.rule != "none"

    def moves_to_kv(self, request: Any) -> bool:
        return self.rule in ("restless", "pressure")

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        step = super().schedule(*args, **kwargs)
        half = self.blocks.half_requests & step.num_scheduled_tokens.keys()
        self.were_half |= half
        self.became_half |= half & self.were_kv
        self.were_kv |= step.num_scheduled_tokens.keys() - half
        self.mixed_steps += 0 < len(half) < len(step.num_scheduled_tokens)
        self.batches.append(len(step.num_scheduled_tokens))
        self.most_tokens = max(self.most_tokens, sum(request.num_computed_tokens for request in self.running))
        came = [new for new in step.scheduled_new_reqs if new.req_id in half]
        self.found_tokens += sum(new.num_computed_tokens for new in came)
        self.blocks.integrity()
        return step

    def _preempt_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        self.preempted_half += request.request_id in self.blocks.half_requests
        return super()._preempt_request(request, *args, **kwargs)


def half_cache(form: str = "hidden") -> dict[str, Any]:
    """Engine arguments of `Ruled`."""
    return {"scheduler_cls": Ruled, "additional_config": {"hybrid": {"cache": form}}}


def check_books(engine: Any) -> None:
    """Nothing is left of the load."""
    scheduler = scheduler_of(engine)
    scheduler.blocks.integrity()
    assert scheduler.blocks.half_blocks.ids.split_blocks == 0 and not scheduler.blocks.half_requests
    assert scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == scheduler.kv_cache_config.num_blocks - 1
    assert scheduler.blocks.demand_blocks == 0


@dataclass
class Answers:
    """Of a load: request id -> its tokens, and their log probabilities."""

    tokens: dict[str, list[int]]
    logprobs: dict[str, list[float]] = field(default_factory=dict)

    def differences(self, reference: Answers) -> list[float]:
        """|log probability - the reference's| of all tokens before the first that differs, in every request."""
        found = []
        for request_id, theirs in reference.tokens.items():
            mine = self.tokens[request_id]
            same = next((i for i, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b), len(mine))
            pairs = zip(self.logprobs[request_id][:same], reference.logprobs[request_id][:same], strict=True)
            found += [abs(a - b) for a, b in pairs]
        return found


def answers(engine: Any, calls: Sequence[Call]) -> Answers:
    """Serve a load, and check that nothing of it is left."""
    logprobs: dict[str, list[float]] = {}
    tokens = serve(engine, [replace(call, sampling={"logprobs": 0}) for call in calls], logprobs=logprobs)
    return Answers({request_id: samples[0] for request_id, samples in tokens.items()}, logprobs)
