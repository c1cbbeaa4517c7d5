"""Records as files: the same bytes for the same run, read back as they were, and refused when they are no records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vllm_hybrid.sim.results import ResultsError, read_all, text_of, write
from vllm_hybrid.sim.sweep import Outcome

RECORD = {
    "schema": 1,
    "workload": "w",
    "contender": {"name": "fcfs", "engine": {}},
    "values": [1.0, 2.5],
    "clients": [{"client": "a", "service": 3.0}, {"client": "b", "service": 4.0}],
    "none": None,
}


def test_the_text_is_json_with_a_line_per_key_and_per_client() -> None:
    text = text_of(RECORD)
    assert json.loads(text) == RECORD
    assert '\n "values": [1.0, 2.5],\n' in text
    assert '\n  {"client": "a", "service": 3.0},\n' in text
    assert json.loads(text_of({})) == {}


def test_a_record_comes_back_with_its_timing(tmp_path: Path) -> None:
    timing = {"cpu_s": 1.5, "steps": 3}
    write(tmp_path / "new" / "folder", Outcome("w-fcfs-seed0", RECORD, timing))
    assert read_all(tmp_path / "new" / "folder") == [(RECORD, timing)]


def test_a_record_without_timing_is_a_record(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text_of(RECORD))
    assert read_all(tmp_path) == [(RECORD, {})]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "is no record of a run"),
        ('{"contender": {}, "workload": "w", "schema": 99}', "schema = 99: must be 1"),
    ],
)
def test_what_is_no_record_is_named(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "odd.json").write_text(text)
    with pytest.raises(ResultsError, match=problem) as caught:
        read_all(tmp_path)
    assert "odd.json" in str(caught.value)


def test_an_empty_or_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="holds no records"):
        read_all(tmp_path)
    with pytest.raises(ResultsError, match="no such folder"):
        read_all(tmp_path / "nowhere")
