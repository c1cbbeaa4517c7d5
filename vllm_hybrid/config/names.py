"""The identity of a request: a client, who pays, and a lane, online or offline.

Ids of clients are keys of the configuration, labels and parts of addresses, so they are short and plain ASCII; what is
none is refused by name and never repaired.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

LANES = ("online", "offline")
DEFAULT_LANE = "online"
DEFAULT_CLIENT = "default"
MAX_CLIENT_ID_CHARS = 64

CLIENT_ID_PATTERN = rf"[A-Za-z0-9_.@:-]{{1,{MAX_CLIENT_ID_CHARS}}}"
_CLIENT_ID = re.compile(CLIENT_ID_PATTERN)
_CLIENT_ID_ALLOWED = f"1 to {MAX_CLIENT_ID_CHARS} characters out of A-Z a-z 0-9 _ . @ : -"
_VALUE_CHARS = 60


class IdentityError(ValueError):
    """A client or lane that is none, said in one line; `field` is where it was given."""

    def __init__(self, field: str, value: object, allowed: str) -> None:
        super().__init__(f"{field} = {shown(value)}: must be {allowed}")
        self.field = field


def shown(value: object) -> str:
    """A value as it appears in an error message: quoted, and cut where it would fill the screen."""
    text = repr(value)
    return text if len(text) <= _VALUE_CHARS else text[: _VALUE_CHARS - 3] + "..."


def validate_client_id(client: object, field: str = "client") -> str:
    """Return `client` if it is a client id, else raise an IdentityError that names `field`."""
    if isinstance(client, str) and _CLIENT_ID.fullmatch(client):
        return client
    raise IdentityError(field, client, _CLIENT_ID_ALLOWED)


def validate_lane(lane: object, field: str = "lane") -> str:
    """Return `lane` if it is one, else raise an IdentityError that names `field`."""
    if isinstance(lane, str) and lane in LANES:
        return lane
    raise IdentityError(field, lane, f"one of {', '.join(LANES)}")


def request_identity(extra_args: Mapping[str, Any] | None) -> tuple[str, str]:
    """The (lane, client) a request names in its extra arguments; what it leaves out is online, default."""
    if not extra_args:
        return DEFAULT_LANE, DEFAULT_CLIENT
    lane = validate_lane(extra_args.get("lane", DEFAULT_LANE), "vllm_xargs.lane")
    return lane, validate_client_id(extra_args.get("client", DEFAULT_CLIENT), "vllm_xargs.client")


ClientId = Annotated[str, BeforeValidator(lambda client: validate_client_id(client, "client id"))]
LaneName = Literal["online", "offline"]
