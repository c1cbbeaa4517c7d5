"""The command an operator runs before a server, and the reference it prints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from vllm_hybrid import compat
from vllm_hybrid.cli import main
from vllm_hybrid.config import load_config

REPOSITORY = Path(__file__).parents[2]


def test_the_reference_is_the_schemas(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config-docs"]) == 0
    printed = capsys.readouterr().out
    assert printed == (REPOSITORY / "docs" / "configuration.md").read_text(encoding="utf-8"), (
        "run: vllm-hybrid config-docs > docs/configuration.md"
    )


def test_check_finds_every_hook_and_resolves_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text("slo: {online: {ttft_s: 2}}\nclients: {alice: {weight: 3}}\n")
    assert main(["check", "--config", str(tmp_path / "c.yaml")]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n  found") == len(compat.ALL)
    resolved = yaml.safe_load(printed[printed.index("hybrid:\n") :].removesuffix("no problems\n"))
    assert load_config(resolved["hybrid"]) == load_config(tmp_path / "c.yaml")


def test_check_fails_on_a_bad_config_a_missing_hook_and_a_plugin_left_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = compat.Reach("vllm.engine.arg_utils:EngineArgs", "gone", "a.py:1", "does something")
    monkeypatch.setattr(compat, "ALL", (gone,))
    monkeypatch.setattr("vllm.version.__version__", "0.31.0")
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    assert main(["check", "--config", '{"strict": 3}']) == 1
    printed = capsys.readouterr()
    assert "missing vllm.engine.arg_utils:EngineArgs.gone" in printed.out
    for problem in ("0.31.0 is installed", "has no 'gone'", "VLLM_PLUGINS='other' leaves out hybrid", "strict = 3"):
        assert problem in printed.err
    assert printed.out.endswith("4 problems\n")


OPT = str(REPOSITORY / "tests/conformance/models/facebook/opt-125m")


@pytest.mark.parametrize(
    ("model", "cache", "says"),
    [
        (OPT, "auto", "cache: KV and hidden, 2 half blocks per block (exact)"),
        (OPT, "fp8", "cache: KV and fp8, 2 half blocks per block (lossy, asked for)"),
        (OPT, "off", "cache: KV only (switched off)"),
    ],
)
def test_check_says_which_form_of_the_cache_a_model_gets(
    capsys: pytest.CaptureFixture[str], model: str, cache: str, says: str
) -> None:
    assert main(["check", "--config", f'{{"cache": "{cache}"}}', "--model", model]) == 0
    assert f"\n{says}\n" in capsys.readouterr().out


def test_check_says_why_a_model_cannot_have_the_form_it_shall_have(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "vocab_size": 100}
    sizes = {"num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 64, "max_position_embeddings": 128}
    (tmp_path / "config.json").write_text(json.dumps(config | sizes))
    assert main(["check", "--config", '{"cache": "hidden"}', "--model", str(tmp_path)]) == 1
    problem = capsys.readouterr().err
    assert "keys are rotated (RoPE)" in problem and "Choose one of auto, off, fp8 (lossy)" in problem


def test_the_command_starts_without_vllm() -> None:
    """`config-docs` must not wait for vLLM's imports."""
    code = "import sys; from vllm_hybrid.cli import main; main(['config-docs']); sys.exit('vllm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0
