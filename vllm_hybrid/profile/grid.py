"""Which batches are measured: so many decodes, at this context, with and without a chunk beside them.

Each magnitude of decodes and of context is there that the engine has room for, so that no segment of the predictor is
left to guesses; chunks go through all sizes in turn, alone and beside decodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

_DECODES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_CONTEXTS = (64, 256, 1_024, 4_096, 16_384)
_CHUNKS = (16, 32, 64, 128, 256, 512, 1_024, 2_048, 4_096, 8_192)
_SPARE_TOKENS = 64  # that every sequence may still grow by


@dataclass(frozen=True, slots=True)
class Room:
    """What the engine can hold and compute."""

    kv_tokens: int
    max_seqs: int
    step_tokens: int
    max_model_len: int


@dataclass(frozen=True, slots=True)
class Point:
    """Decodes of this context, joined by a prompt of `chunk` tokens; without decodes the prompt is alone."""

    decodes: int
    context: int
    chunk: int

    @property
    def tokens(self) -> int:
        """KV tokens it takes."""
        return self.decodes * (self.context + _SPARE_TOKENS) + self.chunk + _SPARE_TOKENS


def grid(room: Room) -> list[Point]:
    """The points that fit, cheap ones first."""
    chunks = [chunk for chunk in _CHUNKS if chunk <= room.step_tokens and chunk + _SPARE_TOKENS <= room.max_model_len]
    points = [Point(0, 0, chunk) for chunk in chunks]
    points += _beside(room, chunks)
    return sorted((p for p in points if _fits(p, room)), key=lambda p: p.tokens)


def _beside(room: Room, chunks: list[int]) -> Iterator[Point]:
    turn = 0
    for decodes in _DECODES:
        for context in _CONTEXTS:
            for _ in range(2):
                room_left = [chunk for chunk in chunks if chunk + decodes <= room.step_tokens]
                if room_left:
                    yield Point(decodes, context, room_left[turn % len(room_left)])
                turn += 3  # neighbours in the grid get chunks of different sizes


def _fits(point: Point, room: Room) -> bool:
    longest = max(point.context, point.chunk) + _SPARE_TOKENS
    return point.decodes < room.max_seqs and point.tokens <= room.kv_tokens and longest <= room.max_model_len
