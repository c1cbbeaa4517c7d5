"""A server that knows its callers by their keys, as the real `openai` client meets it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml

from tests.e2e import operator
from tests.e2e.ending import CALLERS, end_under_load
from tests.e2e.forgeries import send_forged
from tests.e2e.promql import unresolved
from vllm_hybrid.config.keys import key_hash

pytestmark = pytest.mark.e2e

ALICE, BOB, CAROL, OPS = "sk-alice-1", "sk-bob-2", "sk-carol-3", "sk-ops-4"
HEADER = "x-fairness-id"
TOKENS = 8


@pytest.fixture(scope="module")
def server(start_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    keys = tmp_path_factory.mktemp("keys") / "keys.json"
    entries = {
        ALICE: {"client": "alice"},
        BOB: {"client": "bob", "lanes": ["offline"]},
        CAROL: {"client": "carol"},
        OPS: {"client": "ops", "admin": True, "delegate": True},
    }
    keys.write_text(json.dumps({key_hash(key): entry for key, entry in entries.items()}))
    settings = {
        "strict": True,
        "identity": {"keys_file": str(keys), "header": HEADER, "private_prefixes": True},
        "memory": {"gate": "max_tokens"},  # so that the bound on the service gap is there to be shown
    }
    flags = ("--scheduler", "hybrid", "--hybrid-config", json.dumps(settings), "--enable-scale-out")
    return start_server(*flags, "--api-key", *entries)  # vLLM's own guard beside ours


def api(server: Any, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=120)


def ways(api: openai.OpenAI, **extra: Any) -> dict[str, Any]:
    """Every way to generate TOKENS tokens, as calls without arguments."""
    words: Any = [{"role": "user", "content": "w1 w2"}]
    body: dict[str, Any] = {"model": "tiny", "max_tokens": TOKENS}
    more = {"ignore_eos": True, **extra}
    responses = {"model": "tiny", "input": "w1", "max_output_tokens": TOKENS}
    raw = {"prompt": "w1", **body, **more}
    anthropic = {**body, "messages": words, **extra}
    tokens = {"model": "tiny", "token_ids": [7, 8], "sampling_params": {"max_tokens": TOKENS, "ignore_eos": True}}
    return {
        "completion": lambda: api.completions.create(prompt="w1", extra_body=more, **body),
        "completion stream": lambda: list(api.completions.create(prompt="w1", stream=True, extra_body=more, **body)),
        "chat": lambda: api.chat.completions.create(messages=words, extra_body=more, **body),
        "chat stream": lambda: list(api.chat.completions.create(messages=words, stream=True, extra_body=more, **body)),
        "beam": lambda: api.completions.create(prompt="w1", n=2, extra_body={"use_beam_search": True, **more}, **body),
        "responses": lambda: api.responses.create(extra_body=extra, **responses),
        "messages": lambda: api.post("/messages", cast_to=object, body=anthropic),
        "invocations": lambda: api.post("/../invocations", cast_to=object, body=raw),
        "tokens": lambda: api.post("/../inference/v1/generate", cast_to=object, body={**tokens}),
    }


WAYS = list(ways(openai.OpenAI(api_key="-", base_url="http://localhost")))


def served(server: Any, tokens: str = "output_tokens") -> Counter[tuple[str, str]]:
    """Tokens computed so far by (client, lane), as the engine counts them."""
    (engine,) = hybrid(server, "clients?most=1000")["engines"]
    return Counter({(row["client"], row["lane"]): row[tokens] for row in engine["clients"]})


def hybrid(server: Any, path: str, key: str = OPS, body: Any = None, method: str = "GET") -> Any:
    return operator.hybrid(server, path, key, body, method)


def test_two_keys_are_two_clients_in_two_lanes_on_every_path(server: Any) -> None:
    for key, owner in ((ALICE, ("alice", "online")), (BOB, ("bob", "offline"))):
        for name, call in ways(api(server, key)).items():
            before = served(server)
            assert call(), name
            gained = served(server) - before
            assert gained.keys() == {owner} and gained[owner] > 0, name


@pytest.mark.parametrize("way", WAYS)
def test_a_keyless_call_is_a_401_on_every_path(server: Any, way: str) -> None:
    for key in ("-", "sk-alice"):
        with pytest.raises(openai.AuthenticationError) as refused:
            ways(api(server, key))[way]()
        assert refused.value.response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("way", [way for way in WAYS if way != "tokens"])
def test_a_wish_beyond_the_key_is_a_403_that_names_it(server: Any, way: str) -> None:
    for wish, named in [({"client": "alice"}, "vllm_xargs.client = 'alice'"), ({"lane": "online"}, "vllm_xargs.lane")]:
        with pytest.raises(openai.PermissionDeniedError, match=named):
            ways(api(server, BOB), vllm_xargs=wish)[way]()


@pytest.mark.parametrize("way", ["completion stream", "chat", "responses", "invocations"])
def test_a_service_tier_is_a_lane_or_a_403(server: Any, way: str) -> None:
    before = served(server)
    ways(api(server, ALICE), service_tier="flex")[way]()
    assert (served(server) - before).keys() == {("alice", "offline")}
    with pytest.raises(openai.PermissionDeniedError, match="service_tier = 'priority'"):
        ways(api(server, BOB), service_tier="priority")[way]()


def test_a_body_of_tokens_that_names_another_client_is_a_403(server: Any) -> None:
    parameters = {"max_tokens": 2, "extra_args": {"client": "alice"}}
    for stream in (False, True):
        body = {"model": "tiny", "token_ids": [7], "sampling_params": parameters, "stream": stream}
        with pytest.raises(openai.PermissionDeniedError, match="client = 'alice'"):
            api(server, BOB).post("/../inference/v1/generate", cast_to=object, body=body)


def test_forged_headers_change_nothing(server: Any) -> None:
    before = served(server)
    forged = {HEADER: "alice", "X-Session-ID": "alice", "X-Client-Id": "alice", "X-Hybrid-Lane": "online"}
    for value in ("alice", "", "x" * 300, "a b"):
        api(server, BOB).completions.create(
            model="tiny", prompt="w1", max_tokens=2, extra_headers={**forged, HEADER: value}
        )
    assert (served(server) - before).keys() == {("bob", "offline")}
    with pytest.raises(openai.BadRequestError, match=HEADER):
        api(server, OPS).completions.create(model="tiny", prompt="w1", extra_headers={HEADER: "a b"})


def test_a_thousand_forgeries_change_nothing(server: Any) -> None:
    before, settings = served(server), hybrid(server, "config")
    with ThreadPoolExecutor(8) as pool:
        statuses = Counter(
            status for part in pool.map(lambda seed: send_forged(server, BOB, seed, 125), range(8)) for status in part
        )
    assert statuses.total() == 1000 and statuses.keys() == {200, 400, 401, 403}
    assert (served(server) - before).keys() == {("bob", "offline")}
    assert hybrid(server, "config") == settings
    (engine,) = hybrid(server, "clients?most=1000")["engines"]
    assert {row["client"] for row in engine["clients"]} <= {"alice", "bob", "carol", "ops"}
    assert {row["weight"] for row in engine["clients"]} == {1.0}


def test_a_cached_prefix_serves_its_own_client_only(server: Any) -> None:
    prompt, computed = " ".join(f"w{number}" for number in range(300)), []
    for key in (ALICE, ALICE, CAROL):
        before = served(server, "prompt_tokens")
        api(server, key).completions.create(model="tiny", prompt=prompt, max_tokens=1)
        computed.append((served(server, "prompt_tokens") - before).total())
    assert computed[0] == computed[2] == 300 > computed[1] > 0


def test_what_operators_use_is_closed_to_users_and_probes_are_open(server: Any) -> None:
    def status(path: str, key: str) -> int:
        request = urllib.request.Request(server.url + path, headers={"Authorization": f"Bearer {key}"})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    assert [status(path, ALICE) for path in ("/openapi.json", "/sleep", "/v1/models")] == [403, 403, 200]
    assert [status(path, "") for path in ("/openapi.json", "/v1/models", "/health", "/metrics")] == [401, 401, 200, 200]
    assert status("/openapi.json", OPS) == 200


def test_no_key_is_in_the_log(server: Any) -> None:
    log: str = server.log()
    assert "identity.keys_file=" in log
    assert not any(secret in log for key in (ALICE, BOB, CAROL, OPS) for secret in (key, key_hash(key)))


# -- what an operator sees of the same server, under load --------------------------------------------------------------
@contextmanager
def load(server: Any, *keys: str, each: int = 24) -> Iterator[None]:
    """So many callers per key, each of whom asks again as soon as it is answered, for answers of different lengths."""
    over = threading.Event()

    def ask_again_and_again(key: str, tokens: int) -> None:
        caller = api(server, key)
        while not over.is_set():
            caller.completions.create(
                model="tiny", prompt="w1 w2 w3", max_tokens=tokens, extra_body={"ignore_eos": True}
            )

    with ThreadPoolExecutor(each * len(keys)) as pool:
        callers = [pool.submit(ask_again_and_again, key, 8 + 3 * i % 31) for key in keys for i in range(each)]
        try:
            yield
        finally:
            over.set()
    for caller in callers:
        caller.result()


def gained(server: Any, tokens: int) -> Counter[tuple[str, str]]:
    """What the clients were served until all together had `tokens` more."""
    before = served(server)
    while (now := served(server) - before).total() < tokens:
        time.sleep(0.2)
    return now


def test_a_waiting_request_is_explained_and_the_page_and_top_show_the_load(server: Any, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        with load(server, ALICE, CAROL, each=16):
            gained(server, 500)
            probes = {
                client: pool.submit(
                    api(server, key).completions.create,
                    model="tiny",
                    prompt="w1",
                    max_tokens=60,
                    extra_body={"ignore_eos": True},
                    extra_headers={"X-Request-Id": f"probe-{client}"},
                )
                for client, key in (("bob", BOB), ("alice", ALICE))
            }
            check_told(server, "alice", "online", never={"online_first", "rest", "paused"}, to_the_end=True)
            check_told(server, "bob", "offline", never={"own_queue", "fair_share", "rest", "paused"}, to_the_end=False)
            top = run_command("vllm-hybrid", "top", server.url, "--once")
            keep("top.txt", top.stdout.encode())
            assert top.returncode == 0 and re.search(r"^alice +online ", top.stdout, re.MULTILINE)
            if CHROMIUM:
                check_page(server, tmp_path)
        assert all(probe.result().usage.completion_tokens == 60 for probe in probes.values())
    with pytest.raises(urllib.error.HTTPError, match="404"):
        hybrid(server, "requests/probe-bob")
    assert run_command("vllm-hybrid", "top", server.url, "--once", key=BOB).returncode == 1


def check_told(server: Any, client: str, lane: str, never: set[str], to_the_end: bool) -> None:
    """What is told of a request that waits: at every moment, and at the end, its reasons add up to its wait."""
    told: list[dict[str, Any]] = []
    while not told or (to_the_end and told[-1]["state"] != "running"):
        with suppress(urllib.error.HTTPError):
            told.append(hybrid(server, f"requests/probe-{client}"))
    assert {(tell["client"], tell["lane"]) for tell in told} == {(client, lane)}
    waiting = [tell for tell in told if tell["state"] == "waiting"]
    assert not {tell["reason"] for tell in waiting} & never and all(tell["would_change_it"] for tell in waiting)
    waited = [sum(tell["waited_s"].values()) for tell in told]
    for tell, waited_s in zip(told, waited, strict=True):
        if tell["state"] == "waiting":
            assert waited_s == pytest.approx(tell["age_s"], abs=0.01)  # both told at one moment
        else:
            assert waited[-2 if waiting else -1] <= waited_s <= tell["age_s"]
    assert waiting and waited == sorted(waited)


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def check_page(server: Any, folder: Path) -> None:
    """The page in a real browser, with a key typed in: it shows the clients, and a picture of it is not blank."""
    from tests.e2e.browser import Browser

    assert CHROMIUM
    with Browser(CHROMIUM, folder) as browser:
        browser.open(f"{server.url}/hybrid")
        browser.wait_for(
            "document.getElementById('state').textContent.includes('403') || "
            "document.getElementById('state').textContent.includes('401')"
        )
        browser.run(
            f"document.getElementById('key').value = {json.dumps(OPS)}; document.querySelector('#login button').click()"
        )
        browser.wait_for("document.getElementById('clients').textContent.includes('alice')")
        browser.wait_for("[...document.querySelectorAll('.bar')].some(bar => bar.offsetWidth > 20)")
        assert "preset hybrid" in browser.run("document.getElementById('state').textContent")
        assert browser.run("document.querySelectorAll('#lanes tbody tr').length") == 2
        picture = browser.screenshot()
        assert picture.startswith(b"\x89PNG") and len(picture) > 10_000
        assert not browser.errors
        keep("page.png", picture)


def keep(name: str, content: bytes) -> None:
    """For the documentation: HYBRID_KEEP_SHOTS names a folder for what was seen."""
    if folder := os.environ.get("HYBRID_KEEP_SHOTS"):
        Path(folder, name).write_bytes(content)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the PATH")
def test_the_page_was_seen_by_a_browser() -> None:
    """Says whether `check_page` ran above."""


def run_command(*command: str, key: str = OPS) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name(command[0])
    environment = {**os.environ, "VLLM_HYBRID_KEY": key}
    return subprocess.run(
        [str(program), *command[1:]], capture_output=True, text=True, timeout=300, check=False, env=environment
    )


def test_a_patch_changes_the_shares_of_a_running_server(server: Any) -> None:
    version = hybrid(server, "config")["version"]
    with load(server, ALICE, CAROL):
        gained(server, 500)
        equal = gained(server, 2000)
        changed = hybrid(
            server, f"config?version={version}", body={"clients": {"carol": {"weight": 3}}}, method="PATCH"
        )
        with pytest.raises(urllib.error.HTTPError, match="400"):
            hybrid(server, "config", body={"clients": {"carol": {"weight": -1}}}, method="PATCH")
        with pytest.raises(urllib.error.HTTPError, match="403"):
            hybrid(server, "config", key=CAROL, body={"clients": {"carol": {"weight": 9}}}, method="PATCH")
        gained(server, 500)
        weighted = gained(server, 3000)
    assert hybrid(server, "config") == changed
    assert 0.7 < equal["carol", "online"] / equal["alice", "online"] < 1.4
    assert 2 < weighted["carol", "online"] / weighted["alice", "online"] < 4
    reverted = hybrid(server, "config/revert", body={"version": version}, method="POST")
    assert reverted["config"]["clients"] == {} and reverted["version"] == version + 2


def test_the_metrics_of_clients_are_those_of_the_engine_and_the_dashboard_resolves(server: Any) -> None:
    samples = server.settled()
    for (client, lane), tokens in served(server).items():
        label = hashlib.sha256(client.encode()).hexdigest()[:12]
        assert samples["client_tokens_total", label, "output", lane] == tokens
    lanes = ("online", "offline")
    assert sum(samples["tokens_total", "output", lane] for lane in lanes) == served(server).total()
    page: str = server.get("/metrics")
    assert not any(f'"{client}"' in page for client in ("alice", "bob", "carol"))
    assert not unresolved(page, queries())


def queries() -> list[str]:
    """Every expression of the dashboard, of the rule and of the alerts."""
    folder = Path(__file__).parents[2] / "docs" / "grafana"
    board = json.loads((folder / "vllm_hybrid.json").read_text())
    groups = yaml.safe_load((folder / "rules.yaml").read_text())["groups"]
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked += [variable["query"]["query"] for variable in board["templating"]["list"]]
    return asked + [rule["expr"] for group in groups for rule in group["rules"]]


def test_the_waits_by_reason_are_those_that_vllm_measures_itself(server: Any) -> None:
    """vLLM keeps its own time from a request's arrival in the engine to its first step, of all requests together."""
    ours = sum(value for key, value in server.settled().items() if key[0] == "waited_seconds_total")
    queued = server.samples("vllm:request_queue_time_seconds")
    vllms = sum(value for key, value in queued.items() if key[0].endswith("_sum"))
    assert ours == pytest.approx(vllms, rel=0.01) and ours > 0


def test_sigterm_under_load_gives_everybody_a_result_or_one_clear_error(server: Any) -> None:
    """The last test of the module: it ends the server, whose --shutdown-timeout is 2 s."""
    before = served(server)
    outcomes = end_under_load(server, ALICE, lambda: (served(server) - before).total() > 100)
    assert outcomes.keys() <= {"result", "503", "error event", "health 503"}, outcomes
    assert all(outcomes[ending] for ending in ("result", "503", "error event")), outcomes
    assert outcomes["health 503"] == 1 and outcomes.total() == CALLERS + 1
