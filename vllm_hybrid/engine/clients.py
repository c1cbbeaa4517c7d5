"""What single clients got: tokens and service since the last drain, and what they have waiting now.

Names of clients come from outside, so their number has no bound, and that of the books must have one: the clients of
the settings and the first few others have cells of their own, all the rest share one cell per lane. Who has a cell
keeps it. Of several engines (data parallel) each names its first few, and the others follow: a client that has figures
of its own has them everywhere.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from vllm_hybrid.policy.request import ClientKey, Lane, RequestView


class Cell:
    """The books of one client in one lane, or of all that have none of their own."""

    __slots__ = ("_drained", "output_tokens", "prompt_tokens", "service", "waiting", "waiting_tokens")

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.service = 0.0  # charged, before the weight
        self.waiting = 0
        self.waiting_tokens = 0
        self._drained = (0, 0, 0.0)

    def joined(self, view: RequestView) -> None:
        """A request enters the client's line."""
        self.waiting += 1
        self.waiting_tokens += view.missing_tokens

    def parted(self, view: RequestView) -> None:
        """A request leaves the client's line; what it misses has not changed while it stood there."""
        self.waiting -= 1
        self.waiting_tokens -= view.missing_tokens

    def drain(self) -> tuple[int, int, float]:
        """Prompt tokens, output tokens and service since the last call."""
        before, self._drained = self._drained, (self.prompt_tokens, self.output_tokens, self.service)
        prompt, output, service = self._drained
        return prompt - before[0], output - before[1], service - before[2]


class ClientTally:
    """The cells. most: how many clients beside the configured ones get a cell."""

    def __init__(self, configured: Collection[str], most: int) -> None:
        self._named = set(configured)
        self._most = len(self._named) + most
        self._cells: dict[ClientKey, Cell] = {}
        self._others = (Cell(), Cell())

    def cell(self, key: ClientKey) -> Cell:
        """Where the client's figures go."""
        try:
            return self._cells[key]
        except KeyError:
            return self._new(key)

    def _new(self, key: ClientKey) -> Cell:
        lane, client = key
        if client not in self._named:
            if len(self._named) >= self._most:
                return self._others[lane]
            self._named.add(client)
        cell = self._cells[key] = Cell()
        return cell

    def follow(self, named: Iterable[str]) -> None:
        """These have cells of their own in another engine."""
        for client in named:
            if client not in self._named:
                self._named.add(client)
                self._most += 1  # not one of those whom this engine may name

    def own(self, key: ClientKey) -> Cell | None:
        """The client's own cell, None if it shares one."""
        return self._cells.get(key)

    def named(self) -> list[tuple[Lane, str | None, Cell]]:
        """Every cell with its client; None is all the others."""
        own: list[tuple[Lane, str | None, Cell]] = [
            (lane, client, cell) for (lane, client), cell in self._cells.items()
        ]
        return own + [(lane, None, self._others[lane]) for lane in Lane]

    def drain(self) -> list[dict[str, Any]]:
        """One plain row per cell, for the metrics. `client` is None in the row of all others."""
        rows = []
        for lane, client, cell in self.named():
            prompt, output, service = cell.drain()
            rows.append(
                {
                    "lane": lane.label,
                    "client": client,
                    "prompt": prompt,
                    "output": output,
                    "service": service,
                    "waiting": cell.waiting,
                    "waiting_tokens": cell.waiting_tokens,
                }
            )
        return rows
