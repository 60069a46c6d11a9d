"""`edge trust`: TUF keys and expiry, on the files of the service's data directory."""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_sdk.output import Output, table

if TYPE_CHECKING:
    from cloud_sync.releases.repository import TrustRepository


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="what", required=True, metavar="init|rotate|status")
    init = verbs.add_parser("init", help="make keys and the first signed metadata (`edge serve` does it by itself)")
    init.add_argument("--root-keys", type=int, default=1, metavar="N", help="how many root keys to make (default: 1)")
    init.add_argument(
        "--root-threshold", type=int, default=1, metavar="N", help="how many of them must sign (default: 1)"
    )
    rotate = verbs.add_parser("rotate", help="give a role a new key, or only a later expiry")
    rotate.add_argument("role", help="root, targets, snapshot, timestamp or a device profile")
    rotate.add_argument("--keep-key", action="store_true", help="sign again with the same key")
    status = verbs.add_parser("status", help="every role: version, expiry, keys")
    for part in (init, rotate, status):
        data = "the service's data (default: edge-data)"
        part.add_argument("--data", type=Path, default=Path("edge-data"), metavar="DIR", help=data)
        keys = "where root's and targets' private keys are kept (default: DATA/keys)"
        part.add_argument("--keys", type=Path, metavar="DIR", help=keys)
        part.add_argument("--config", type=Path, metavar="F", help="the service's serve.toml, for [trust]")


def run(args: argparse.Namespace, output: Output) -> int | None:
    from cloud_sync.releases.repository import TrustRepository
    from cloud_sync.settings import load_settings

    policy = load_settings(args.config, {}).trust
    repository = TrustRepository(args.data.absolute(), policy, offline_keys=args.keys)
    now = time.time()
    if args.what == "init":
        repository.init(now, root_keys=args.root_keys, root_threshold=args.root_threshold)
        folder = args.keys or args.data / "keys"
        output.note(f"keep {folder}/root-*.pem and targets-*.pem offline: they are needed to add profiles and rotate")
    elif args.what == "rotate":
        version = repository.rotate(args.role, now, keep_key=args.keep_key)
        output.note(f"{args.role} is at version {version}")
    _status(repository, now, output)
    return None


def _status(repository: TrustRepository, now: float, output: Output) -> None:
    roles: list[dict[str, Any]] = [dataclasses.asdict(r) for r in repository.status(now)]
    rows = [
        [
            r["name"],
            r["version"],
            time.strftime("%Y-%m-%d", time.gmtime(r["expires"])) + (" EXPIRED" if r["expired"] else ""),
            ", ".join(k[:12] for k in r["keys"]),
            "here" if r["here"] else "offline",
        ]
        for r in roles
    ]
    output.result({"roles": roles}, table(rows, ["role", "version", "expires", "keys", "private key"]))
