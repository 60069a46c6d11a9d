"""Pipelines: frames of a source through a model into sinks; public names load on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_sdk.pipeline.build import Pipeline
    from edge_sdk.pipeline.cameras import Cameras
    from edge_sdk.pipeline.observe import Observer
    from edge_sdk.pipeline.report import Report
    from edge_sdk.sinks.base import FrameResult

_LAZY = {
    "Cameras": "edge_sdk.pipeline.cameras",
    "FrameResult": "edge_sdk.sinks.base",
    "Observer": "edge_sdk.pipeline.observe",
    "Pipeline": "edge_sdk.pipeline.build",
    "Report": "edge_sdk.pipeline.report",
}

__all__ = ["Cameras", "FrameResult", "Observer", "Pipeline", "Report"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module `edge_sdk.pipeline` has no attribute `{name}`")
