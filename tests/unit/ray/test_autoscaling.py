"""Online pressure scales; an offline backlog uses what is there, or asks up to its budget; one replica stays."""

import pytest

from vllm_hybrid.ray.autoscaling import LanePolicy, wanted_replicas

SETTINGS = {"least": 1, "online_per_replica": 4.0, "offline_max_replicas": 0, "offline_per_replica": 10.0}


@pytest.mark.parametrize(("online", "wanted"), [(0, 1), (4, 1), (5, 2), (12, 3)])
def test_online_requests_ask_for_replicas(online, wanted):
    assert wanted_replicas({"online": online}, 1, **SETTINGS) == wanted


def test_missed_deadlines_ask_for_one_more():
    assert wanted_replicas({"online": 2, "late": 1}, 3, **SETTINGS) == 4


def test_an_offline_backlog_uses_what_is_there():
    assert wanted_replicas({"offline": 500}, 1, **SETTINGS) == 1


def test_an_offline_backlog_asks_up_to_its_budget():
    budget = SETTINGS | {"offline_max_replicas": 3}
    assert wanted_replicas({"offline": 25}, 1, **budget) == 3
    assert wanted_replicas({"offline": 500}, 1, **budget) == 3
    assert wanted_replicas({"offline": 5, "online": 9}, 1, **budget) == 3


def test_serve_hands_the_policy_the_figures_of_every_replica():
    class Context:
        aggregated_metrics = {"online": {"r0": 5.0, "r1": 4.0}, "offline": {"r0": 90.0}}
        current_num_replicas = 2

    assert LanePolicy(**SETTINGS)(Context()) == (3.0, {})
    Context.aggregated_metrics = None
    assert LanePolicy(**SETTINGS)(Context()) == (1.0, {})
