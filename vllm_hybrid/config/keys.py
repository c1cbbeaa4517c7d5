"""The file of API keys: what each key entitles to, by the key's SHA-256.

Keys themselves are never stored, nor ever shown: an entry that is no hash is named by its place in the file, because
it may be a key that somebody pasted by mistake.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from pydantic import ValidationError

from vllm_hybrid.config import ConfigError, read_settings
from vllm_hybrid.config.identity import Entitlement, IdentityConfig

_SHA256 = re.compile(r"[0-9a-f]{64}")

Keys = Mapping[str, Entitlement]


def key_hash(key: str | bytes) -> str:
    """The name of a key in the file."""
    return hashlib.sha256(key.encode() if isinstance(key, str) else key).hexdigest()


def load_keys(identity: IdentityConfig) -> Keys | None:
    """The keys that the settings name, None where they name no file; ConfigError where it holds something else."""
    path = identity.keys_file
    if path is None:
        return None
    if path.strip().startswith("{"):
        raise ConfigError("identity.keys_file: must be the path of a file, not its content")
    where = f"keys file {path!r}"
    try:
        entries = read_settings(path)
    except ConfigError as error:
        raise ConfigError(str(error).replace("hybrid config file", "keys file", 1)) from None
    if not entries:
        raise ConfigError(f"{where}: holds no key, so nobody could use the server")
    return {
        _checked_hash(name, f"{where}, entry {at}"): _entitlement(entry, f"{where}, entry {at}")
        for at, (name, entry) in enumerate(entries.items(), 1)
    }


def _checked_hash(name: object, where: str) -> str:
    if isinstance(name, str) and _SHA256.fullmatch(name):
        return name
    raise ConfigError(f"{where}: must be named by a key's SHA-256, 64 hex digits (`vllm-hybrid hash-key` prints it)")


def _entitlement(entry: object, where: str) -> Entitlement:
    try:
        return Entitlement.model_validate(entry)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the entry"
        message = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        raise ConfigError(f"{where}: {field}: {message}") from None
