"""Build one candidate and say what its runtime sees in it. Runs in a worker process."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

from converters.backends import registry
from converters.backends.base import BuildRequest
from converters.errors import check_room
from edge_sdk import runtimes
from edge_sdk.errors import BackendError
from edge_sdk.runtimes.base import TensorSpec


def build(backend: str, request: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Return files (the main one first), bytes, input, steps, and the outputs in the source's order.

    Raises:
        BackendError: the build has not one of the source's outputs.
        DiskFullError: there is no space for it, whatever the tool said.
    """
    parsed = BuildRequest.from_json(request)
    parsed.out.mkdir(parents=True, exist_ok=False)
    try:
        built = registry().load(backend)(parsed)
    finally:
        check_room(parsed.out)
    runtime = str(registry().plugin(backend).capabilities["runtime"])
    found = {o["name"]: o for o in describe(runtime, built.files[0], options)}
    wanted = built.outputs or parsed.outputs or tuple(found)
    lost = [name for name in wanted if name not in found]
    if lost:
        raise BackendError(f"the {backend} back-end renamed the output `{lost[0]}`, its build has {', '.join(found)}")
    facts: dict[str, Any] = built.to_json()
    return facts | {
        "outputs": [found[name] for name in wanted],
        "decoder_params": dict(built.decoder_params),
        "bytes": sum(f.stat().st_size for f in built.files),
        "facts": file_facts(built.files[0]),
    }


def sensitivity(backend: str, request: dict[str, Any], images: int) -> dict[str, Any]:
    """Return `layers`: the names and errors of the layers that int8 hurts, worst first, measured on `images` images.

    Raises:
        BackendError: the back-end has no such measure.
    """
    target = registry().plugin(backend).capabilities.get("sensitivity")
    if not target:
        raise BackendError(f"the {backend} back-end cannot say which layers int8 hurts")
    module, _, name = str(target).partition(":")
    found = getattr(importlib.import_module(module), name)(BuildRequest.from_json(request), images)
    return {"layers": [{"layer": row.layer, "error": float(row.error)} for row in found]}


def file_facts(model: Path) -> dict[str, Any]:
    """Return what a built file says of its own format: IR version and opsets of ONNX, IR version of OpenVINO."""
    if model.suffix == ".onnx":
        import onnx

        proto = onnx.load(str(model), load_external_data=False)
        opsets = {o.domain or "ai.onnx": int(o.version) for o in proto.opset_import}
        return {"format": "onnx", "ir_version": int(proto.ir_version), "opset": dict(sorted(opsets.items()))}
    if model.suffix == ".xml":
        with model.open("rb") as file:
            found = re.search(rb'<net\b[^>]*\bversion="(\d+)"', file.read(4096))
        return {"format": "openvino", "ir_version": int(found.group(1)) if found else None}
    return {"format": model.suffix.removeprefix(".")}


def describe(runtime: str, model: Path, options: dict[str, Any]) -> list[dict[str, Any]]:
    """Open the model in its runtime and return its outputs as the manifest lists them."""
    engine = runtimes.registry().load(runtime)(model, options)
    try:
        return [_described(o) for o in engine.outputs]
    finally:
        engine.close()


def _described(output: TensorSpec) -> dict[str, Any]:
    row: dict[str, Any] = {"name": output.name, "shape": [int(d or 1) for d in output.shape], "dtype": output.dtype}
    return row if output.scale is None else row | {"scale": output.scale, "zero": output.zero or 0}
