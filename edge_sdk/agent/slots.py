"""Slots: installed artifacts by digest, made so that a power cut at any point leaves one that runs."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path

from edge_sdk.agent.fs import Fs
from edge_sdk.agent.state import AgentState
from edge_sdk.errors import ArtifactError, TrustError
from edge_sdk.schemas.ids import SHA256

logger = logging.getLogger(__name__)
ARTIFACT = "artifact.edge"


class Slots:
    """`staging/DIGEST/artifact.edge` while it comes in, `slots/DIGEST/artifact.edge` when it is complete.

    Which slot runs stands in `state.json` only; a slot is trusted when its bytes hash to its name.
    """

    def __init__(self, fs: Fs, root: Path) -> None:
        self._fs = fs
        self.root = root / "slots"
        self.staging = root / "staging"

    def prepare(self) -> None:
        """Make the folders."""
        self._fs.mkdir(self.root)
        self._fs.mkdir(self.staging)

    def artifact(self, digest: str) -> Path:
        """Return the path of a slot's artifact, present or not."""
        return self.root / digest / ARTIFACT

    def staged(self, digest: str) -> Path:
        """Return where a download ends; its folder is made."""
        folder = self.staging / digest
        self._fs.mkdir(folder)
        return folder / ARTIFACT

    def install(self, digest: str) -> Path:
        """Turn the staged artifact into a slot; a slot that is whole already is kept.

        Raises:
            TrustError: the staged bytes do not hash to the digest.
        """
        final = self.artifact(digest)
        if self.whole(digest):
            self._fs.remove(self.staging / digest)
            return final
        part = self.staged(digest)
        found = file_sha256(part)
        if found != digest:
            self._fs.remove(self.staging / digest)
            raise TrustError(
                f"the staged artifact hashes to {found[:12]}…, expected {digest[:12]}…",
                hint="it was damaged on this device and will be fetched again",
            )
        self._fs.sync(part)
        self._fs.sync(part.parent)
        self._fs.remove(final.parent)
        self._fs.rename(part.parent, final.parent)
        self._fs.sync(self.root)
        self._fs.sync(self.staging)
        return final

    def adopt(self, source: Path) -> str:
        """Install an artifact that lies on this device, such as the factory's, and return its digest.

        Raises:
            ArtifactError: the file cannot be read.
        """
        try:
            data = source.read_bytes()
        except OSError as error:
            raise ArtifactError(f"cannot read {source}: {error.strerror}", hint="check `[slots] factory`") from None
        digest = hashlib.sha256(data).hexdigest()
        if not self.whole(digest):
            self._fs.write(self.staged(digest), data)
            self.install(digest)
        return digest

    def whole(self, digest: str | None) -> bool:
        """Say whether a slot is there and its bytes hash to its name."""
        if not digest or not SHA256.fullmatch(digest):
            return False
        path = self.artifact(digest)
        try:
            return path.is_file() and not path.is_symlink() and file_sha256(path) == digest
        except OSError:
            return False

    def digests(self) -> tuple[str, ...]:
        """Return the names of all slots, whole or not."""
        if not self.root.is_dir():
            return ()
        return tuple(sorted(p.name for p in self.root.iterdir() if SHA256.fullmatch(p.name)))

    def collect(self, keep: Iterable[str | None]) -> None:
        """Remove every slot but `keep`."""
        self._collect(self.root, {d for d in keep if d})

    def collect_staging(self, keep: str | None) -> None:
        """Remove every staged folder but `keep`."""
        self._collect(self.staging, {keep} if keep else set())

    def _collect(self, folder: Path, keep: set[str]) -> None:
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.name not in keep:
                logger.info("removing %s/%s", folder.name, path.name[:12])
                self._fs.remove(path)


def runnable(slots: Slots, state: AgentState | None) -> str | None:
    """Return the slot to run: the first whole one of active, committed, previous, factory, any other; None if none is.

    A digest that was rolled back here is chosen only when nothing else is whole.
    """
    ordered: list[str | None] = []
    blacklist: dict[str, str] = {}
    if state is not None:
        ordered = [state.active, state.committed, state.previous, state.factory]
        blacklist = state.blacklist
    ordered += sorted(slots.digests(), key=lambda d: d in blacklist)
    return next((d for d in ordered if slots.whole(d)), None)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
