"""Artifacts that the tests of slots install: bytes by a name, and their digests."""

from __future__ import annotations

import hashlib


def content(name: str) -> bytes:
    return f"artifact {name} ".encode() * 40


def digest_of(name: str) -> str:
    return hashlib.sha256(content(name)).hexdigest()


A, B, C = (digest_of(name) for name in "abc")
