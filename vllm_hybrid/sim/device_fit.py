"""A device fitted to the steps of a live engine, or made of a profile.

Relative errors are minimised with coefficients that are never negative, so that more work never takes less time. Five
figures of a step, without the segments of `policy.latency_features`: a device is read and written by hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Literal

from vllm_hybrid.config.profile import Profile
from vllm_hybrid.policy.latency_features import FEATURES, StepWork
from vllm_hybrid.policy.latency_model import StepTimeModel
from vllm_hybrid.sim.device_models import Chunk, Device, StepLinearDevice, query_key_pairs

_FEATURES = 5
_LEAST_SAMPLES = 20
_SWEEPS = 10_000
_SETTLED = 1e-12  # relative change of the solution in one sweep

Row = tuple[tuple[float, ...], float]  # features and seconds of a step


def fit_step_linear(
    samples: Iterable[tuple[StepWork, float]],
    name: str = "fitted",
    kv_tokens: int = 100_000,
    request_overhead_s: float = 0.0,
    source: str = "fitted to the steps of a live engine",
) -> StepLinearDevice:
    """The device whose steps cost what `samples`, pairs of work and seconds, took."""
    rows: list[Row] = [(work.features(), seconds) for work, seconds in samples if seconds > 0]
    if len(rows) < _LEAST_SAMPLES:
        raise ValueError(f"{len(rows)} steps are too few to fit a device; {_LEAST_SAMPLES} are needed")
    constant, decode, prefill, context, pair = _least_squares(rows)
    return StepLinearDevice.model_validate(
        {
            "schema": 1,
            "kind": "step_linear",
            "name": name,
            "kv_tokens": kv_tokens,
            "request_overhead_s": request_overhead_s,
            "source": source,
            "licence": "the user's own measurement",
            "constant_s": constant,
            "decode_s": decode,
            "prefill_token_s": prefill,
            "decode_context_token_s": context,
            "pair_s": pair,
        }
    )


def _least_squares(rows: list[Row]) -> list[float]:
    """Non-negative coefficients of the least relative error, by coordinate descent on scaled features."""
    scale = [max(x[i] / seconds for x, seconds in rows) or 1.0 for i in range(_FEATURES)]
    gram = [[0.0] * _FEATURES for _ in range(_FEATURES)]
    moment = [0.0] * _FEATURES
    for x, seconds in rows:
        z = [x[i] / seconds / scale[i] for i in range(_FEATURES)]
        for i, zi in enumerate(z):
            moment[i] += zi
            for j, zj in enumerate(z):
                gram[i][j] += zi * zj
    c = [0.0] * _FEATURES
    for _ in range(_SWEEPS):
        moved = 0.0
        for i in range(_FEATURES):
            if gram[i][i] <= 0.0:
                continue
            rest = sum(gram[i][j] * c[j] for j in range(_FEATURES)) - gram[i][i] * c[i]
            value = max(0.0, (moment[i] - rest) / gram[i][i])
            moved, c[i] = max(moved, abs(value - c[i])), value
        if moved <= _SETTLED * max(c):
            break
    return [value / factor for value, factor in zip(c, scale, strict=True)]


class PredictedDevice(Device):
    """A device whose steps take what the step-time predictor's own model says, with the coefficients of a profile."""

    kind: Literal["predicted"] = "predicted"
    coefficients: list[float]

    @cached_property
    def _model(self) -> StepTimeModel:
        return StepTimeModel(self.coefficients)

    def _seconds(self, prefills: Sequence[Chunk], decodes: int, context_tokens: int, longest_tokens: int) -> float:
        work = StepWork(
            decodes=decodes,
            prefill_tokens=sum(tokens for tokens, _ in prefills),
            context_tokens=context_tokens,
            pairs=query_key_pairs(prefills),
            prefills=len(prefills),
            done_tokens=sum(done for _, done in prefills),
        )
        return self._model.seconds(work)


def profiled_device(profile: Profile) -> PredictedDevice:
    """The device that a profile describes."""
    return PredictedDevice.model_validate(
        {
            "schema": 1,
            "name": profile.hardware,
            "kv_tokens": profile.kv_tokens,
            "source": "vllm-hybrid profile",
            "licence": "the user's own measurement",
            "coefficients": [profile.coefficients[name] for name in FEATURES],
        }
    )
