"""The part of `edge verify` that runs an engine: a process of its own, so that a crash of native code is an answer."""

from __future__ import annotations

import json
import sys
from typing import Any

from edge_sdk.artifact import Artifact, check_golden
from edge_sdk.errors import EdgeError


def steps_of(path: str) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Load the artifact, run its golden inputs; return the checks and the error that ended them, if one did."""
    steps: list[dict[str, Any]] = []
    name = "load"
    try:
        artifact = Artifact.open(path)
        with artifact.load() as model:
            steps.append({"name": name, "ok": True, "detail": f"runs in {artifact.manifest.runtime.name}"})
            name = "golden"
            steps += [check.to_json() for check in check_golden(model, artifact.golden())]
    except EdgeError as error:
        return [*steps, {"name": name, "ok": False, "detail": error.message}], error.to_json()
    if len(steps) == 1:
        steps.append({"name": "golden", "ok": True, "detail": "the artifact has no golden inputs, nothing was run"})
    return steps, None


def main() -> None:
    """Print one line of JSON about the artifact named by the first argument."""
    steps, error = steps_of(sys.argv[1])
    sys.stdout.write(json.dumps({"steps": steps, "error": error}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
