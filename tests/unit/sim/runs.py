"""Runs written by hand: what each request got and when, without a scheduler."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from vllm_hybrid.sim.records import Contender, EngineSettings, RequestRecord, RunRecord, SimRequest, StepLog


def answered(
    tokens_s: Sequence[float],
    *,
    arrival_s: float = 0.0,
    prompt_tokens: int = 10,
    output_tokens: int | None = None,
    scheduled_s: float | None = None,
    **request: str,
) -> RequestRecord:
    """A request whose tokens came at `tokens_s`; finished if these are all it asked for."""
    wanted = len(tokens_s) if output_tokens is None else output_tokens
    record = RequestRecord(SimRequest("", arrival_s, prompt_tokens, wanted, **request), token_s=array("d", tokens_s))
    record.finished_s = tokens_s[-1] if tokens_s and len(tokens_s) == wanted else None
    record.scheduled_s = scheduled_s if scheduled_s is not None or not tokens_s else arrival_s
    return record


def run_of(
    *records: RequestRecord, end_s: float = 10.0, pool_tokens: int = 1000, steps: StepLog | None = None
) -> RunRecord:
    settings = EngineSettings(pool_tokens=pool_tokens)
    return RunRecord(Contender("by hand"), "none", settings, 0, list(records), steps or StepLog(), end_s)
