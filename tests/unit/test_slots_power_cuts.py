"""Whatever the moment of a power cut, one artifact is left that runs."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from slot_parts import A, C, content, digest_of

from edge_sdk.agent import reconcile
from edge_sdk.agent.fs import Fs, RealFs
from edge_sdk.agent.slots import Slots, runnable
from edge_sdk.agent.state import AgentState, StateFile
from edge_sdk.errors import SchemaError
from edge_sdk.schemas.state import Desired, Phase

Entry = tuple[int, str]
Change = dict[Entry, int | None]
ROOT = 0


@dataclass
class Disk:
    """A file system that remembers what a power cut may take back.

    Entries of folders are durable once the folder was synced, in any subset before; a file's bytes once the file was,
    and before that they may be missing, complete, torn or zero.
    """

    entries: dict[Entry, int] = field(default_factory=dict)
    durable: dict[Entry, int] = field(default_factory=dict)
    pending: list[Change] = field(default_factory=list)
    files: dict[int, bytes] = field(default_factory=dict)
    synced: dict[int, bytes] = field(default_factory=dict)
    folders: set[int] = field(default_factory=lambda: {ROOT})
    fresh: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def change(self, change: Change) -> None:
        _put(self.entries, change)
        self.pending.append(change)

    def find(self, parts: tuple[str, ...]) -> int | None:
        node: int | None = ROOT
        for part in parts:
            node = None if node is None else self.entries.get((node, part))
        return node

    def sync(self, node: int) -> None:
        if node not in self.folders:
            self.synced[node] = self.files[node]
            return
        for change in [c for c in self.pending if any(folder == node for folder, _ in c)]:
            _put(self.durable, change)
            self.pending.remove(change)

    def after_a_cut(self, kept: tuple[bool, ...], damage: str) -> dict[str, bytes | None]:
        """Return path to bytes, None for a folder."""
        entries = dict(self.durable)
        for change, keep in zip(self.pending, kept, strict=True):
            if keep:
                _put(entries, change)
        tree: dict[str, bytes | None] = {}

        def walk(node: int, path: str) -> None:
            for (folder, name), child in entries.items():
                if folder == node:
                    tree[f"{path}{name}"] = None if child in self.folders else self._bytes(child, damage)
                    if child in self.folders:
                        walk(child, f"{path}{name}/")

        walk(ROOT, "")
        return tree

    def _bytes(self, node: int, damage: str) -> bytes:
        now, before = self.files[node], self.synced.get(node, b"")
        if now == before:
            return now
        return {"missing": before, "complete": now, "torn": now[: len(now) // 2], "zero": bytes(len(now))}[damage]


def _put(entries: dict[Entry, int], change: Change) -> None:
    for entry, node in change.items():
        if node is None:
            entries.pop(entry, None)
        else:
            entries[entry] = node


class RecordingFs(RealFs):
    """The real file system, with a Disk beside it that a test cuts the power of after every operation."""

    def __init__(self, root: Path, *, with_sync: bool = True) -> None:
        self.root, self.with_sync = root, with_sync
        self.disk = Disk()
        self.cuts: list[set[frozenset[tuple[str, bytes | None]]]] = []
        self.recording = False
        self.random = random.Random(1)

    def mkdir(self, path: Path) -> None:
        super().mkdir(path)
        parts: tuple[str, ...] = ()
        for part in path.relative_to(self.root).parts:
            if self.disk.find((*parts, part)) is None:
                node = next(self.disk.fresh)
                self.disk.folders.add(node)
                self._change({(self._node(parts), part): node})
            parts = (*parts, part)

    def write(self, path: Path, data: bytes) -> None:
        super().write(path, data)
        node = self.disk.find(self._parts(path))
        if node is None:
            node = next(self.disk.fresh)
            self.disk.files[node] = b""
            self._change({(self._node(self._parts(path)[:-1]), path.name): node})
        self.disk.files[node] = data
        self._cut()

    def sync(self, path: Path) -> None:
        super().sync(path)
        if self.with_sync:
            self.disk.sync(self._node(self._parts(path)))
            self._cut()

    def rename(self, old: Path, new: Path) -> None:
        super().rename(old, new)
        node = self._node(self._parts(old))
        self._change(
            {
                (self._node(self._parts(old)[:-1]), old.name): None,
                (self._node(self._parts(new)[:-1]), new.name): node,
            }
        )

    def remove(self, path: Path) -> None:
        super().remove(path)
        node = self.disk.find(self._parts(path))
        if node is None:
            return
        for folder, name in [e for e in self.disk.entries if e[0] == node]:
            self._change({(folder, name): None})
        self._change({(self._node(self._parts(path)[:-1]), path.name): None})

    def _change(self, change: Change) -> None:
        self.disk.change(change)
        self._cut()

    def _cut(self) -> None:
        """Note the trees that a power cut now may leave."""
        if not self.recording:
            return
        n = len(self.disk.pending)
        choices = list(itertools.product((False, True), repeat=n)) if n <= 4 else []
        while n > 4 and len(choices) < 16:
            choices.append(tuple(self.random.random() < 0.5 for _ in range(n)))
        self.cuts.append(
            {
                frozenset(self.disk.after_a_cut(kept, damage).items())
                for kept in choices
                for damage in ("missing", "complete", "torn", "zero")
            }
        )

    def _parts(self, path: Path) -> tuple[str, ...]:
        return path.relative_to(self.root).parts

    def _node(self, parts: tuple[str, ...]) -> int:
        node = self.disk.find(parts)
        assert node is not None, parts
        return node


def settle(fs: RecordingFs) -> None:
    """Bring everything to the disk."""
    disk = fs.disk
    disk.durable, disk.pending, disk.synced = dict(disk.entries), [], dict(disk.files)


def update(fs: Fs, slots: Slots, file: StateFile, state: AgentState, name: str, *, good: bool) -> AgentState:
    """Take a device through a whole update as the daemon does."""
    digest = digest_of(name)
    desired = Desired(rev=state.rev + 1, release="r", target=f"p/{digest}.edge", sha256=digest, size=9)
    step = reconcile.offer(state, desired, 1.0)
    file.save(step.state)
    for job in (reconcile.Job.LOOKUP, reconcile.Job.DOWNLOAD, reconcile.Job.INSTALL):
        if job is reconcile.Job.DOWNLOAD:
            fs.write(slots.staged(digest), content(name))
        if job is reconcile.Job.INSTALL:
            slots.install(digest)
        step = reconcile.done(step.state, job, 2.0)
        file.save(step.state)
    for job in (reconcile.Job.TEST, reconcile.Job.SWAP):
        step = reconcile.done(step.state, job, 3.0)
        file.save(step.state)
    if good:
        step = reconcile.commit(step.state, 4.0)
    else:
        file.save(reconcile.trial_failed(step.state, "bad", 4.0, blame=True).state)
        step = reconcile.done(
            reconcile.trial_failed(step.state, "bad", 4.0, blame=True).state, reconcile.Job.ROLL_BACK, 5
        )
    file.save(step.state)
    slots.collect((step.state.active, step.state.committed, step.state.previous))
    return step.state


def power_cuts(tmp_path: Path, *, with_sync: bool) -> Iterator[str | None]:
    """Yield, for every tree that a power cut in two updates may leave, what is wrong with it."""
    home = tmp_path / "device"
    home.mkdir()
    fs = RecordingFs(home, with_sync=with_sync)
    slots, file = Slots(fs, home), StateFile(fs, home / "state.json")
    slots.prepare()
    fs.write(slots.staged(A), content("a"))
    slots.install(A)
    state = AgentState(active=A, committed=A, phase=Phase.COMMITTED)
    file.save(state)
    settle(fs)
    fs.recording = True
    state = update(fs, slots, file, state, "b", good=True)
    update(fs, slots, file, state, "c", good=False)
    trees = set().union(*fs.cuts)
    assert len(trees) > 100
    for number, tree in enumerate(sorted(trees, key=repr)):
        yield _boot_from(tmp_path / f"cut-{number}", tree)


def _boot_from(home: Path, tree: frozenset[tuple[str, bytes | None]]) -> str | None:
    home.mkdir()
    for path, data in sorted(tree):
        if data is None:
            (home / path).mkdir()
        else:
            (home / path).write_bytes(data)
    slots = Slots(RealFs(), home)
    try:
        state = StateFile(RealFs(), home / "state.json").load()
    except SchemaError as error:
        return error.message
    if state is None:
        return "state.json is gone"
    runs = runnable(slots, state)
    if runs is None:
        return "no slot is whole"
    step = reconcile.boot(state, runs, 9.0, max_crashes=2)
    if runs == C and step.state.phase is not Phase.TRIAL and step.state.phase is not Phase.ROLLING_BACK:
        return f"the bad release runs in {step.state.phase}"
    if not slots.whole(step.state.active):
        return f"the active slot is not whole in {step.state.phase}"
    return None


def test_no_power_cut_leaves_a_device_without_a_slot_that_runs(tmp_path: Path) -> None:
    assert set(power_cuts(tmp_path, with_sync=True)) == {None}


def test_the_same_cuts_without_fsync_would(tmp_path: Path) -> None:
    found = list(power_cuts(tmp_path, with_sync=False))
    assert sum(wrong is not None for wrong in found) > len(found) / 10
