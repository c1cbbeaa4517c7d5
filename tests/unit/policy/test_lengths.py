"""Predicted output: it counts when clients are compared, and is never charged."""

import pytest

from tests.unit.policy.world import OFFLINE, ONLINE, decode, plain_counters, prefill, request, waiting
from vllm_hybrid.policy.groups import Groups
from vllm_hybrid.policy.lengths import PREDICTIONS, KnownLengths, MeanLengths, MedianLengths

A, B = (ONLINE, "a"), (ONLINE, "b")


def counters(lengths):
    made = plain_counters()
    made.lengths = lengths
    return made


def taught(lengths, answers, key=A):
    for tokens in answers:
        lengths.observe(key, tokens)
    return lengths


@pytest.mark.parametrize("name", ["mean", "median"])
def test_of_a_client_that_never_had_an_answer_nothing_is_expected(name):
    lengths = taught(PREDICTIONS[name](), [100, 100], key=(OFFLINE, "a"))
    assert lengths.expected(request("a", max_output_tokens=64)) == 0


@pytest.mark.parametrize("name", ["mean", "median", "max_tokens"])
def test_nobody_is_expected_to_exceed_max_tokens(name):
    lengths = taught(PREDICTIONS[name](), [500, 500])
    assert lengths.expected(request("a", max_output_tokens=64)) == 64


def test_the_mean_is_smoothed_as_in_the_paper():
    lengths = taught(MeanLengths(), [100, 200])
    assert lengths.expected(request("a", max_output_tokens=1000)) == pytest.approx((4 * 100 + 200) / 5)


def test_the_median_looks_only_at_answers_that_got_this_far():
    lengths = taught(MedianLengths(), [10, 20, 30, 400, 500])
    assert lengths.expected(request("a", max_output_tokens=1000)) == 30
    assert lengths.expected(decode("a", output_tokens=30, max_output_tokens=1000)) == 500
    assert lengths.expected(decode("a", output_tokens=500, max_output_tokens=1000)) == 0, "nobody got further"


def test_only_the_latest_answers_count():
    lengths = taught(MedianLengths(), [10] * 64 + [90] * 64)
    assert lengths.expected(request("a", max_output_tokens=1000)) == 90


@pytest.mark.parametrize("name", ["mean", "median"])
def test_clients_that_are_gone_are_forgotten(name):
    lengths = taught(taught(PREDICTIONS[name](), [100]), [50], key=B)
    lengths.forget_idle({B})
    assert lengths.expected(request("a", max_output_tokens=1000)) == 0
    assert lengths.expected(request("b", max_output_tokens=1000)) == 50


def test_what_runs_is_promised_its_rest():
    running = [
        prefill("a", prompt_tokens=64, done_tokens=16, max_output_tokens=10),
        decode("a", max_output_tokens=10, output_tokens=4),
        decode("b", max_output_tokens=10, output_tokens=10),
    ]
    promised = Groups.of(running).promised(counters(KnownLengths()))
    assert promised == {A: 48 + 2 * 10 + 2 * 6, B: 0}
    assert Groups.of(running).promised(counters(None)) == {A: 48}


def test_a_client_of_long_answers_is_admitted_less_often():
    """Prompts alike, answers 9:1: with the lengths known a client's next request waits for nine of the other's."""
    queue = waiting(
        [request("a", prompt_tokens=10, max_output_tokens=95) for _ in range(5)]
        + [request("b", prompt_tokens=10, max_output_tokens=5) for _ in range(40)],
        counters(KnownLengths()),
    )
    order = [view.client for view in queue.walk(ONLINE, {}, ())]
    assert order[:22].count("a") == 2
    assert order[:22].count("b") == 20
