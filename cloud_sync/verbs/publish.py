"""`edge publish`: artifacts into the catalog, signed as one release."""

from __future__ import annotations

import argparse
from pathlib import Path

from cloud_sync.client import add_server_arguments, from_args
from edge_sdk.output import Output, table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifacts", nargs="+", type=Path, metavar="ARTIFACT", help="one .edge file per profile")
    parser.add_argument("--model", required=True, metavar="M", help="the model's name, as in the artifacts")
    parser.add_argument("--version", required=True, metavar="V", help="the release's version; never used twice")
    add_server_arguments(parser)


def run(args: argparse.Namespace, output: Output) -> int | None:
    client = from_args(args)
    digests = []
    for path in args.artifacts:
        output.progress(f"  … {path.name}")
        added = client.upload("/artifacts", path)
        output.note(f"  {path.name}: {added['sha256'][:12]} for {added['profile']}, {added['size']} bytes")
        digests.append(added["sha256"])
    body = {"model": args.model, "version": args.version, "artifacts": digests}
    release = client.post("/api/v1/releases", body)
    rows = [[t["profile"], t["sha256"][:12], t["size"]] for t in release["targets"]]
    output.result(release, f"{release['release']}\n" + table(rows, ["profile", "artifact", "bytes"]))
    output.note(f"roll it out: edge rollout create --release {release['release']}")
    return None
