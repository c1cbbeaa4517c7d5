"""The GPU machine code inside a CUDA shared object: which for which chip, how large, and how to cut away the rest.

The section `.nv_fatbin` is a row of regions, each a header and entries (machine code or PTX for one architecture). A
cut moves the wanted entries of a region to its front, shortens the region's size field and zeroes what became free:
the section keeps its size and every offset of the file its meaning, and zeros compress to nothing. A region without
wanted code gets a small entry of another region in its place, so that it stays well-formed; launching from it fails
with an error.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

SECTION = ".nv_fatbin"
MAGIC = 0xBA55ED50
MACHINE_CODE = 2  # the kind of an entry; 1 is PTX
ARCHITECTURE = 90  # sm_90 and sm_90a


@dataclass(frozen=True, slots=True)
class Entry:
    offset: int
    kind: int
    header_bytes: int
    payload_bytes: int
    architecture: int

    @property
    def end(self) -> int:
        return self.offset + self.header_bytes + self.payload_bytes

    @property
    def wanted(self) -> bool:
        return self.kind == MACHINE_CODE and self.architecture == ARCHITECTURE


@dataclass(frozen=True, slots=True)
class Region:
    offset: int
    header_bytes: int
    body_bytes: int
    entries: tuple[Entry, ...]

    @property
    def body(self) -> int:
        return self.offset + self.header_bytes


def section(elf: bytes | bytearray, name: str) -> tuple[int, int] | None:
    """Offset and size of a section of a 64-bit little-endian ELF file; None if it has none of that name."""
    table = struct.unpack_from("<Q", elf, 0x28)[0]
    entry_bytes, count, names_index = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + i * entry_bytes) for i in range(count)]
    names_offset = headers[names_index][4]
    for name_at, _, _, _, offset, size in headers:
        begin = names_offset + name_at
        if bytes(elf[begin : elf.index(b"\0", begin)]).decode() == name:
            return offset, size
    return None


def regions(data: bytes | bytearray, offset: int, size: int) -> Iterator[Region]:
    """The regions in [offset, offset + size)."""
    at, end = offset, offset + size
    while at + 16 <= end:
        magic, _, header_bytes, body_bytes = struct.unpack_from("<IHHQ", data, at)
        if magic != MAGIC:
            at += 8  # regions are aligned to eight bytes, with zeros between them
            continue
        body_end = at + header_bytes + body_bytes
        yield Region(at, header_bytes, body_bytes, tuple(_entries(data, at + header_bytes, body_end)))
        at = body_end


def _entries(data: bytes | bytearray, at: int, end: int) -> Iterator[Entry]:
    while at < end:
        kind, _, header_bytes, payload_bytes = struct.unpack_from("<HHIQ", data, at)
        if header_bytes == 0:
            return
        architecture = struct.unpack_from("<I", data, at + 28)[0]
        entry = Entry(at, kind, header_bytes, payload_bytes, architecture)
        yield entry
        at = entry.end


def cut(data: bytearray, offset: int, size: int) -> int:
    """Leave only the wanted machine code in the regions of `data`; the bytes that stay."""
    found = list(regions(data, offset, size))
    every = [entry for region in found for entry in region.entries]
    smallest = min((e for e in every if e.wanted), key=lambda e: e.end - e.offset, default=None)
    if smallest is None:
        raise ValueError(f"no machine code for sm_{ARCHITECTURE} in this file")
    stand_in = bytes(data[smallest.offset : smallest.end])
    kept = 0
    for region in found:
        body = b"".join(bytes(data[e.offset : e.end]) for e in region.entries if e.wanted) or stand_in
        if len(body) > region.body_bytes:
            own = min(region.entries, key=lambda e: e.end - e.offset)
            body = bytes(data[own.offset : own.end])
        data[region.body : region.body + region.body_bytes] = body + bytes(region.body_bytes - len(body))
        struct.pack_into("<Q", data, region.offset + 8, len(body))
        kept += len(body)
    return kept


def blank(data: bytearray, offset: int, size: int) -> int:
    """Zero the payloads of all other entries and move nothing: the cautious variant. The bytes that stay."""
    kept = 0
    for region in regions(data, offset, size):
        for entry in region.entries:
            if entry.wanted:
                kept += entry.payload_bytes
            else:
                data[entry.offset + entry.header_bytes : entry.end] = bytes(entry.payload_bytes)
    return kept
