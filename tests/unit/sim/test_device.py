"""Devices: the figures they were made to meet, what any of them must keep, and how a bad file is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.fit_vtc_ablation import errors
from vllm_hybrid.policy.latency import StepWork
from vllm_hybrid.sim.device import DATA_DIR, Device, DeviceError, device_names, load_device, parse_device
from vllm_hybrid.sim.device_fit import fit_step_linear
from vllm_hybrid.sim.device_models import HalfWork, LinearDevice

TABLES = [name for name in device_names() if name.endswith(("bf16", "fp16"))]


def milliseconds(name: str, prefills: list[tuple[int, int]], decodes: list[int]) -> float:
    return 1e3 * load_device(name).step_seconds(prefills, decodes)


@pytest.mark.parametrize(
    ("name", "decodes", "prompts"),
    [
        ("a100_80_mistral_7b", 24, {512: 48, 2048: 185, 4096: 381, 8192: 821}),
        ("a100_80_tp2_yi_34b", 42, {512: 117, 2048: 455, 4096: 928, 8192: 1951}),
    ],
)
def test_rooflines_meet_their_calibration(name: str, decodes: float, prompts: dict[int, float]) -> None:
    assert milliseconds(name, [], [4096] * 32) == pytest.approx(decodes, rel=0.02)
    for tokens, expected in prompts.items():
        assert milliseconds(name, [(tokens, 0)], []) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    ("name", "one", "many", "prompt", "mixed"),
    [
        ("rtxpro6000_llama31_8b_bf16", 11.3, 36.7, 82.9, 42.0),
        ("h100_llama31_8b_bf16", 6.2, 18.1, 43.0, 17.6),
        ("h200_llama31_8b_bf16", 4.9, 13.9, 44.3, 15.5),
        ("a100_llama31_8b_bf16", 11.8, 34.3, 124.5, 46.7),
        ("a100_llama2_7b_fp16", 10.6, 91.9, 143.9, 78.5),
        ("h100_llama2_7b_fp16", 6.3, 51.5, 44.6, 35.1),
    ],
)
def test_tables_meet_their_measurements(name: str, one: float, many: float, prompt: float, mixed: float) -> None:
    figures = [
        milliseconds(name, [], [1024]),
        milliseconds(name, [], [2048] * 128),
        milliseconds(name, [(2048, 0)], []),
        milliseconds(name, [(448, 0)], [2048] * 64),
    ]
    assert figures == pytest.approx([one, many, prompt, mixed], rel=0.02)


def test_a10g_meets_what_vtc_measured() -> None:
    assert milliseconds("a10g_llama2_7b", [(256, 0)], []) == pytest.approx(54.7, rel=0.08)
    assert 36 <= milliseconds("a10g_llama2_7b", [], [384] * 19) <= 40
    full = load_device("a10g_llama2_7b")
    apart = full.step_seconds([(256, 0)], []) + full.step_seconds([], [384] * 19)
    assert full.step_seconds([(256, 0)], [384] * 19) == pytest.approx(apart)


def test_the_ablation_devices_meet_the_published_times_per_token_and_throughputs() -> None:
    device = load_device("a100_80_llama2_13b_65k")
    assert isinstance(device, LinearDevice)
    found = errors(np.array([device.decode_s, device.decode_sequence_s, device.decode_context_token_s]))
    assert np.abs(found[:6]).max() < 0.08 and np.abs(found[6:]).max() < 0.05


def test_the_two_regimes_are_the_published_predictor() -> None:
    lower = 0.014936 + 5.882e-5 * 300 + 2.248e-5 * 296 + 3.635e-5 * 4 + 1.111e-7 * 4000 + 7.555e-7 * 100
    upper = 0.005004 + 2.719e-5 * 1004 + 6.863e-5 * 1000 - 4.144e-5 * 4 + 1.663e-7 * 4000 + 2.727e-6 * 100
    assert milliseconds("a100_80_llama3_8b_qoserve", [(296, 100)], [1000] * 4) == pytest.approx(1e3 * lower)
    assert milliseconds("a100_80_llama3_8b_qoserve", [(1000, 100)], [1000] * 4) == pytest.approx(1e3 * upper)


@pytest.mark.parametrize("name", device_names())
def test_an_empty_step_takes_no_time_and_a_longer_context_not_less(name: str) -> None:
    device = load_device(name)
    assert device.step_seconds([], []) == 0.0
    contexts = [device.step_seconds([], [length] * 16) for length in (64, 512, 4096)]
    assert contexts == sorted(contexts)
    assert device.name == name


@pytest.mark.parametrize("name", device_names())
def test_sums_say_as_much_as_the_batch(name: str) -> None:
    device, rnd = load_device(name), random.Random(name)
    for _ in range(50):
        prefills = [(rnd.randint(1, 900), rnd.choice((0, 700))) for _ in range(rnd.randint(0, 2))]
        decodes = [rnd.randint(1, 3000) for _ in range(rnd.randint(1, 200))]
        sums = (len(decodes), sum(decodes), max(decodes))
        assert device.step_seconds(prefills, decodes) == device.batch_seconds(prefills, *sums) > 0


def plain(**changes: Any) -> dict[str, Any]:
    content = json.loads((DATA_DIR / "a100_40_opt_13b.json").read_text()) | changes
    return {key: value for key, value in content.items() if value is not None}


def test_tiles_charge_for_the_next_multiple() -> None:
    device = parse_device(plain(tile_tokens=128, constant_s=0.0), "test")
    in_tile = [device.step_seconds([(tokens, 0)], []) for tokens in (1021, 1024, 1025)]
    assert in_tile[1] / in_tile[0] == pytest.approx(1, rel=0.01)
    assert in_tile[2] / in_tile[1] == pytest.approx(9 / 8, rel=0.02)


def test_projected_hidden_states_halve_the_bytes_and_cost_a_projection() -> None:
    device = parse_device(plain(), "test")
    hidden_s = device.step_seconds([], [1], HalfWork("projected", 1, 8000, 0))
    projection_s = 2 * 12.85e9 * (1 + 0.163 * 8000) / (312e12 * 0.52)
    read_s = (8000 * 409600 + 819200) / (1.555e12 * 0.75)
    assert hidden_s == pytest.approx(0.004 + projection_s + read_s)


def test_absorbed_hidden_states_cost_about_kv_and_the_weights_once() -> None:
    device = parse_device(plain(), "test")
    kv_s, none_s = device.batch_seconds([], 32, 64_000, 2000), device.batch_seconds([], 32, 0, 0)
    hidden_s = device.batch_seconds([], 32, 0, 0, HalfWork("hidden", 32, 64_000, 0))
    assert (hidden_s - none_s) == pytest.approx((kv_s - none_s) * 825600 / 819200 + 4.194304e9 / (1.555e12 * 0.8))
    projected_s = device.batch_seconds([], 32, 0, 0, HalfWork("projected", 32, 64_000, 0))
    assert projected_s - none_s > 20 * (kv_s - none_s)


def test_fp8_reads_half_and_a_form_without_known_cost_is_refused() -> None:
    without = parse_device(plain(hidden=None), "test")
    kv_s, none_s = without.batch_seconds([], 8, 8000, 1000), without.batch_seconds([], 8, 0, 0)
    fp8_s = without.batch_seconds([], 8, 0, 0, HalfWork("fp8", 8, 8000, 0))
    assert fp8_s - none_s == pytest.approx((kv_s - none_s) / 2)
    chunk_s = without.batch_seconds([(100, 600)], 0, 0, 0)
    assert without.batch_seconds([(100, 600)], 0, 0, 0, HalfWork("fp8", 0, 0, 600)) < chunk_s
    with pytest.raises(ValueError, match=r"the cost of the cache form hidden is not known \(known here: fp8\)"):
        without.step_seconds([], [1], HalfWork("hidden", 1, 8, 0))


def test_a_fit_recovers_the_device_behind_the_steps() -> None:
    truth = {"constant_s": 0.004, "decode_s": 3e-5, "prefill_token_s": 9e-5, "decode_context_token_s": 2e-8}
    rnd, samples = random.Random(1), []
    for _ in range(400):
        work = StepWork(rnd.randint(0, 60), rnd.choice((0, rnd.randint(1, 800))), rnd.randint(0, 60_000))
        work.pairs = work.prefill_tokens * rnd.randint(0, 2000)
        seconds = sum(c * x for c, x in zip([*truth.values(), 4e-9], work.features()))
        samples.append((work, seconds * rnd.gauss(1, 0.01)))
    fitted = fit_step_linear(samples, name="mine", kv_tokens=5000, request_overhead_s=0.02)
    found = fitted.model_dump()
    assert {key: found[key] for key in truth} == pytest.approx(truth, rel=0.05)
    assert found["pair_s"] == pytest.approx(4e-9, rel=0.05)
    assert (fitted.name, fitted.kv_tokens, fitted.request_overhead_s) == ("mine", 5000, 0.02)


def test_a_fitted_device_survives_its_file(tmp_path: Path) -> None:
    fitted = fit_step_linear([(StepWork(n, 10 * n, n * n, n), 0.01 + n * 1e-3) for n in range(1, 40)])
    path = tmp_path / "mine.json"
    path.write_text(fitted.model_dump_json(by_alias=True))
    assert load_device(str(path)) == fitted


def test_too_few_steps_fit_no_device() -> None:
    with pytest.raises(ValueError, match="3 steps are too few to fit a device; 20 are needed"):
        fit_step_linear([(StepWork(1), 0.01)] * 3)


def refusal(content: Any) -> str:
    with pytest.raises(DeviceError) as error:
        parse_device(content, "mine.json")
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (plain(layers=0), "mine.json: layers: Input should be greater than 0, got 0"),
        (plain(kv_tokens="many"), "mine.json: kv_tokens: Input should be a valid integer, got 'many'"),
        (plain(kv_efficiency=1.5), "mine.json: kv_efficiency: Input should be less than or equal to 1, got 1.5"),
        (plain(layers=None), "mine.json: layers: Field required"),
        (plain(speed=3), "mine.json: speed: Extra inputs are not permitted, got 3"),
        (plain(schema=2), "mine.json: schema: Input should be 1, got 2"),
        (plain(hidden={"bytes_per_token": 1}), "mine.json: hidden.token_equivalents: Field required"),
        (
            plain(kind="magic"),
            "mine.json: kind: one of 'table', 'roofline', 'linear', 'two_regime', 'step_linear', got 'magic'",
        ),
        ([1], "mine.json: file: Input should be a valid dictionary or object to extract fields from, got [1]"),
    ],
)
def test_a_bad_file_is_refused_with_file_field_and_what_is_allowed(content: Any, complaint: str) -> None:
    assert refusal(content) == complaint


def test_a_table_must_be_whole() -> None:
    content = json.loads((DATA_DIR / "h100_llama31_8b_bf16.json").read_text())
    content["dense"]["us"].pop()
    assert refusal(content).startswith("mine.json: dense: at has ")
    grid = json.loads((DATA_DIR / "rtxpro6000_llama31_8b_bf16.json").read_text())
    grid["attention"]["ratio"].pop()
    assert refusal(grid) == "mine.json: attention: ratio has 12959 values, the axes span 12960"


def test_a_name_that_is_no_device_lists_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(
        DeviceError, match=r"device 'h1000': neither a \.json file nor one of .*, h100_llama31_8b_bf16,"
    ):
        load_device("h1000")
    with pytest.raises(DeviceError, match=r"none\.json: No such file"):
        load_device(str(tmp_path / "none.json"))
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(DeviceError, match=r"bad\.json: not JSON: "):
        load_device(str(tmp_path / "bad.json"))


def test_every_shipped_device_names_source_and_licence() -> None:
    readme = (DATA_DIR.parent / "README.md").read_text()
    for name in device_names():
        device: Device = load_device(name)
        assert len(device.source) > 10 and device.licence
        assert f"`{name}`" in readme
