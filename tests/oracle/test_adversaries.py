"""No trick buys service: who floods, splits up, sends huge prompts, aborts, resubmits or shares prefixes.

The share is that of the work the engine did. The honest client's requests are always there, so anything above half
would be taken from it.
"""

import pytest

from tests.oracle.arena import ADVERSARY, Arena
from vllm_hybrid.sim.modelfree import STOCK, VOCAB, World

pytestmark = pytest.mark.oracle

TOLERANCE = 0.03
SYSTEM_PROMPT = tuple(i % VOCAB for i in range(96))


def keep(arena: Arena, waiting: int, prompt_tokens: int, output_tokens: int, prefix: tuple[int, ...] = ()) -> None:
    while arena.left(ADVERSARY) < waiting:
        arena.send(ADVERSARY, prompt_tokens, output_tokens, prefix)


def many_tiny_requests(arena: Arena) -> None:
    keep(arena, 200, 4, 3)


def huge_prompts(arena: Arena) -> None:
    keep(arena, 6, 900, 4)


def long_answers(arena: Arena) -> None:
    keep(arena, 12, 10, 200)


def aborts_before_completion(arena: Arena) -> None:
    """Takes most of an answer, and leaves before it is complete."""
    keep(arena, 12, 40, 100)
    for request_id in list(arena.live[ADVERSARY]):
        if arena.generated(request_id) >= 90:
            arena.abort(request_id)


def aborts_in_the_prompt(arena: Arena) -> None:
    """Lets long prompts be computed, and leaves at the first token."""
    keep(arena, 12, 400, 50)
    for request_id in list(arena.live[ADVERSARY]):
        if arena.generated(request_id) >= 1:
            arena.abort(request_id)


def resubmits_after_abort(arena: Arena) -> None:
    """Gives up what waits or runs every few turns and sends it anew, hoping to be taken for a newcomer."""
    keep(arena, 12, 60, 40)
    if arena.loop.steps % 7 == 0:
        for request_id in list(arena.live[ADVERSARY]):
            arena.abort(request_id)


def leaves_and_comes_back(arena: Arena) -> None:
    """Is idle again and again, to be lifted to the smallest counter each time."""
    if arena.loop.steps % 60 < 30:
        keep(arena, 12, 60, 30)


def shares_prefixes(arena: Arena) -> None:
    """All its prompts begin alike: the cache serves most of them, and what is computed is paid for."""
    keep(arena, 40, 110, 20, SYSTEM_PROMPT)


TRICKS = (
    many_tiny_requests,
    huge_prompts,
    long_answers,
    aborts_before_completion,
    aborts_in_the_prompt,
    resubmits_after_abort,
    leaves_and_comes_back,
    shares_prefixes,
)


@pytest.mark.parametrize("async_mode", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("trick", TRICKS, ids=lambda trick: trick.__name__)
def test_a_trick_buys_no_service(trick, async_mode):
    arena = Arena(World(async_mode, num_blocks=200, max_seqs=8, step_tokens=128))
    assert arena.share_of_the_adversary(trick) <= 0.5 + TOLERANCE


@pytest.mark.parametrize("trick", [long_answers, huge_prompts], ids=lambda trick: trick.__name__)
def test_under_stock_it_does(trick):
    arena = Arena(World(num_blocks=200, max_seqs=8, step_tokens=128), STOCK)
    assert arena.share_of_the_adversary(trick) > 0.6


@pytest.mark.parametrize("prediction", ["mean", "median", "max_tokens"])
@pytest.mark.parametrize("trick", [aborts_before_completion, leaves_and_comes_back], ids=lambda trick: trick.__name__)
def test_nor_does_it_where_lengths_are_predicted(trick, prediction):
    hybrid = (("strict", True), ("fairness", {"prediction": prediction}))
    arena = Arena(World(num_blocks=200, max_seqs=8, step_tokens=128, hybrid=hybrid))
    assert arena.share_of_the_adversary(trick) <= 0.5 + TOLERANCE


@pytest.mark.parametrize("preset", ["hybrid", "vtc"])
def test_nor_does_a_shared_prefix_beyond_the_quantum_of_locality(preset):
    hybrid = (("strict", True), ("preset", preset), ("fairness", {"quantum": 300.0}))
    arena = Arena(World(num_blocks=200, max_seqs=8, step_tokens=128, hybrid=hybrid))
    assert arena.share_of_the_adversary(shares_prefixes) <= 0.5 + TOLERANCE


@pytest.mark.parametrize("cost", ["profiled", "seconds"])
def test_at_other_prices_a_trick_buys_no_more_of_what_is_priced(cost):
    hybrid = (("strict", True), ("fairness", {"cost": cost}))
    arena = Arena(World(num_blocks=200, max_seqs=8, step_tokens=128, hybrid=hybrid))
    arena.share_of_the_adversary(many_tiny_requests, turns=800)
    arena.scheduler.ledger.settle()
    values = sorted(arena.scheduler.counters.values.values())
    assert values[0] >= 0.9 * values[-1]
