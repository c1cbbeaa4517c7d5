"""``vllm-hybrid top``: the status of a running server in a terminal, renewed once a second.

The key of an admin is read from the environment (`VLLM_HYBRID_KEY`), never from the command line, where other users of
the machine could see it.
"""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from typing import Any

KEY_VARIABLE = "VLLM_HYBRID_KEY"
_TIMEOUT_S = 30.0
_CLEAR = "\x1b[H\x1b[J"
_WIDTHS = (24, 8, 8, 8, 8, 12, 14, 14)


class Unreachable(Exception):
    """The server gave no status; the message says why."""


def run(url: str, interval_s: float, once: bool) -> int:
    """Show the server at `url` until interrupted, or once; the exit status."""
    before: dict[tuple[Any, ...], int] = {}
    try:
        while True:
            screen, before = render(ask(url, "status"), ask(url, "clients?most=30"), before)
            print(screen if once else _CLEAR + screen, flush=True)
            if once:
                return 0
            time.sleep(interval_s)
    except Unreachable as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0


def ask(url: str, what: str) -> list[dict[str, Any]]:
    """One question to every engine of a server."""
    key = os.environ.get(KEY_VARIABLE)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    request = urllib.request.Request(f"{url.rstrip('/')}/v1/hybrid/{what}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            return json.load(answer)["engines"]
    except urllib.error.HTTPError as error:
        hint = f": set {KEY_VARIABLE} to the key of an admin" if error.code in (401, 403) else ""
        raise Unreachable(f"{url} answers {error.code} {error.reason}{hint}") from None
    except (OSError, ValueError) as error:
        raise Unreachable(f"{url} gives no status ({error})") from None


def render(
    engines: list[dict[str, Any]], clients: list[dict[str, Any]], before: dict[tuple[Any, ...], int]
) -> tuple[str, dict[tuple[Any, ...], int]]:
    """The screen, and the clients' tokens for the next one. before: those of the last."""
    lines: list[str] = []
    for engine in engines:
        blocks, slots = engine["blocks"], engine["slots"]
        lines.append(
            f"engine {engine['engine']}  preset {engine['preset']}  settings version {engine['config_version']}  "
            f"slots {slots['most'] - slots['free']}/{slots['most']}  "
            f"blocks {blocks['total'] - blocks['free']}/{blocks['total']}"
        )
        lines.append(_row(("lane", "waiting", "running", "paused", "clients", "gap", "held back by")))
        for name, lane in engine["lanes"].items():
            counts = (lane["waiting"], lane["running"], lane["paused"], lane["clients_waiting"])
            lines.append(_row((name, *counts, f"{lane['service_gap']:.0f}", lane["held_back_by"] or "-")))
        lines.append("")
    lines.append(_row(("client", "lane", "weight", "waiting", "running", "first waits", "tokens", "share")))
    rows = [(engine["engine"], row) for engine in clients for row in engine["clients"]]
    now = {(engine, row["lane"], row["client"]): _tokens(row) for engine, row in rows}
    gained = {key: tokens - before.get(key, tokens if before else 0) for key, tokens in now.items()}
    for engine, row in rows:
        lane_total = sum(tokens for (_, lane, _), tokens in gained.items() if lane == row["lane"])
        share = gained[engine, row["lane"], row["client"]] / lane_total if lane_total else 0.0
        waits = "-" if row["first_waits_s"] is None else f"{row['first_waits_s']:.1f} s"
        figures = (f"{row['weight']:g}", row["waiting"], row["running"], waits, _tokens(row), f"{share:.0%}")
        lines.append(_row((row["client"][: _WIDTHS[0] - 1], row["lane"], *figures)))
    return "\n".join(lines), now


def _tokens(row: dict[str, Any]) -> int:
    return (row["prompt_tokens"] or 0) + (row["output_tokens"] or 0)


def _row(cells: Iterable[Any]) -> str:
    return "".join(str(cell).ljust(width) for cell, width in zip(cells, _WIDTHS, strict=False)).rstrip()
