"""A folder of events that has a bound: the oldest go first, when it is full and when the disk is."""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from edge_sdk.errors import SinkError, UsageError
from edge_sdk.sinks.uri import place
from edge_sdk.sources.uri import Options

T = TypeVar("T")
CONTEXT = frozenset({"fps", "live", "append"})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(frozen=True, slots=True)
class Entry:
    """All files of one event: their common stem and how many bytes they have."""

    stem: str
    size: int


def doomed(entries: Iterable[Entry], *, most: int, free: int, min_free: int) -> list[Entry]:
    """Return the oldest entries that must go so that `most` bytes are kept and `min_free` are free on the disk.

    Args:
        entries: oldest first, without what is being written.
        free: bytes that are free now.
    """
    known = list(entries)
    total, gone = sum(e.size for e in known), []
    for entry in known:
        if total <= most and free >= min_free:
            break
        gone.append(entry)
        total -= entry.size
        free += entry.size
    return gone


class EventFolder:
    """The files `PREFIX_TIME_FRAME.SUFFIX` of one folder, several of them an event."""

    def __init__(self, folder: Path, prefix: str, *, most: int, min_free: int) -> None:
        self.folder = folder
        self.most, self.min_free = most, min_free
        self._prefix = prefix

    def open(self) -> None:
        """Make the folder.

        Raises:
            SinkError: it cannot be made or written to.
        """
        try:
            self.folder.mkdir(exist_ok=True)
            probe = self.folder / f".{self._prefix}"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise SinkError(
                f"`{self.folder}` cannot be written: {(error.strerror or str(error)).lower()}",
                hint="check that the folder exists and may be written to",
            ) from None

    def stem(self, frame: int) -> str:
        """Return the name, without suffix, of an event that begins now at a frame."""
        return f"{self._prefix}_{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}_{frame:08d}"

    def make_room(self, *, but: str | None = None) -> None:
        """Delete the oldest events while there are too many bytes of them, or too few are free; never `but`."""
        free = shutil.disk_usage(self.folder).free if self.min_free else 0
        keep = 0 if but is None else sum(e.size for e in self._entries() if e.stem == but)
        others = [e for e in self._entries() if e.stem != but]
        for entry in doomed(others, most=self.most - keep, free=free, min_free=self.min_free):
            self._delete(entry.stem)

    def write(self, what: Callable[[], T], *, but: str | None = None) -> T:
        """Return what `what` does; while the disk is full the oldest event but `but` goes and it is tried again.

        Raises:
            OSError: nothing is left to delete, or the error is another.
        """
        while True:
            try:
                return what()
            except OSError as error:
                oldest = next((e.stem for e in self._entries() if e.stem != but), None)
                if error.errno not in _FULL or oldest is None:
                    raise
                self._delete(oldest)

    def put(self, path: Path, data: bytes, *, but: str | None = None) -> None:
        """Write a file that is there whole or not at all; raises as `write`."""
        part = path.with_name("." + path.name + ".part")

        def whole() -> None:
            try:
                part.write_bytes(data)
                part.replace(path)
            except OSError:
                part.unlink(missing_ok=True)
                raise

        self.write(whole, but=but)

    def _entries(self) -> list[Entry]:
        """Return the events, oldest first."""
        sizes: dict[str, int] = {}
        for path in sorted(self.folder.glob(f"{self._prefix}_*")):
            try:
                sizes[path.stem] = sizes.get(path.stem, 0) + path.stat().st_size
            except OSError:
                continue
        return [Entry(stem, size) for stem, size in sizes.items()]

    def _delete(self, stem: str) -> None:
        for path in self.folder.glob(f"{stem}.*"):
            path.unlink(missing_ok=True)


def folder_of(uri: str, options: dict[str, Any], *, prefix: str, known: frozenset[str]) -> tuple[EventFolder, Options]:
    """Return the folder that `NAME:DIR?key=value` names, and its options, those of `options` among them.

    Raises:
        UsageError: no folder is named, or an option is unknown or wrong.
    """
    path, _, query = place(uri).partition("?")
    own = Options(options | dict(parse_qsl(query, keep_blank_values=True)), known | CONTEXT, f"a {prefix}s sink")
    if not path:
        raise UsageError(f"sink `{uri}` names no folder", hint=f"for example {prefix}s:events?max_mb=100")
    most = int((own.number("max_mb", 1000.0, low=0.01, high=1e9) or 1.0) * 1e6)
    min_free = int((own.number("min_free_mb", 20.0, low=0, high=1e9) or 0.0) * 1e6)
    return EventFolder(Path(path), prefix, most=most, min_free=min_free), own
