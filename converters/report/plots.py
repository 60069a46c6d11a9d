"""Plots of the candidates as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from converters.search import Outcome

WIDTH, HEIGHT = 560, 340
LEFT, RIGHT, TOP, BOTTOM = 56, 18, 16, 44
_STATES = ("chosen", "passed", "refused")


def name_of(o: Outcome) -> str:
    """Return the candidate's name for people."""
    variant = f" ({o.candidate.variant})" if o.candidate.variant else ""
    return f"{o.candidate.runtime} {o.candidate.precision}{variant}"


def estimated(rows: Sequence[Outcome]) -> bool:
    """Return whether latencies are estimates for another machine."""
    return any((o.latency_ms or {}).get("kind") == "estimate" for o in rows)


def pareto(rows: Sequence[Outcome], source: Mapping[str, Any]) -> str:
    """Return latency against metric, the area of a circle the size of the file, bars the interval of the metric."""
    shown = [(i, o) for i, o in enumerate(rows, 1) if o.latency_ms and o.metric and o.status in _STATES]
    if not shown:
        return ""
    ms = [float(o.latency_ms["p50"]) for _, o in shown if o.latency_ms]
    spans = [_span(o) for _, o in shown]
    x = _scale(0.0, max(ms) * 1.08, LEFT, WIDTH - RIGHT)
    values = [v for span in spans for v in span] + [float(source["metric"]["value"])]
    low, high = _padded(min(values), max(values))
    y = _scale(low, max(min(high, 1.0), *values), HEIGHT - BOTTOM, TOP + 14)
    most = max(o.size_bytes or 1 for _, o in shown)
    parts = [_axes(x, y, "CPU ms of one inference, p50", str(shown[0][1].metric["name"] if shown[0][1].metric else ""))]
    parts.append(_level(y, float(source["metric"]["value"]), "source"))
    front = sorted(
        (float(o.latency_ms["p50"]), float(o.metric["value"]))
        for _, o in shown
        if o.pareto and o.latency_ms and o.metric
    )
    if len(front) > 1:
        parts.append(f'<polyline class="front" points="{" ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in front)}"/>')
    labels: list[tuple[float, float]] = []
    for (index, o), at, (low, high) in zip(shown, ms, spans, strict=True):
        assert o.metric is not None
        radius = 4 + 11 * math.sqrt((o.size_bytes or 0) / most)
        cx, cy = x(at), y(float(o.metric["value"]))
        labels.append(_free(labels, cx, cy))
        parts.append(
            f'<g class="{o.status}"><title>{escape(_tip(o))}</title>'
            f'<line class="bar" x1="{cx:.1f}" x2="{cx:.1f}" y1="{y(low):.1f}" y2="{y(high):.1f}"/>'
            f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="{radius:.1f}"/>'
            f'<text x="{labels[-1][0]:.1f}" y="{labels[-1][1] + 4:.1f}" text-anchor="middle">{index}</text></g>'
        )
    caption = "Faster is left, better is up; the area is the size of the file, the bar the 95 % interval of the drop"
    return _figure(caption, "".join(parts), HEIGHT)


def drops(rows: Sequence[Outcome]) -> str:
    """Return the drop of each judged candidate with its interval, one line each."""
    shown = [(i, o) for i, o in enumerate(rows, 1) if o.metric]
    if not shown:
        return ""
    line = 24
    height = TOP + line * len(shown) + BOTTOM
    ends = [v for _, o in shown if o.metric for v in (*o.metric["drop_interval"], o.metric["drop"])]
    left = 190
    x = _scale(*_padded(min([*ends, 0.0]), max([*ends, 0.0])), left, WIDTH - RIGHT)
    parts = [_ticks_x(x, height - BOTTOM, "drop of the metric below the source")]
    parts.append(f'<line class="limit" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="{TOP}" y2="{height - BOTTOM}"/>')
    for row, (index, o) in enumerate(shown):
        assert o.metric is not None
        low, high = o.metric["drop_interval"]
        cy = TOP + line * (row + 0.5)
        parts.append(
            f'<g class="{o.status}"><title>{escape(_tip(o))}</title>'
            f'<text x="{left - 10}" y="{cy + 4:.1f}" text-anchor="end">{index} {escape(_short(o))}</text>'
            f'<line class="bar" x1="{x(low):.1f}" x2="{x(high):.1f}" y1="{cy:.1f}" y2="{cy:.1f}"/>'
            f'<circle class="mark" cx="{x(o.metric["drop"]):.1f}" cy="{cy:.1f}" r="5"/></g>'
        )
    return _figure("Drop of each judged build, with its 95 % interval; right is worse", "".join(parts), height)


def _free(taken: Sequence[tuple[float, float]], x: float, y: float) -> tuple[float, float]:
    """Return where a number may stand near (x, y) without covering another."""
    while any(abs(x - a) < 16 and abs(y - b) < 13 for a, b in taken):
        y -= 13
    return x, y


def _span(o: Outcome) -> tuple[float, float]:
    """Return the metric at the two ends of the interval of the drop."""
    assert o.metric is not None
    low, high = o.metric["drop_interval"]
    return float(o.metric["source"]) - high, float(o.metric["source"]) - low


def _tip(o: Outcome) -> str:
    size = f", {(o.size_bytes or 0) / 2**20:.2f} MiB"
    latency = f", {o.latency_ms['p50']:.2f} ms" if o.latency_ms else ""
    metric = f", {o.metric['name']} {o.metric['value']:.4f}" if o.metric else ""
    return f"{name_of(o)}: {o.status}{metric}{latency}{size}"


def _short(o: Outcome) -> str:
    text = name_of(o).replace("onnxruntime", "ort")
    return text if len(text) <= 26 else f"{text[:25]}…"


class _scale:
    """A linear map of values to pixels."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.high, self.start, self.end = low, high, start, end

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / max(self.high - self.low, 1e-12) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Return four to eight round values inside."""
        step = 10 ** math.floor(math.log10(max(self.high - self.low, 1e-9) / 4))
        step *= next(m for m in (1, 2, 5, 10) if (self.high - self.low) / (step * m) <= 8)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _padded(low: float, high: float) -> tuple[float, float]:
    room = max(0.08 * (high - low), 0.002)
    return low - room, high + room


def _axes(x: _scale, y: _scale, across: str, up: str) -> str:
    parts = [_ticks_x(x, HEIGHT - BOTTOM, across)]
    for value in y.ticks():
        at = y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="dim" x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{value:.6g}</text>')
    parts.append(f'<text class="dim" x="{LEFT}" y="11">{escape(up)}</text>')
    return "".join(parts)


def _ticks_x(x: _scale, bottom: float, across: str) -> str:
    parts = []
    for value in x.ticks():
        at = x(value)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom:.1f}"/>')
        parts.append(f'<text class="dim" x="{at:.1f}" y="{bottom + 16:.1f}" text-anchor="middle">{value:.6g}</text>')
    middle = (x.start + x.end) / 2
    parts.append(
        f'<text class="dim" x="{middle:.1f}" y="{bottom + 34:.1f}" text-anchor="middle">{escape(across)}</text>'
    )
    return "".join(parts)


def _level(y: _scale, value: float, name: str) -> str:
    at = y(value)
    return (
        f'<line class="front" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        f'<text class="dim" x="{LEFT + 4}" y="{at - 5:.1f}">{escape(name)}</text>'
    )


def _figure(caption: str, content: str, height: float) -> str:
    return (
        f'<figure><figcaption>{escape(caption)}</figcaption><svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'aria-label="{escape(caption)}">{content}</svg></figure>'
    )
