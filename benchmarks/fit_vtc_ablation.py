"""Fits the devices `a100_80_llama2_13b_35k` and `_65k` to what VTC's ablation published of six runs.

    python -m benchmarks.fit_vtc_ablation        # a minute of CPU time

Of each run the seconds per token and the throughput are known. The three constants of a decode step (one, per sequence,
per context token) are those whose largest error is least, each error measured by what the benchmark allows of it
(10 % and 5 %). For an error the run is simulated as the benchmark does it (`papers/vtc_engine.py`), only simpler: all
requests of a run are alike, so that requests admitted together stay together. It matters that they do: requests of one
batch do not wait for each other's prompts. Printed beside it: the least squares of the times per token alone.

Prompts cost the arithmetic of 13.0e9 parameters at 0.52 of 312 TFLOPS, the efficiency of the other A100 devices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.papers.vtc_checks import TOLERANCE
from benchmarks.papers.vtc_engine import ADMISSION_STEPS, CLIENT_TOKENS, paper_settings
from benchmarks.papers.vtc_published import ABLATION_TPOT_MS, PUBLISHED
from vllm_hybrid.sim.device import load_device
from vllm_hybrid.sim.device_models import LinearDevice
from vllm_hybrid.sim.suites.vtc import ABLATION_RATES

PREFILL_TOKEN_S = 2 * 13.016e9 / (312e12 * 0.52)
CLIENTS, ARRIVE_S = 2, 600.0
ROUNDS, STEP = 8, 0.02  # of Gauss and Newton; the relative step of a derivative
TIMES = np.array([1.0] * 6 + [0.0] * 6)  # weights of the errors: the times per token alone
ALLOWED = 1 / np.array([TOLERANCE["tpot"]] * 6 + [TOLERANCE["throughput"]] * 6)


@dataclass(slots=True)
class _Batch:
    """Requests that were admitted together."""

    requests: int
    done: int  # output tokens of each
    first_token_s: float


def run(constants: np.ndarray, pool: int, tokens: int, rate: float) -> tuple[float, float]:
    """Seconds per token and tokens per second of requests with `tokens` in and out, `rate` of them a second."""
    decode_s, sequence_s, context_token_s = constants
    most = paper_settings(pool, 1, 1).step_tokens // tokens
    room = pool - CLIENTS * CLIENT_TOKENS
    total, admitted, finished = int(rate * ARRIVE_S), 0, 0
    batches: list[_Batch] = []
    now_s, since, spent_s = 0.0, ADMISSION_STEPS, 0.0
    while finished < total:
        waiting = min(total, int(rate * now_s)) - admitted
        if not batches and not waiting:
            now_s = (admitted + 1) / rate + 1e-9
            continue
        new = 0
        if not batches or since >= ADMISSION_STEPS:
            while new < min(most, waiting) and _peak(batches, new + 1, tokens) < room:
                new += 1
        running = sum(batch.requests for batch in batches)
        context = sum(batch.requests * (tokens + batch.done) for batch in batches)
        now_s += (decode_s + sequence_s * running + context_token_s * context) if running else 0.0
        now_s += max(decode_s, PREFILL_TOKEN_S * tokens * new) if new else 0.0
        since = 0 if new else since + 1
        for batch in batches:
            batch.done += 1
        while batches and batches[0].done == tokens:
            gone = batches.pop(0)
            finished += gone.requests
            spent_s += gone.requests * (now_s - gone.first_token_s)
        if new:
            batches.append(_Batch(new, 1, now_s))
            admitted += new
    return spent_s / (total * (tokens - 1)), 2 * tokens * total / now_s


def _peak(batches: list[_Batch], new: int, tokens: int) -> int:
    """Most tokens that everybody comes to hold together, `new` more requests included; the last batch stays longest."""
    held, rank = new * (tokens + 1), new
    peak = held + rank * (tokens - 1)
    for batch in reversed(batches):
        held += batch.requests * (tokens + batch.done)
        rank += batch.requests
        peak = max(peak, held + rank * (tokens - batch.done - 1))
    return peak


def errors(constants: np.ndarray) -> np.ndarray:
    """Relative errors: of the six times per token, then of the six throughputs."""
    times, throughputs = [], []
    for (pool, tokens), rates in ABLATION_RATES.items():
        token_s, throughput = run(constants, pool, tokens, sum(rates))
        published = PUBLISHED[f"ablation-{pool}-{tokens}/vtc"].throughput
        assert published is not None
        times.append(1e3 * token_s / ABLATION_TPOT_MS[pool, tokens] - 1)
        throughputs.append(throughput / published - 1)
    return np.array(times + throughputs)


def fit(constants: np.ndarray, weights: np.ndarray, norm: int) -> np.ndarray:
    """The constants with the least norm of the weighted errors (2: least squares; the higher, the more the largest)."""
    best, least = constants, np.inf
    for _ in range(ROUNDS):
        now = weights * errors(constants)
        if (size := float(np.linalg.norm(now, norm))) < least:
            best, least = constants, size
        moved = [constants * (1 + STEP * (np.arange(3) == i)) for i in range(3)]
        slopes = np.array([(weights * errors(point) - now) / STEP for point in moved]).T
        bend = np.maximum(np.abs(now) / np.abs(now).max(), 1e-3) ** ((norm - 2) / 2)
        change, *_ = np.linalg.lstsq(slopes * bend[:, None], -now * bend, rcond=None)
        constants = constants * (1 + change / (norm - 1))
    return best


def main() -> None:
    shipped = load_device("a100_80_llama2_13b_65k")
    assert isinstance(shipped, LinearDevice)
    start = np.array([shipped.decode_s, shipped.decode_sequence_s, shipped.decode_context_token_s])
    alone = fit(start, TIMES, 2)
    named = {"as shipped": start, "fitted": fit(alone, ALLOWED, 8), "fitted to the times per token alone": alone}
    print(f"prefill_token_s {PREFILL_TOKEN_S:.4e}")
    for name, constants in named.items():
        decode_s, sequence_s, context_token_s = constants
        print(f"{name}: decode_s {decode_s:.5f}  decode_sequence_s {sequence_s:.3e}", end="  ")
        print(f"decode_context_token_s {context_token_s:.4e}")
        found = errors(constants)
        for i, (pool, tokens) in enumerate(ABLATION_RATES):
            print(f"  pool {pool:6}  tokens {tokens}  time {found[i]:+.1%}  throughput {found[i + 6]:+.1%}")


if __name__ == "__main__":
    main()
