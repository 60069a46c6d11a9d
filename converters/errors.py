"""Errors of the converter that its own code must tell apart."""

from __future__ import annotations

import errno
import os
import resource
import shutil
from pathlib import Path

from edge_sdk.errors import ConversionError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What the system says when a file cannot grow: disk full, quota spent, size limit of the process."""


ROOM_BYTES = 16 * 1024


class DiskFullError(ConversionError):
    """A file could not be written for lack of space: the conversion ends, it is no matter of one candidate."""


def disk_full(error: BaseException | None) -> OSError | None:
    """Return the error of the system in the chain of `error` that says that a disk is full, or None."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return error
        error = error.__cause__ or error.__context__
    return None


def check_room(folder: Path) -> None:
    """Raise when files in the folder were cut short for lack of space: native tools do not always say so.

    Raises:
        DiskFullError: the disk has less than 16 KiB left, or a file has the largest size this process may write.
    """
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY and any(p.stat().st_size >= limit for p in folder.rglob("*") if p.is_file()):
        raise no_space(OSError(errno.EFBIG, os.strerror(errno.EFBIG)), folder)
    if shutil.disk_usage(folder).free < ROOM_BYTES:
        raise no_space(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), folder)


def no_space(error: OSError, where: object = None) -> DiskFullError:
    """Return the message for a disk that is full."""
    place = where or error.filename or "a temporary folder"
    return DiskFullError(
        f"no space to write {place}: {error.strerror}",
        hint="free some space there; TMPDIR, --cache and --out name other places",
    )
