"""A profile: read, refused where it does not hold, and found beside the settings that name it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from vllm_hybrid.config import ConfigError, load_config
from vllm_hybrid.config.profile import Machine, ProfileError, load_profile

MACHINE = Machine(model="org/model", dtype="float16", hardware="1 x GPU", vllm="0.32.0")
CONTENT: dict[str, Any] = {
    "schema": 1,
    "model": "org/model",
    "dtype": "float16",
    "hardware": "1 x GPU",
    "vllm": "0.32.0",
    "kv_tokens": 1024,
    "max_seqs": 8,
    "step_tokens": 256,
    "max_model_len": 512,
    "coefficients": {"constant": 0.01},
    "errors": {"all": 0.02},
    "samples": [[1, 0, 10, 0, 0, 0, 0.01]],
}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "profile.json"
    path.write_text(json.dumps(CONTENT | changes))
    return path


def test_a_profile_is_read_as_it_was_written(tmp_path):
    profile = load_profile(written(tmp_path))
    assert profile.samples == CONTENT["samples"]
    assert json.loads(profile.model_dump_json(by_alias=True)) == CONTENT
    assert profile.mismatch(MACHINE) is None


@pytest.mark.parametrize("name", ["model", "dtype", "hardware", "vllm"])
def test_another_machine_is_refused_with_the_reason(tmp_path, name):
    problem = load_profile(written(tmp_path, **{name: "other"})).mismatch(MACHINE)
    assert problem is not None
    assert f"was measured with {name} 'other'" in problem
    assert repr(getattr(MACHINE, name)) in problem


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"schema": 2}, "schema"),
        ({"coefficients": {"constant": -1.0}}, "coefficients.constant"),
        ({"samples": [[1, 2, 3]]}, "samples.0"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_file_that_is_wrong_is_refused_by_field(tmp_path, changes, complaint):
    with pytest.raises(ProfileError, match=complaint):
        load_profile(written(tmp_path, **changes))


def test_a_file_that_is_none(tmp_path):
    with pytest.raises(ProfileError, match="No such file"):
        load_profile(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ProfileError, match="not JSON"):
        load_profile(tmp_path / "broken.json")


def test_a_relative_path_starts_at_the_file_it_stands_in(tmp_path):
    settings = tmp_path / "hybrid.yaml"
    settings.write_text(yaml.safe_dump({"profile": "profile.json"}))
    assert load_config(str(settings)).profile == str(tmp_path / "profile.json")
    assert load_config({"profile": "profile.json"}).profile == "profile.json"
    assert load_config('{"profile": "profile.json"}').profile == "profile.json"


def test_only_the_hybrid_policy_reads_a_profile():
    with pytest.raises(ConfigError, match="profile: has no effect"):
        load_config({"preset": "vtc", "profile": "profile.json"})
