"""How much an API server takes in before it says: later."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from vllm_hybrid.config.section import Count, Fraction, Positive, Section


class OverloadConfig(Section):
    max_requests: Count | None = None
    """Most prompts, waiting and running, that an API server has in its hands; an HTTP request that comes beyond gets a
    503 with Retry-After, a stream too, before it starts. Counted by each API server for itself. None: no limit."""

    offline_fraction: Fraction = 0.75
    """Part of max_requests at which offline requests are refused already, so that the rest is left to online ones. 0:
    an offline request comes into an empty server only. Needs max_requests."""

    reject_ttft_s: Positive | None = None
    """An online request that is predicted to have its first token later than in so many seconds gets a 503 with
    Retry-After when it comes. Predicted by the pace of first tokens and by who waits for one, each client having its
    share. Counted by each API server for itself. None: no limit."""

    on_hopeless: Literal["relegate", "reject"] = "relegate"
    """What becomes of an online request without a first token slo.online.ttft_s after it came. relegate: it is served
    when those are that can still be in time, and in its turn. reject: it is given up, and answered with a 503 and
    Retry-After, or an error event where its stream has begun. Needs slo.online.ttft_s."""

    @model_validator(mode="after")
    def _a_part_of_something(self) -> OverloadConfig:
        if self.max_requests is None and self.offline_fraction != 0.75:
            raise ValueError(f"offline_fraction = {self.offline_fraction}: has no effect without max_requests: set it")
        return self
