"""From measured steps to a profile: the coefficients, and how far off they are on steps that were held back."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from vllm_hybrid.config.profile import Profile
from vllm_hybrid.policy.latency_features import FEATURES, NEIGHBOURS, StepWork, features_of
from vllm_hybrid.policy.latency_fit import fit_relative
from vllm_hybrid.profile.measure import Measurement, Step

_HELD_BACK = 5  # every fifth step, drawn at random
_LEAST_STEPS = 100


def region(work: StepWork) -> str:
    """What kind of step it was."""
    if not work.prefill_tokens:
        return "decode"
    return "mixed" if work.decodes else "prefill"


def fitted(measured: Measurement) -> Profile:
    """The profile of these measurements."""
    steps = [(work, seconds) for work, seconds in measured.steps if seconds > 0]
    if len(steps) < _LEAST_STEPS:
        raise ValueError(f"{len(steps)} steps could be measured, {_LEAST_STEPS} are needed: give the engine more room")
    room, machine = measured.room, measured.machine
    return Profile.model_validate(
        {
            "schema": 1,
            **asdict(machine),
            **asdict(room),
            "coefficients": dict(zip(FEATURES, _coefficients(steps), strict=True)),
            "errors": errors_of(steps),
            "samples": [[*_figures(work), seconds] for work, seconds in steps],
        }
    )


def errors_of(steps: Sequence[Step]) -> dict[str, float]:
    """Mean relative error by kind of step, each of them judged by a fit that did not see it."""
    order = random.Random(0).sample(range(len(steps)), len(steps))
    found: dict[str, list[float]] = {"all": []}
    for fold in range(_HELD_BACK):
        held_back = set(order[fold::_HELD_BACK])
        coefficients = np.array(_coefficients([steps[i] for i in order if i not in held_back]))
        for work, seconds in (steps[i] for i in held_back):
            error = abs(float(coefficients @ np.array(features_of(work))) / seconds - 1.0)
            found["all"].append(error)
            found.setdefault(region(work), []).append(error)
    return {name: float(np.mean(errors)) for name, errors in found.items()}


def _coefficients(steps: Sequence[Step]) -> list[float]:
    return fit_relative([features_of(work) for work, _ in steps], [seconds for _, seconds in steps], NEIGHBOURS)


def _figures(work: StepWork) -> list[float]:
    """In the order of `config.profile.SAMPLE`, without the seconds."""
    return [work.decodes, work.prefill_tokens, work.context_tokens, work.pairs, work.prefills, work.done_tokens]
