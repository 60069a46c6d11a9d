"""Fetch one artifact: resumable, bounded in time, rate and size, and only ever kept when its hash is right."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edge_sdk.agent.http import HttpStatus, Limits, Reply, stream
from edge_sdk.backoff import Backoff
from edge_sdk.errors import SyncError, TrustError

logger = logging.getLogger(__name__)
SYNC_EVERY = 4 * 1024 * 1024
RESERVE_BYTES = 16 * 1024 * 1024
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadPolicy:
    """`attempts` connections at most, `reserve_bytes` of the disk left free."""

    attempts: int = 5
    backoff: Backoff = field(default_factory=lambda: Backoff(first_s=1.0, max_s=30.0))
    limits: Limits = field(default_factory=Limits)
    reserve_bytes: int = RESERVE_BYTES


def download(
    url: str,
    target: Path,
    *,
    size: int,
    sha256: str,
    headers: Mapping[str, str] | None = None,
    policy: DownloadPolicy | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """Fetch `url` into `target`, by way of `target.part`, and return `target`, on the disk and with the right hash.

    A part that is there is continued with Range; a server that ignores Range starts it anew. A part that turns out to
    have a wrong hash is thrown away and fetched once more from the start.

    Raises:
        SyncError: no space, no connection, an error status, a transfer that is cut, too long, too slow or interrupted.
        TrustError: the bytes that the server gives have another hash.
    """
    policy = policy or DownloadPolicy()
    part = target.with_name(f"{target.name}.part")
    failure: SyncError | TrustError | None = None
    for attempt in range(policy.attempts):
        if should_stop():
            raise SyncError(f"the transfer of {url} was interrupted")
        if attempt:
            sleep(policy.backoff.delay_s(attempt - 1, random.random))
        fresh = _length(part) == 0
        try:
            _check_space(part, size, policy.reserve_bytes)
            _fetch(url, part, size, headers or {}, policy.limits, should_stop)
            found = _sha256(part)
            if found == sha256:
                os.replace(part, target)  # noqa: PTH105  (a rename over an older target)
                return target
            part.unlink()
            failure = TrustError(
                f"{url} has SHA-256 {found[:12]}…, expected {sha256[:12]}…", hint="the server or the line changes bytes"
            )
            if fresh:
                raise failure
        except HttpStatus as error:
            if error.status < 500 and error.status not in (408, 429):
                raise
            failure = error
        except SyncError as error:
            if should_stop() or "no space" in error.message:
                raise
            failure = error
        logger.warning("download attempt %d of %d failed: %s", attempt + 1, policy.attempts, failure)
    assert failure is not None
    raise failure


def _fetch(  # noqa: PLR0917
    url: str, part: Path, size: int, headers: Mapping[str, str], limits: Limits, should_stop: Callable[[], bool]
) -> None:
    have = _length(part)
    if have > size:
        part.unlink()
        have = 0
    if have == size:
        return
    sent = dict(headers) | ({"Range": f"bytes={have}-"} if have else {})
    with stream(url, headers=sent, limits=limits, should_stop=should_stop) as reply:
        if reply.status == 416:
            part.unlink(missing_ok=True)
            raise HttpStatus(503, url, "range not satisfiable, starting anew")
        if reply.status not in (200, 206):
            raise HttpStatus(reply.status, url)
        have = have if reply.status == 206 and _continues(reply, have, size) else 0
        if reply.status == 206 and have == 0 and "Range" in sent:
            part.unlink(missing_ok=True)
            raise SyncError(f"{url} answered with another range than asked", hint="starting anew")
        _write(url, reply, part, have, size)


def _write(url: str, reply: Reply, part: Path, have: int, size: int) -> None:
    announced = reply.headers.get("content-length", "")
    if announced.isdecimal() and have + int(announced) > size:
        raise SyncError(f"{url} announces {have + int(announced)} bytes, expected {size}")
    with part.open("r+b" if have else "wb") as file:
        file.seek(have)
        unsynced = 0
        for chunk in reply.chunks:
            if have + len(chunk) > size:
                raise SyncError(f"{url} sent more than the {size} bytes expected")
            try:
                file.write(chunk)
            except OSError as error:
                raise SyncError(f"no space for {part.name}: {error.strerror}", hint="free some disk") from None
            have += len(chunk)
            unsynced += len(chunk)
            if unsynced >= SYNC_EVERY:
                file.flush()
                os.fsync(file.fileno())
                unsynced = 0
        file.flush()
        os.fsync(file.fileno())
    if have < size:
        raise SyncError(f"{url} ended after {have} of {size} bytes", hint="it will be continued")


def _continues(reply: Reply, have: int, size: int) -> bool:
    match = _RANGE.fullmatch(reply.headers.get("content-range", "").strip())
    return bool(match) and int(match[1]) == have and match[3] in ("*", str(size))  # type: ignore[index]


def _check_space(part: Path, size: int, reserve: int) -> None:
    free = shutil.disk_usage(part.parent).free
    need = max(0, size - _length(part)) + reserve
    if free < need:
        raise SyncError(f"no space for {part.name}: {free} bytes free, {need} needed", hint="free some disk")


def _length(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
