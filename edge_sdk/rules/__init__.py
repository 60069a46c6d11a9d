"""What happens in a scene: zones, lines, dwell times, counts and debounced rules over tracked detections."""

from __future__ import annotations

from edge_sdk.rules.alerts import Alert
from edge_sdk.rules.base import Decision, Outcome, Trace
from edge_sdk.rules.lines import Line
from edge_sdk.rules.zones import Zone

__all__ = ["Alert", "Decision", "Line", "Outcome", "Trace", "Zone"]
