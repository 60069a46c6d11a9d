"""Run vision models on devices; the public names load on first use, so that importing the package costs nothing."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from edge_sdk.artifact import Artifact
    from edge_sdk.errors import EdgeError
    from edge_sdk.model import Model
    from edge_sdk.pipeline import Cameras, Pipeline
    from edge_sdk.tasks.base import Classes, Detections

_LAZY = {
    "Artifact": "edge_sdk.artifact",
    "Cameras": "edge_sdk.pipeline",
    "Classes": "edge_sdk.tasks.base",
    "Detections": "edge_sdk.tasks.base",
    "EdgeError": "edge_sdk.errors",
    "Model": "edge_sdk.model",
    "Pipeline": "edge_sdk.pipeline",
}

__all__ = ["Artifact", "Cameras", "Classes", "Detections", "EdgeError", "Model", "Pipeline", "__version__"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module `edge_sdk` has no attribute `{name}`")


def __dir__() -> list[str]:
    return sorted(__all__)
