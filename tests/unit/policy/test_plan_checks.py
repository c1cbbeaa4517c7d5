"""A plan that could not be carried out, and a step that did not follow its plan, are refused; legal ones pass."""

import pytest

from tests.unit.policy.world import OFFLINE, decode, prefill, request, step_view
from vllm_hybrid.policy.plan import PlanError, StepPlan, StepResult, check_obedience, check_plan

ONE, TWO, THREE = (decode("a", OFFLINE) for _ in range(3))
PARKED, OTHER_PARKED, STRANGER = (decode("b", OFFLINE) for _ in range(3))


def check(**decisions) -> None:
    view = step_view([ONE, TWO, THREE], parked=[PARKED, OTHER_PARKED])
    check_plan(view, StepPlan(**({"token_budget": 512, "order": [ONE, TWO, THREE]} | decisions)))


def test_a_legal_plan_passes():
    check()
    check(order=[THREE, ONE, TWO], paused=[ONE, TWO], caps={TWO.request_id: 1}, token_budget=1)
    check(order=[TWO], preempt=[ONE], park=[THREE])
    check(order=[], preempt=[ONE, TWO, THREE])
    check(drop=[PARKED], unpark=[OTHER_PARKED])


@pytest.mark.parametrize("tokens", [0, -1, 513])
def test_the_token_budget_is_at_least_one_and_at_most_the_engines(tokens):
    with pytest.raises(PlanError, match="token budget"):
        check(token_budget=tokens)


@pytest.mark.parametrize(
    "decisions",
    [
        {"order": [ONE, TWO]},
        {"order": [ONE, TWO, THREE, THREE]},
        {"order": [ONE, TWO, THREE, STRANGER]},
        {"order": [ONE, TWO, STRANGER]},
        {"preempt": [ONE]},
        {"order": [ONE, TWO], "preempt": [STRANGER]},
        {"order": [ONE, TWO], "park": [PARKED]},
    ],
    ids=[
        "forgotten",
        "twice",
        "not running",
        "replaced",
        "kept and preempted",
        "preempts a stranger",
        "parks a parked",
    ],
)
def test_every_running_request_has_exactly_one_fate(decisions):
    with pytest.raises(PlanError, match="running requests, each once"):
        check(**decisions)


@pytest.mark.parametrize("decisions", [{"preempt": [ONE, ONE]}, {"preempt": [ONE], "park": [ONE]}])
def test_nobody_gives_way_twice(decisions):
    with pytest.raises(PlanError, match="twice"):
        check(order=[TWO, THREE], **decisions)


@pytest.mark.parametrize("paused", [[STRANGER], [PARKED]])
def test_only_who_runs_can_pause(paused):
    with pytest.raises(PlanError, match="paused"):
        check(paused=paused)


def test_who_is_preempted_is_not_paused():
    with pytest.raises(PlanError, match="paused"):
        check(order=[TWO, THREE], preempt=[ONE], paused=[ONE])


@pytest.mark.parametrize("cap", [0, -5])
def test_a_cap_leaves_one_token(cap):
    with pytest.raises(PlanError, match="cap"):
        check(caps={ONE.request_id: 7, TWO.request_id: cap})


@pytest.mark.parametrize(
    "decisions",
    [
        {"drop": [ONE]},
        {"unpark": [STRANGER]},
        {"drop": [PARKED], "unpark": [PARKED]},
        {"drop": [PARKED, PARKED]},
        {"unpark": [PARKED, PARKED]},
    ],
    ids=["drops a running one", "unparks a stranger", "both", "dropped twice", "unparked twice"],
)
def test_only_who_is_parked_is_dropped_or_comes_back_and_only_once(decisions):
    with pytest.raises(PlanError, match=r"drop|unpark"):
        check(**decisions)


# -- what the engine did -----------------------------------------------------------------------------------------------
RUNS, PAUSED, CAPPED, VICTIM, PUT_ASIDE = decode(), decode(), prefill(prompt_tokens=200), decode(), decode()
BACK, CANDIDATE, NOT_OFFERED = decode(), request(), request()


def obey(scheduled: dict, total: int | None = None, admitted=(), **result) -> None:
    plan = StepPlan(
        token_budget=100,
        order=[RUNS, CAPPED, PAUSED],
        paused=[PAUSED],
        caps={CAPPED.request_id: 20},
        preempt=[VICTIM],
        park=[PUT_ASIDE],
        unpark=[BACK],
    )
    tokens = {view.request_id: count for view, count in scheduled.items()}
    ids = [view.request_id for view in admitted]
    total = sum(tokens.values()) if total is None else total
    check_obedience(plan, StepResult(total, tokens, **({"drafts": {}} | result), admitted=ids, offered=OFFERED))


OFFERED = {CANDIDATE.request_id: CANDIDATE}


def test_a_step_as_planned_passes():
    obey({RUNS: 1, CAPPED: 20, BACK: 1, CANDIDATE: 64}, admitted=[BACK, CANDIDATE])
    obey({})


def test_more_tokens_than_planned_are_noticed():
    with pytest.raises(PlanError, match="101 tokens scheduled"):
        obey({RUNS: 1}, total=101)


@pytest.mark.parametrize(("view", "word"), [(PAUSED, "paused"), (VICTIM, "preempted"), (PUT_ASIDE, "parked")])
def test_who_should_not_have_run_is_noticed(view, word):
    with pytest.raises(PlanError, match=f"{word} request {view.request_id}"):
        obey({RUNS: 1, view: 1})


def test_a_cap_that_was_passed_is_noticed():
    with pytest.raises(PlanError, match="its cap is 20"):
        obey({CAPPED: 21})


def test_drafts_that_pad_a_decode_do_not_count_against_a_cap():
    obey({CAPPED: 23}, drafts={CAPPED.request_id: [7, 8, 9]})


def test_the_smallest_chunk_a_model_can_take_goes_before_a_cap():
    obey({CAPPED: 32}, least_chunk_tokens=32)
    with pytest.raises(PlanError, match="its cap"):
        obey({CAPPED: 33}, least_chunk_tokens=32)


def test_who_came_in_without_being_offered_is_noticed():
    with pytest.raises(PlanError, match="without having been offered"):
        obey({NOT_OFFERED: 1}, admitted=[NOT_OFFERED])
