"""Files that are whole or absent."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from edge_sdk.errors import UsageError


def atomic_write(path: Path, data: bytes) -> None:
    """Write `data` to a temporary name beside `path`, sync it and rename it over.

    Raises:
        UsageError: the folder does not exist, is read-only or full.
    """
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(0o644)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}", hint="check the folder and its free space") from None
