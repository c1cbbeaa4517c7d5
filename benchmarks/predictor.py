"""How well are step times predicted? Regressions on features of a batch against measured GPU tables.

Batches are cut from runs of three traces (`predictor_batches.py`). The default model's features and HyGen's are fitted
to the same batches by the same least relative error, once per table, and held against batches of a later part of each
trace. HyGen's paper leaves open whether S_d counts decoded tokens or the context they read: both are here, with the
squares, and its coefficients may be negative, ours may not. "random": the default model fitted instead to batches
drawn at random over what an engine can be given, without any trace.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.papers.common import Check, Stopwatch, arguments, finish, run_all, table
from benchmarks.predictor_batches import PARTS, SEED, Batch, Recorder, Trace, cut
from vllm_hybrid.policy.latency_features import FEATURES, NEIGHBOURS, StepWork, features_of
from vllm_hybrid.policy.latency_fit import fit_relative
from vllm_hybrid.sim.device import load_device

TRACES = (
    Trace("azure_conv", "azure_conv", 600, (("source", "trace"),)),
    Trace("servegen m_mid", "servegen", 2_000, (("source", "trace"), ("model", "m_mid"))),
    Trace("mooncake <= 15k", "mooncake", 150, (("most_tokens", 15_000),)),
)
# The most that the mean of the three traces may err; no trace may err twice as much.
LIMITS = {
    "h100_llama31_8b_bf16": 0.0178,
    "h200_llama31_8b_bf16": 0.0178,
    "a100_llama31_8b_bf16": 0.0178,
    "a100_llama2_7b_fp16": 0.03,
    "h100_llama2_7b_fp16": 0.03,
    "rtxpro6000_llama31_8b_bf16": 0.05,  # the one measured on mixed batches
}
BATCHES, RANDOM_BATCHES = 3_000, 6_000


def hygen_counts(work: StepWork) -> list[float]:
    """HyGen's features, S_d read as tokens decoded: the number of decodes then, so that N_d is no feature beside it."""
    p, d = float(work.prefill_tokens), float(work.decodes)
    return [1.0, p, p * p, d, d * d, work.prefills]


def hygen_context(work: StepWork) -> list[float]:
    """HyGen's features, S_d read as the context that decodes read."""
    p, d = float(work.prefill_tokens), float(work.context_tokens)
    return [1.0, p, p * p, d, d * d, work.prefills, work.decodes]


Model = tuple[Callable[[StepWork], Sequence[float]], dict[str, Any]]
MODELS: dict[str, Model] = {
    "default": (features_of, {"neighbours": NEIGHBOURS}),
    "hygen counts": (hygen_counts, {"signed": True}),
    "hygen context": (hygen_context, {"signed": True}),
}


def measured(item: tuple[str, Trace]) -> dict[str, list[Batch]]:
    """The batches of one trace on one device."""
    return cut(*item, BATCHES)


def random_batches(device: str, count: int) -> list[Batch]:
    """Batches over all that an engine can be given, each magnitude as likely as the next."""
    rng = random.Random(f"{device} random {SEED}")
    recorder: Any = Recorder(load_device(device))
    for _ in range(count):
        decodes = 0 if rng.random() < 0.15 else int(2 ** rng.uniform(0, 8))
        mean = min(2 ** rng.uniform(5, 14), 400_000 / max(1, decodes))
        contexts = [max(1, int(rng.uniform(0.2, 1.8) * mean)) for _ in range(decodes)]
        prefills = []
        if not decodes or rng.random() < 0.5:
            chunks, tokens = rng.choice((1, 1, 2, 3, 4)), int(2 ** rng.uniform(4, 11))
            done = [0 if rng.random() < 0.6 else int(2 ** rng.uniform(6, 13.8)) for _ in range(chunks)]
            prefills = [(tokens // chunks, before) for before in done]
        recorder.batch_seconds(prefills, decodes, sum(contexts), max(contexts, default=0))
    return recorder.batches


def fitted(model: Model, batches: Sequence[Batch]) -> list[float]:
    """The model's coefficients."""
    features, options = model
    return fit_relative([features(work) for work, _ in batches], [seconds for _, seconds in batches], **options)


def error(model: Model, coefficients: Sequence[float], batches: Sequence[Batch]) -> float:
    """Mean absolute relative error."""
    rows = np.array([model[0](work) for work, _ in batches])
    seconds = np.array([seconds for _, seconds in batches])
    return float(np.abs(rows @ np.array(coefficients) / seconds - 1.0).mean())


def compare(device: str, cuts: Mapping[str, Mapping[str, list[Batch]]]) -> dict[str, Any]:
    """The errors of every model on one device, by trace."""
    fit, held_out = PARTS
    training = [batch for parts in cuts.values() for batch in parts[fit]]
    found: dict[str, Any] = {"limit": LIMITS[device], "errors": {}}
    for name, model, batches in (
        *((name, model, training) for name, model in MODELS.items()),
        ("default, random", MODELS["default"], random_batches(device, RANDOM_BATCHES)),
    ):
        coefficients = fitted(model, batches)
        errors = {trace: error(model, coefficients, parts[held_out]) for trace, parts in cuts.items()}
        found["errors"][name] = errors | {"mean": sum(errors.values()) / len(errors)}
        if name == "default":
            found["coefficients"] = dict(zip(FEATURES, coefficients, strict=True))
    return found


def checks(results: Mapping[str, Any]) -> list[Check]:
    """The limits, and HyGen in every row."""
    found = []
    for device, result in results.items():
        limit, own = result["limit"], result["errors"]["default"]
        worst = max(own.values())
        found.append(Check(f"{device} mean", f"{own['mean']:.2%}", f"{limit:.2%}", own["mean"] <= limit))
        found.append(Check(f"{device} worst trace", f"{worst:.2%}", f"{2 * limit:.2%}", worst <= 2 * limit))
        for trace, value in own.items():
            hygen = min(result["errors"][name][trace] for name in MODELS if name != "default")
            found.append(Check(f"{device} {trace} against HyGen", f"{value:.2%}", f"< {hygen:.2%}", value < hygen))
    return found


def main() -> int:
    given = arguments("predictor", __doc__ or "")
    watch = Stopwatch()
    devices = list(LIMITS)[:1] if given.quick else list(LIMITS)
    items = [(device, trace) for device in devices for trace in TRACES]
    cuts = dict(zip(items, run_all(measured, items, given.workers), strict=True))
    results = {device: compare(device, {t.name: cuts[device, t] for t in TRACES}) for device in devices}
    rows = [
        {"device": device, "trace": trace}
        | {name: f"{errors[trace]:.2%}" for name, errors in result["errors"].items()}
        | {"limit": f"{result['limit'] * (1 if trace == 'mean' else 2):.2%}"}
        for device, result in results.items()
        for trace in (*(t.name for t in TRACES), "mean")
    ]
    print(table(rows))
    setting = {"seed": SEED, "batches": BATCHES, "requests": {t.name: t.requests for t in TRACES}}
    return finish(given, {"setting": setting, "devices": results}, {"wall_s": watch.seconds}, checks(results))


if __name__ == "__main__":
    sys.exit(main())
