"""A scheduler that is given a profile knows its step times at once; one of another machine ends its start."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_config_profile import CONTENT
from vllm_hybrid.config.profile import ProfileError
from vllm_hybrid.engine.seeding import machine_of
from vllm_hybrid.policy.latency import StepWork
from vllm_hybrid.sim.loop import OURS
from vllm_hybrid.sim.modelfree import World, build, engine_config

pytestmark = pytest.mark.oracle

SAMPLES = [[n, 0, 100 * n, 0, 0, 0, 0.01 + 1e-4 * n] for n in range(1, 60)]


def started(folder: Path, **changes: Any) -> Any:
    """The scheduler of an engine whose settings name a profile of this machine, but for the changes."""
    path = folder / "profile.json"
    machine = asdict(machine_of(engine_config(World())))
    path.write_text(json.dumps(CONTENT | machine | {"samples": SAMPLES} | changes))
    return build(OURS, World(hybrid=(("profile", str(path)),)))


def test_step_times_are_known_before_the_first_step(tmp_path):
    predictor = started(tmp_path).predictor
    assert predictor.ready
    assert predictor.seconds(StepWork(decodes=30, context_tokens=3_000)) == pytest.approx(0.013, rel=0.02)


@pytest.mark.parametrize("name", ["model", "dtype", "hardware", "vllm"])
def test_a_profile_of_another_machine_ends_the_start(tmp_path, name):
    with pytest.raises(ProfileError, match=f"was measured with {name} 'other'"):
        started(tmp_path, **{name: "other"})
