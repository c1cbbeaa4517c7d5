"""``--scheduler hybrid`` and ``--hybrid-config`` on every parser of vLLM that builds an engine.

The flags are translated into vLLM's own (``scheduler_cls``, ``additional_config``, ``middleware``) as soon as
they are parsed, in the parsed namespace itself: API servers that vLLM spawns receive that namespace and build
their engine arguments before any plugin is loaded in them.  A wrong combination is a usage error of the parser
that met it, not a traceback.
"""

from __future__ import annotations

import argparse
from typing import Any

from vllm_hybrid import compat
from vllm_hybrid.config import ConfigError, load_config
from vllm_hybrid.config.keys import load_keys
from vllm_hybrid.settings import SCHEDULER_CLS, SETTINGS_KEY, HybridSettings, is_selected, wrap

MIDDLEWARE = "vllm_hybrid.serving.middleware.HybridMiddleware"
SHUTDOWN_TIMEOUT_S = 30


def add_flags(parser: Any) -> Any:
    """Add the flags to one of vLLM's parsers, and translate them whenever it parses."""
    if "--scheduler" in parser._option_string_actions:  # a later vLLM may have one of its own
        return parser
    group = parser.add_argument_group(
        title="HybridScheduler",
        description="Per-client fair queuing, online and offline lanes, latency targets (vllm_hybrid).",
    )
    group.add_argument("--scheduler", choices=["vllm", "hybrid"], default="vllm", help="Scheduler of the engine.")
    group.add_argument(
        "--hybrid-config",
        type=_settings,
        default=None,
        metavar="JSON|FILE",
        help="Settings of the hybrid scheduler: inline JSON, or the path of a .json, .yaml or .yml file.",
    )
    parse_known_args = parser.parse_known_args

    def parse_and_translate(args: Any = None, namespace: Any = None) -> Any:
        namespace, rest = parse_known_args(args, namespace)
        try:
            translate(namespace)
        except (ConfigError, compat.IncompatibleVllm) as error:
            parser.error(str(error))
        return namespace, rest

    parser.parse_known_args = parse_and_translate
    return parser


def _settings(source: str) -> HybridSettings:
    try:
        return HybridSettings(load_config(source))
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def translate(args: argparse.Namespace) -> None:
    """Express our flags by vLLM's own, in place; raise where they contradict each other or do nothing."""
    named_by_class = is_selected(args.scheduler_cls)
    if args.scheduler != "hybrid" and not named_by_class:
        if args.hybrid_config is not None:
            raise ConfigError("--hybrid-config has no effect without --scheduler hybrid: give both or none")
        return
    if args.scheduler_cls is not None and not named_by_class:
        raise ConfigError(
            f"--scheduler hybrid and --scheduler-cls {args.scheduler_cls} exclude each other: give only one"
        )
    compat.check(compat.ALL if hasattr(args, "middleware") else (*compat.ENTRY, *compat.SCHEDULER))
    args.scheduler_cls = args.scheduler_cls or SCHEDULER_CLS
    args.additional_config = _merged(args.additional_config, args.hybrid_config)
    args.shutdown_timeout = args.shutdown_timeout or SHUTDOWN_TIMEOUT_S
    if hasattr(args, "middleware"):
        _require_python_server(args)
        load_keys(args.additional_config[SETTINGS_KEY].config.identity)  # a bad file is a usage error
        args.middleware = [*args.middleware, *({MIDDLEWARE} - {*args.middleware})]


def _merged(additional_config: Any, given: HybridSettings | None) -> dict[str, Any]:
    if given is None:
        return wrap(additional_config)
    if SETTINGS_KEY in (additional_config or {}):
        raise ConfigError(f"--hybrid-config and --additional-config.{SETTINGS_KEY} are both given: give only one")
    return wrap({**(additional_config or {}), SETTINGS_KEY: given})


def _require_python_server(args: argparse.Namespace) -> None:
    """The checks of single requests and the metrics live in vLLM's Python server."""
    import vllm.envs as envs

    if getattr(args, "grpc", False):
        raise ConfigError("--scheduler hybrid has no gRPC server: leave out --grpc")
    if getattr(envs, "VLLM_USE_RUST_FRONTEND", False):
        raise ConfigError("--scheduler hybrid needs the Python server: unset VLLM_USE_RUST_FRONTEND")
