"""The flags of `edge run` that answer inference over HTTP."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from edge_sdk.errors import UsageError
from edge_sdk.parsing import write_dataclass
from edge_sdk.serve_config import ServeConfig


def add_serve(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument(
        "--serve", type=int, metavar="PORT", help="answer inference over HTTP, with --source or without"
    )
    parser.add_argument("--host", help="where --view and --serve listen (default 127.0.0.1: this machine alone)")
    parser.add_argument("--rate", type=float, metavar="N", help="with --serve: inferences a second to allow over HTTP")
    parser.add_argument("--token-file", type=Path, metavar="F", help="with --serve: who may ask, one token a line")
    parser.add_argument(
        "--batches", type=Path, metavar="DIR", help="with --serve: keep accepted batches here, to go on after a restart"
    )


def serve_of(args: argparse.Namespace, own: ServeConfig | None = None) -> dict[str, Any] | None:
    """Return where and how to serve: `[serve]` of the file with the flags over it; None without either.

    Raises:
        UsageError: a value is wrong, or goes with a flag that is not there.
    """
    for name in ("view", "serve"):
        port = getattr(args, name)
        if port is not None and not 0 <= port <= 65535:
            raise UsageError(f"--{name} takes a port, 0 to 65535, found {port}")
    if args.view is not None and args.view == args.serve and args.view:
        raise UsageError(f"--view and --serve cannot share port {args.view}", hint="give each one of its own")
    serves = args.serve is not None or own is not None
    if args.host is not None and args.view is None and not serves:
        raise UsageError("--host goes with --view or --serve")
    for name in ("rate", "token_file", "batches"):
        if getattr(args, name) is not None and not serves:
            raise UsageError(f"--{name.replace('_', '-')} goes with --serve")
    if not serves:
        return None
    if args.rate is not None and not 0 < args.rate < math.inf:
        raise UsageError(f"--rate must be above 0, found {args.rate:g}")
    flags = {"port": args.serve, "host": args.host, "rate": args.rate, "token_file": args.token_file}
    found: dict[str, Any] = {} if own is None else write_dataclass(own)
    found |= {key: str(v) if isinstance(v, Path) else v for key, v in flags.items() if v is not None}
    if args.batches is not None:
        found["batches"] = {**found.get("batches", {}), "folder": str(args.batches)}
    return found
