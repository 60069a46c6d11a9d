"""Build one candidate and say what its runtime sees in it. Runs in a worker process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from converters.backends import registry
from converters.backends.base import BuildRequest
from edge_sdk import runtimes


def build(backend: str, request: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Return files (the main one first), bytes, input, outputs as the runtime names them, and steps."""
    parsed = BuildRequest.from_json(request)
    parsed.out.mkdir(parents=True, exist_ok=False)
    built = registry().load(backend)(parsed)
    facts: dict[str, Any] = built.to_json()
    return facts | {
        "outputs": describe(backend, built.files[0], options),
        "bytes": sum(f.stat().st_size for f in built.files),
    }


def describe(runtime: str, model: Path, options: dict[str, Any]) -> list[dict[str, Any]]:
    """Open the model in its runtime and return its outputs as the manifest lists them."""
    engine = runtimes.registry().load(runtime)(model, options)
    try:
        return [{"name": o.name, "shape": [int(d or 1) for d in o.shape], "dtype": o.dtype} for o in engine.outputs]
    finally:
        engine.close()
