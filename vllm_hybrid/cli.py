"""The command ``vllm-hybrid``.

``check`` tells an operator before a server starts whether this machine's vLLM can be steered and what a
configuration means.  ``top`` shows what a running server does.  ``hash-key`` names an API key for the keys file.
``config-docs`` prints the reference of all settings.  ``simulate`` and ``report`` run the schedulers on a simulated
device (``sim/cli.py``); ``profile`` measures this machine's engine (``profile/cli.py``).
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from getpass import getpass
from importlib.metadata import entry_points

import yaml

from vllm_hybrid import __version__, compat
from vllm_hybrid.config import ConfigError, HybridConfig, load_config
from vllm_hybrid.config.keys import key_hash, load_keys
from vllm_hybrid.config_docs import configuration_page
from vllm_hybrid.profile import cli as profile_cli
from vllm_hybrid.serving.top import run as run_top
from vllm_hybrid.sim.cli import add_commands

_OLDEST_PYTHON, _FIRST_UNSUPPORTED_PYTHON = (3, 11), (3, 13)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a sub-command; the exit status is 1 where it found a problem, 2 where it was asked for nonsense."""
    parser = argparse.ArgumentParser(prog="vllm-hybrid", description=__doc__)
    parser.add_argument("--version", action="version", version=f"vllm-hybrid {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="whether the installed vLLM can be steered; what a config means")
    check.add_argument("--config", metavar="JSON|FILE", help="settings to resolve, as for --hybrid-config")
    check.add_argument("--model", metavar="MODEL", help="say which form of the cache this model gets, and why")
    check.set_defaults(run=_check)
    hash_key = commands.add_parser("hash-key", help="read an API key from stdin, print its name in the keys file")
    hash_key.set_defaults(run=_hash_key)
    top = commands.add_parser("top", help="show what a running server does, like top")
    top.add_argument("url", nargs="?", default="http://localhost:8000", help="of the server (default: %(default)s)")
    top.add_argument("--interval-s", type=float, default=1.0, help="seconds between two screens (default: %(default)s)")
    top.add_argument("--once", action="store_true", help="one screen, then end")
    top.set_defaults(run=lambda given: run_top(given.url, given.interval_s, given.once))
    config_docs = commands.add_parser("config-docs", help="print docs/configuration.md")
    config_docs.set_defaults(run=_config_docs)
    add_commands(commands)
    profile_cli.add_commands(commands)
    given = parser.parse_args(arguments)
    return given.run(given)


def _config_docs(given: argparse.Namespace) -> int:
    print(configuration_page(), end="")
    return 0


def _hash_key(given: argparse.Namespace) -> int:
    key = getpass("API key: ") if sys.stdin.isatty() else sys.stdin.readline().rstrip("\r\n")
    if not key:
        print("no key given", file=sys.stderr)
        return 2
    print(key_hash(key))
    return 0


def _check(given: argparse.Namespace) -> int:
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    problems = [*_python(), *_vllm(), *_plugin(), *_config(given.config, given.model)]
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    print(f"{len(problems)} problems" if problems else "no problems")
    return 1 if problems else 0


def _python() -> Iterator[str]:
    print(f"Python {platform.python_version()}, vllm_hybrid {__version__}")
    if not _OLDEST_PYTHON <= sys.version_info[:2] < _FIRST_UNSUPPORTED_PYTHON:
        yield f"Python {platform.python_version()}: must be 3.11 or 3.12"


def _vllm() -> Iterator[str]:
    try:
        from vllm.version import __version__ as installed
    except ImportError as error:
        yield f"vLLM cannot be imported ({error}): install vllm-hybrid[cpu] or vllm-hybrid[cuda]"
        return
    print(f"vLLM {installed}")
    try:
        compat.check_version()
    except compat.IncompatibleVllm as error:
        yield str(error)
    for reach in compat.ALL:
        problem = reach.problem()
        print(f"  {'missing' if problem else 'found':8}{reach}  # {reach.used_for}")
        if problem:
            yield problem


def _plugin() -> Iterator[str]:
    """Without the plugin vLLM has no --scheduler, and complains of an ambiguous option instead."""
    found = [point.name for point in entry_points(group="vllm.general_plugins")]
    allowed = os.environ.get("VLLM_PLUGINS")
    if "hybrid" not in found:
        yield "the entry point vllm.general_plugins:hybrid is not installed: reinstall vllm-hybrid"
    elif allowed is not None and "hybrid" not in allowed.split(","):
        yield f"VLLM_PLUGINS={allowed!r} leaves out hybrid: add it, or unset VLLM_PLUGINS"
    else:
        print("plugin hybrid: installed and allowed")


def _config(source: str | None, model: str | None) -> Iterator[str]:
    try:
        config = load_config(source)
        keys = load_keys(config.identity)
    except ConfigError as error:
        yield str(error)
    else:
        print(yaml.safe_dump({"hybrid": config.model_dump(mode="json")}, sort_keys=False), end="")
        if keys is not None:
            clients = {entitlement.client for entitlement in keys.values()}
            print(f"keys file: {len(keys)} keys of {len(clients)} clients")
        if model is not None:
            yield from _cache(config, model)


def _cache(config: HybridConfig, model: str) -> Iterator[str]:
    """The form of the cache, as it is decided when a server starts with this model and vLLM's defaults."""
    try:
        from vllm.engine.arg_utils import EngineArgs

        from vllm_hybrid.cache.start import decision_for
        from vllm_hybrid.settings import wrap

        print(decision_for(EngineArgs(model=model, additional_config=wrap({"hybrid": config})).create_engine_config()))
    except Exception as error:
        yield f"--model {model}: {str(error).splitlines()[0]}"
