"""Which replica a request goes to: slack for online, room for offline, prefixes where it costs little, no hot spot."""

import random
from collections import Counter

import pytest

from vllm_hybrid.ray.choice import Chooser, Routed

SLOTS = {"slots": 10.0, "blocks": 100.0, "free_blocks": 100.0}
ONLINE = Routed("a", online=True)
OFFLINE = Routed("a", online=False)


def chooser(imbalance=0.25):
    return Chooser(imbalance, random.Random(0))


def test_online_goes_where_fewest_online_requests_stand_whatever_offline_work_is_there():
    loads = {
        "busy": SLOTS | {"online_running": 5.0},
        "batch": SLOTS | {"offline_running": 10.0, "offline_waiting": 90.0},
    }
    assert chooser().rank(ONLINE, loads)[0] == "batch"


def test_online_avoids_a_replica_that_misses_its_deadlines():
    loads = {"late": SLOTS | {"slack_s": -0.1}, "full": SLOTS | {"online_running": 9.0, "slack_s": 0.2}}
    assert chooser().rank(ONLINE, loads)[0] == "full"


def test_offline_goes_where_blocks_are_free():
    loads = {"tight": SLOTS | {"free_blocks": 5.0}, "roomy": SLOTS | {"offline_running": 2.0}}
    assert chooser().rank(OFFLINE, loads)[0] == "roomy"


def test_what_was_sent_since_the_last_look_counts():
    choose, loads = chooser(), {"x": SLOTS | {"look": 1.0}, "y": SLOTS | {"look": 1.0, "online_running": 2.0}}
    for _ in range(3):
        choose.sent(ONLINE, "x")
    assert choose.rank(ONLINE, loads)[0] == "x", "before its load is looked at nothing was counted as sent"
    for _ in range(3):
        choose.sent(ONLINE, "x")
    assert choose.rank(ONLINE, loads)[0] == "y"
    loads["x"]["look"] = 2.0
    assert choose.rank(ONLINE, loads)[0] == "x", "a new look has them in its figures"


def test_the_replica_that_holds_the_prefix_is_preferred_until_it_is_fuller_by_the_imbalance():
    choose, request = chooser(), Routed("a", True, "a long common head")
    choose.sent(request, "home")
    loads = {"home": SLOTS | {"look": 1.0, "online_running": 2.0}, "other": SLOTS | {"look": 1.0}}
    assert choose.rank(request, loads)[0] == "home"
    loads["home"]["online_running"] = 3.0
    assert choose.rank(request, loads)[0] == "other"
    del loads["home"]
    assert choose.rank(request, loads) == ["other"]


@pytest.mark.parametrize("request_", [ONLINE, OFFLINE, Routed("a", True, "one prefix of all")])
def test_one_client_makes_no_hot_spot(request_):
    choose = chooser()
    loads = {f"r{i}": SLOTS | {"slots": 100.0, "look": 1.0} for i in range(4)}
    sent = Counter()
    for _ in range(200):
        name = choose.rank(request_, loads)[0]
        choose.sent(request_, name)
        sent[name] += 1
    most = 200 / 4 + 100 * 0.25 + 10  # an even part, and what the imbalance grants a prefix's home
    assert max(sent.values()) <= most


def test_between_equals_the_client_goes_where_least_of_its_own_is_under_way():
    choose, loads = chooser(), {"x": SLOTS | {"look": 1.0}, "y": SLOTS | {"look": 1.0}}
    choose.rank(ONLINE, loads)
    choose.sent(Routed("a"), "x")
    choose.sent(Routed("b"), "y")
    assert choose.rank(Routed("a"), loads)[0] == "y"
    choose.ended(Routed("a"), "x")


def test_every_candidate_is_ranked_once():
    loads = {f"r{i}": dict(SLOTS) for i in range(7)}
    assert sorted(chooser().rank(ONLINE, loads)) == sorted(loads)
    assert chooser().rank(ONLINE, {"x": {}}) == ["x"], "a replica whose load nobody knows yet"


def test_prefixes_are_remembered_in_bounded_number():
    choose = chooser()
    for number in range(10_050):
        choose.sent(Routed("a", True, str(number)), "x")
    assert len(choose._prefixes) == 10_000
