"""The registry: every policy by name, what it tells apart, and that no setting goes unread."""

from pathlib import Path

import pytest

from vllm_hybrid.config import ConfigError, HybridConfig, load_config
from vllm_hybrid.config.presets import NEED_TARGETS, READS, SIMULATOR_ONLY, PresetOptions
from vllm_hybrid.policy.gate import GatedPlanner
from vllm_hybrid.policy.presets import PRESETS, request_rate
from vllm_hybrid.policy.request import Lane

TARGETS = {"online": {"ttft_s": 1.0, "tbt_s": 0.1}}
NAMES = HybridConfig.model_json_schema()["properties"]["preset"]["enum"]


def settings(name, **more):
    targets = {"slo": TARGETS} if name in NEED_TARGETS else {}
    return {"preset": name, **targets, **more}


def made(name, **more):
    config = load_config(settings(name, **more))
    preset = PRESETS[name]
    predictor = preset.predictor(config)
    return preset.make_planner(config, preset.counters(config, predictor), predictor)


def test_the_settings_and_the_registry_know_the_same_names():
    assert set(NAMES) == set(PRESETS) == set(READS)
    assert set(PresetOptions.model_fields) <= set(NAMES)
    assert {name for name, preset in PRESETS.items() if preset.simulator_only} == SIMULATOR_ONLY


@pytest.mark.parametrize("name", PRESETS)
def test_a_policy_can_be_made_by_its_name(name):
    planner = made(name)
    assert planner.always or name == "hybrid"  # else a single client would be served by stock vLLM


@pytest.mark.parametrize("name", [name for name, read in READS.items() if "memory" in read])
def test_the_gate_goes_before_a_policy_that_can_have_one(name):
    assert isinstance(made(name, memory={"gate": "max_tokens"}), GatedPlanner)


@pytest.mark.parametrize("name", [name for name, read in READS.items() if "memory" not in read])
def test_the_gate_is_refused_where_it_would_promise_too_much(name):
    with pytest.raises(ConfigError, match="memory: has no effect with preset"):
        load_config(settings(name, memory={"gate": "max_tokens"}))


def test_an_option_of_a_preset_that_is_not_selected_is_refused_in_one_line():
    with pytest.raises(ConfigError, match=r"presets\.rpm: has no effect with preset = 'vtc'") as error:
        load_config({"preset": "vtc", "presets": {"rpm": {"limit": 5}}})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "section"),
    [
        ("sarathi", {"clients": {"a": {"weight": 2}}}),
        ("vtc", {"slo": TARGETS}),
        ("rpm", {"fairness": {"input_weight": 3}}),
    ],
)
def test_a_section_that_the_policy_does_not_read_is_refused(name, section):
    with pytest.raises(ConfigError, match=f"{next(iter(section))}: has no effect with preset = '{name}'"):
        load_config({"preset": name, **section})


def test_a_default_written_out_is_no_mistake():
    """What `vllm-hybrid check` prints can be used as a file, whatever the policy."""
    for name in NAMES:
        config = load_config(settings(name))
        assert load_config(config.model_dump(mode="json")) == config


def test_an_unknown_policy_is_refused_by_name():
    with pytest.raises(ConfigError, match="preset = 'vct': must be 'hybrid', "):
        load_config({"preset": "vct"})


def test_identities_are_folded_as_far_as_a_policy_tells_them_apart():
    keys = {name: PRESETS[name].key(Lane.OFFLINE, "a") for name in PRESETS}
    assert keys["hybrid"] == (Lane.OFFLINE, "a")
    assert keys["vtc"] == (Lane.ONLINE, "a")
    assert keys["sarathi_pp"] == (Lane.OFFLINE, "default")
    assert keys["sarathi"] == (Lane.ONLINE, "default")


def test_only_the_rate_limit_refuses_requests():
    assert request_rate(load_config({"preset": "rpm"})) is not None
    assert request_rate(load_config({"preset": "vtc"})) is None


def test_the_page_of_the_policies_says_what_each_one_reads():
    page = (Path(__file__).parents[3] / "docs" / "presets.md").read_text()
    for name, read in READS.items():
        row = next(row.split("|") for row in page.splitlines() if row.startswith(f"| `{name}` |"))
        options = PresetOptions.model_fields.get(name)
        told = {cell.strip(" `") for cell in row[5].split(",")} - {"-"}
        assert told == (set() if options is None else set(options.annotation.model_fields))
        assert {word.strip(" `").split("`")[0] for word in row[6].split(",")} - {"-"} == read
