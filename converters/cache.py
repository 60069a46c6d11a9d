"""A cache by content: what was built and predicted once from the same bytes with the same tools is not made again.

An entry is a folder `<first two digits>/<key>` with `entry.json` and its files. It appears whole by a rename, its files
are checked by hash whenever it is read, and the entries that were not used for longest make room for new ones.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from converters.errors import disk_full

logger = logging.getLogger(__name__)
_ENTRY = "entry.json"
_INCOMING = ".incoming"
_PACKAGES = ("converters", "edge_sdk")
LEFT_S = 24 * 3600.0
"""After this long an entry that is not finished is not worked on any more."""


class Cache:
    """Entries in the folder `root` (None: nothing is kept and nothing found), `limit_mb` MiB of them at most.

    Args:
        say: called with a line for people when an entry was damaged or the folder cannot be written.
    """

    def __init__(self, root: Path | None, *, limit_mb: float, say: Callable[[str], None]) -> None:
        self.root = root
        self.limit = int(limit_mb * 2**20)
        self._say = say
        self._lock = threading.Lock()
        self._warned = False

    def fetch(self, key: str, into: Path) -> dict[str, Any] | None:
        """Copy the entry's files into the folder `into` and return its facts, or None.

        An entry whose files are not those that were kept is removed.
        """
        if self.root is None:
            return None
        folder = self._folder(key)
        try:
            entry = json.loads((folder / _ENTRY).read_text(encoding="utf-8"))
            names = {str(k): str(v) for k, v in entry["files"].items()}
            facts = dict(entry["facts"])
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            self._damaged(folder)
            return None
        existed = into.exists()
        into.mkdir(parents=True, exist_ok=True)
        for name, sha256 in names.items():
            try:
                data = (folder / name).read_bytes()
            except OSError:
                data = b""
            if Path(name).name != name or hashlib.sha256(data).hexdigest() != sha256:
                if not existed:
                    shutil.rmtree(into, ignore_errors=True)
                self._damaged(folder)
                return None
            (into / name).write_bytes(data)
        try:
            os.utime(folder / _ENTRY)
        except OSError:
            pass
        return facts

    def keep(self, key: str, files: Sequence[Path], facts: Mapping[str, Any]) -> None:
        """Copy `files` (with different names) and JSON facts into the cache; a full disk only means that nothing is."""
        if self.root is None:
            return
        folder = self._folder(key)
        temporary: Path | None = None
        try:
            (self.root / _INCOMING).mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(dir=self.root / _INCOMING))
            names = {}
            for file in files:
                shutil.copyfile(file, temporary / file.name)
                names[file.name] = digest_of(file)
            text = json.dumps({"files": names, "facts": dict(facts)})
            (temporary / _ENTRY).write_text(text, encoding="utf-8")
            folder.parent.mkdir(parents=True, exist_ok=True)
            if not (folder / _ENTRY).exists():
                shutil.rmtree(folder, ignore_errors=True)
                temporary.rename(folder)
            self._make_room()
        except OSError as error:
            self._cannot(error)
        finally:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)

    def _folder(self, key: str) -> Path:
        assert self.root is not None
        return self.root / key[:2] / key

    def _damaged(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self._say(f"  an entry of the cache was damaged and is made again ({folder.name[:12]})")

    def _cannot(self, error: OSError) -> None:
        with self._lock:
            if not self._warned:
                full = disk_full(error)
                why = "its disk is full" if full else error.strerror or str(error)
                self._say(f"  the cache {self.root} cannot be written: {why}; going on without it")
            self._warned = True

    def _make_room(self) -> None:
        """Remove the entries that were used least recently until the rest fits, and what killed processes left."""
        assert self.root is not None
        with self._lock:
            for left in (self.root / _INCOMING).iterdir():
                with suppress(FileNotFoundError):  # another conversion finished it
                    if left.stat().st_mtime < time.time() - LEFT_S:
                        shutil.rmtree(left, ignore_errors=True)
            found = sorted(_entries(self.root))
            total = sum(size for _, size, _ in found)
            for _, size, folder in found:
                if total <= self.limit:
                    break
                shutil.rmtree(folder, ignore_errors=True)
                total -= size


def _entries(root: Path) -> Iterable[tuple[float, int, Path]]:
    """Yield (time of last use, bytes, folder) of each entry."""
    for entry in root.glob(f"[0-9a-f][0-9a-f]/*/{_ENTRY}"):
        try:
            used = entry.stat().st_mtime
            yield used, sum(f.stat().st_size for f in entry.parent.iterdir()), entry.parent
        except OSError:
            continue


def default_root() -> Path:
    """Return the folder of this user's cache: XDG_CACHE_HOME, ~/.cache, or ~/Library/Caches on macOS."""
    named = os.environ.get("XDG_CACHE_HOME")
    if named:
        return Path(named) / "edge-sdk" / "convert"
    base = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    return base / "edge-sdk" / "convert"


def key_of(kind: str, parts: Mapping[str, Any]) -> str:
    """Return the key of an entry: the SHA-256 of what its content depends on."""
    text = json.dumps({"kind": kind, **parts}, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, or of the names and contents of a folder's files."""
    if path.is_dir():
        rows = [f"{p.relative_to(path)} {digest_of(p)}" for p in sorted(path.rglob("*")) if p.is_file()]
        return hashlib.sha256("\n".join(rows).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of_form(path: Path) -> str:
    """Return the digest of a form of a source: of the file, its folder, or an OpenVINO .xml with its .bin."""
    weights = path.with_suffix(".bin")
    if path.suffix == ".xml" and weights.is_file():
        return f"{digest_of(path)}+{digest_of(weights)}"
    return digest_of(path)


def code_version() -> str:
    """Return a digest of this program's own code: another version of it may build otherwise."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for package in _PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
