"""`edge drift`: verdicts and the report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cloud_sync.client import add_server_arguments, from_args
from edge_sdk.errors import UsageError
from edge_sdk.output import Output, table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="what", required=True, metavar="show|report")
    show = verbs.add_parser("show", help="the newest verdict of each device and kind of evidence")
    report = verbs.add_parser("report", help="an HTML file with plots and the evidence")
    report.add_argument("--html", type=Path, metavar="F", required=True, help="where to write it")
    for part in (show, report):
        part.add_argument("--device", metavar="D", help="only this device")
        add_server_arguments(part)


def run(args: argparse.Namespace, output: Output) -> int | None:
    client = from_args(args)
    found = client.get("/api/v1/drift", {"device": args.device})
    if args.what == "report":
        page = client.get_text("/api/v1/drift/report", {"device": args.device})
        try:
            args.html.write_text(page, encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot write {args.html}: {error.strerror}", hint="check the folder") from None
        output.note(f"open {args.html} in a browser")
        output.result({**found, "html": str(args.html)}, str(args.html))
    else:
        output.result(found, _text(found))
    return None


def _text(found: dict[str, Any]) -> str:
    rows = [
        [
            "(pooled)" if v["device"] == "*" else v["device"],
            v["pipeline"],
            v["kind"],
            v["n"],
            _number(v["statistic"]),
            _number(v["p"]),
            v["state"].replace("_", " "),
            ", ".join(f["feature"] for f in v["features"]),
        ]
        for v in found["verdicts"]
    ]
    head = ["device", "pipeline", "kind", "n", "statistic", "p", "state", "most changed"]
    return table(rows, head) if rows else "no telemetry windows yet"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
