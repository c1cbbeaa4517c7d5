"""One loader for request traces: CSV or JSONL, gzipped or not, any column names.

A trace has a row per request with its arrival in seconds and its prompt and output lengths in tokens; a
client, a lane and the ids of the prompt's blocks (equal leading ids mean a shared prefix) are optional.  What cannot
be replayed is refused here, in one line that names file, row and column: a load generator that quietly
repairs its input measures something else than it says.  Rows are counted as lines of the
file, so the first row of a CSV is 2.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

_SUFFIXES = (".csv", ".jsonl")
_LANES = ("online", "offline")
_MAX_SHOWN = 60


class TraceError(ValueError):
    """A trace that cannot be replayed: one line that names file, row and column."""


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request of a workload; `hash_ids` name its prompt's blocks, equal leading ids a shared prefix."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    client: str = "default"
    hash_ids: tuple[int, ...] = ()
    lane: str = "online"


@dataclass(slots=True)
class _Row:
    """One raw row, with what an error about it has to name."""

    path: Path
    number: int
    fields: Mapping[str, Any]
    columns: Mapping[str, str]

    def fail(self, field: str, problem: str) -> TraceError:
        return TraceError(f"{self.path}: row {self.number}, column {self.column(field)!r}: {problem}")

    def column(self, field: str) -> str:
        return self.columns.get(field, field)

    def get(self, field: str) -> Any:
        return self.fields.get(self.column(field))

    def number_of(self, field: str) -> float:
        value = self.get(field)
        if value is None or value == "":
            raise self.fail(field, "is missing")
        try:
            if isinstance(value, bool):
                raise ValueError
            number = float(value)
        except (TypeError, ValueError):
            raise self.fail(field, f"must be a number, is {_shown(value)}") from None
        if not math.isfinite(number):
            raise self.fail(field, f"must be finite, is {_shown(value)}")
        return number

    def arrival_s(self, previous_s: float) -> float:
        arrival_s = self.number_of("arrival_s")
        if arrival_s < 0:
            raise self.fail("arrival_s", f"must not be negative, is {arrival_s:g}")
        if arrival_s < previous_s:
            raise self.fail("arrival_s", f"{arrival_s:g} is before {previous_s:g} above it: sort the file")
        return arrival_s

    def tokens(self, field: str) -> int:
        number = self.number_of(field)
        if number < 1 or number != int(number):
            raise self.fail(field, f"must be a whole number of at least 1, is {_shown(self.get(field))}")
        return int(number)

    def client(self) -> str:
        value = self.get("client")
        return "default" if value is None or value == "" else str(value)

    def lane(self) -> str:
        value = self.get("lane")
        if value is None or value == "":
            return "online"
        if value not in _LANES:
            raise self.fail("lane", f"must be one of {', '.join(_LANES)}, is {_shown(value)}")
        return str(value)

    def hash_ids(self) -> tuple[int, ...]:
        value = self.get("hash_ids")
        if value is None or value == "":
            return ()
        try:
            ids = json.loads(value) if isinstance(value, str) else value
            return tuple(int(i) for i in ids)
        except (TypeError, ValueError):
            raise self.fail("hash_ids", f"must be a list of integers, is {_shown(value)}") from None


def load_trace(
    path: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    timed: bool = True,
    most_tokens: int | None = None,
) -> list[TraceRequest]:
    """Read the trace at `path` (.csv, .jsonl, each also with .gz).

    `columns` maps a field of `TraceRequest` to the file's own name for it.  `timed=False` reads a sample of
    lengths, a file without arrivals; every request then arrives at 0.  A request of more than `most_tokens`, prompt
    and output together, is refused: no server with that much room could answer it.  Raises `TraceError`.
    """
    path = Path(path)
    columns = dict(columns or {})
    unknown = sorted(set(columns) - set(TraceRequest.__dataclass_fields__))
    if unknown:
        allowed = ", ".join(TraceRequest.__dataclass_fields__)
        raise TraceError(f"{path}: columns names {unknown[0]!r}: must be one of {allowed}")
    requests: list[TraceRequest] = []
    for row in _rows(path, columns):
        arrival_s = row.arrival_s(previous_s=requests[-1].arrival_s if requests else 0.0) if timed else 0.0
        prompt, output = row.tokens("prompt_tokens"), row.tokens("output_tokens")
        if most_tokens is not None and prompt + output > most_tokens:
            raise row.fail("prompt_tokens", f"{prompt} and {output} output tokens: at most {most_tokens} fit together")
        requests.append(TraceRequest(arrival_s, prompt, output, row.client(), row.hash_ids(), row.lane()))
    if not requests:
        raise TraceError(f"{path}: holds no requests")
    return requests


def _rows(path: Path, columns: Mapping[str, str]) -> Iterator[_Row]:
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if suffix not in _SUFFIXES:
        raise TraceError(f"{path}: must end in .csv, .jsonl, .csv.gz or .jsonl.gz")
    number = 1
    try:
        with _open(path) as file:
            for number, fields in (_csv_rows if suffix == ".csv" else _jsonl_rows)(file):
                yield _Row(path, number, fields, columns)
    except FileNotFoundError:
        raise TraceError(f"{path}: no such file") from None
    except (OSError, EOFError, zlib.error) as error:  # a directory, no permission, not gzip, cut short
        raise TraceError(f"{path}: after row {number}: cannot be read: {error}") from error
    except (UnicodeDecodeError, csv.Error, json.JSONDecodeError) as error:
        kind = "JSON" if suffix == ".jsonl" else "CSV"
        raise TraceError(f"{path}: after row {number}: is not {kind} text: {error}") from error


def _open(path: Path) -> TextIO:
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")


def _csv_rows(file: TextIO) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(file)
    for fields in reader:
        yield reader.line_num, fields


def _jsonl_rows(file: TextIO) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        fields = json.loads(line)
        # A row that is no object has no columns: the first one looked up is reported missing.
        yield number, fields if isinstance(fields, dict) else {}


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."
