"""No stall and no thrash under the real planner: whoever can run runs, all requests end, victims get their rest."""

import os
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracle.ours import HYBRID
from tests.oracle.progress import ProgressWatch
from tests.oracle.workload import Job, Played, Shape, check_end, draw_load, play
from vllm_hybrid.policy.request import Lane
from vllm_hybrid.sim.modelfree import BLOCK_SIZE, VOCAB, World

pytestmark = pytest.mark.oracle

EXAMPLES = int(os.environ.get("HYBRID_PROGRESS_EXAMPLES", "150"))
CHAT = {"online": {"ttft_s": 0.5, "tbt_s": 0.05}}
SLOS = ({}, CHAT, {"online": {"tbt_s": 0.02}}, {"online": {"ttft_s": 0.01, "tbt_s": 0.001}})
SHARED_TOKENS = 150  # the longest shared prefix that `draw_load` makes


def hybrid(slo: dict, preempt_interval_s: float = 5.0) -> tuple:
    settings = {"strict": True, "slo": slo, "lanes": {"offline": {"preempt_interval_s": preempt_interval_s}}}
    return tuple(settings.items())


def watched(world: World, jobs: list[Job], seed: int = 0, abort_rate: float = 0.0) -> tuple[Played, ProgressWatch]:
    """Play a load to its end; any stall, wrong output or leak raises."""
    watches = []
    played = play(HYBRID, world, jobs, seed, abort_rate, prepare=lambda loop: watches.append(ProgressWatch(loop)))
    check_end(played)
    assert played.loop.finished == {job.request_id for job in jobs} - played.aborted
    return played, watches[0]


def settled(**fields):
    """A strategy that draws each field from its choices."""
    return st.fixed_dictionaries({name: st.sampled_from(choices) for name, choices in fields.items()})


WORLDS = settled(
    async_mode=(False, True),
    num_blocks=(48, 60, 90, 200),
    max_seqs=(2, 4, 16),
    step_tokens=(32, 128, 512),
    drafts=(0, 3),
    watermark=(0.0, 0.05, 0.1),
    v2_runner=(False, True),
    policy=("fcfs", "priority"),
    prefix_caching=(True, False),
    hybrid=tuple(hybrid(slo, interval_s) for slo in SLOS for interval_s in (0.1, 1.0, 5.0)),
)
SHAPES = settled(
    jobs=(2, 8, 30),
    prompt_tokens=(60, 400, 550),
    output_tokens=(20, 100),
    arrival_steps=(1, 60, 400),
    offline_share=(0.0, 0.5, 0.9, 1.0),
    clients=(1, 5),
    priorities=(1, 3),
    abort_rate=(0.0, 0.03),
)


@settings(max_examples=EXAMPLES, deadline=None, derandomize="HYBRID_PROGRESS_EXAMPLES" not in os.environ)
@given(world=WORLDS, shape=SHAPES, seed=st.integers(0, 10_000))
def test_whoever_can_run_runs(world, shape, seed):
    room = (world["num_blocks"] - 1) * BLOCK_SIZE - SHARED_TOKENS - shape["output_tokens"] - 2 * world["drafts"]
    shape["prompt_tokens"] = min(shape["prompt_tokens"], room)  # each request fits into the pool alone
    watched(World(**world), draw_load(seed, Shape(**shape)), seed, shape["abort_rate"])


def prompt(rng: random.Random, tokens: int) -> tuple[int, ...]:
    return tuple(rng.randrange(VOCAB) for _ in range(tokens))


def job(rng: random.Random, step: int, name: str, lane: str, prompt_tokens: int, output_tokens: int) -> Job:
    identity = (("lane", lane), ("client", name[:2]))
    return Job(step, name, prompt(rng, prompt_tokens), output_tokens, identity=identity)


@pytest.mark.parametrize("async_mode", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("watermark", [0.0, 0.05, 0.1])
@pytest.mark.parametrize("slo", [{}, CHAT], ids=["no-slo", "slo"])
def test_an_online_head_that_does_not_fit_stops_nobody(slo, watermark, async_mode):
    """Offline victims under protection fill the pool; a large online prompt waits, and they go on until it fits."""
    rng = random.Random(1)
    offline = [job(rng, 0, f"b{i}", "offline", 200, 60) for i in range(3)]
    first_wave = [job(rng, 10, "u0", "online", 400, 4)]  # takes memory from offline work, which comes back protected
    second_wave = [job(rng, 40, f"v{i}", "online", 600, 8) for i in range(2)]
    world = World(async_mode, num_blocks=60, max_seqs=4, watermark=watermark, hybrid=hybrid(slo, 3600.0))
    watched(world, offline + first_wave + second_wave)


@pytest.mark.parametrize("async_mode", [False, True], ids=["sync", "async"])
def test_offline_work_alone_fills_every_step(async_mode):
    rng = random.Random(2)
    jobs = [job(rng, 0, f"b{i}", "offline", 100, 30) for i in range(12)]
    played, watch = watched(World(async_mode, num_blocks=60, hybrid=hybrid(CHAT)), jobs)
    # async: a step is empty when the last tokens of all who run are under way
    assert watch.empty_steps <= (played.loop.steps // 20 if async_mode else 0)


def burst_load(seed: int, factor: int) -> list[Job]:
    """Offline work that fills the pool, and an online stream that is `factor` times denser in steps 400 to 900."""
    rng = random.Random(seed)
    jobs = [job(rng, 0, f"b{i % 2}{i}", "offline", rng.randrange(50, 300), rng.randrange(100, 300)) for i in range(40)]
    for step in range(1500):
        if rng.random() < 0.05 * (factor if 400 <= step < 900 else 1):
            name = f"u{len(jobs) % 3}{len(jobs)}"
            jobs.append(job(rng, step, name, "online", rng.randrange(30, 300), rng.randrange(5, 40)))
    return sorted(jobs, key=lambda j: j.arrival_step)


@pytest.mark.parametrize("async_mode", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("preempt_interval_s", [1.0, 5.0])
@pytest.mark.parametrize("slo", [{}, CHAT], ids=["no-slo", "slo"])
def test_a_burst_preempts_an_offline_request_at_most_once_per_interval(slo, preempt_interval_s, async_mode):
    pools = [(120, 0.0), (60, 0.0), (120, 0.05), (60, 0.1)]
    for seed, (num_blocks, watermark) in list(enumerate(pools))[int(async_mode) :: 2]:  # half of them in each mode
        world = World(async_mode, num_blocks=num_blocks, watermark=watermark, hybrid=hybrid(slo, preempt_interval_s))
        jobs = burst_load(seed, factor=10)
        played, watch = watched(world, jobs)
        offline = {j.request_id for j in jobs if dict(j.identity)["lane"] == "offline"}
        assert played.loop.scheduler.tally.preemptions[Lane.OFFLINE] >= 3
        assert min(watch.planned_rests_s, default=preempt_interval_s) >= preempt_interval_s
        # Nor does vLLM take memory by itself, when a decode finds no block, from one who just gave way.
        assert watch.shortest_rest_s(offline) >= preempt_interval_s
