"""Who is who: keys decide, trusted headers count, everything else is a wish that entitlement grants or refuses."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from vllm_hybrid.config import ConfigError, IdentityError, load_config
from vllm_hybrid.config.identity import Entitlement, IdentityConfig
from vllm_hybrid.config.keys import key_hash, load_keys
from vllm_hybrid.serving.identity import Call, Identity, NoKey, NotEntitled, caller_of, settle

KEYS = {
    key_hash("sk-alice"): Entitlement(client="alice"),
    key_hash("sk-bob"): Entitlement(client="bob", lanes=("offline",)),
    key_hash("sk-proxy"): Entitlement(client="proxy", delegate=True),
}
KEYED = IdentityConfig(keys_file="keys.yaml")
PROXIED = IdentityConfig(keys_file="keys.yaml", header="X-Fairness-Id")


def headers(**given: str) -> list[tuple[bytes, bytes]]:
    return [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in given.items()]


def identity(given: dict[str, str], settings: IdentityConfig = KEYED, **body: Any) -> Identity:
    keys = KEYS if settings.keys_file else None
    call = Call(caller_of(headers(**given), settings, keys), settings.named_in)
    return settle(call, body.get("xargs"), body.get("user"), body.get("tier"))


def bearer(key: str, **more: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}", **more}


def test_a_key_decides_client_and_lane() -> None:
    assert identity(bearer("sk-alice")) == Identity("online", "alice")
    assert identity(bearer("sk-bob")) == Identity("offline", "bob")
    assert identity({"x-api-key": "sk-bob"}) == Identity("offline", "bob")
    assert identity(bearer("sk-alice"), user="bob") == Identity("online", "alice")


@pytest.mark.parametrize(
    "given",
    [{}, bearer("sk-mallory"), bearer(""), {"authorization": "Basic sk-alice"}, {"authorization": "sk-alice"}],
)
def test_without_a_known_key_nobody_comes_in(given: dict[str, str]) -> None:
    with pytest.raises(NoKey):
        identity(given)


def test_two_keys_in_one_request_are_none() -> None:
    two = [(b"authorization", b"Bearer sk-alice"), (b"authorization", b"Bearer sk-bob")]
    with pytest.raises(NoKey):
        caller_of(two, KEYED, KEYS)


@pytest.mark.parametrize(
    ("tier", "lane"),
    [("flex", "offline"), ("priority", "online"), ("default", "online"), ("auto", "online"), (None, "online")],
)
def test_a_service_tier_is_a_lane(tier: str | None, lane: str) -> None:
    assert identity(bearer("sk-alice"), tier=tier).lane == lane
    assert identity({}, IdentityConfig(), tier=tier) == Identity(lane, "default")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"xargs": {"client": "alice"}}, "vllm_xargs.client"),
        ({"xargs": {"lane": "online"}}, "vllm_xargs.lane"),
        ({"tier": "priority"}, "service_tier"),
        ({"tier": "default"}, "service_tier"),
    ],
)
def test_a_wish_beyond_the_key_is_refused_by_name(body: dict[str, Any], field: str) -> None:
    with pytest.raises(NotEntitled, match=f"^{field} = .*entitled to") as refused:
        identity(bearer("sk-bob"), **body)
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"xargs": {"client": "b\r\nob"}}, "vllm_xargs.client"),
        ({"xargs": {"client": "ü"}}, "vllm_xargs.client"),
        ({"xargs": {"lane": ["offline"]}}, "vllm_xargs.lane"),
        ({"tier": "cheap"}, "service_tier"),
        ({"tier": {"a": 1}}, "service_tier"),
    ],
)
def test_a_malformed_wish_is_refused_as_such(body: dict[str, Any], field: str) -> None:
    with pytest.raises(IdentityError) as refused:
        identity(bearer("sk-bob"), **body)
    assert refused.value.field == field


def test_a_header_counts_from_a_delegate_only() -> None:
    forged = {"x-fairness-id": "victim"}
    assert identity(bearer("sk-proxy", **forged), PROXIED) == Identity("online", "victim")
    assert identity(bearer("sk-alice", **forged), PROXIED) == Identity("online", "alice")
    assert identity(bearer("sk-proxy", **forged), KEYED) == Identity("online", "proxy")
    with pytest.raises(NotEntitled, match=r"vllm_xargs\.client"):
        identity(bearer("sk-proxy", **forged), PROXIED, xargs={"client": "other"})


@pytest.mark.parametrize("value", ["", "a b", "x" * 65, "\xfc", "a,b"])
def test_a_header_that_counts_must_be_a_client(value: str) -> None:
    with pytest.raises(IdentityError, match="x-fairness-id"):
        identity(bearer("sk-proxy", **{"x-fairness-id": value}), PROXIED)
    assert identity(bearer("sk-alice", **{"x-fairness-id": value}), PROXIED).client == "alice"


def test_a_header_given_twice_is_refused() -> None:
    twice = [*headers(**bearer("sk-proxy")), (b"X-Fairness-Id", b"a"), (b"x-fairness-id", b"b")]
    with pytest.raises(IdentityError, match="must be one header"):
        caller_of(twice, PROXIED, KEYS)


def test_who_may_name_clients_is_asked_in_the_configured_order() -> None:
    open_to_all = IdentityConfig(header="x-id", header_from="everyone", sources=("header", "user", "xargs"))
    body: dict[str, Any] = {"user": "by-user", "xargs": {"client": "by-user"}}
    assert identity({"x-id": "by-header"}, open_to_all, user="by-user").client == "by-header"
    assert identity({}, open_to_all, **body).client == "by-user"
    assert identity({}, IdentityConfig(), **body).client == "by-user"
    assert identity({}, IdentityConfig(), user="by-user").client == "default"
    with pytest.raises(IdentityError, match=r"^user = "):
        identity({}, IdentityConfig(sources=("user",)), user="not an id")


def test_a_thousand_forgeries_change_nothing() -> None:
    rng = random.Random(0)
    values = [
        "victim",
        "admin",
        "x" * 200,
        "ünï",
        "a\r\nx-fairness-id: victim",
        "../..",
        "",
        "'; drop",
        "alice\0",
        "bob ",
    ]
    names = ["x-fairness-id", "x-client-id", "x-session-id", "x-hybrid-lane", "x-forwarded-user", "x-vllm-priority"]
    refused = 0
    for _ in range(1000):
        forged = {name: rng.choice(values) for name in rng.sample(names, 3)}
        forged = {name: value.encode().decode("latin-1") for name, value in forged.items()}
        xargs = {rng.choice(["client", "lane", "weight", "hybrid", "priority"]): rng.choice([*values, 3, -1.5])}
        try:
            served = identity(bearer("sk-bob", **forged), PROXIED, xargs=xargs, user=rng.choice(values))
        except (NotEntitled, IdentityError) as error:
            assert error.field in ("vllm_xargs.client", "vllm_xargs.lane"), "only what names an identity is refused"
            refused += 1
        else:
            assert served == Identity("offline", "bob")
    assert 0 < refused < 1000


def test_the_keys_file_is_read_and_its_mistakes_never_shown(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    identity_config = IdentityConfig(keys_file=str(file))
    file.write_text(f"{key_hash('k')}: {{client: alice, lanes: [offline], admin: true}}\n")
    assert load_keys(identity_config) == {key_hash("k"): Entitlement(client="alice", lanes=("offline",), admin=True)}
    for text, message in [
        ("sk-a-raw-key: {client: alice}", "entry 1: must be named by a key's SHA-256"),
        (f"{key_hash('k')}: {{client: 'a b'}}", "entry 1: client: .*must be 1 to 64 characters"),
        (f"{key_hash('k')}: {{client: a, lanes: []}}", "entry 1: .*must be one or both lanes"),
        (f"{key_hash('k')}: {{client: a, weight: 3}}", "entry 1: weight: "),
        (f"{key_hash('k')}: alice", "entry 1: the entry: "),
        ("", "holds no key"),
        ("[", "line 1"),
    ]:
        file.write_text(text)
        with pytest.raises(ConfigError, match=message) as error:
            load_keys(identity_config)
        assert "sk-a-raw-key" not in str(error.value)
    file.unlink()
    with pytest.raises(ConfigError, match=r"^keys file .*No such file"):
        load_keys(identity_config)
    assert load_keys(IdentityConfig()) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"header": "x-session-id"}, "callers set themselves"),
        ({"header": "a b"}, "must be the name of an HTTP header"),
        ({"header": "x-id"}, "needs keys_file with a delegate's key, or header_from = 'everyone'"),
        ({"header_from": "everyone"}, "set header"),
        ({"header": "x-id", "header_from": "everyone", "keys_file": "k.yaml"}, "leave keys_file out"),
        ({"sources": ["header"]}, "must hold 'header' exactly where header is set"),
    ],
)
def test_settings_that_would_trust_the_wrong_one_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config({"identity": settings})
