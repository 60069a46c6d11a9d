"""Versions of the tools that made and judged a build."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable
from importlib import metadata

from converters import backends, environments

_PIN = re.compile(r"(?P<name>[\w.-]+)(?P<version>.*)")
ALWAYS = ("edge-sdk", "numpy", "opencv-python-headless", "pycocotools", "onnxruntime", "openvino")
_RUNTIMES = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    "litert": ("ai-edge-litert",),
    "tflite": ("tflite-runtime",),
}


def versions(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of those distributions that are installed."""
    found = {}
    for name in dict.fromkeys(names):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def of_backend(backend: str) -> dict[str, str]:
    """Return the versions of what a back-end builds with, Python's among them."""
    tools = backends.registry().plugin(backend).capabilities.get("tools", ())
    return versions(("edge-sdk", "numpy", *tools)) | {"python": platform.python_version()}


def of_runtime(runtime: str, environment: str = "") -> dict[str, str]:
    """Return the version of the distribution that runs a model, that of an `environment` by its pins."""
    if environment:
        pins = (_PIN.fullmatch(r) for r in environments.TABLE[environment].requirements)
        return {pin["name"]: pin["version"].removeprefix("==") for pin in pins if pin}
    return versions(("numpy", "opencv-python-headless", *_RUNTIMES.get(runtime, (runtime,))))


def all_known() -> dict[str, str]:
    """Return the versions of everything that takes part in conversions here."""
    table = backends.registry()
    named = [t for name in table.names() for t in table.plugin(name).capabilities.get("tools", ())]
    return versions([*ALWAYS, *named])
