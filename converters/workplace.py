"""The temporary folder of one conversion, its end on SIGTERM, and artifacts that appear whole or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from converters.errors import disk_full, no_space
from edge_sdk.errors import UsageError

PREFIX = "edge-convert-"
_LOCK = ".lock"


@contextmanager
def folder() -> Iterator[Path]:
    """Yield a new temporary folder that is removed in the end; those of conversions that were killed go too.

    Raises:
        DiskFullError: it cannot be made for lack of space.
        UsageError: it cannot be made for another reason.
    """
    _sweep(Path(tempfile.gettempdir()))
    try:
        path = Path(tempfile.mkdtemp(prefix=PREFIX))
    except OSError as error:
        if disk_full(error):
            raise no_space(error) from None
        raise UsageError(
            f"cannot make a temporary folder: {error.strerror or error}", hint="name another place with TMPDIR"
        ) from None
    try:
        with (path / _LOCK).open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _sweep(root: Path) -> None:
    """Remove folders whose owner is gone: nobody holds their lock any more."""
    for left in root.glob(f"{PREFIX}*/{_LOCK}"):
        try:
            with left.open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left.parent, ignore_errors=True)
        except OSError:
            continue


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that workers and folders are cleaned up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: Any) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def publish(files: Mapping[Path, Path]) -> None:
    """Copy each finished file to its target: all beside their targets first, then renamed, so none is half-written.

    Args:
        files: finished file -> target.

    Raises:
        DiskFullError: there is no space for them; the targets are as they were.
        UsageError: the folder cannot be written.
    """
    waiting: dict[Path, Path] = {}
    try:
        for file, target in files.items():
            descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
            waiting[Path(name)] = target
            with os.fdopen(descriptor, "wb") as out, file.open("rb") as data:
                shutil.copyfileobj(data, out, 1 << 20)
                out.flush()
                os.fsync(out.fileno())
            Path(name).chmod(0o666 & ~_umask())
        for temporary, target in waiting.items():
            temporary.replace(target)
    except OSError as error:
        where = next(iter(files.values())).parent
        if disk_full(error):
            raise no_space(error, where) from None
        raise UsageError(
            f"cannot write into {where}: {error.strerror or error}", hint="give another one with --out"
        ) from None
    finally:
        for temporary in waiting:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def check_out(out: Path) -> None:
    """Make the folder for the artifacts.

    Raises:
        UsageError: it cannot be made or written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot make the folder {out}: {error.strerror}", hint="give another one with --out"
        ) from None
    if not os.access(out, os.W_OK):
        raise UsageError(f"cannot write into {out}", hint="give another one with --out")
