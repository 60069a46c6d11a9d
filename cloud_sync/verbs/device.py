"""`edge device`: add, list, show and retire devices."""

from __future__ import annotations

import argparse
import time
from typing import Any

from cloud_sync.client import Client, add_server_arguments, from_args
from cloud_sync.text import age
from edge_sdk.output import Output, table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="what", required=True, metavar="add|list|show|retire")
    add = verbs.add_parser("add", help="make a device and the claim token with which it enrols")
    add.add_argument("device", help="its name: a-z, 0-9, `_` and `-`")
    add.add_argument("--profile", required=True, metavar="P", help="its device profile (`edge profile list`)")
    add.add_argument("--renew", action="store_true", help="let a device that is enrolled enrol again")
    show_all = verbs.add_parser("list", help="the fleet")
    show_all.add_argument("--profile", metavar="P", help="only devices of this profile")
    show_all.add_argument("--retired", action="store_true", help="retired devices too")
    show = verbs.add_parser("show", help="one device, its last transitions and alarms")
    show.add_argument("device", help="its name")
    retire = verbs.add_parser("retire", help="take a device out of the fleet; its history stays")
    retire.add_argument("device", help="its name")
    for sub in (add, show_all, show, retire):
        add_server_arguments(sub)


def run(args: argparse.Namespace, output: Output) -> int | None:
    client = from_args(args)
    if args.what == "add":
        _add(client, args, output)
    elif args.what == "list":
        _list(client, args, output)
    elif args.what == "show":
        found = client.get(f"/api/v1/devices/{_quoted(args.device)}")
        output.result({"devices": [found], **found}, _details(found, time.time()))
    else:
        done = client.delete(f"/api/v1/devices/{_quoted(args.device)}")
        output.result(done, f"{args.device} is retired: its credential has ended, its history stays")
    return None


def _add(client: Client, args: argparse.Namespace, output: Output) -> None:
    body = {"device": args.device, "profile": args.profile, "renew": args.renew}
    added = client.post("/api/v1/devices", body)
    output.result(added, added["token"])
    hours = (added["expires"] - time.time()) / 3600
    output.note(f"on the device, within {hours:.0f} h: edge enroll --server {client.server} --state-dir DIR TOKEN")


def _list(client: Client, args: argparse.Namespace, output: Output) -> None:
    params = {"profile": args.profile, "retired": "true" if args.retired else None}
    found = client.get("/api/v1/devices", params)
    now = time.time()
    rows = [
        [d["id"], d["profile"], d["status"], age(d["last_seen"], now), (d["digest"] or "")[:12], d["phase"] or ""]
        for d in found["devices"]
    ]
    text = table(rows, ["device", "profile", "status", "last seen", "artifact", "phase"])
    output.result(found, text if rows else "no devices yet: `edge device add NAME --profile P`")


def _details(found: dict[str, Any], now: float) -> str:
    outbox = found["outbox"]
    lines = [
        f"{found['id']}  {found['status']}, last seen {age(found['last_seen'], now)}",
        f"  profile   {found['profile']}",
        f"  artifact  {found['digest'] or '-'} (slot {found['slot'] or '-'}, {found['phase'] or '-'})",
        f"  outbox    {outbox['rows'] or 0} waiting, {outbox['dropped'] or 0} dropped",
    ]
    if found["error"]:
        lines.append(f"  error     {found['error']}")
    for step in found["transitions"][:10]:
        why = f"  {step['error']}" if step["error"] else ""
        lines.append(f"  {age(step['t'], now):>8}  {step['from_phase']} -> {step['to_phase']}{why}")
    for alarm in found["alarms"][:10]:
        lines.append(f"  {age(alarm['t'], now):>8}  alarm {alarm['kind']}: {alarm['message'] or ''}")
    return "\n".join(lines)


def _quoted(name: str) -> str:
    import urllib.parse

    return urllib.parse.quote(name, safe="")
