"""Secrets: how those of devices are made and what is stored of them, and the operator's own token."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import secrets
from pathlib import Path

from edge_sdk.errors import SyncError

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


class Keys:
    """The operator's token and the signature of console sessions."""

    def __init__(self, token: str, path: Path | None = None) -> None:
        self.token = token
        self.path = path
        self._session_key = hashlib.sha256(b"edge console session\0" + token.encode()).digest()

    @classmethod
    def open(cls, data: Path) -> Keys:
        """Read DATA/operator.token, or make it (mode 0600).

        Raises:
            SyncError: the file cannot be read or written, or is empty.
        """
        path = data / "operator.token"
        try:
            try:
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            except FileExistsError:
                path.chmod(0o600)
                token = path.read_text().strip()
            else:
                token = new_secret()
                with os.fdopen(fd, "w") as file:
                    file.write(token + "\n")
                    file.flush()
                    os.fsync(file.fileno())
        except OSError as error:
            raise SyncError(f"cannot use {path}: {error.strerror}", hint="check its owner and permissions") from None
        if len(token) < 20:
            raise SyncError(f"{path} holds no token", hint="delete the file: the next start makes a new one")
        return cls(token, path)

    def is_operator(self, token: str) -> bool:
        """Compare in constant time."""
        return hmac.compare_digest(token.encode(), self.token.encode())

    def session(self, now: float, lifetime_s: float) -> str:
        """Return the value of a console cookie that is valid for `lifetime_s`."""
        expires = str(int(now + lifetime_s))
        return f"{expires}.{self._sign(expires)}"

    def is_session(self, cookie: str, now: float) -> bool:
        expires, _, signature = cookie.partition(".")
        if not expires.isdecimal() or not hmac.compare_digest(signature.encode(), self._sign(expires).encode()):
            return False
        return now < int(expires)

    def _sign(self, text: str) -> str:
        return hmac.new(self._session_key, text.encode(), hashlib.sha256).hexdigest()
