"""The trace loader reads every supported form alike and refuses, in one line, what cannot be replayed."""

import gzip
import json

import pytest

from vllm_hybrid.workload import TraceError, TraceRequest, load_trace

CSV = "arrival_s,prompt_tokens,output_tokens\n0.0,374,44\n4.315,396,109\n"
ROWS = [TraceRequest(0.0, 374, 44), TraceRequest(4.315, 396, 109)]
JSONL = "".join(
    json.dumps({"arrival_s": r.arrival_s, "prompt_tokens": r.prompt_tokens, "output_tokens": r.output_tokens}) + "\n"
    for r in ROWS
)


def write(path, text):
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def error_of(path, **options):
    with pytest.raises(TraceError) as caught:
        load_trace(path, **options)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("name", "text"), [("t.csv", CSV), ("t.jsonl", JSONL)])
@pytest.mark.parametrize("compressed", ["", ".gz"])
def test_every_form_gives_the_same_requests(tmp_path, name, text, compressed):
    assert load_trace(write(tmp_path / (name + compressed), text)) == ROWS


def test_client_and_block_ids_are_read_where_they_are(tmp_path):
    csv = write(tmp_path / "t.csv", "arrival_s,prompt_tokens,output_tokens,client\n0,1,1,49\n0,1,1,\n")
    assert [r.client for r in load_trace(csv)] == ["49", "default"]
    row = {"arrival_s": 0, "prompt_tokens": 600, "output_tokens": 5, "hash_ids": [0, 7]}
    jsonl = write(tmp_path / "t.jsonl", json.dumps(row) + "\n\n")
    assert load_trace(jsonl)[0].hash_ids == (0, 7)


def test_columns_can_have_other_names(tmp_path):
    path = write(tmp_path / "t.csv", "TIMESTAMP,in,out\n1.5,10,20.0\n")
    columns = {"arrival_s": "TIMESTAMP", "prompt_tokens": "in", "output_tokens": "out"}
    assert load_trace(path, columns=columns) == [TraceRequest(1.5, 10, 20)]
    assert "must be one of arrival_s" in error_of(path, columns={"arrival": "TIMESTAMP"})


def test_lengths_without_arrivals_are_read_on_request(tmp_path):
    path = write(tmp_path / "t.csv", "prompt_tokens,output_tokens\n3772,54\n")
    assert load_trace(path, timed=False) == [TraceRequest(0.0, 3772, 54)]
    assert "row 2, column 'arrival_s': is missing" in error_of(path)


@pytest.mark.parametrize(
    ("row", "column", "problem"),
    [
        ("5,-3,44", "prompt_tokens", "at least 1, is '-3'"),
        ("5,374,0", "output_tokens", "at least 1, is '0'"),
        ("5,1.5,44", "prompt_tokens", "whole number"),
        ("5,many,44", "prompt_tokens", "must be a number, is 'many'"),
        ("5,374", "output_tokens", "is missing"),
        (",374,44", "arrival_s", "is missing"),
        ("nan,374,44", "arrival_s", "must be finite"),
        ("4,374,44", "arrival_s", "4 is before 4.315 above it"),
    ],
)
def test_a_bad_row_is_named_with_its_column(tmp_path, row, column, problem):
    message = error_of(write(tmp_path / "t.csv", CSV + row + "\n"))
    assert f"row 4, column {column!r}: " in message
    assert problem in message


def test_a_bad_row_is_named_by_the_files_own_column_name(tmp_path):
    path = write(tmp_path / "t.csv", "t,prompt_tokens,output_tokens\n-1,1,1\n")
    assert "row 2, column 't': must not be negative" in error_of(path, columns={"arrival_s": "t"})


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("[1, 2]", "row 1, column 'arrival_s': is missing"),
        ("{", "is not JSON text"),
        ('{"arrival_s": true}', "column 'arrival_s': must be a number, is True"),
        (
            '{"arrival_s": 0, "prompt_tokens": 1, "output_tokens": 1, "hash_ids": "x"}',
            "column 'hash_ids': must be a list of integers",
        ),
    ],
)
def test_a_bad_json_line_is_named(tmp_path, line, problem):
    assert problem in error_of(write(tmp_path / "t.jsonl", line + "\n"))


def test_a_file_that_cannot_be_read_is_one_line_too(tmp_path):
    assert "no such file" in error_of(tmp_path / "absent.csv")
    assert "must end in .csv" in error_of(write(tmp_path / "t.txt", CSV))
    assert "holds no requests" in error_of(write(tmp_path / "t.csv", CSV.splitlines()[0]))
    plain = tmp_path / "plain.csv.gz"
    plain.write_text(CSV)
    assert "cannot be read" in error_of(plain)
    cut = tmp_path / "cut.csv.gz"
    cut.write_bytes(gzip.compress((CSV + "5,1,1\n" * 50).encode())[:-12])
    assert "cannot be read" in error_of(cut)
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "is not CSV text" in error_of(binary)


def test_a_lane_is_one_of_two(tmp_path):
    rows = "arrival_s,prompt_tokens,output_tokens,lane\n0,1,1,offline\n0,1,1,\n0,1,1,{}\n"
    assert [r.lane for r in load_trace(write(tmp_path / "t.csv", rows.format("online")))] == [
        "offline",
        "online",
        "online",
    ]
    problem = error_of(write(tmp_path / "u.csv", rows.format("batch")))
    assert "row 4, column 'lane': must be one of online, offline, is 'batch'" in problem


def test_what_no_server_has_room_for_is_refused(tmp_path):
    path = write(tmp_path / "t.csv", CSV)
    assert load_trace(path, most_tokens=505) == ROWS
    problem = error_of(path, most_tokens=504)
    assert "row 3, column 'prompt_tokens': 396 and 109 output tokens: at most 504 fit together" in problem
