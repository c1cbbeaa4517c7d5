"""Starts the predictor with what a profile knows, instead of with nothing.

The profile named in the settings is read once, when the scheduler is built; one of another model, machine or vLLM ends
the start with the reason.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from vllm.platforms import current_platform
from vllm.version import __version__ as vllm_version

from vllm_hybrid.config.profile import Machine, ProfileError, load_profile
from vllm_hybrid.policy.latency import StepTimePredictor
from vllm_hybrid.policy.latency_features import StepWork


def machine_of(vllm_config: Any) -> Machine:
    """What the engine with this configuration runs, and on what."""
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    return Machine(
        model=str(model.model),
        dtype=str(model.dtype).removeprefix("torch."),
        hardware=f"{parallel.world_size} x {_device_name()}",
        vllm=vllm_version,
    )


def _device_name() -> str:
    if not current_platform.is_cpu():
        return str(current_platform.get_device_name())
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()} ({len(os.sched_getaffinity(0))} cores)"


def seed(predictor: StepTimePredictor, path: str, vllm_config: Any) -> None:
    """Teach the predictor the profile at `path`, if it holds for this engine."""
    profile = load_profile(path)
    if problem := profile.mismatch(machine_of(vllm_config)):
        raise ProfileError(f"profile {path!r} {problem}")
    predictor.learn([(work_of(sample), sample[-1]) for sample in profile.samples])


def work_of(sample: list[float]) -> StepWork:
    """The step of a profile's sample (`config.profile.SAMPLE`)."""
    decodes, prefill_tokens, context_tokens, pairs, prefills, done_tokens, _ = sample
    return StepWork(int(decodes), int(prefill_tokens), context_tokens, pairs, int(prefills), done_tokens)
