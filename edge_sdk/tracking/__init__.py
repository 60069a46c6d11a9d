"""Following objects from frame to frame: ByteTrack (arXiv 2110.06864) in vectorised numpy."""

from __future__ import annotations

from edge_sdk.tracking.assignment import assign, solve
from edge_sdk.tracking.bytetrack import Tracker

__all__ = ["Tracker", "assign", "solve"]
