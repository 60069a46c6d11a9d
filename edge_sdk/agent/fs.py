"""The few file system operations that durability rests on, behind an interface so that a test can cut the power."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Protocol


class Fs(Protocol):
    """What the agent's stores do to a disk; nothing is durable before the `sync` of the file and of its folder."""

    def mkdir(self, path: Path) -> None:
        """Make a folder with its parents; one that exists is kept."""

    def write(self, path: Path, data: bytes) -> None:
        """Make or replace a file."""

    def sync(self, path: Path) -> None:
        """Bring a file's bytes, or a folder's entries, to the disk."""

    def rename(self, old: Path, new: Path) -> None:
        """Rename a file or folder; a file of the new name is replaced."""

    def remove(self, path: Path) -> None:
        """Remove a file or a folder with all that it holds; missing is fine."""


class RealFs:
    """The operating system's file system."""

    def mkdir(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)

    def write(self, path: Path, data: bytes) -> None:
        path.write_bytes(data)

    def sync(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def rename(self, old: Path, new: Path) -> None:
        old.replace(new)

    def remove(self, path: Path) -> None:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(FileNotFoundError):
                path.unlink()


def atomic_write(fs: Fs, path: Path, data: bytes) -> None:
    """Replace a file so that a power cut leaves the old or the new one."""
    part = path.with_name(f".{path.name}.tmp")
    fs.write(part, data)
    fs.sync(part)
    fs.rename(part, path)
    fs.sync(path.parent)
