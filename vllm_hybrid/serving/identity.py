"""Who sent a request, and for which client and lane it is served.

A `Caller` is what the headers of an HTTP request prove: with keys configured, what its key entitles to. The body may
then only wish for what the caller is entitled to: a wish for somebody else's client, or for a lane that is not the
caller's, is a `NotEntitled` (403) and not silently changed; a wish that names none is an `IdentityError` (400). Without
keys every caller may name any client, where the settings say (`identity.sources`).

The call that is being served is a context variable: vLLM's handlers spawn tasks (beam search, batches), and those
inherit it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from vllm_hybrid.config import (
    DEFAULT_CLIENT,
    LANES,
    IdentityError,
    validate_client_id,
)
from vllm_hybrid.config.identity import Entitlement, IdentityConfig
from vllm_hybrid.config.keys import Keys, key_hash
from vllm_hybrid.config.names import shown, validate_lane

Headers = Iterable[tuple[bytes, bytes]]

# The service tiers of the OpenAI API: flex is the cheap one that may wait. auto wishes for nothing.
TIERS: Mapping[str, str | None] = {
    "auto": None,
    "default": "online",
    "priority": "online",
    "scale": "online",
    "flex": "offline",
}


class NotEntitled(Exception):
    """A caller wished for a client or lane that is not its own; `field` is where."""

    def __init__(self, field: str, value: object, allowed: str) -> None:
        super().__init__(f"{field} = {shown(value)}: this API key is entitled to {allowed}")
        self.field = field


class NoKey(Exception):
    """A call without an API key, or with one nobody knows."""


@dataclass(frozen=True, slots=True)
class Identity:
    """For whom a request is served."""

    lane: str
    client: str

    def as_extra_args(self) -> dict[str, str]:
        """The form in which it travels to the engine."""
        return {"lane": self.lane, "client": self.client}


@dataclass(frozen=True, slots=True)
class Caller:
    """What the headers prove. entitlement: None where no keys are in use. named: by a header that counts."""

    entitlement: Entitlement | None = None
    named: str | None = None

    @property
    def is_admin(self) -> bool:
        """Whether the caller may see all clients and change settings."""
        return self.entitlement is not None and self.entitlement.admin

    @property
    def lanes(self) -> tuple[str, ...]:
        """The lanes it may use; the first is that of a request which names none."""
        return LANES if self.entitlement is None else self.entitlement.lanes


@dataclass(slots=True)
class Call:
    """One HTTP request being served; `identity` is settled once the body is known.

    places: of its prompts, as `admission.py` counts them. retry_after_s: where it was refused for now. ticket: its
    client, and the name under which it waits until its first prompt goes to the engine (`client_limits.py`).
    unanswered: client by request without a first token; answered: whether one has it, or none will; given_up: whether
    it was cancelled for that; task: what serves it (`hopeless.py`).
    """

    caller: Caller
    sources: tuple[str, ...] = ("xargs",)
    identity: Identity | None = field(default=None)
    admission: Any = None
    places: int = 0
    retry_after_s: int | None = None
    ticket: tuple[str, str] | None = None
    unanswered: dict[str, str] = field(default_factory=dict)
    answered: bool = False
    given_up: bool = False
    task: Any = None


CALL: ContextVar[Call | None] = ContextVar("hybrid_call", default=None)


def caller_of(headers: Headers, settings: IdentityConfig, keys: Keys | None) -> Caller:
    """Read a request's headers. Raises NoKey, or IdentityError for a header that counts and is none or several."""
    found = _values(headers, {"authorization", "x-api-key", settings.header or ""})
    entitlement = None if keys is None else _entitlement(found, keys)
    trusted = settings.header_from == "everyone" or (entitlement is not None and entitlement.delegate)
    if settings.header is None or not trusted or settings.header not in found:
        return Caller(entitlement)
    named = found[settings.header]
    if len(named) > 1:  # a caller's own beside the proxy's: nobody can tell which is which
        raise IdentityError(settings.header, f"{len(named)} values", "one header")
    return Caller(entitlement, validate_client_id(named[0], settings.header))


def _values(headers: Headers, wanted: set[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for raw_name, value in headers:
        name = raw_name.decode("latin-1").lower()
        if name in wanted:
            found.setdefault(name, []).append(value.decode("latin-1"))
    return found


def _entitlement(found: Mapping[str, list[str]], keys: Keys) -> Entitlement:
    """That of the bearer token, or of `x-api-key`, which the Anthropic clients send."""
    given = []
    for value in found.get("authorization", ()):
        scheme, _, token = value.partition(" ")
        given += [token.strip()] if scheme.lower() == "bearer" else []
    given = given or found.get("x-api-key", [])
    known = {key_hash(key.encode("latin-1")) for key in given}
    if len(known) != 1 or (entitlement := keys.get(known.pop())) is None:
        raise NoKey
    return entitlement


def settle(call: Call, xargs: Mapping[str, Any] | None, user: object = None, tier: object = None) -> Identity:
    """For whom the request is served, from what its body wishes for; kept in `call`."""
    xargs = xargs or {}
    lanes = [_lane_wish(call.caller, "vllm_xargs.lane", xargs.get("lane")), _tier_wish(call.caller, tier)]
    lane = next(filter(None, lanes), call.caller.lanes[0])
    call.identity = Identity(lane, _client(call, xargs.get("client"), user))
    return call.identity


def _client(call: Call, wish: object, user: object) -> str:
    caller = call.caller
    if wish is not None:
        wish = validate_client_id(wish, "vllm_xargs.client")
    client: object = None
    if caller.entitlement is None or caller.entitlement.delegate:
        given = {"header": caller.named, "xargs": wish, "user": user}
        client = next((given[source] for source in call.sources if given[source] is not None), None)
    if client is None:
        client = DEFAULT_CLIENT if caller.entitlement is None else caller.entitlement.client
    chosen = validate_client_id(client, "user")
    if wish is not None and wish != chosen:
        raise NotEntitled("vllm_xargs.client", wish, f"client {chosen!r}")
    return chosen


def _lane_wish(caller: Caller, field: str, wish: object, said: object = None) -> str | None:
    if wish is None:
        return None
    lane = validate_lane(wish, field)
    if lane not in caller.lanes:
        raise NotEntitled(field, said or wish, " or ".join(caller.lanes))
    return lane


def _tier_wish(caller: Caller, tier: object) -> str | None:
    if tier is None:
        return None
    if not isinstance(tier, str) or tier not in TIERS:
        raise IdentityError("service_tier", tier, f"one of {', '.join(TIERS)}")
    return _lane_wish(caller, "service_tier", TIERS[tier], tier)
