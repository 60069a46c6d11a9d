"""What tests of real processes share: waiting for something, a port of one's own, processes and their children."""

from __future__ import annotations

import random
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

T = TypeVar("T")
LIMIT_S = 60.0
"""How long a busy machine may take for what takes a moment; nobody waits longer than the thing itself takes."""
MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


def until(what: Callable[[], T], why: str | Callable[[], str] = "it", limit_s: float = LIMIT_S) -> T:
    """Return the first true value of `what`; fails the test when there is none in time, and says `why` then."""
    deadline = time.monotonic() + limit_s
    while not (value := what()):
        if time.monotonic() > deadline:
            pytest.fail(f"waited {limit_s:g} s in vain for {why if isinstance(why, str) else why()}")
        time.sleep(0.01)
    return value


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def until_lines(path: Path, n: int = 5) -> None:
    until(lambda: lines(path) >= n, f"{n} lines in {path}")


def pick_port() -> int:
    """Return a TCP port on 127.0.0.1 that nothing listens on and that the system gives to no connection by itself."""
    try:
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        first = 0
    wanted = [random.randrange(12_000, first) for _ in range(50)] if first > 13_000 else []
    for port in (*wanted, 0):
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(sock.getsockname()[1])
    raise OSError("no port is free")


def listens(port: int) -> bool:
    with socket.socket() as sock:
        sock.settimeout(1)
        return sock.connect_ex(("127.0.0.1", port)) == 0


def is_running(pid: int) -> bool:
    """Say whether a process is there and has not ended (a zombie has)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children_of(pid: int) -> list[int]:
    """Return the processes that one has started and that have not been reaped."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, task.read_text().split())
        except OSError:  # the thread has ended
            continue
    return found
