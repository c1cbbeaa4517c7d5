"""What of the settings may change while the engine runs, as a JSON merge patch (RFC 7396) with a schema of its own.

A patch names only what changes; null sets back to the default. What the schema refuses can never be right; what it lets
pass may still not go together with the settings in force.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, WithJsonSchema, create_model

from vllm_hybrid.config import ConfigError, HybridConfig, mistakes
from vllm_hybrid.config.names import CLIENT_ID_PATTERN, ClientId, shown

LIVE = ("clients", "groups", "slo", "lanes")


_Name = Annotated[ClientId, WithJsonSchema({"type": "string", "pattern": f"^{CLIENT_ID_PATTERN}$"})]


@cache
def patch_model() -> type[BaseModel]:
    """The live sections with every field left out or null."""
    return _patch_of(HybridConfig, LIVE)


def _patch_of(section: type[BaseModel], names: tuple[str, ...] | None = None) -> type[BaseModel]:
    fields: dict[str, Any] = {
        name: (_part(field.rebuild_annotation()) | None, None)
        for name, field in section.model_fields.items()
        if names is None or name in names
    }
    return create_model(f"{section.__name__}Patch", __config__=ConfigDict(extra="forbid", strict=True), **fields)


def _part(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _patch_of(annotation)
    if get_origin(annotation) is dict:
        section: Any = _part(get_args(annotation)[1]) | None
        return dict[_Name, section]
    if annotation == ClientId | None:
        return _Name | None
    return annotation


def patch_schema() -> dict[str, Any]:
    """JSON schema of a patch, without references."""
    schema = patch_model().model_json_schema()
    sections = schema.pop("$defs")

    def inlined(part: Any) -> Any:
        if isinstance(part, list):
            return [inlined(item) for item in part]
        if not isinstance(part, dict):
            return part
        if "$ref" in part:
            return inlined(sections[part["$ref"].rsplit("/", 1)[1]])
        closed = {"additionalProperties": False} if "patternProperties" in part else {}
        return closed | {key: inlined(value) for key, value in part.items() if key not in ("default", "title")}

    return inlined(schema)


def check_patch(patch: Any) -> None:
    """Raise ConfigError, in one line, for a patch that no settings could make right."""
    if not isinstance(patch, Mapping):
        raise ConfigError("the patch: must be a mapping of settings")
    for name in patch:
        if name in HybridConfig.model_fields and name not in LIVE:
            raise ConfigError(f"{name}: cannot change while the engine runs; what can is {', '.join(LIVE)}")
        if name not in LIVE:
            raise ConfigError(f"unknown key {shown(name)}: allowed here: {', '.join(LIVE)}")
    try:
        patch_model().model_validate(dict(patch))
    except ValidationError as error:
        raise ConfigError(f"the patch: {mistakes(error)}") from None
