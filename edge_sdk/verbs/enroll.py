"""`edge enroll TOKEN --server URL --state-dir DIR`: a claim token becomes this device's identity."""

from __future__ import annotations

import argparse
import secrets
from pathlib import Path
from typing import Any

from edge_sdk.errors import SchemaError, SyncError, UsageError
from edge_sdk.output import Output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("token", help="the claim token that `edge device add` printed")
    parser.add_argument("--server", required=True, metavar="URL", help="the service, such as http://fleet.example:8080")
    parser.add_argument("--state-dir", type=Path, required=True, metavar="DIR", help="where the agent keeps its files")
    parser.add_argument("--force", action="store_true", help="replace the identity that is there")


def run(args: argparse.Namespace, output: Output) -> int:
    """Enrol and write identity.json (0600) and the trusted root."""
    from edge_sdk.agent.config import Paths, save_identity

    paths = Paths(args.state_dir.absolute())
    if paths.identity.exists() and not args.force:
        raise UsageError(f"{paths.identity} exists: this device has enrolled", hint="--force replaces it")
    nonce = _nonce(paths)
    identity, root = enroll(args.server.rstrip("/"), args.token, nonce)
    save_identity(paths, identity, root)
    paths.nonce.unlink(missing_ok=True)
    data = {
        "device": identity.device,
        "tenant": identity.tenant,
        "server": identity.server,
        "state_dir": str(paths.root),
    }
    output.result(data, f"enrolled as {identity.device} of tenant {identity.tenant}")
    return 0


def enroll(server: str, token: str, nonce: str) -> tuple[Any, bytes]:
    """Exchange a claim token for (identity, TUF root); asking again with the same nonce is the same enrolment.

    Raises:
        SyncError: the server cannot be reached or refused.
        SchemaError: its answer has not the form.
    """
    from edge_sdk.agent.config import Identity
    from edge_sdk.agent.http import post_json
    from edge_sdk.schemas import document
    from edge_sdk.schemas.ids import check_id

    url = f"{server}/api/v1/enroll"
    status, raw = post_json(url, {"token": token, "nonce": nonce})
    if status != 200:
        raise _refusal(url, status, raw)
    answer = document.loads_object(raw, where="enrolment")
    root = answer.pop("tuf_root", None)
    if not isinstance(root, str) or not root.strip():
        raise SchemaError("enrolment: `tuf_root` is missing", hint="is this an edge service?")
    identity = document.read({**answer, "server": server}, Identity, where="enrolment")
    check_id(identity.tenant, "tenant")
    check_id(identity.device, "device")
    document.loads_object(root, where="enrolment tuf_root")
    return identity, root.encode()


def _refusal(url: str, status: int, raw: bytes) -> SyncError:
    from edge_sdk.schemas import document

    try:
        error = document.loads_object(raw, where="answer").get("error")
    except SchemaError:
        error = None
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        hint = error.get("hint")
        return SyncError(f"the service refused: {error['message'][:500]}", hint=hint if isinstance(hint, str) else None)
    return SyncError(f"{url} answered {status}", hint="is this the address of an edge service?")


def _nonce(paths: Any) -> str:
    """Return the nonce of this enrolment, kept before the first try so that a lost answer can be asked for again."""
    from edge_sdk.agent.config import write_secret

    try:
        paths.root.mkdir(parents=True, exist_ok=True)
        if not paths.nonce.is_file():
            write_secret(paths.nonce, secrets.token_hex(16).encode())
        return str(paths.nonce.read_text()).strip()
    except OSError as error:
        raise SyncError(f"cannot write into {paths.root}: {error.strerror}", hint="check the folder") from None
