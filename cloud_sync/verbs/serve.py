"""`edge serve`: the cloud service and its console."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from edge_sdk.errors import BackendError, UsageError
from edge_sdk.output import Output

if TYPE_CHECKING:
    from cloud_sync.service import Service


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, metavar="DIR", help="everything the service keeps (default: edge-data)")
    parser.add_argument("--host", metavar="H", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, metavar="N", help="HTTP port (default: 8080; 0: any free one)")
    parser.add_argument(
        "--broker",
        metavar="auto|mosquitto|embedded|URL",
        help="auto: mosquitto when it is installed, else the embedded one; URL: mqtt://user:password@host:port",
    )
    parser.add_argument("--broker-port", type=int, metavar="N", help="port of our own broker (default: 1883 if free)")
    parser.add_argument("--store", metavar="URL", help="database (default: sqlite:DATA/fleet.db)")
    parser.add_argument("--config", type=Path, metavar="serve.toml", help="these and every period and limit")


def run(args: argparse.Namespace, output: Output) -> int:
    import asyncio

    try:
        from cloud_sync.service import serve
        from cloud_sync.settings import load_settings
    except ModuleNotFoundError as error:
        missing = error.name or "a package"
        if missing.split(".")[0] in ("edge_sdk", "cloud_sync"):
            raise
        raise BackendError(
            f"`edge serve` needs `{missing}`, which is not installed", hint="pip install 'edge-sdk[cloud]'"
        ) from None

    given = {name: getattr(args, name) for name in ("data", "host", "port", "broker", "store")}
    given["data"] = str(args.data) if args.data is not None else None
    if args.broker_port is not None:
        given["mqtt"] = {"port": args.broker_port}
    settings = load_settings(args.config, given)
    if not hasattr(os, "fork"):
        raise UsageError("`edge serve` runs on Linux and macOS", hint="use a container or WSL on Windows")

    def on_ready(service: Service) -> None:
        token_file = settings.data / "operator.token"
        if output.as_json:
            output.result(
                {
                    "url": service.url,
                    "broker_url": service.broker.url,
                    "broker": service.broker.kind,
                    "data": str(settings.data),
                    "token_file": str(token_file),
                    "pid": os.getpid(),
                }
            )
        output.note(f"console  {service.url}")
        output.note(f"token    in {token_file} (EDGE_TOKEN for the operator's verbs, and the console's login)")
        output.note(f"broker   {service.broker.kind} on {service.broker.url}")
        if service.broker.notice:
            output.note(f"note     {service.broker.notice}", "yellow")

    return asyncio.run(serve(settings, on_ready))
