"""The flags on vLLM's own parsers: how they are given, what they become, what is refused and how it reads."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import pytest

from vllm_hybrid import compat, plugin
from vllm_hybrid.config import load_config
from vllm_hybrid.serving.flags import MIDDLEWARE

SLO = '{"slo": {"online": {"ttft_s": 1}}}'


def make_parser() -> Any:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    return make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))  # loads the plugins, as `vllm serve` does


@pytest.fixture(scope="module")
def parser() -> Any:
    return make_parser()


def usage_error(parser: Any, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The last line of what the parser prints as it refuses `arguments`."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(list(arguments))
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    return printed.strip().splitlines()[-1]


def test_nothing_changes_until_it_is_selected(parser: Any) -> None:
    args = parser.parse_args([])
    assert (args.scheduler, args.hybrid_config, args.scheduler_cls) == ("vllm", None, None)
    assert (args.additional_config, args.middleware, args.shutdown_timeout) == ({}, [], 0)


def test_two_flags_become_vllms_own(parser: Any) -> None:
    args = parser.parse_args(["--scheduler", "hybrid", "--hybrid-config", SLO])
    assert args.scheduler_cls == "vllm_hybrid.Scheduler"
    assert args.additional_config["hybrid"].config == load_config(SLO)
    assert args.middleware == [MIDDLEWARE]
    assert args.shutdown_timeout == 30
    spawned = pickle.loads(pickle.dumps(args))  # what vLLM hands to further API servers
    assert spawned.additional_config["hybrid"].config == load_config(SLO)


def test_what_else_was_given_is_kept(parser: Any) -> None:
    given = ["--scheduler=hybrid", "--middleware", "a.b", "--shutdown-timeout", "3", "--additional-config.x", "1"]
    args = parser.parse_args(given)
    assert args.middleware == ["a.b", MIDDLEWARE]
    assert args.shutdown_timeout == 3
    assert args.additional_config["x"] == 1


@pytest.mark.parametrize("nested", [True, False])
def test_vllms_yaml_file_takes_the_flags(parser: Any, tmp_path: Path, nested: bool) -> None:
    (tmp_path / "hybrid.yaml").write_text("slo: {online: {ttft_s: 1}}\n")
    value = "\n  slo:\n    online: {ttft_s: 1}" if nested else f" {tmp_path / 'hybrid.yaml'}"
    (tmp_path / "serve.yaml").write_text(f"scheduler: hybrid\nhybrid-config:{value}\n")
    args = parser.parse_args(["--config", str(tmp_path / "serve.yaml")])
    assert args.additional_config["hybrid"].config == load_config(SLO)


def test_settings_can_be_given_key_by_key(parser: Any) -> None:
    keys = ["--hybrid-config.slo.online.ttft_s", "1", "--hybrid-config.clients.alice.weight", "2"]
    args = parser.parse_args(["--scheduler", "hybrid", *keys])
    expected = {"slo": {"online": {"ttft_s": 1}}, "clients": {"alice": {"weight": 2}}}
    assert args.additional_config["hybrid"].config == load_config(expected)


def test_vllms_plain_flags_select_the_same(parser: Any) -> None:
    plain = ["--scheduler-cls", "vllm_hybrid.Scheduler", "--additional-config.hybrid.slo.online.ttft_s", "1"]
    ours = parser.parse_args(["--scheduler", "hybrid", "--hybrid-config", SLO])
    args = parser.parse_args(plain)
    assert args.additional_config["hybrid"].config == ours.additional_config["hybrid"].config
    assert (args.scheduler_cls, args.middleware) == (ours.scheduler_cls, ours.middleware)


def test_a_command_without_a_server_takes_the_flags_too(tmp_path: Path) -> None:
    from vllm import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    engine_parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser(prog="vllm bench"))
    # Any folder will do for a model: a name of the default's kind is looked up on the hub.
    args = engine_parser.parse_args(["--model", str(tmp_path), "--scheduler", "hybrid", "--hybrid-config", SLO])
    assert not hasattr(args, "middleware")
    engine_args = AsyncEngineArgs.from_cli_args(args)
    assert engine_args.scheduler_cls == "vllm_hybrid.Scheduler"
    assert engine_args.additional_config["hybrid"].config == load_config(SLO)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hybrid-config", SLO], "--hybrid-config has no effect without --scheduler hybrid"),
        (["--scheduler", "hybrid", "--scheduler-cls", "my.Own"], "--scheduler-cls my.Own exclude each other"),
        (["--scheduler", "fair"], "invalid choice: 'fair' (choose from"),
        (["--scheduler", "hybrid", "--hybrid-config", "absent.yaml"], "'absent.yaml': No such file or directory"),
        (["--scheduler", "hybrid", "--hybrid-config", "{bad"], "inline JSON: Expecting property name"),
        (["--scheduler", "hybrid", "--hybrid-config", ""], "must be inline JSON ({...}) or the path of"),
        (["--scheduler", "hybrid", "--hybrid-config.stict", "1"], "unknown key 'stict': did you mean 'strict'?"),
        (
            ["--scheduler", "hybrid", "--hybrid-config.slo.online.ttft_s=-1"],
            "slo.online.ttft_s = -1: must be greater",
        ),
        (
            ["--scheduler-cls", "vllm_hybrid.Scheduler", "--additional-config.hybrid.strict", "3"],
            "strict = 3: must be true or false",
        ),
        (
            ["--scheduler", "hybrid", "--hybrid-config", SLO, "--additional-config.hybrid.strict", "true"],
            "--hybrid-config and --additional-config.hybrid are both given: give only one",
        ),
        (["--scheduler", "hybrid", "--grpc"], "--scheduler hybrid has no gRPC server: leave out --grpc"),
    ],
)
def test_a_wrong_combination_is_one_usage_error(
    parser: Any, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    line = usage_error(parser, capsys, *arguments)
    assert line.startswith("vllm serve: error: ")
    assert message in line


def test_a_front_end_without_python_is_refused(
    parser: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    line = usage_error(parser, capsys, "--scheduler", "hybrid")
    assert "needs the Python server: unset VLLM_USE_RUST_FRONTEND" in line


def test_another_vllm_is_one_usage_error(
    parser: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllm.version.__version__", "0.33.1")
    line = usage_error(parser, capsys, "--scheduler", "hybrid")
    assert "vllm_hybrid supports vLLM 0.32.*, but 0.33.1 is installed" in line
    assert parser.parse_args([]).scheduler == "vllm"  # who does not select it is not bothered


def test_the_help_shows_the_flags(parser: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser.parse_args(["--help=HybridScheduler"])
    shown = capsys.readouterr().out
    assert "--scheduler {vllm,hybrid}" in shown
    assert "--hybrid-config JSON|FILE" in shown


def test_registering_again_adds_nothing(parser: Any) -> None:
    plugin.register()
    plugin.register()
    again = make_parser()
    assert [action.dest for action in again._actions].count("scheduler") == 1


def test_registering_never_raises(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> None:
        raise AttributeError("gone in this vLLM")

    monkeypatch.setattr(plugin, "_init_amx", broken)
    monkeypatch.setattr(plugin, "_extend_engine_args", broken)
    with caplog.at_level(logging.ERROR, "vllm.hybrid.plugin"):
        monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
        plugin.register.__wrapped__()
    # By identity: with another test's handler still on vLLM's logger a record is captured twice.
    assert len({id(record) for record in caplog.records}) == 2


def test_nothing_of_the_installed_vllm_is_missing() -> None:
    compat.check()


def test_everything_missing_is_named_in_one_error() -> None:
    reaches = [
        compat.Reach("vllm.engine.arg_utils:EngineArgs", "make_flags", "a.py:1", "adds flags"),
        compat.Reach(
            "vllm.engine.arg_utils:EngineArgs.__post_init__", "no such text", "a.py:2", "reads", in_source=True
        ),
        compat.Reach("vllm.engine.moved:EngineArgs", "add_cli_args", "a.py:3", "adds more flags"),
        compat.Reach("vllm.engine.arg_utils:EngineArgs", "add_cli_args", "a.py:4", "is there"),
    ]
    with pytest.raises(compat.IncompatibleVllm) as error:
        compat.check(reaches)
    message = str(error.value)
    for part in ("'make_flags' (adds flags)", "'no such text' (reads)", "vllm.engine.moved:EngineArgs is gone"):
        assert part in message
    assert "is there" not in message
