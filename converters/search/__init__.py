"""The search over candidates: order, build, verify, rescue, measure, choose."""

from __future__ import annotations

from converters.search.builds import Builds
from converters.search.choose import for_profile
from converters.search.job import Base, Job
from converters.search.outcome import Outcome
from converters.search.run import Search

__all__ = ["Base", "Builds", "Job", "Outcome", "Search", "for_profile"]
