"""Who may name the client of a request, and what an API key entitles to."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, StrictBool, model_validator

from vllm_hybrid.config.names import ClientId, LaneName, shown
from vllm_hybrid.config.section import Section

_HEADER_NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]{1,64}")
_CALLERS_OWN = frozenset({"x-session-id", "authorization", "x-api-key"})


def _header_name(name: object) -> object:
    if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name.lower()):
        raise ValueError("must be the name of an HTTP header")
    if name.lower() in _CALLERS_OWN:
        raise ValueError(f"is a header that callers set themselves: {shown(name)} cannot name a client")
    return name.lower()


class Entitlement(Section):
    """What the bearer of an API key may do."""

    client: ClientId
    lanes: tuple[LaneName, ...] = ("online", "offline")  # the first is that of a request which names none
    delegate: StrictBool = False  # may name any client: an authenticating proxy
    admin: StrictBool = False  # may see all clients and change settings

    @model_validator(mode="after")
    def _lanes_are_lanes(self) -> Entitlement:
        if not self.lanes or len(set(self.lanes)) != len(self.lanes):
            raise ValueError(f"lanes = {list(self.lanes)}: must be one or both lanes, each once")
        return self


class IdentityConfig(Section):
    keys_file: str | None = None
    """Path of a YAML or JSON file: the SHA-256 of an API key -> its client, lanes, delegate, admin (docs/front.md).
    With it every inference call needs a key, and nothing but the key chooses client and lane. None: callers are
    trusted."""

    header: Annotated[str, BeforeValidator(_header_name)] | None = None
    """Header in which an authenticating proxy names the client, x-llm-d-inference-fairness-id for instance. From
    anybody else it is dropped."""

    header_from: Literal["delegates", "everyone"] = "delegates"
    """Whose header counts. delegates: that of keys with `delegate: true`. everyone: only a proxy that sets the header
    itself can reach this server, and no keys are used."""

    sources: tuple[Literal["header", "xargs", "user"], ...] | None = None
    """Where a client is named by those who may name one, the first that does counts: the header, vllm_xargs.client, the
    OpenAI field user. None: the header where one is set, else vllm_xargs.client."""

    private_prefixes: StrictBool = False
    """Give every client a prefix cache of its own (vLLM's cache_salt), so that nobody can find out by the time to the
    first token what others have asked. Shared prompts are then computed once per client."""

    @property
    def named_in(self) -> tuple[str, ...]:
        """The sources in force."""
        return self.sources or (("header",) if self.header else ("xargs",))

    @model_validator(mode="after")
    def _sources_exist(self) -> IdentityConfig:
        if self.header_from == "everyone" and (self.header is None or self.keys_file is not None):
            raise ValueError(
                "header_from = 'everyone': is for a header without keys_file: set header, leave keys_file out"
            )
        if self.header is not None and self.header_from == "delegates" and self.keys_file is None:
            raise ValueError(
                f"header = {self.header!r}: needs keys_file with a delegate's key, or header_from = 'everyone'"
            )
        if self.sources is not None and ("header" in self.sources) != (self.header is not None):
            raise ValueError(f"sources = {list(self.sources)}: must hold 'header' exactly where header is set")
        return self
