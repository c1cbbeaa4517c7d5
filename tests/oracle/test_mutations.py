"""Each deliberate mistake in the adapter is noticed, in each mode in which it can do harm; no mistake, no alarm."""

from dataclasses import dataclass

import pytest

from tests.oracle import mistakes as m
from tests.oracle.chaos import CHAOS, ChaosScheduler, ChaosSyncScheduler, unleash
from tests.oracle.workload import Shape, check_end, draw_load, play
from vllm_hybrid.sim.modelfree import Classes, World

pytestmark = pytest.mark.oracle

SEEDS = 6
SHAPE = Shape(jobs=50)


@dataclass(frozen=True)
class Expected:
    """Where a mistake must be caught. Where it need not, it changes nothing: then it must pass."""

    mistake: type
    sync: bool = True
    asynchronous: bool = True
    drafts: int = 0
    v2_runner: bool = False


EXPECTED = (
    Expected(m.CountsATokenTooMany),
    Expected(m.FreesBlocksOfARunningRequest),
    Expected(m.LosesBlocksAtTheEnd),
    Expected(m.ForgetsAPausedRequest),
    Expected(m.ForgetsAVictim),
    Expected(m.ClearsTheStaleCount, sync=False),  # in sync mode nothing is under way between two steps
    Expected(m.DropsOutputUnderWay, sync=False),
    Expected(m.ParksWithAStepUnderWay, sync=False),
    Expected(m.ParksWithoutTellingTheWorker, v2_runner=True),
    Expected(m.ParksWithoutTheBlocks),
    Expected(m.DropsAParkedRequestButKeepsItsCount),
    Expected(m.DropsAParkedRequestButKeepsItsBlocks),
    Expected(m.PopsSomethingElseThanItPeeked),
    Expected(m.IgnoresPauses),
    Expected(m.PausesOneStepTooLong),
    Expected(m.PausesByLyingAboutProgress),
    Expected(m.IgnoresCaps),
    Expected(m.CutsDecodes, drafts=3),
    Expected(m.HalvesChunksNobodyCapped),
    Expected(m.IgnoresTheBudget),
    Expected(m.KeepsTheBudgetAfterTheStep),
    Expected(m.KeepsTheQueueClosedAfterTheStep),
    Expected(m.IgnoresTheOrder),
    Expected(m.SparesTheVictims),
    Expected(m.ResumesAVictimInTheSameStep),
    Expected(m.BringsBackEverybodyParked),
    Expected(m.AdmitsWhomItLikes),
    Expected(m.AdmitsInReverse),
)


def first_alarm(classes: Classes, world: World) -> tuple[int, BaseException] | None:
    """The seed at which a mistake is noticed, and how; None if all seeds pass."""
    for seed in range(SEEDS):
        try:
            played = play(
                classes,
                world,
                draw_load(seed, SHAPE),
                seed,
                SHAPE.abort_rate,
                prepare=lambda loop, seed=seed: unleash(loop, seed),
            )
            check_end(played)
        except Exception as alarm:
            return seed, alarm
    return None


def world_of(expected: Expected, async_mode: bool) -> World:
    return World(async_mode, num_blocks=120, drafts=expected.drafts, v2_runner=expected.v2_runner)


@pytest.mark.parametrize("async_mode", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("expected", EXPECTED, ids=lambda e: e.mistake.__name__)
def test_a_mistake_is_noticed(expected, async_mode):
    mistaken = Classes(
        *(type("Mistaken", (expected.mistake, base), {}) for base in (ChaosSyncScheduler, ChaosScheduler))
    )
    alarm = first_alarm(mistaken, world_of(expected, async_mode))
    assert (alarm is not None) == (expected.asynchronous if async_mode else expected.sync), alarm


@pytest.mark.parametrize("async_mode", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize(("drafts", "v2_runner"), [(0, False), (3, False), (0, True)])
def test_without_a_mistake_there_is_no_alarm(drafts, v2_runner, async_mode):
    assert first_alarm(CHAOS, World(async_mode, num_blocks=120, drafts=drafts, v2_runner=v2_runner)) is None


def test_the_table_names_every_mistake():
    written = {c for c in vars(m).values() if isinstance(c, type) and c.__module__ == m.__name__}
    assert {e.mistake for e in EXPECTED} == written
