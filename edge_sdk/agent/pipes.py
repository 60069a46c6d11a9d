"""Lines through the pipes of a child process: no call outlasts the child; standard library only.

A pipe alone cannot tell that the child is gone: whatever it forked may keep the other end open.
"""

from __future__ import annotations

import array
import fcntl
import os
import select
import termios
from collections.abc import Callable, Iterator

_POLL_MS = 250
_CHUNK = 65536


def read_lines(fd: int, gone: Callable[[], bool]) -> Iterator[bytes]:
    """Yield lines without their ends until the end of the pipe, or until all that a child left in it is read.

    Args:
        fd: the reading end.
        gone: whether the child has ended; asked at least every 0.25 s while nothing comes.
    """
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    rest = bytearray()
    left: int | None = None
    while left is None or left > 0:
        if left is None and gone():
            left = _waiting(fd)
            continue
        if left is None and not poller.poll(_POLL_MS):
            continue
        chunk = os.read(fd, _CHUNK if left is None else min(left, _CHUNK))
        if not chunk:
            break
        left = None if left is None else left - len(chunk)
        if b"\n" not in chunk:
            rest += chunk
            continue
        first, *others = chunk.split(b"\n")
        yield bytes(rest) + first
        yield from others[:-1]
        rest = bytearray(others[-1])
    if rest:
        yield bytes(rest)


def write_all(fd: int, data: bytes, gone: Callable[[], bool]) -> None:
    """Write everything, waiting while the pipe is full.

    Args:
        fd: the writing end; must not block.
        gone: whether the child has ended; asked at least every 0.25 s while the pipe is full.

    Raises:
        BrokenPipeError: the child has ended.
    """
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    view = memoryview(data)
    while view:
        if gone():
            raise BrokenPipeError("the child has ended")
        if not poller.poll(_POLL_MS):
            continue
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            continue


def _waiting(fd: int) -> int:
    """Return how many bytes are in the pipe."""
    count = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, count)
    return count[0]
