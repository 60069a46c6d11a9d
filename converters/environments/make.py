"""Make an environment: whole or not at all, by one maker at a time, within limits of time and disk."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from converters.environments import READY, Environment, default_folder, find
from edge_sdk.errors import BackendError, ConversionError

LIMIT_S = 1800.0
SPARE_MB = 1000
"""Free disk that must be left beside the environment: pip unpacks before it installs."""
_OFFLINE = ("name resolution", "Failed to establish a new connection", "NewConnectionError", "Max retries exceeded",
            "Network is unreachable", "Connection refused", "ProxyError")  # fmt: skip


def ensure(
    wanted: Environment, *, root: Path | None = None, say: Callable[[str], None], limit_s: float = LIMIT_S
) -> Path:
    """Return the environment's Python; make it first where it is absent.

    Two makers of one environment wait for each other; a maker that was killed leaves nothing that counts.

    Args:
        limit_s: wall time for all of it.

    Raises:
        BackendError: no Python that its packages have wheels for is installed.
        ConversionError: no space, no network, pip failed, or it took too long; what pip said last is in the message.
    """
    folder = root or default_folder()
    ready = find(wanted, folder)
    if ready is not None:
        return ready
    end = time.monotonic() + limit_s
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConversionError(
            f"cannot make the folder {folder}: {error.strerror}", hint="name another one with EDGE_ENVIRONMENTS"
        ) from None
    with _alone(folder / f"{wanted.key}.lock", wanted, end, say):
        ready = find(wanted, folder)
        if ready is not None:
            return ready
        python = _python(wanted)
        _check_disk(wanted, folder)
        say(f"  making the environment {wanted.name} ({wanted.disk_mb / 1000:.1f} GB, once)")
        for left in folder.glob(f".{wanted.key}.*"):
            shutil.rmtree(left, ignore_errors=True)
        made = Path(tempfile.mkdtemp(prefix=f".{wanted.key}.", dir=folder))
        try:
            _fill(wanted, made, python, end)
            shutil.rmtree(folder / wanted.key, ignore_errors=True)
            made.rename(folder / wanted.key)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    found = find(wanted, folder)
    if found is None:
        raise ConversionError(f"the environment {wanted.name} was made and is gone", hint="make it again")
    return found


@contextmanager
def _alone(lock: Path, wanted: Environment, end: float, say: Callable[[str], None]) -> Iterator[None]:
    with lock.open("w") as file:
        waited = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() >= end:
                    raise ConversionError(
                        f"another process is still making the environment {wanted.name}",
                        hint=f"wait for it, or end it and remove {lock}",
                    ) from None
                if not waited:
                    say(f"  another process is making the environment {wanted.name}: waiting for it")
                waited = True
                time.sleep(0.2)
        yield


def _python(wanted: Environment) -> str:
    """Return an interpreter of a version that the packages have wheels for, this one first."""
    first, last = wanted.python
    if sys.version_info.major == 3 and first <= sys.version_info.minor <= last:
        return sys.executable
    for minor in range(last, first - 1, -1):
        found = shutil.which(f"python3.{minor}")
        if found:
            return found
    raise BackendError(
        f"the environment {wanted.name} needs Python 3.{first} to 3.{last}, this is 3.{sys.version_info.minor}",
        hint=f"install python3.{last} beside this one",
    )


def _check_disk(wanted: Environment, folder: Path) -> None:
    free = shutil.disk_usage(folder).free / 1e6
    needed = wanted.disk_mb + SPARE_MB
    if free < needed:
        raise ConversionError(
            f"the environment {wanted.name} needs {needed} MB in {folder}, {free:.0f} are free",
            hint="free some space, or name another folder with EDGE_ENVIRONMENTS",
        )


def _fill(wanted: Environment, folder: Path, python: str, end: float) -> None:
    log = folder / "make.log"
    _step(wanted, [python, "-m", "venv", *([] if wanted.pip else ["--without-pip"]), str(folder)], log, end)
    inner = str(folder / "bin" / "python")
    if wanted.pip and wanted.requirements:
        pip = [inner, "-m", "pip", "--disable-pip-version-check", "--no-input", "install", *wanted.requirements]
        _step(wanted, pip, log, end)
    text = json.dumps({"name": wanted.name, "requirements": list(wanted.requirements)}, indent=1)
    with (folder / READY).open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _step(wanted: Environment, command: list[str], log: Path, end: float) -> None:
    """Run a command with its words in `log`; its whole process group ends with it."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    with log.open("ab") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment, start_new_session=True
        )
        try:
            code = process.wait(timeout=max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise ConversionError(
                f"making the environment {wanted.name} took too long and was stopped", hint="try again, nothing is left"
            ) from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if code:
        raise _failed(wanted, log.read_text(encoding="utf-8", errors="replace"))


def _failed(wanted: Environment, text: str) -> ConversionError:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")] or lines
    said = " | ".join(errors[-3:])[-400:] or "nothing"
    if any(word in text for word in _OFFLINE):
        return ConversionError(
            f"the environment {wanted.name} could not be made: the package index cannot be reached; pip said: {said}",
            hint="connect to the network, or copy a finished environment into the folder of EDGE_ENVIRONMENTS",
        )
    return ConversionError(
        f"the environment {wanted.name} could not be made: pip said: {said}",
        hint="its pins may not fit this machine: " + ", ".join(wanted.requirements[:2]),
    )
