"""A twin has its profile's figures, is the same for the same seed, and carries its source."""

import statistics
from importlib.resources import files
from itertools import pairwise
from json import loads

import pytest

from vllm_hybrid.workload import LengthProfile, TraceProfile, load_profile
from vllm_hybrid.workload.profiles import profile_names


def azure():
    profile = load_profile("azure_conv_2023")
    assert isinstance(profile, TraceProfile)
    return profile


def test_a_twin_meets_the_figures_of_its_trace():
    twin = azure().sample(seed=1, duration_s=3500)
    assert len(twin) == pytest.approx(19_366, rel=0.03)
    assert statistics.fmean(r.prompt_tokens for r in twin) == pytest.approx(1155, rel=0.08)
    assert statistics.fmean(r.output_tokens for r in twin) == pytest.approx(211, rel=0.08)
    gaps = [b.arrival_s - a.arrival_s for a, b in pairwise(twin)]
    assert statistics.pstdev(gaps) / statistics.fmean(gaps) == pytest.approx(1.1, rel=0.2)


def test_each_window_has_its_own_rate_on_average():
    client = azure().clients["c0"]
    twins = [azure().sample(seed, 3540) for seed in range(20)]
    for index, expected in list(enumerate(client.requests_per_window))[::10]:
        start = index * client.window_s
        drawn = [sum(start <= r.arrival_s < start + client.window_s for r in twin) for twin in twins]
        assert statistics.fmean(drawn) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("name", profile_names())
def test_every_shipped_profile_can_be_drawn_and_names_its_licence(name):
    profile = load_profile(name)
    if isinstance(profile, LengthProfile):
        twin = profile.sample(seed=3, count=200)
        assert {r.arrival_s for r in twin} == {0.0}
    else:
        twin = profile.sample(seed=3, duration_s=60)
        assert {r.client for r in twin} <= set(profile.clients)
    assert twin == sorted(twin, key=lambda r: r.arrival_s)
    assert all(r.prompt_tokens >= 1 and r.output_tokens >= 1 for r in twin)
    shipped = loads(files("vllm_hybrid.workload").joinpath("data/workload_profiles.json").read_text())
    assert shipped["sources"][name]["licence"] in {"CC-BY-4.0", "Apache-2.0", "MIT"}


def test_the_seed_alone_decides_the_twin():
    assert azure().sample(5, 100) == azure().sample(5, 100)
    assert azure().sample(5, 100) != azure().sample(6, 100)


def test_a_higher_rate_draws_more_requests_in_the_same_time():
    slow, fast = azure().sample(1, 600), azure().sample(1, 600, rate_scale=3)
    assert len(fast) == pytest.approx(3 * len(slow), rel=0.1)
    assert fast[-1].arrival_s < 600


def test_what_a_profile_cannot_give_is_refused():
    with pytest.raises(ValueError, match="profile 'azure'"):
        load_profile("azure")
    with pytest.raises(ValueError, match="duration_s = 1000000"):
        azure().sample(1, 1_000_000)
    with pytest.raises(ValueError, match="rate_scale = 0"):
        azure().sample(1, 10, rate_scale=0)
