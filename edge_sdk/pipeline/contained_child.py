"""The process behind `edge_sdk.pipeline.contained`: tensors come on stdin, the engine's answers go to stdout."""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress
from dataclasses import asdict
from typing import Any, BinaryIO

import numpy as np

from edge_sdk.artifact import Artifact
from edge_sdk.errors import EdgeError
from edge_sdk.pipeline.contained import NICE, message


def main() -> None:
    """Load the artifact that the first line names and answer until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(OSError):
        os.nice(NICE)
    # Engines print on stdout when they like: only this descriptor carries answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    requests = sys.stdin.buffer
    spec = json.loads(requests.readline())
    try:
        runtime = Artifact.open(spec["path"]).load(options=spec["options"]).runtime
    except EdgeError as error:
        _send(answers, {"error": error.to_json()})
        return
    _send(answers, {k: [asdict(s) for s in getattr(runtime, k)] for k in ("inputs", "outputs")})
    while line := requests.readline():
        feeds = {row["name"]: _tensor(requests, row) for row in json.loads(line)["tensors"]}
        try:
            parts = message(runtime.infer(feeds))
        except EdgeError as error:
            _send(answers, {"error": error.to_json()})
            continue
        for part in parts:
            answers.write(part)
        answers.flush()


def _tensor(requests: BinaryIO, row: dict[str, Any]) -> Any:
    data = requests.read(row["bytes"])
    return np.frombuffer(data, np.dtype(row["dtype"])).reshape(row["shape"])


def _send(answers: BinaryIO, document: dict[str, Any]) -> None:
    answers.write(json.dumps(document).encode() + b"\n")
    answers.flush()


if __name__ == "__main__":
    main()
    sys.stderr.flush()
    # Native threads that still run must not keep the process.
    os._exit(0)
