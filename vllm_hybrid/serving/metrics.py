"""The scheduler's numbers on vLLM's own ``/metrics``, under the prefix ``vllm_hybrid_``.

An engine hands out what happened since it was last asked, whoever asked.  Each API server adds what it was
handed to ordinary prometheus_client metrics, so counters are exact over any number of API servers; states are
gauges of which the most recent value counts.  Clients are never labels: their number has no bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge

PREFIX = "vllm_hybrid_"


class HybridMetrics:
    """The metrics of one API server process; `record` adds what one engine handed out."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(PREFIX + name, text, ["engine", *labels], registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            labelnames = ["engine", *labels]
            return Gauge(PREFIX + name, text, labelnames, registry=registry, multiprocess_mode="mostrecent")

        self._requests = gauge("requests", "Requests in the engine now.", "lane", "state")
        self._tokens = counter("tokens", "Tokens computed, each once.", "lane", "kind")
        self._preemptions = counter("preemptions", "Requests that lost their blocks.", "lane")
        self._pauses = counter("pauses", "Running requests that were left out of a step.", "lane")
        self._steps = counter(
            "steps",
            "Engine steps: served as stock, with a new plan, with the last plan, or as stock after an error of "
            "the policy (fallback); contended: two or more clients had requests.",
            "mode",
            "contended",
        )
        self._policy_errors = counter("policy_errors", "Errors of the policy; the step was served as stock.")
        self._bad_identity = counter("bad_identity", "Requests whose lane or client the engine had to replace.")
        self._predictor_error = gauge("predictor_error_ratio", "Relative error of the step time predictor.")
        self.drain_errors = Counter(PREFIX + "drain_errors", "Failed collections.", ["kind"], registry=registry)

    def record(self, engine: int | str, drained: Mapping[str, Any]) -> None:
        """Add one answer of ``hybrid_drain``."""
        for lane, states in drained["requests"].items():
            for state, count in states.items():
                self._requests.labels(engine, lane, state).set(count)
        for lane, kinds in drained["tokens"].items():
            for kind, count in kinds.items():
                self._tokens.labels(engine, lane, kind).inc(count)
        for counter, key in ((self._preemptions, "preemptions"), (self._pauses, "pauses")):
            for lane, count in drained[key].items():
                counter.labels(engine, lane).inc(count)
        for mode, count in drained["steps"].items():
            contended = drained["contended_steps"].get(mode, 0)
            self._steps.labels(engine, mode, "true").inc(contended)
            self._steps.labels(engine, mode, "false").inc(count - contended)
        self._policy_errors.labels(engine).inc(drained["policy_errors"])
        self._bad_identity.labels(engine).inc(drained["bad_identity"])
        if (error_ratio := drained["predictor"]["error_ratio"]) is not None:
            self._predictor_error.labels(engine).set(error_ratio)
