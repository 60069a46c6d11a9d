"""Temporary folders, full disks and artifacts that appear together or not at all."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import tempfile

import pytest

from converters import workplace
from converters.errors import DiskFullError, check_room, disk_full, no_space
from edge_sdk.errors import UsageError

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/there/file")


def test_a_full_disk_is_seen_through_the_errors_that_hide_it():
    def hide():
        try:
            raise FULL
        except OSError:
            raise UsageError("cannot write the file") from None

    with pytest.raises(UsageError) as hidden:
        hide()
    assert disk_full(hidden.value) is FULL
    assert disk_full(OSError(errno.EACCES, "no")) is None
    assert disk_full(ValueError("no")) is None
    error = no_space(FULL)
    assert (error.message, error.exit_code) == ("no space to write /there/file: No space left on device", 6)
    assert error.hint == "free some space there; TMPDIR, --cache and --out name other places"


def test_a_file_that_a_native_tool_cut_short_at_the_limit_is_noticed(tmp_path):
    check_room(tmp_path)
    code = (
        "import resource, pathlib, sys; sys.path.insert(0, '.');"
        "from converters.errors import check_room, DiskFullError;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000));"
        f"p = pathlib.Path({str(tmp_path)!r}); (p / 'model.bin').write_bytes(bytes(1000));\n"
        "try: check_room(p)\nexcept DiskFullError as e: print(e.message)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == f"no space to write {tmp_path}: File too large\n"
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1000


def test_finished_files_are_put_in_place_together(tmp_path):
    (tmp_path / "a").write_text("new a")
    (tmp_path / "b").write_text("new b")
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.edge").write_text("old a")

    with pytest.raises(UsageError, match="cannot write into"):
        workplace.publish({tmp_path / "a": out / "a.edge", tmp_path / "b": out / "missing" / "b.edge"})
    assert [(p.name, p.read_text()) for p in out.iterdir()] == [("a.edge", "old a")]

    workplace.publish({tmp_path / "a": out / "a.edge", tmp_path / "b": out / "b.edge"})
    assert sorted((p.name, p.read_text()) for p in out.iterdir()) == [("a.edge", "new a"), ("b.edge", "new b")]


def test_a_new_conversion_removes_the_folders_of_killed_ones_and_no_others(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead = tmp_path / f"{workplace.PREFIX}dead"
    dead.mkdir()
    (dead / ".lock").touch()

    with workplace.folder() as first, workplace.folder() as second:
        assert not dead.exists()
        assert first.is_dir()
        assert second.is_dir()
    assert not list(tmp_path.iterdir())


def test_sigterm_interrupts_as_ctrl_c_does_and_is_given_back():
    code = (
        "import os, signal; from converters import workplace\n"
        "before = signal.getsignal(signal.SIGTERM)\n"
        "try:\n"
        "    with workplace.ended_by_sigterm(): os.kill(os.getpid(), signal.SIGTERM)\n"
        "except KeyboardInterrupt: print('interrupted', signal.getsignal(signal.SIGTERM) == before)\n"
    )
    # A process of its own: engines that other tests loaded into this one have threads and handlers of theirs.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)

    assert (done.stdout, done.returncode) == ("interrupted True\n", 0)


def test_a_folder_for_artifacts_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot make the folder"):
        workplace.check_out(tmp_path / "file" / "out")


@pytest.mark.parametrize(
    ("reason", "kind", "message"),
    [
        (FULL, DiskFullError, "No space left on device"),
        (OSError(errno.EACCES, "Permission denied"), UsageError, "cannot make a temporary folder: Permission denied"),
    ],
)
def test_a_temporary_folder_that_cannot_be_made_is_said_with_the_reason(monkeypatch, reason, kind, message):
    def fail(**_):
        raise reason

    monkeypatch.setattr(tempfile, "mkdtemp", fail)
    with pytest.raises(kind, match=message), workplace.folder():
        pass
