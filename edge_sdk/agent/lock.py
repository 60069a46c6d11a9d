"""One agent a state directory."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from edge_sdk.errors import UsageError


def take_lock(path: Path) -> int:
    """Return a descriptor that holds the lock of a state directory until it is closed or the process ends.

    Raises:
        UsageError: another process holds it.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(fd, 32, 0).decode(errors="replace").strip()
        os.close(fd)
        raise UsageError(
            f"another agent (process {holder or 'unknown'}) runs on {path.parent}",
            hint="stop it, or give this one its own state_dir",
        ) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd
