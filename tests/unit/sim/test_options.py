"""What the arguments of `vllm-hybrid simulate` mean, and the one line that refuses those that mean nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vllm_hybrid.cli import main
from vllm_hybrid.sim import options
from vllm_hybrid.sim.measure import Slo
from vllm_hybrid.sim.sweep import Job

TRACE = "arrival_s,prompt_tokens,output_tokens,client\n0.0,374,44,a\n4.5,396,109,b\n"


def jobs(*arguments: str) -> list[Job]:
    import argparse

    from vllm_hybrid.sim.cli import add_commands

    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers())
    return options.jobs(parser.parse_args(["simulate", "--device", "a10g_llama2_7b", *arguments]))


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "mine.csv"
    path.write_text(TRACE)
    return path


def test_every_workload_meets_every_contender(trace: Path) -> None:
    found = jobs("--trace", str(trace), "--preset", "fcfs,hybrid", "--seeds", "0,1")
    assert [(j.load.seed, j.contender.name) for j in found] == [(0, "fcfs"), (0, "hybrid"), (1, "fcfs"), (1, "hybrid")]
    assert found[0].load.requests is found[1].load.requests
    assert (found[0].contender.stock, found[1].contender.stock) == ("fcfs", None)
    assert found[1].contender.hybrid == {"preset": "hybrid"}
    assert [(r.client, r.prompt_tokens) for r in found[0].load.requests] == [("a", 374), ("b", 396)]


def test_behind_a_gate_fcfs_is_ours_and_stock_stays_stock(trace: Path) -> None:
    gate = '{"memory": {"gate": "max_tokens"}}'
    found = jobs("--trace", str(trace), "--preset", "stock,fcfs,vtc", "--hybrid-config", gate)
    assert [(j.contender.name, j.contender.stock) for j in found] == [("stock", "fcfs"), ("fcfs", None), ("vtc", None)]
    assert found[1].contender.hybrid == {"memory": {"gate": "max_tokens"}, "preset": "fcfs"}


def test_each_preset_is_told_what_it_reads_and_nothing_else() -> None:
    settings = '{"clients": {"a": {"weight": 2}}, "presets": {"rpm": {"limit": 5}, "sarathi": {"token_budget": 512}}}'
    presets = "vtc,rpm,sarathi,hybrid,fcfs"
    found = jobs("--workload", "overload", "--preset", presets, "--hybrid-config", settings, "--slo", "ttft_s=1")
    clients, promise = {"a": {"weight": 2}}, {"online": {"ttft_s": 1.0}}
    assert [dict(j.contender.hybrid) for j in found] == [
        {"preset": "vtc", "clients": clients},
        {"preset": "rpm", "presets": {"rpm": {"limit": 5}}},
        {"preset": "sarathi", "presets": {"sarathi": {"token_budget": 512}}},
        {"preset": "hybrid", "clients": clients, "slo": promise},
        {},
    ]
    assert found[0].weights == {"a": 2.0}


def test_settings_are_of_their_type(trace: Path) -> None:
    engine = "step_tokens=512,prefix_caching=true,watermark=0.1,pool_tokens=8000"
    (job,) = jobs("--trace", str(trace), "--preset", "fcfs", "--engine", engine, "--slo", "ttft_s=1,tbt_s=.1")
    assert (job.settings.step_tokens, job.settings.prefix_caching, job.settings.watermark) == (512, True, 0.1)
    assert job.settings.pool_tokens == 8000
    assert job.slo == Slo(1.0, 0.1)


def test_policies_are_told_what_is_promised_unless_the_settings_say_otherwise(trace: Path) -> None:
    promised = ("--trace", str(trace), "--preset", "hybrid", "--slo", "ttft_s=1")
    assert jobs(*promised)[0].contender.hybrid["slo"] == {"online": {"ttft_s": 1.0}}
    (other,) = jobs(*promised, "--hybrid-config", '{"slo": {"online": {"ttft_s": 3}}}')
    assert other.contender.hybrid["slo"] == {"online": {"ttft_s": 3.0}}
    assert other.slo == Slo(ttft_s=1.0)


def test_what_comes_after_the_duration_is_no_part_of_the_load(trace: Path) -> None:
    (job,) = jobs("--trace", str(trace), "--preset", "fcfs", "--duration", "4")
    assert (job.until_s, len(job.load.requests)) == (4.0, 1)


def test_a_workload_brings_its_clients_weights_and_takes_parameters() -> None:
    (job,) = jobs("--workload", "overload-weighted", "--preset", "hybrid")
    assert sorted(job.weights.values()) == [1, 2, 3, 4]
    assert job.contender.hybrid["clients"].keys() == job.weights.keys()
    few, many = (jobs("--workload", "apt", "--preset", "fcfs", "--parameters", f"requests={n}")[0] for n in (5, 9))
    assert (len(few.load.requests), len(many.load.requests)) == (5, 9)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--device", "h1000", "--workload", "overload"], "'h1000'"),
        (["--workload", "overlord"], "did you mean 'overload'?"),
        ([], "--workload or --trace: one of them must be given"),
        (["--workload", "overload", "--preset", "vct"], "--preset: 'vct' is unknown"),
        (["--workload", "overload", "--preset", "fcfs,,hybrid"], "--preset = 'fcfs,,hybrid'"),
        (["--workload", "overload", "--preset", "fcfs,fcfs"], "names something twice"),
        (["--workload", "overload", "--slo", "ttft=1"], "did you mean 'ttft_s'?"),
        (["--workload", "overload", "--slo", "ttft_s=soon"], "--slo ttft_s = 'soon': must be a number of seconds"),
        (["--workload", "overload", "--engine", "max_seqs=-1"], "--engine max_seqs = '-1': must not be negative"),
        (["--workload", "overload", "--engine", "max_seqs=1.5"], "--engine max_seqs = '1.5': must be a whole number"),
        (["--workload", "overload", "--engine", "batch=1"], "--engine: 'batch' is unknown"),
        (["--workload", "overload", "--engine", "async_mode=yes"], "must be true or false"),
        (["--workload", "overload", "--seeds", "one"], "--seeds = 'one': must be a whole number"),
        (["--workload", "overload", "--duration", "0"], "--duration = '0': must be a number of seconds above 0"),
        (["--workload", "overload", "--parameters", "x=1"], "--parameters: 'x' is unknown"),
        (["--workload", "overload", "--columns", "client=c"], "--columns: are those of a --trace"),
        (["--workload", "overload", "--hybrid-config", '{"slo": 3}', "--preset", "hybrid"], "slo = 3"),
        (["--workload", "overload", "--hybrid-config", '{"memory": 3}', "--preset", "vtc"], "memory = 3"),
        (["--workload", "overload", "--hybrid-config", '{"presets": 3}', "--preset", "vtc"], "presets.3 has no effect"),
        (["--workload", "overload", "--hybrid-config", '{"solo": 3}', "--preset", "vtc"], "unknown key 'solo'"),
        (["--workload", "overload", "--hybrid-config", '{"slo": {}}', "--preset", "fcfs,vtc"], "slo has no effect"),
        (
            ["--workload", "overload", "--hybrid-config", '{"presets": {"drr": {}}}', "--preset", "vtc"],
            "presets.drr has no effect with --preset vtc",
        ),
    ],
)
def test_nonsense_is_refused_in_one_line(
    arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    device = [] if "--device" in arguments else ["--device", "a10g_llama2_7b"]
    assert main(["simulate", *device, *arguments]) == 2
    said = capsys.readouterr().err
    assert problem in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "arguments", "problem"),
    [
        (TRACE, ["--columns", "prompt_tokens=ContextTokens"], "row 2, column 'ContextTokens': is missing"),
        (TRACE, ["--columns", "prompts=ContextTokens"], "columns names 'prompts'"),
        (TRACE.replace("374", "-3"), [], "row 2, column 'prompt_tokens'"),
        (TRACE.replace("4.5", ""), [], "row 3, column 'arrival_s': is missing"),
        (TRACE.replace("0.0", "5"), [], "row 3, column 'arrival_s': 4.5 is before 5"),
        (TRACE.replace("396", "9999"), [], "row 3, column 'prompt_tokens': 9999 and 109 output tokens: at most 10000"),
    ],
)
def test_a_trace_that_cannot_be_replayed_is_refused_by_file_row_and_column(
    text: str, arguments: list[str], problem: str, trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace.write_text(text)
    assert main(["simulate", "--device", "a10g_llama2_7b", "--trace", str(trace), *arguments]) == 2
    said = capsys.readouterr().err
    assert f"{trace}: " in said
    assert problem in said
    assert said.count("\n") == 1


def test_a_folder_without_records_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_naming_what_there_is_waits_for_no_vllm() -> None:
    code = (
        "import sys; from vllm_hybrid.cli import main; main(['simulate', '--list']);"
        "sys.exit(bool({'vllm', 'torch', 'matplotlib'} & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "overload" in result.stdout
    assert "a10g_llama2_7b" in result.stdout
