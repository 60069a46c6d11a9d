"""The process that decodes for `sources.isolated`: `g` on stdin grabs a frame, `r` puts it into shared memory."""

from __future__ import annotations

import json
import mmap
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from edge_sdk.errors import EdgeError
from edge_sdk.sources import create
from edge_sdk.sources.base import BrokenFrame, Source
from edge_sdk.sources.isolated import BROKEN, END, FAILED, OK, REPLY


def main() -> None:
    """Serve one source until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Decoders print on stdout when they like: only this descriptor carries replies.
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    commands = os.fdopen(0, "rb", buffering=0)
    spec = json.loads(_line(commands))
    source = create(spec["uri"], spec["options"])
    try:
        source.open()
    except EdgeError as error:
        _send(replies, FAILED, {"message": error.message, "hint": error.hint})
        return
    _send(replies, OK, {"fps": source.fps})
    memory = _Memory(spec["memory"])
    while command := commands.read(1):
        try:
            if command == b"g":
                more = source.grab()
                _send(replies, OK if more else END, {} if more else {"warnings": _warnings(source)})
            else:
                _retrieve(source, memory, replies)
        except BrokenFrame as error:
            _send(replies, BROKEN, {"message": error.message, "hint": error.hint, "name": error.name})
        except EdgeError as error:
            _send(replies, FAILED, {"message": error.message, "hint": error.hint})
    source.close()


class _Memory:
    """The memory that is shared with the parent; grows with the frames."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._map: mmap.mmap | None = None

    def put(self, image: Any) -> None:
        if self._map is None or len(self._map) < image.nbytes:
            os.ftruncate(self._file, image.nbytes)
            if self._map is not None:
                self._map.close()
            self._map = mmap.mmap(self._file, image.nbytes)
        np.frombuffer(self._map, np.uint8, image.nbytes).reshape(image.shape)[:] = image


def _retrieve(source: Source, memory: _Memory, replies: BinaryIO) -> None:
    frame = source.retrieve()
    memory.put(frame.image)
    height, width = frame.image.shape[:2]
    facts = json.dumps({"source": frame.source}).encode()
    replies.write(REPLY.pack(OK, frame.index, height, width, frame.t_s, frame.captured_s, len(facts)) + facts)


def _send(replies: BinaryIO, status: bytes, facts: Mapping[str, Any]) -> None:
    text = json.dumps(facts).encode() if facts else b""
    replies.write(REPLY.pack(status, 0, 0, 0, 0.0, 0.0, len(text)) + text)


def _warnings(source: Source) -> list[str]:
    found = getattr(source, "warnings", None)
    return [] if found is None else list(found())


def _line(commands: BinaryIO) -> bytes:
    line = bytearray()
    while (byte := commands.read(1)) not in (b"\n", b""):
        line += byte
    return bytes(line)


if __name__ == "__main__":
    main()
    sys.stderr.flush()
    # Native threads that still run must not keep the process.
    os._exit(0)
