"""Secrets that machines hold: how they are made, what is stored of them."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets

_ITERATIONS = 101  # mosquitto's own default; the secrets hashed here are 256 random bits, not passwords of people


def new_secret() -> str:
    """Return 256 random bits in hex: needs no quoting anywhere and is never taken for an option."""
    return secrets.token_hex(32)


def hash_claim(token: str) -> str:
    """Return what is stored of a claim token."""
    return hashlib.sha256(token.encode()).hexdigest()


def hash_credential(credential: str, salt: bytes | None = None) -> str:
    """Return PBKDF2-SHA512 in mosquitto's `$7$` form, which HTTP and both brokers verify."""
    salt = secrets.token_bytes(12) if salt is None else salt
    digest = hashlib.pbkdf2_hmac("sha512", credential.encode(), salt, _ITERATIONS)
    return f"$7${_ITERATIONS}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def check_credential(credential: str, stored: str) -> bool:
    """Return whether `credential` is the one hashed as `stored`; False for any other form."""
    parts = stored.split("$")
    if len(parts) != 5 or parts[1] != "7" or not parts[2].isdecimal():
        return False
    try:
        salt, digest = base64.b64decode(parts[3], validate=True), base64.b64decode(parts[4], validate=True)
    except binascii.Error:
        return False
    return hmac.compare_digest(hashlib.pbkdf2_hmac("sha512", credential.encode(), salt, int(parts[2])), digest)
