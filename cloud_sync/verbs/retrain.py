"""`edge retrain`: run the trainer, see its gate."""

from __future__ import annotations

import argparse
import time
from typing import Any
from urllib.parse import quote

from cloud_sync.client import Client, add_server_arguments, from_args
from edge_sdk.errors import ConversionError, GuardrailError, SyncError
from edge_sdk.output import Output, table

_ENDED = ("RELEASED", "REFUSED", "FAILED", "TIMED_OUT")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="what", required=True, metavar="run|show")
    start = verbs.add_parser("run", help="run the trainer now, whatever the cool-down")
    start.add_argument("--model", metavar="M", help="which model; may be left out while there is only one")
    start.add_argument("--reason", default="by hand", metavar="TEXT", help="kept with the run (default: by hand)")
    start.add_argument("--wait", action="store_true", help="wait for its end; exit 5 when the gate refuses")
    start.add_argument(
        "--timeout-s", type=float, default=7200.0, metavar="S", help="with --wait: how long at most (default: 7200)"
    )
    show = verbs.add_parser("show", help="one run with its gate, or all runs")
    show.add_argument("run", nargs="?", help="its id (default: all of them)")
    for part in (start, show):
        add_server_arguments(part)


def run(args: argparse.Namespace, output: Output) -> int | None:
    client = from_args(args)
    if args.what == "run":
        row = client.post("/api/v1/retrain", {"model": args.model, "reason": args.reason})
        if args.wait:
            row = _wait(client, row["run"], args.timeout_s, output)
        output.result(row, _text(row))
    elif args.run:
        row = client.get(f"/api/v1/retrain/{quote(args.run, safe='')}")
        output.result(row, _text(row))
    else:
        found = client.get("/api/v1/retrain")
        rows = [[r["run"], r["model"], r["state"], r["reason"], r["release"] or ""] for r in found["runs"]]
        text = table(rows, ["run", "model", "state", "reason", "release"])
        output.result(found, text if rows else "no runs yet")
    return None


def _wait(client: Client, run_id: str, timeout_s: float, output: Output) -> dict[str, Any]:
    end = time.monotonic() + timeout_s
    while True:
        row = client.get(f"/api/v1/retrain/{run_id}")
        if row["state"] in _ENDED:
            break
        if time.monotonic() > end:
            raise SyncError(f"run `{run_id}` is {row['state']} after {timeout_s:g} s", hint="`edge retrain show RUN`")
        output.progress(f"  … {row['state']}")
        time.sleep(0.5)
    if row["state"] == "REFUSED":
        raise GuardrailError(row["error"], hint=f"`edge retrain show {run_id}` has every condition")
    if row["state"] != "RELEASED":
        raise ConversionError(f"run `{run_id}`: {row['error']}", hint=f"its log is in {row['dir']} on the server")
    return row


def _text(row: dict[str, Any]) -> str:
    lines = [f"{row['run']}  {row['state']}  {row['model']}", f"  {row['reason']}"]
    for name in ("release", "rollout", "error"):
        if row[name]:
            lines.append(f"  {name:<9}{row[name]}")
    for gate in row["gate"]:
        values = "" if gate["candidate"] is None else f" {gate['candidate']:.4f} against {gate['production']:.4f}"
        lines.append(f"  {gate['decision']:<7} {gate['metric']}{values}: {gate['detail']}")
    return "\n".join(lines)
