"""Cutting GPU code out of a library, and the archive itself where it was built."""

import struct
import tarfile
from pathlib import Path

import pytest

from benchmarks.gpu.payload import check, fatbin


def entry(kind: int, architecture: int, payload: bytes) -> bytes:
    header = struct.pack("<HHIQIIHHI", kind, 0, 64, len(payload), 0, 0, 0, 0, architecture)
    return header.ljust(64, b"\0") + payload


def region(*entries: bytes) -> bytes:
    body = b"".join(entries)
    return struct.pack("<IHHQ", fatbin.MAGIC, 1, 16, len(body)) + body


WANTED = entry(2, 90, b"hopper!!")
FOREIGN = entry(2, 80, b"ampere__" * 4)
PTX = entry(1, 90, b"ptx_____")


def test_a_cut_keeps_hopper_code_and_every_region_well_formed() -> None:
    # Zeros between regions, as linkers leave them.
    data = bytearray(b"before__" + region(FOREIGN, WANTED) + bytes(8) + region(FOREIGN, PTX) + b"after___")
    size = len(data) - 16
    assert fatbin.cut(data, 8, size) == 2 * len(WANTED)
    assert data.startswith(b"before__") and data.endswith(b"after___") and len(data) == size + 16
    first, second = fatbin.regions(data, 8, size)
    # The second had nothing for Hopper: a small entry stands in, so that the library still loads.
    assert [e.wanted for e in (*first.entries, *second.entries)] == [True, True]
    assert bytes(data[first.body : first.body + len(WANTED)]) == WANTED
    assert b"ampere" not in data and b"ptx" not in data


def test_blanking_moves_nothing() -> None:
    whole = region(FOREIGN, WANTED, PTX)
    data = bytearray(whole)
    assert fatbin.blank(data, 0, len(data)) == len(b"hopper!!")
    assert len(data) == len(whole) and data.index(WANTED) == whole.index(WANTED)
    assert b"ampere" not in data and b"ptx" not in data


def test_a_file_without_hopper_code_is_refused() -> None:
    data = bytearray(region(FOREIGN, PTX))
    with pytest.raises(ValueError, match="no machine code for sm_90"):
        fatbin.cut(data, 0, len(data))


def packed(path: Path, names: list[str]) -> Path:
    with tarfile.open(path, "w:xz") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(f"./{name}"))
    return path


def test_an_archive_is_refused_that_is_too_large_or_lacks_something(tmp_path: Path) -> None:
    assert check.problems(packed(tmp_path / "whole.tar.xz", check.NEEDED)) == []
    part = packed(tmp_path / "part.tar.xz", check.NEEDED[1:])
    assert check.problems(part, most_bytes=100) == ["vllm/__init__.py is missing", "0.0 MiB are more than 0"]


def test_an_archive_that_was_built_here_may_travel() -> None:
    for archive in Path(__file__).resolve().parents[2].glob(".vp/site.tar.xz"):
        assert check.problems(archive) == []
