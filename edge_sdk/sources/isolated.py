"""A source whose decoder runs in a process of its own: one that hangs or crashes is killed and takes nobody along."""

from __future__ import annotations

import json
import mmap
import os
import signal
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edge_sdk.errors import SourceError
from edge_sdk.sources.base import BrokenFrame, Frame
from edge_sdk.sources.process import Child

# status, index, height, width, t_s, captured_s, bytes of JSON that follow
REPLY = struct.Struct("<cQIIddI")
OK, END, BROKEN, FAILED = b"k", b"e", b"b", b"x"
_OPEN_S = 60.0
_READ_S = 60.0


class Isolated:
    """The source for `uri` in a child process, its frames through shared memory (one copy more for each frame).

    `interrupt` kills the child, which ends whatever native call it is in.
    """

    def __init__(self, uri: str, options: Mapping[str, Any]) -> None:
        from edge_sdk.sources import create

        self._spec = {"uri": uri, "options": dict(options)}
        self._inner = create(uri, options)
        self.uri, self.live, self.fps = self._inner.uri, self._inner.live, self._inner.fps
        self._child: Child | None = None
        self._stopped = False
        self._file = -1
        self._memory: mmap.mmap | None = None
        self._reply = memoryview(bytearray(REPLY.size))
        self._warnings: tuple[str, ...] = ()

    def open(self) -> None:
        self._file = os.memfd_create("edge-frames")
        words = [sys.executable, "-m", "edge_sdk.sources.child"]
        spec = json.dumps(self._spec | {"memory": self._file}).encode() + b"\n"
        self._child = Child(words, name="decoder", stdin=spec, talk=True, env=environment(), pass_fds=(self._file,))
        if self._stopped:
            self._child.kill()
        *_, facts = self._answer(_OPEN_S)
        self.fps = facts.get("fps")

    def grab(self) -> bool:
        if self._child is None:
            return False
        self._child.write(b"g")
        return bool(self._answer(_READ_S)[0] == OK)

    def retrieve(self) -> Frame:
        assert self._child is not None
        self._child.write(b"r")
        _, index, height, width, t_s, captured_s, facts = self._answer(_READ_S)
        size = height * width * 3
        if self._memory is None or len(self._memory) < size:
            if self._memory is not None:
                self._memory.close()
            self._memory = mmap.mmap(self._file, size, prot=mmap.PROT_READ)
        image = np.frombuffer(self._memory, np.uint8, size).reshape(height, width, 3).copy()
        return Frame(image, index, t_s, captured_s, facts.get("source", self.uri))

    def interrupt(self) -> None:
        """Kill the child; allowed from every thread."""
        self._stopped = True
        child = self._child
        if child is not None:
            child.kill()

    def reachable(self) -> bool | None:
        """Ask the source that is isolated."""
        look = getattr(self._inner, "reachable", None)
        return None if look is None else look()

    def warnings(self) -> tuple[str, ...]:
        """Return those of the source that is isolated, known at its end."""
        return self._warnings

    def close(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.close()
        if self._memory is not None:
            self._memory.close()
            self._memory = None
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _answer(self, timeout_s: float) -> tuple[bytes, int, int, int, float, float, dict[str, Any]]:
        child = self._child
        assert child is not None
        try:
            whole = child.read_into(self._reply, timeout_s) == REPLY.size
            status, index, height, width, t_s, captured_s, length = REPLY.unpack(self._reply)
            text = memoryview(bytearray(length if whole else 0))
            whole = whole and child.read_into(text, timeout_s) == length
        except TimeoutError:
            child.kill()
            raise SourceError(f"the decoder of `{self.uri}` hangs: it was killed after {timeout_s:g} s") from None
        if not whole:
            raise self._death(child)
        facts: dict[str, Any] = json.loads(bytes(text)) if length else {}
        if status == BROKEN:
            raise BrokenFrame(facts["message"], hint=facts["hint"], name=facts["name"])
        if status == FAILED:
            raise SourceError(facts["message"], hint=facts["hint"])
        self._warnings = tuple(facts.get("warnings", self._warnings))
        return status, index, height, width, t_s, captured_s, facts

    def _death(self, child: Child) -> SourceError:
        code = child.ending()
        if self._stopped:
            return SourceError(f"`{self.uri}` was closed")
        how = f"exit code {code}"
        if code is not None and code < 0:
            how = f"killed by {signal.Signals(-code).name}"
        said = f": {child.said[-1]}" if child.said and (code or 0) >= 0 else ""
        return SourceError(f"the decoder of `{self.uri}` died: {how}{said}", hint="its input makes native code crash")


def environment() -> dict[str, str]:
    """Return a child's environment: imports come from where this process got them."""
    root = Path(__file__).resolve().parents[2]
    env = dict(os.environ) | {"PYTHONSAFEPATH": "1", "MALLOC_ARENA_MAX": "2"}
    env.setdefault("OPENCV_LOG_LEVEL", "ERROR")
    if root.name not in ("site-packages", "dist-packages"):
        env["PYTHONPATH"] = os.pathsep.join(p for p in (str(root), env.get("PYTHONPATH")) if p)
    return env
