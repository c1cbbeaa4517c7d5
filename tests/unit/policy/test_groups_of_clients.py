"""Groups of clients: shared between groups by weight, then inside; and limits on what a client may run."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.policy.world import ONLINE, examples, request
from vllm_hybrid.config import ConfigError, load_config
from vllm_hybrid.policy.fairness import VirtualCounters, group_name
from vllm_hybrid.policy.presets import shares
from vllm_hybrid.policy.waiting import WaitingRequests

A, B, C = ((ONLINE, name) for name in "abc")
TEAM = (ONLINE, group_name("team"))
SETTINGS = {"clients": {"a": {"group": "team"}, "b": {"group": "team", "weight": 3}}, "groups": {"team": {"weight": 2}}}


def queue_of(settings: dict) -> WaitingRequests:
    weights, groups = shares(load_config(settings))
    return WaitingRequests(VirtualCounters(1.0, 2.0, weights, groups))


def send(queue: WaitingRequests, client: str, prompt_tokens: int = 10) -> None:
    view = request(client, prompt_tokens=prompt_tokens)
    queue.lift(view.key)
    queue.add(view)


def served(queue: WaitingRequests, clients: str, tokens: int = 4000) -> Counter:
    """Prompt tokens by client, everybody having requests all the time."""
    got: Counter = Counter()
    while got.total() < tokens:
        for client in clients:
            while queue.length_of((ONLINE, client)) < 2:
                send(queue, client)
        walk = queue.walk(ONLINE, {}, ())
        view = next(walk)
        queue.discard(view)
        walk.close()
        queue.counters.charge(view.key, view.prompt_tokens, 0)
        got[view.client] += view.prompt_tokens
    return got


def test_a_group_of_weight_two_gets_two_thirds_and_shares_it_by_its_clients_weights():
    got = served(queue_of(SETTINGS), "abc")
    total = got.total()
    assert got["c"] / total == pytest.approx(1 / 3, abs=0.02)
    assert got["a"] / total == pytest.approx(1 / 6, abs=0.02)
    assert got["b"] / total == pytest.approx(1 / 2, abs=0.02)


def test_what_a_client_of_a_group_leaves_goes_to_its_group_first():
    got = served(queue_of(SETTINGS), "ac")
    assert got["a"] / got.total() == pytest.approx(2 / 3, abs=0.02)


def test_many_clients_of_a_group_get_no_more_than_their_group():
    clients = {f"{n}": {"group": "team"} for n in range(8)}
    got = served(queue_of({"clients": clients, "groups": {"team": {}}}), "01234567c")
    assert got["c"] / got.total() == pytest.approx(1 / 2, abs=0.02)


def test_a_group_that_was_idle_earned_no_credit():
    queue = queue_of(SETTINGS)
    send(queue, "c")
    queue.counters.charge(C, 500, 0)
    send(queue, "a")
    assert queue.counters.value(TEAM) == 500
    assert queue.counters.value(A) == 0
    queue.counters.charge(A, 100, 0)
    send(queue, "b")
    assert queue.counters.value(B) == 100  # lifted to the one of its group that waits
    assert queue.counters.value(TEAM) == 550


def test_clients_change_their_group_while_they_wait():
    queue = queue_of(SETTINGS)
    for client in "abc":
        send(queue, client)
    queue.counters.charge(A, 300, 0)
    queue.counters.set_shares(*shares(load_config({})))
    queue.regroup()
    assert sorted(view.client for view in queue.walk(ONLINE, {}, ())) == ["a", "b", "c"]
    assert queue.waits(A) and not queue.waits(TEAM)


def test_settings_that_change_nothing_of_the_groups_leave_all_counters():
    queue = queue_of(SETTINGS)
    for client, tokens in (("a", 300), ("b", 20), ("c", 50)):
        send(queue, client)
        queue.counters.charge((ONLINE, client), tokens, 0)
    before = dict(queue.counters.values)
    queue.counters.set_shares(*shares(load_config(SETTINGS)))
    queue.regroup()
    assert queue.counters.values == before


def test_a_group_that_nobody_defined_is_refused():
    with pytest.raises(ConfigError, match=r"clients\.a\.group = 'team': must be one of `groups`: none yet"):
        load_config({"clients": {"a": {"group": "team"}}})
    with pytest.raises(ConfigError, match=r"unknown key 'groups\.team\.wieght': did you mean 'weight'\?"):
        load_config({"groups": {"team": {"wieght": 1}}})
    with pytest.raises(ConfigError, match=r"unknown key 'clients\.a\.limits\.max_run'"):
        load_config({"clients": {"a": {"limits": {"max_run": 1}}}})


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 40)), max_size=40), st.sets(st.sampled_from("abcdef"))
)
@examples(150)
def test_a_walk_yields_everybody_once_in_the_order_of_the_hierarchy(sent, grouped):
    groups = {client: group_name("one" if client < "d" else "two") for client in grouped}
    queue = WaitingRequests(VirtualCounters(1.0, 2.0, {}, groups))
    for client, tokens in sent:
        send(queue, client, tokens)
    left = Counter(view.key for view in queue)
    thought: Counter = Counter()
    for view in queue.walk(ONLINE, {}, ()):
        nodes = {node for key in +left for node in path(queue.counters, key)}
        for node in path(queue.counters, view.key):
            beside = [n for n in nodes if queue.counters.parent(n) == queue.counters.parent(node)]
            assert thought[node] == min(thought[n] for n in beside)
            thought[node] += view.prompt_tokens
        left[view.key] -= 1
    assert not +left


def path(counters: VirtualCounters, key) -> list:
    """A client, and its group if it has one."""
    parent = counters.parent(key)
    return [key] if parent is ONLINE else [key, parent]


def test_who_is_at_its_limit_is_passed_over_and_measures_nobody():
    queue = queue_of({})
    left = {"a": 1.0, "b": 99.0}
    queue.slots_left = lambda key: left[key[1]]
    for _ in range(3):
        send(queue, "a")
        send(queue, "b")
    queue.counters.charge(B, 50, 0)
    assert [view.client for view in queue.walk(ONLINE, {}, ())] == ["a", "b", "b", "b"]
    left["a"] = 0
    assert queue.smallest_counter(ONLINE) == 50
    assert [view.client for view in queue.walk(ONLINE, {}, ())] == ["b", "b", "b"]
