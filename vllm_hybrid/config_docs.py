"""``docs/configuration.md``, written from the schema: key, what is allowed, default, meaning.

The reference cannot drift from the code, because a test compares the file with what is generated here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vllm_hybrid.config import HybridConfig

_PAGE = """\
# Configuration

<!-- Written by `vllm-hybrid config-docs > docs/configuration.md`; edit the schema in vllm_hybrid/config/. -->

One schema, four ways to give it:

| where | how |
|---|---|
| command line | `vllm serve MODEL --scheduler hybrid --hybrid-config FILE` (`.yaml`, `.yml` or `.json`), \
`--hybrid-config '{"slo": {"online": {"ttft_s": 1}}}'`, or key by key: `--hybrid-config.slo.online.ttft_s 1` |
| vLLM's own `--config` YAML | `scheduler: hybrid` and `hybrid-config:` with a file name or the settings themselves |
| Python | `LLM(model, **engine_kwargs({"slo": {"online": {"ttft_s": 1}}}))`, the same for \
`AsyncEngineArgs`; `from vllm_hybrid import engine_kwargs` |
| any launcher of vLLM | `scheduler_cls="vllm_hybrid.Scheduler"`, `additional_config={"hybrid": {...}}` |

`--hybrid-config` given twice counts once: the last one wins, as with every JSON option of vLLM.
A mistake is refused when the server starts, in one line that names the key, the value and what is allowed.
`vllm-hybrid check --config FILE` shows what a file means without starting a server.

All settings, with their defaults (seconds end in `_s`):

| key | allowed | default | meaning |
|---|---|---|---|
ROWS

## What a request says

A request names its client and lane in `vllm_xargs` (HTTP) or `SamplingParams(extra_args=...)` (Python):

| field | allowed | default |
|---|---|---|
| `client` | 1 to 64 characters out of `A-Z a-z 0-9 _ . @ : -` | `default` |
| `lane` | `online`, `offline` | `online` |

Anything else is answered with a 400 that names the field, a stream too, before it starts. With API keys the key decides
both, and a wish beyond it is answered with a 403 ([front.md](front.md)).

## What changes in vLLM's own settings

Under `--scheduler hybrid` a `--shutdown-timeout` of 0, vLLM's default, becomes 30 seconds: with 0, clients in
flight hang when the server is told to stop. `--scheduler hybrid` together with a foreign `--scheduler-cls`,
with `--grpc` or with `VLLM_USE_RUST_FRONTEND=1` is refused.
"""


def configuration_page() -> str:
    """The whole of ``docs/configuration.md``."""
    schema = HybridConfig.model_json_schema()
    rows = (f"| `{key}` | {allowed} | {default} | {meaning} |" for key, allowed, default, meaning in _rows(schema))
    return _PAGE.replace("ROWS", "\n".join(rows))


def _rows(schema: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    def walk(section: dict[str, Any], prefix: str) -> Iterator[tuple[str, str, str, str]]:
        for name, field in section["properties"].items():
            if inner := _section_of(field, schema):
                yield from walk(inner, f"{prefix}{name}.")
            elif inner := _section_of(field.get("additionalProperties", {}), schema):
                yield from walk(inner, f"{prefix}{name}.NAME.")
            else:
                default = "none" if field["default"] is None else f"`{str(field['default']).lower()}`"
                yield f"{prefix}{name}", _allowed(field), default, " ".join(field["description"].split())

    return walk(schema, "")


def _section_of(field: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any] | None:
    reference = field.get("$ref")
    return schema["$defs"][reference.rsplit("/", 1)[1]] if reference else None


def _allowed(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(map(_allowed, field["anyOf"]))
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "minimum" in field:
        return f"number >= {field['minimum']:g}"
    if "exclusiveMinimum" in field:
        kind = "integer" if field["type"] == "integer" else "number"
        return f"{kind} > {field['exclusiveMinimum']:g}"
    if "maximum" in field:
        return f"number from {field['minimum']:g} to {field['maximum']:g}"
    if field["type"] == "array":
        return (
            f"list of {field['minItems']} numbers" if "minItems" in field else f"list out of {_allowed(field['items'])}"
        )
    return {"boolean": "`true`, `false`", "null": "none", "string": "text"}[field["type"]]
