"""Whichever model runner vLLM has, a request that was moved is found in its new blocks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from vllm_hybrid.cache.worker import place_blocks


class Table:
    def __init__(self) -> None:
        self.told: list[Any] = []

    def add_row(self, blocks: Any, row: int) -> None:
        self.told.append((row, blocks))

    def append_block_ids(self, row: int, blocks: Any, overwrite: bool) -> None:
        assert overwrite
        self.told.append((row, blocks))


def test_the_first_runner_knows_it_in_its_request_and_in_its_batch() -> None:
    batch = SimpleNamespace(req_id_to_index={"here": 3}, block_table=Table())
    requests = {name: SimpleNamespace(block_ids=([9],)) for name in ("here", "not in the batch")}
    runner = SimpleNamespace(requests=requests, input_batch=batch)
    place_blocks(runner, "here", [4, 5])
    place_blocks(runner, "not in the batch", [6])
    assert requests["here"].block_ids == ([4, 5],) and requests["not in the batch"].block_ids == ([6],)
    assert batch.block_table.told == [(3, ([4, 5],))]


def test_the_second_runner_has_it_overwritten() -> None:
    runner = SimpleNamespace(req_states=SimpleNamespace(req_id_to_index={"here": 7}), block_tables=Table())
    place_blocks(runner, "here", [4, 5])
    assert runner.block_tables.told == [(7, ([4, 5],))]
