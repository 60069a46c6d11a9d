"""The one form of zip file that an artifact may have: stored entries, back to back, nothing else.

Readers of zip files disagree about names that appear twice, local headers that contradict the directory, overlapping
entries and bytes between them. A file that leaves no room for that is the same file to all of them, so everything else
is refused. Layout: PKWARE APPNOTE 6.3.10, sections 4.3.7 (local header), 4.3.12 (directory), 4.3.16 (end record).
"""

from __future__ import annotations

import re
import stat
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from edge_sdk.errors import ArtifactError

MAX_FILE_BYTES = 2**31 - 1
MAX_ENTRIES = 4096
MAX_NAME_BYTES = 240
CHUNK = 1 << 20

_END = struct.Struct("<4s4H2LH")
_DIRECTORY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_DOS_DATE = (0 << 9) | (1 << 5) | 1
_MODE = stat.S_IFREG | 0o644
_VERSION = 20
_UTF8 = 0x800
_WINDOWS_NAMES = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored entry: `size` bytes at `offset` of the file."""

    name: str
    offset: int
    size: int
    crc: int


def check_name(name: str) -> str:
    """Return `name` when it is a plain relative path of ASCII letters, digits and `._-+`.

    Raises:
        ArtifactError: it is absolute, leaves the folder, has a backslash, a control character or is not plain.
    """
    shown = ascii(name[:80])
    if "\\" in name:
        raise ArtifactError(f"entry {shown} has a backslash in its name", hint=_UNTRUSTED)
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        raise ArtifactError(f"entry {shown} has an absolute name", hint=_UNTRUSTED)
    parts = name.split("/")
    if ".." in parts or "." in parts:
        raise ArtifactError(f"entry {shown} leaves the artifact by its name", hint=_UNTRUSTED)
    if not name or len(name) > MAX_NAME_BYTES or not all(re.fullmatch(r"[A-Za-z0-9._+-]+", part) for part in parts):
        raise ArtifactError(
            f"entry {shown} has a name that is not plain", hint="use letters, digits, `.`, `_`, `-`, `+` and `/`"
        )
    if any(_WINDOWS_NAMES.fullmatch(part) or part.endswith(".") for part in parts):
        raise ArtifactError(f"entry {shown} has a name that some systems reserve", hint="rename it")
    return name


def read_directory(file: BinaryIO, where: str) -> dict[str, Entry]:
    """Return the entries of a strict zip file by name, in file order; no data is read beyond the headers.

    Raises:
        ArtifactError: the file is no zip, cut short, or has any form but the strict one.
    """
    size = file.seek(0, 2)
    if size > MAX_FILE_BYTES:
        raise ArtifactError(f"{where} is {size} bytes, the limit is {MAX_FILE_BYTES}", hint="the model is too large")
    count, start, length = _read_end(file, size, where)
    file.seek(start)
    raw = file.read(length)
    entries: dict[str, Entry] = {}
    folded: dict[str, str] = {}
    position = expected = 0
    for _ in range(count):
        entry, header, position = _read_directory_entry(raw, position, where)
        other = folded.setdefault(entry.name.lower(), entry.name)
        if entry.name in entries or other != entry.name:
            raise ArtifactError(f"{where} has the name `{entry.name}` twice", hint=_UNTRUSTED)
        if header != expected:
            kind = "overlaps the one before" if header < expected else "leaves a gap before it"
            raise ArtifactError(f"entry `{entry.name}` of {where} {kind}", hint=_UNTRUSTED)
        if header + _LOCAL.size + len(entry.name) + entry.size > start:
            raise ArtifactError(
                f"entry `{entry.name}` of {where} declares {entry.size} bytes, more than the file has", hint=_UNTRUSTED
            )
        _check_local(file, entry, header, where)
        entries[entry.name] = entry
        expected = entry.offset + entry.size
    if position != length or expected != start:
        raise ArtifactError(f"{where} has bytes that belong to no entry", hint=_UNTRUSTED)
    _check_folders(entries, where)
    return entries


def write(file: BinaryIO, entries: Iterable[tuple[str, int, int, Iterable[bytes]]]) -> None:
    """Write (name, size, crc32, chunks) entries; equal entries give equal bytes on every machine and Python version.

    Raises:
        ArtifactError: a name is not plain, or the file would be too large.
    """
    directory = []
    offset = 0
    for name, size, crc, chunks in entries:
        raw = check_name(name).encode("ascii")
        common = (_VERSION, 0, 0, 0, _DOS_DATE, crc, size, size, len(raw), 0)
        file.write(_LOCAL.pack(b"PK\x03\x04", *common) + raw)
        for chunk in chunks:
            file.write(chunk)
        directory.append(
            _DIRECTORY.pack(b"PK\x01\x02", (3 << 8) | _VERSION, *common, 0, 0, 0, _MODE << 16, offset) + raw
        )
        offset += _LOCAL.size + len(raw) + size
        if offset > MAX_FILE_BYTES or len(directory) > MAX_ENTRIES:
            raise ArtifactError(
                f"the artifact would be above {MAX_FILE_BYTES} bytes or {MAX_ENTRIES} entries",
                hint="the model is too large",
            )
    table = b"".join(directory)
    count = len(directory)
    file.write(table + _END.pack(b"PK\x05\x06", 0, 0, count, count, len(table), offset, 0))


def chunks(file: BinaryIO, entry: Entry) -> Iterator[bytes]:
    """Yield the data of an entry, at most 1 MiB at a time; the entry's size in all.

    Raises:
        ArtifactError: the file ends before.
    """
    file.seek(entry.offset)
    left = entry.size
    while left:
        chunk = file.read(min(CHUNK, left))
        if not chunk:
            raise ArtifactError(f"entry `{entry.name}` is cut short", hint=_CUT)
        left -= len(chunk)
        yield chunk


def _read_end(file: BinaryIO, size: int, where: str) -> tuple[int, int, int]:
    """Return (entries, offset, bytes) of the directory."""
    file.seek(0)
    head = file.read(4)
    if size < _END.size or not head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        raise ArtifactError(f"{where} is no artifact: it is not a zip file", hint="give an .edge file")
    file.seek(size - _END.size)
    tail = _END.unpack(file.read(_END.size))
    magic, disk, first_disk, here, count, length, start, comment = tail
    if magic != b"PK\x05\x06":
        raise ArtifactError(f"{where} is cut short or has bytes after its end", hint=_CUT)
    if disk or first_disk or here != count or comment or 0xFFFFFFFF in (start, length) or count > MAX_ENTRIES:
        raise ArtifactError(f"{where} is a zip file of an unusual form", hint=_UNTRUSTED)
    if start + length + _END.size != size:
        raise ArtifactError(f"{where} is cut short or has bytes that belong to no entry", hint=_CUT)
    return count, start, length


def _read_directory_entry(raw: bytes, position: int, where: str) -> tuple[Entry, int, int]:
    """Return (entry, offset of its local header, position of the next directory entry)."""
    if position + _DIRECTORY.size > len(raw):
        raise ArtifactError(f"the directory of {where} is cut short", hint=_CUT)
    fields = _DIRECTORY.unpack_from(raw, position)
    (magic, made_by, _, flags, method, _, _, crc, stored, size) = fields[:10]
    (name_length, extra, comment, disk, _, attributes, header) = fields[10:]
    end = position + _DIRECTORY.size + name_length + extra + comment
    if magic != b"PK\x01\x02" or end > len(raw):
        raise ArtifactError(f"the directory of {where} is damaged", hint=_CUT)
    name = _decode_name(raw[position + _DIRECTORY.size :][:name_length], where)
    kind = stat.S_IFMT(attributes >> 16) if made_by >> 8 == 3 else 0
    if stat.S_ISLNK(kind):
        raise ArtifactError(f"entry `{name}` of {where} is a link", hint=_UNTRUSTED)
    if kind not in (0, stat.S_IFREG) or attributes & 0x10:
        raise ArtifactError(f"entry `{name}` of {where} is not a regular file", hint=_UNTRUSTED)
    if flags & 0x2041:
        raise ArtifactError(f"entry `{name}` of {where} is encrypted", hint=_UNTRUSTED)
    if method or stored != size:
        raise ArtifactError(f"entry `{name}` of {where} is compressed, artifacts store their entries", hint=_UNTRUSTED)
    if flags & ~_UTF8 or extra or comment or disk or 0xFFFFFFFF in (size, header):
        raise ArtifactError(f"entry `{name}` of {where} has an unusual form", hint=_UNTRUSTED)
    return Entry(name, header + _LOCAL.size + name_length, size, crc), header, end


def _decode_name(raw: bytes, where: str) -> str:
    try:
        return check_name(raw.decode("ascii"))
    except UnicodeDecodeError:
        raise ArtifactError(f"{where} has an entry whose name is not ASCII: {raw[:80]!r}", hint=_UNTRUSTED) from None


def _check_local(file: BinaryIO, entry: Entry, header: int, where: str) -> None:
    """Refuse a local header that says anything else than the directory."""
    file.seek(header)
    raw = file.read(_LOCAL.size + len(entry.name))
    if len(raw) < _LOCAL.size + len(entry.name):
        raise ArtifactError(f"entry `{entry.name}` of {where} is cut short", hint=_CUT)
    magic, _, flags, method, _, _, crc, stored, size, name_length, extra = _LOCAL.unpack_from(raw)
    local = (magic, flags & ~_UTF8, method, crc, stored, size, name_length, extra, raw[_LOCAL.size :])
    name = entry.name.encode("ascii")
    if local != (b"PK\x03\x04", 0, 0, entry.crc, entry.size, entry.size, len(name), 0, name):
        raise ArtifactError(
            f"entry `{entry.name}` of {where} has a local header that contradicts the directory", hint=_UNTRUSTED
        )


def _check_folders(entries: dict[str, Entry], where: str) -> None:
    """Refuse a name that is both a file and the folder of another."""
    for name in entries:
        parts = name.split("/")
        for depth in range(1, len(parts)):
            if "/".join(parts[:depth]) in entries:
                raise ArtifactError(f"{where} has `{'/'.join(parts[:depth])}` as a file and a folder", hint=_UNTRUSTED)


_UNTRUSTED = "it was not written by edge-sdk, or it was changed: get it from its source again"
_CUT = "the copy or download was cut short: get it again"
