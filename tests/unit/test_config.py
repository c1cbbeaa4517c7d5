"""The schema, and the one line an operator reads when a setting is wrong."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from vllm_hybrid.config import (
    ConfigError,
    HybridConfig,
    IdentityError,
    SloConfig,
    load_config,
    request_identity,
    validate_client_id,
)

MISTAKES = [
    ({"slo": {"online": {"ttft_s": -1}}}, "slo.online.ttft_s = -1: must be greater than 0"),
    ({"slo": {"online": {"ttft_s": 0}}}, "slo.online.ttft_s = 0: must be greater than 0"),
    ({"slo": {"online": {"tbt_s": math.nan}}}, "slo.online.tbt_s = nan: must be a finite number"),
    ({"slo": {"online": {"tbt_s": math.inf}}}, "slo.online.tbt_s = inf: must be a finite number"),
    ({"slo": {"online": {"tbt_s": True}}}, "slo.online.tbt_s = True: must be a number"),
    ({"slo": {"online": {"tbt_s": "fast"}}}, "slo.online.tbt_s = 'fast': must be a number"),
    ({"slo": {"online": {"tbt_s": 1, "gap": "soft"}}}, "slo.online.gap = 'soft': must be 'deadline' or 'strict'"),
    ({"slo": {"online": {"gap": "strict"}}}, "slo.online.gap = 'strict': has no effect without tbt_s"),
    ({"slo": {"idle_step_s": 1}}, "slo.idle_step_s = 1.0: has no effect without online.ttft_s or online.tbt_s"),
    ({"slo": 3}, "slo = 3: must be a mapping of settings"),
    ({"slo": None}, "slo = None: must be a mapping of settings"),
    ({"slo": {"onlin": {}}}, "unknown key 'slo.onlin': did you mean 'online'? allowed here: idle_step_s, online"),
    ({"quota": 1}, f"unknown key 'quota': allowed here: {', '.join(sorted(HybridConfig.model_fields))}"),
    ({"lanes": {"online": {}}}, "unknown key 'lanes.online': did you mean 'offline'? allowed here: offline"),
    ({"lanes": {"offline": {"preempt_interval_s": 0}}}, "lanes.offline.preempt_interval_s = 0: must be"),
    ({"fairness": {"input_weight": 0}}, "fairness.input_weight = 0: must be greater than 0"),
    ({"fairness": {"output_weight": -2}}, "fairness.output_weight = -2: must be greater than 0"),
    ({"clients": {"a": {"weight": 0}}}, "clients.a.weight = 0: must be greater than 0"),
    ({"clients": {"a": {"wieght": 1}}}, "unknown key 'clients.a.wieght': did you mean 'weight'?"),
    ({"clients": {"a b": {}}}, "clients: client id = 'a b': must be 1 to 64 characters out of A-Z a-z 0-9"),
    ({"clients": {"": {}}}, "clients: client id = '': must be 1 to 64 characters"),
    ({"clients": ["a"]}, "clients = ['a']: must be a mapping of client ids to settings"),
    ({"strict": "yes"}, "strict = 'yes': must be true or false"),
]


@pytest.mark.parametrize(("config", "message"), MISTAKES)
def test_a_mistake_is_one_line_with_key_value_and_what_is_allowed(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(config)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_several_mistakes_are_named_together() -> None:
    with pytest.raises(ConfigError, match=r"slo\.online\.ttft_s = -1.*; unknown key 'stict'"):
        load_config({"slo": {"online": {"ttft_s": -1}}, "stict": True})


def test_a_long_value_is_cut() -> None:
    with pytest.raises(ConfigError) as error:
        load_config({"strict": "x" * 10_000})
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '{\n "slo": oops}', "Expecting value at line 2 column 9"),
        ("a.yaml", "slo:\n  online: {ttft_s: 1\n", "at line 3 column 1"),
        ("a.yml", "- 1\n", "hybrid config = [1]: must be a mapping of settings"),
        ("a.txt", "{}", "must be inline JSON ({...}) or the path of a .json, .yaml or .yml file"),
    ],
)
def test_a_broken_file_says_where(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError) as error:
        load_config(tmp_path / name)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_missing_or_no_text_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml': No such file or directory"):
        load_config(tmp_path / "absent.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"strict: \xff\n")
    with pytest.raises(ConfigError, match=r"latin\.yaml': not UTF-8 text"):
        load_config(tmp_path / "latin.yaml")
    with pytest.raises(ConfigError, match=r"inline JSON: .* at line 1 column 2"):
        load_config("{bad")


def test_every_source_means_the_same(tmp_path: Path) -> None:
    settings = {"slo": {"online": {"ttft_s": 1e-3}}, "clients": {"team:a@b.c": {"weight": 2}}}
    (tmp_path / "c.json").write_text(json.dumps(settings))
    (tmp_path / "c.yaml").write_text("slo: {online: {ttft_s: 1e-3}}\nclients: {'team:a@b.c': {weight: 2}}\n")
    expected = load_config(settings)
    sources = [json.dumps(settings), tmp_path / "c.json", str(tmp_path / "c.yaml"), expected]
    assert [load_config(source) for source in sources] == [expected] * 4
    (tmp_path / "empty.yml").write_text("# nothing set\n")
    assert load_config(tmp_path / "empty.yml") == load_config(None) == load_config({}) == HybridConfig()


def test_the_idle_step_follows_the_first_token_target() -> None:
    assert SloConfig().idle_step_limit_s == math.inf
    assert load_config({"slo": {"online": {"ttft_s": 2}}}).slo.idle_step_limit_s == pytest.approx(0.2)
    assert load_config({"slo": {"online": {"tbt_s": 2}}}).slo.idle_step_limit_s == math.inf
    assert load_config({"slo": {"online": {"ttft_s": 2}, "idle_step_s": 3}}).slo.idle_step_limit_s == 3


def test_a_config_is_frozen_and_survives_pickling() -> None:
    config = load_config({"clients": {"a": {"weight": 3}}})
    with pytest.raises(ValidationError):
        config.strict = True  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize(
    ("extra_args", "identity"),
    [
        (None, ("online", "default")),
        ({}, ("online", "default")),
        ({"other": 1}, ("online", "default")),
        ({"lane": "offline"}, ("offline", "default")),
        ({"client": "A-z_0.@:-", "lane": "online"}, ("online", "A-z_0.@:-")),
        ({"client": "x" * 64}, ("online", "x" * 64)),
    ],
)
def test_identity_of_a_request(extra_args: Any, identity: tuple[str, str]) -> None:
    assert request_identity(extra_args) == identity


@pytest.mark.parametrize("lane", ["", "Online", "batch", None, 1, ["online"], {"a": 1}])
def test_a_bad_lane_is_refused_by_name(lane: Any) -> None:
    with pytest.raises(IdentityError, match=r"^vllm_xargs\.lane = .*: must be one of online, offline$") as error:
        request_identity({"lane": lane})
    assert error.value.field == "vllm_xargs.lane"


@pytest.mark.parametrize("client", ["", "x" * 65, "a b", "a\n", "\x00", "ä", None, 7, ["a"]])
def test_a_bad_client_is_refused_by_name(client: Any) -> None:
    with pytest.raises(IdentityError, match=r"^vllm_xargs\.client = .*: must be 1 to 64 characters") as error:
        request_identity({"client": client})
    assert error.value.field == "vllm_xargs.client"


@given(st.text(max_size=80))
def test_a_client_id_is_safe_in_logs_and_urls_or_refused(text: str) -> None:
    try:
        accepted = validate_client_id(text)
    except IdentityError as error:
        assert "\n" not in str(error)
    else:
        assert accepted == text
        assert text.isascii() and text.isprintable() and 1 <= len(text) <= 64 and " " not in text
