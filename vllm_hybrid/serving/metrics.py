"""The scheduler's numbers on vLLM's own ``/metrics``, under the prefix ``vllm_hybrid_``.

An engine hands out what happened since it was last asked, whoever asked.  Each API server adds what it was
handed to ordinary prometheus_client metrics, so counters are exact over any number of API servers; states are
gauges of which the most recent value counts.  Which clients have a label of their own is bounded where the figures
come from (`engine/clients.py`), and what they are called is decided in `labels.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge

PREFIX = "vllm_hybrid_"

# name -> help, labels beside `engine`. Counters end in _total on the page.
COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "tokens": ("Tokens computed, each once.", ("lane", "kind")),
    "client_tokens": ("Tokens computed, each once, by client.", ("lane", "client", "kind")),
    "client_service": ("Service charged to the client, before its weight.", ("lane", "client")),
    "preemptions": (
        "Requests that lost their blocks: by the plan, or by vLLM because a running request found no block.",
        ("lane", "reason"),
    ),
    "recomputed_tokens": ("Computed tokens that preemptions threw away.", ("lane",)),
    "pauses": (
        "Running requests that were left out of a step, and kept their slot (step) or gave it up (slot).",
        ("lane", "reason"),
    ),
    "waited_seconds": ("Seconds that requests waited before they came in, by reason.", ("lane", "reason")),
    "steps": (
        "Engine steps: served as stock, with a new plan, with the last plan (reuse), as stock beside a plan (shadow), "
        "or as stock after an error of the policy (fallback); contended: two or more clients had requests.",
        ("mode", "contended"),
    ),
    "budget_tokens": ("Tokens that planned steps might hold (granted) and held (used).", ("kind",)),
    "step_seconds": ("Seconds of the steps that were predicted, as predicted and as real.", ("kind",)),
    "shadow_steps": (
        "Steps in shadow mode, by what the policy would have done differently; a step may count under several.",
        ("difference",),
    ),
    "policy_errors": ("Errors of the policy; the step was served as stock.", ()),
    "bad_identity": ("Requests whose lane or client the engine had to replace.", ()),
}
GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "requests": ("Requests in the engine now.", ("lane", "state")),
    "waiting_requests": ("Requests that wait now, by what keeps them waiting.", ("lane", "reason")),
    "oldest_request_seconds": ("Since the oldest request arrived that is not finished; 0: there is none.", ("lane",)),
    "client_waiting_requests": ("Requests of the client that wait now.", ("lane", "client")),
    "client_waiting_tokens": ("Prompt tokens of the client that wait now.", ("lane", "client")),
    "cache_blocks": ("Blocks of the KV pool that hold KV, that are split into halves, and that are free.", ("form",)),
    "cache_requests": ("Running requests by the form of their blocks.", ("form",)),
    "service_gap": ("Largest gap between the counters of two waiting clients since the last collection.", ("lane",)),
    "service_gap_bound": ("The bound on the gap; absent where none holds (memory.gate).", ("lane",)),
    "predictor_error_ratio": ("Relative error of the step time predictor.", ()),
    "config_version": ("Version of the live settings.", ()),
}

Sample = tuple[str, tuple[str, ...], float]  # name, label values, value


class HybridMetrics:
    """The engines' metrics in one API server process; `record` adds what one engine handed out."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._counters = {
            name: Counter(PREFIX + name, text, ["engine", *labels], registry=registry)
            for name, (text, labels) in COUNTERS.items()
        }
        self._gauges = {
            name: Gauge(PREFIX + name, text, ["engine", *labels], registry=registry, multiprocess_mode="mostrecent")
            for name, (text, labels) in GAUGES.items()
        }
        refused = "Requests that were told to come back later: too many in the server, or from their client."
        self.refused = Counter(PREFIX + "refused_requests", refused, ["lane", "reason"], registry=registry)
        self.drain_errors = Counter(PREFIX + "drain_errors", "Failed collections.", ["kind"], registry=registry)

    def record(self, engine: int | str, drained: Mapping[str, Any], label_of: Any) -> None:
        """Add one answer of ``hybrid_drain``. label_of: client id, None for all the others -> label."""
        for name, labels, value in (*counted(drained), *counted_by_client(drained["clients"], label_of)):
            self._counters[name].labels(engine, *labels).inc(value)
        for name, labels, value in (*standing(drained), *standing_by_client(drained["clients"], label_of)):
            self._gauges[name].labels(engine, *labels).set(value)


def counted(drained: Mapping[str, Any]) -> Iterator[Sample]:
    """What happened since the last drain."""
    nested = ("tokens", "tokens"), ("preemptions", "preemptions"), ("pauses", "pauses"), ("waited_seconds", "waited_s")
    for name, key in nested:
        for lane, values in drained[key].items():
            yield from ((name, (lane, inner), value) for inner, value in values.items())
    for lane, value in drained["recomputed_tokens"].items():
        yield "recomputed_tokens", (lane,), value
    for mode, count in drained["steps"].items():
        contended = drained["contended_steps"].get(mode, 0)
        yield "steps", (mode, "true"), contended
        yield "steps", (mode, "false"), count - contended
    yield from (("shadow_steps", (name,), count) for name, count in drained["shadow"].items())
    for name in ("budget_tokens", "step_seconds"):
        yield from ((name, (kind,), value) for kind, value in drained[name].items())
    for name in ("policy_errors", "bad_identity"):
        yield name, (), drained[name]


def counted_by_client(rows: list[dict[str, Any]], label_of: Any) -> Iterator[Sample]:
    for row in rows:
        owner = (row["lane"], label_of(row["client"]))
        yield "client_tokens", (*owner, "prompt"), row["prompt"]
        yield "client_tokens", (*owner, "output"), row["output"]
        yield "client_service", owner, row["service"]


def standing(drained: Mapping[str, Any]) -> Iterator[Sample]:
    """How things stand."""
    for name, key in (("requests", "requests"), ("waiting_requests", "waiting")):
        for lane, values in drained[key].items():
            yield from ((name, (lane, inner), value) for inner, value in values.items())
    for name in ("cache_blocks", "cache_requests"):
        yield from ((name, (form,), value) for form, value in drained[name].items())
    yield from (("oldest_request_seconds", (lane,), value) for lane, value in drained["oldest_s"].items())
    yield from (("service_gap", (lane,), value) for lane, value in drained["service_gap"].items())
    for lane, bound in drained["service_gap_bound"].items():
        if bound is not None:
            yield "service_gap_bound", (lane,), bound
    yield "config_version", (), drained["config_version"]
    if (error_ratio := drained["predictor"]["error_ratio"]) is not None:
        yield "predictor_error_ratio", (), error_ratio


def standing_by_client(rows: list[dict[str, Any]], label_of: Any) -> Iterator[Sample]:
    sums: dict[tuple[str, ...], list[int]] = {}
    for row in rows:  # under `metrics.clients: none` several rows are one
        entry = sums.setdefault((row["lane"], label_of(row["client"])), [0, 0])
        entry[0] += row["waiting"]
        entry[1] += row["waiting_tokens"]
    for owner, (requests, tokens) in sums.items():
        yield "client_waiting_requests", owner, requests
        yield "client_waiting_tokens", owner, tokens
