"""The status endpoints in front of a real scheduler: who may ask, what is answered, and settings that change live."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient
from vllm.v1.request import RequestStatus

from tests.oracle.ours import HYBRID
from vllm_hybrid.config import load_config
from vllm_hybrid.config.identity import Entitlement
from vllm_hybrid.config.keys import key_hash
from vllm_hybrid.policy.request import Lane
from vllm_hybrid.serving.door import Door, Refusal, refuse
from vllm_hybrid.serving.identity import CALL
from vllm_hybrid.serving.status import attach
from vllm_hybrid.sim.modelfree import World, build, make_request

KEYS = {key_hash("user"): Entitlement(client="alice"), key_hash("ops"): Entitlement(client="ops", admin=True)}
OPS, USER = {"authorization": "Bearer ops"}, {"authorization": "Bearer user"}
WORLD = World(hybrid=(("strict", True), ("memory", {"gate": "none"}), ("clients", {"alice": {"weight": 2.0}})))


class Engine:
    """One engine core around a real scheduler, asked as vLLM's client asks it."""

    engine_ranks_managed = (0,)

    def __init__(self) -> None:
        self.scheduler: Any = build(HYBRID, WORLD)
        report, live = self.scheduler.report, self.scheduler.live
        self._methods = {
            "hybrid_status": report.status,
            "hybrid_clients": report.clients,
            "hybrid_request": report.request,
            "hybrid_config": live.show,
            "hybrid_configure": live.change,
            "hybrid_revert": live.revert,
        }

    async def call_utility_all_async(self, method: str, *arguments: Any) -> list[Any]:
        return [json.loads(json.dumps(self._methods[method](*arguments)))]


class Doorkeeper:
    def __init__(self, app: Any, door: Door) -> None:
        self._app, self._door = app, door

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            try:
                CALL.set(self._door.admit(scope))
            except Refusal as refusal:
                return await refuse(scope, send, refusal)
        await self._app(scope, receive, send)


def served(engine: Engine, keyed: bool = True, is_open: bool = False) -> TestClient:
    return TestClient(application(engine, keyed, is_open), raise_server_exceptions=False)


def application(engine: Engine, keyed: bool = True, is_open: bool = False) -> FastAPI:
    """The endpoints behind the door, as in the server."""
    app = FastAPI()
    settings = load_config({"identity": {"keys_file": "k.yaml"}} if keyed else None)
    app.add_middleware(Doorkeeper, door=Door(settings, KEYS if keyed else None))
    attach(app, engine, is_open)
    return app


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine()


@pytest.fixture
def api(engine: Engine) -> Iterator[TestClient]:
    before = engine.scheduler.live.version
    yield served(engine)
    if engine.scheduler.live.version != before:
        engine.scheduler.live.revert(1)


def test_only_an_admin_is_answered(engine: Engine, api: TestClient) -> None:
    for path in ("status", "clients", "requests/r", "config"):
        statuses = [api.get(f"/v1/hybrid/{path}", headers=headers).status_code for headers in ({}, USER)]
        assert statuses == [401, 403]
    keyless = served(engine, keyed=False)
    assert keyless.get("/v1/hybrid/status").status_code == 403
    opened = served(engine, keyed=False, is_open=True)
    assert opened.get("/v1/hybrid/status").status_code == 200
    assert opened.patch("/v1/hybrid/config", json={}).status_code == 403
    assert (
        "script" in api.get("/hybrid").text
        and "default-src 'none'" in api.get("/hybrid").headers["content-security-policy"]
    )


def test_status_clients_and_requests_are_those_of_the_scheduler(engine: Engine, api: TestClient) -> None:
    scheduler = engine.scheduler
    for i in range(3):
        scheduler.add_request(
            make_request(f"cmpl-r{i}-0-abcd", [1] * 40, 5, 0.0, 0, {"client": "bob", "lane": "offline"})
        )
    status = api.get("/v1/hybrid/status", headers=OPS).json()["engines"][0]
    assert status["lanes"]["offline"]["waiting"] == 3 and status["lanes"]["online"]["waiting"] == 0
    rows = api.get("/v1/hybrid/clients?most=5", headers=OPS).json()["engines"][0]["clients"]
    bob = next(row for row in rows if row["client"] == "bob")
    assert (bob["lane"], bob["waiting"], bob["running"], bob["weight"]) == ("offline", 3, 0, 1.0)
    for name in ("r1", "cmpl-r1-0", "cmpl-r1-0-abcd"):
        told = api.get(f"/v1/hybrid/requests/{name}", headers=OPS).json()
        assert (told["client"], told["state"], told["reason"]) == ("bob", "waiting", "own_queue")
        assert told["requests_before_it_in_its_line"] == 1
    assert api.get("/v1/hybrid/requests/r9", headers=OPS).status_code == 404
    scheduler.finish_requests(None, RequestStatus.FINISHED_ABORTED)


def test_a_patch_changes_weights_from_the_next_step_on(engine: Engine, api: TestClient) -> None:
    counters = engine.scheduler.counters
    key = (Lane.ONLINE, "alice")
    first = api.get("/v1/hybrid/config", headers=OPS).json()
    changed = api.patch(
        "/v1/hybrid/config", headers=OPS, json={"clients": {"alice": {"weight": 4}, "eve": {"weight": 3}}}
    )
    assert changed.status_code == 200 and changed.json()["version"] == first["version"] + 1
    assert counters.weight(key) == 4 and counters.weight((Lane.ONLINE, "eve")) == 3
    assert counters.cost(key, 8, 0) == 2
    dropped = api.patch("/v1/hybrid/config", headers=OPS, json={"clients": {"eve": None}}).json()
    assert list(dropped["config"]["clients"]) == ["alice"]
    back = api.post("/v1/hybrid/config/revert", headers=OPS, json={"version": first["version"]}).json()
    assert back["config"] == first["config"] and back["version"] == first["version"] + 3
    assert counters.weight(key) == 2
    api.patch("/v1/hybrid/config", headers=OPS, json={"clients": {"alice": {"weight": 4}}})
    assert Engine().scheduler.live.show()["config"] == first["config"], "a restart begins with the file"


def test_a_patch_of_targets_makes_the_planner_anew(engine: Engine, api: TestClient) -> None:
    api.patch("/v1/hybrid/config", headers=OPS, json={"slo": {"online": {"ttft_s": 2, "tbt_s": 0.1}}})
    assert engine.scheduler.planner._slo.online.tbt_s == 0.1 and engine.scheduler.viewer.timed
    api.patch("/v1/hybrid/config", headers=OPS, json={"slo": None})
    assert engine.scheduler.planner._slo.online.tbt_s is None and not engine.scheduler.viewer.timed


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        ({"clients": {"alice": {"weight": 0}}}, "clients.alice.weight"),
        ({"clients": {"alice": {"weight": 5}, "bob": {"weight": "much"}}}, "clients.bob.weight"),
        ({"clients": {"a b": {}}}, "clients: client id = 'a b': must be 1 to 64 characters"),
        ({"fairness": {"output_weight": 3}}, "fairness: cannot change"),
        ({"preset": "vtc", "clients": None}, "preset: cannot change"),
        ({"weight": 3}, "unknown key 'weight'"),
        ({"identity": {"header": "x-id", "header_from": "everyone"}}, "identity: cannot change"),
    ],
)
def test_an_invalid_patch_changes_nothing(engine: Engine, api: TestClient, patch: Any, message: str) -> None:
    before = api.get("/v1/hybrid/config", headers=OPS).json()
    refused = api.patch("/v1/hybrid/config", headers=OPS, json=patch)
    assert refused.status_code == 400 and message in refused.text
    assert api.get("/v1/hybrid/config", headers=OPS).json() == before
    assert engine.scheduler.counters.weight((Lane.ONLINE, "alice")) == 2


def test_a_patch_on_another_version_is_a_conflict(api: TestClient) -> None:
    now = api.get("/v1/hybrid/config", headers=OPS).json()["version"]
    assert api.patch(f"/v1/hybrid/config?version={now + 1}", headers=OPS, json={}).status_code == 409
    assert api.post("/v1/hybrid/config/revert", headers=OPS, json={"version": 999}).status_code == 409


def test_only_the_last_versions_are_kept(engine: Engine, api: TestClient) -> None:
    first = engine.scheduler.live.version
    for weight in range(1, 41):
        api.patch("/v1/hybrid/config", headers=OPS, json={"clients": {"alice": {"weight": weight}}})
    kept = api.get("/v1/hybrid/config", headers=OPS).json()["versions"]
    assert len(kept) == 32 and kept[-1] == first + 40
    api.patch("/v1/hybrid/config", headers=OPS, json={"clients": {"alice": {"weight": 2}}})
    engine.scheduler.live._versions[1] = engine.scheduler.hybrid_config
