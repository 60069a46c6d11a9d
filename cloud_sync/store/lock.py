"""One service per data directory: an advisory lock that dies with its holder."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType

from edge_sdk.errors import SyncError


class DataLock:
    """The exclusive lock of a data directory, held until `release` or the end of the process."""

    def __init__(self, directory: Path) -> None:
        """Take the lock of `directory`, making the directory (mode 0700) when it is absent.

        Raises:
            SyncError: another process holds it (its pid is named), or the directory cannot be written.
        """
        self.path = directory / "lock"
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SyncError(
                f"cannot use {directory} as data directory: {error.strerror}",
                hint="choose another one with `--data DIR`",
            ) from None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(self._fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._fd)
            raise SyncError(
                f"{directory} is in use by another `edge serve` (pid {holder})",
                hint=f"stop it (`kill {holder}`) or choose another directory with `--data DIR`",
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Give the lock back; the file stays, empty."""
        if self._fd >= 0:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> DataLock:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()
