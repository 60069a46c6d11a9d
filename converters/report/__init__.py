"""The report of a conversion: one HTML file without scripts or anything from elsewhere."""

from __future__ import annotations

from converters.report.page import page

__all__ = ["page"]
