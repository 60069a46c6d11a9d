"""Who is asking: the operator (bearer token or the console's cookie) or a device (HTTP Basic)."""

from __future__ import annotations

import base64
import binascii
import time
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request

from cloud_sync.credentials import Keys, check_credential
from cloud_sync.errors import AuthError

COOKIE = "edge_session"
_HINT = "set EDGE_TOKEN to what `operator.token` holds in the service's data directory"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A caller: `actor` goes to the audit log."""

    actor: str
    tenant: str
    device: str | None = None


def operator(request: Request) -> Identity:
    """Dependency: the operator, by `Authorization: Bearer` or by the console's cookie.

    Raises:
        AuthError: neither is present and right, or a browser sends the cookie from another site's page.
    """
    services = request.app.state.services
    keys: Keys = services.keys
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and keys.is_operator(token.strip()):
        return Identity(actor="operator", tenant=services.settings.tenant)
    cookie = request.cookies.get(COOKIE)
    if cookie and keys.is_session(cookie, time.time()):
        if request.method not in ("GET", "HEAD") and not _same_origin(request):
            raise AuthError("the request comes from another site", hint="use the console's own pages")
        return Identity(actor="console", tenant=services.settings.tenant)
    found = "is missing" if not token else "is wrong"
    raise AuthError(f"the operator token {found}", hint=_HINT)


def device(request: Request) -> Identity:
    """Dependency: an enrolled device, by HTTP Basic `device:credential`.

    Raises:
        AuthError: the header is missing or wrong, or the device is unknown, retired or not enrolled.
    """
    scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
    name, credential = "", ""
    if scheme.lower() == "basic":
        try:
            name, _, credential = base64.b64decode(encoded, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            pass
    rows = request.app.state.services.db.query(
        "SELECT tenant, credential_hash FROM devices WHERE id = ? AND retired_at IS NULL", (name,)
    )
    stored = rows[0]["credential_hash"] if rows else None
    if not stored or not check_credential(credential, stored):
        raise AuthError("the device's credential is missing or wrong", hint="enrol the device again")
    return Identity(actor=f"device:{name}", tenant=rows[0]["tenant"], device=name)


def operator_or_device(request: Request) -> Identity:
    """Dependency: either of the two."""
    if request.headers.get("authorization", "").lower().startswith("basic "):
        return device(request)
    return operator(request)


Operator = Annotated[Identity, Depends(operator)]


def _same_origin(request: Request) -> bool:
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = request.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == request.headers.get("host")
