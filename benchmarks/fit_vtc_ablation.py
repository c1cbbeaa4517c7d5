"""Fits the devices `a100_80_llama2_13b_35k` and `_65k` to the seconds per token that VTC's ablation published.

    python -m benchmarks.fit_vtc_ablation

With requests of n prompt and n output tokens and reserved output, a pool of M tokens holds M / 2n of them, 1.5 n
tokens each on average. For each step of all running requests, 1 / n of them are replaced. So the seconds per token are
those of a decode step and the share of the prefills in between:

    constant + context * (1.5 n * M / 2n) + (sequence + prefill token) * (M / 2n)

The last two cannot be told apart by these figures: the prefill token is set to the arithmetic of 13.0e9 parameters at
0.52 of 312 TFLOPS, the efficiency of the other A100 devices.
"""

from __future__ import annotations

import numpy as np

from vllm_hybrid.sim.device import load_device

PUBLISHED = [  # pool tokens, prompt and output tokens, ms per output token
    (35_000, 256, 48),
    (35_000, 512, 42),
    (35_000, 768, 41),
    (65_000, 256, 80),
    (65_000, 512, 58),
    (65_000, 768, 58),
]
PREFILL_TOKEN_S = 2 * 13.016e9 / (312e12 * 0.52)


def fit() -> tuple[float, float, float]:
    """Seconds of a decode step, per sequence and per context token, with the least relative error."""
    rows = np.array([[1.0, pool / (2 * n), 0.75 * pool] for pool, n, _ in PUBLISHED])
    seconds = np.array([ms * 1e-3 for *_, ms in PUBLISHED])
    constant, sequence, context = np.linalg.lstsq(rows / seconds[:, None], np.ones(len(seconds)), rcond=None)[0]
    return constant, sequence - PREFILL_TOKEN_S, context


def token_seconds(device_name: str, tokens: int) -> float:
    """Seconds per output token of requests with `tokens` in and out, on a full device."""
    device = load_device(device_name)
    running = device.kv_tokens / (2 * tokens)
    one = device.step_seconds([], [tokens * 3 // 2])
    each = device.step_seconds([], [tokens * 3 // 2] * 2) - one
    return one + (running - 1) * each + running / tokens * device.step_seconds([(tokens, 0)], [])


def main() -> None:
    constant, sequence, context = fit()
    print(f"decode_s {constant:.5f}  decode_sequence_s {sequence:.3e}  decode_context_token_s {context:.4e}")
    print(f"prefill_token_s {PREFILL_TOKEN_S:.4e}")
    for pool, tokens, ms in PUBLISHED:
        fitted_ms = 1e3 * token_seconds(f"a100_80_llama2_13b_{pool // 1000}k", tokens)
        print(
            f"pool {pool:6}  tokens {tokens}  published {ms} ms  device {fitted_ms:.1f} ms  {fitted_ms / ms - 1:+.1%}"
        )


if __name__ == "__main__":
    main()
