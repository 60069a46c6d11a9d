"""The drift report: one HTML file with its plots inside, no script and no request to anywhere."""

from __future__ import annotations

import html
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from cloud_sync.drift.service import FLEET, Drift

Row = Mapping[str, Any]
_MEANING = {
    "insufficient": "too few samples to say anything",
    "learning": "the baseline is being taken",
    "stable": "like its baseline",
    "suspected": "one window differs; a second one decides",
    "drifted": "input changed",
    "likely_harm": "likely harm: the estimated accuracy fell",
}
_SHOWN_FEATURES = 4
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:#1c2733;background:#fff}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.5rem;border-bottom:1px solid #d5dce3;padding-bottom:.3rem}
table{border-collapse:collapse;margin:.5rem 0}
td,th{padding:.25rem .8rem;text-align:left;border-bottom:1px solid #e5eaef}
td.n{text-align:right;font-variant-numeric:tabular-nums}.state{padding:.1rem .6rem;border-radius:1rem;font-weight:600}
.stable{background:#dff3e4}.learning,.insufficient{background:#e8edf2}.suspected{background:#fdf0cf}
.drifted{background:#ffe0cc}.likely_harm{background:#ffd5d5}figure{display:inline-block;margin:.5rem 1.5rem .5rem 0}
figcaption{font-size:.85rem;color:#4a5a6a}svg{background:#f7f9fb}.muted{color:#5a6a7a}
"""


def render(drift: Drift, *, device: str | None, now: float) -> str:
    """Return the report of one device or of all: states, verdicts, references, histograms, p-values over time."""
    devices = [d for d in drift.devices() if device is None or d["device"] == device]
    verdicts = drift.verdicts(device)
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Drift report</title>",
        f"<style>{_STYLE}</style></head><body><h1>Drift report</h1>",
        f"<p class='muted'>{_when(now)} · {len(devices)} pipelines. In the histograms the grey bars are the"
        " reference and the orange line the latest windows, both over 0 to 1; in the p-value plots the dashed line is"
        " p = 0.01, and what lies under it differs.</p>",
        _overview(devices),
    ]
    pooled = [v for v in verdicts if v["device"] == FLEET]
    if pooled:
        parts.append("<h2>Shifts that devices share</h2>" + _table(pooled, across="pipeline"))
    for row in devices:
        parts.append(_device(drift, row, verdicts))
    parts.append("</body></html>")
    return "\n".join(parts)


def _overview(devices: Sequence[Row]) -> str:
    rows = "".join(
        f"<tr><td>{_text(d['device'])}</td><td>{_text(d['pipeline'])}</td><td>{_text(d['profile'])}</td>"
        f"<td>{_state(d['state'])}</td><td>{_text(_MEANING.get(d['state'], ''))}</td><td>{_when(d['since'])}</td></tr>"
        for d in devices
    )
    head = "<tr><th>device</th><th>pipeline</th><th>profile</th><th>state</th><th></th><th>since</th></tr>"
    return f"<table>{head}{rows}</table>" if rows else "<p>No telemetry windows yet.</p>"


def _device(drift: Drift, row: Row, verdicts: Sequence[Row]) -> str:
    mine = [v for v in verdicts if v["device"] == row["device"] and v["pipeline"] == row["pipeline"]]
    out = [f"<h2>{_text(row['device'])} · {_text(row['pipeline'])} {_state(row['state'])}</h2>"]
    reference = drift.reference(row["device"], row["pipeline"])
    if reference:
        out.append(
            f"<p>Reference: {reference['windows']} windows, {reference['samples']} samples, {_when(reference['t0'])} to"
            f" {_when(reference['t1'])}; artifact <code>{_text(row['model'][:12])}</code>.</p>"
        )
    out.append(_table(mine))
    series = [s for s in drift.series(row["device"]) if s["pipeline"] == row["pipeline"] and s["model"] == row["model"]]
    for kind in dict.fromkeys(s["kind"] for s in series):
        points = [s for s in series if s["kind"] == kind]
        if points[-1]["p"] is not None:
            out.append(_figure(_p_plot(points), f"{kind}: p-value of each window (log scale, newest right)"))
        for feature in points[-1]["evidence"].get("features", [])[:_SHOWN_FEATURES]:
            out.append(_figure(_histograms(feature), _caption(feature)))
    return "\n".join(out)


def _table(rows: Sequence[Row], *, across: str | None = None) -> str:
    first = [across] if across else []
    names = (*first, "kind", "n", "statistic", "p", "state", "most changed")
    head = f"<tr>{''.join(f'<th>{n}</th>' for n in names)}</tr>"
    body = "".join(
        f"<tr>{''.join(f'<td>{_text(r[key])}</td>' for key in first)}<td>{_text(r['kind'])}</td>"
        f"<td class='n'>{r['n']}</td><td class='n'>{_number(r['statistic'])}</td><td class='n'>{_number(r['p'])}</td>"
        f"<td>{_state(r['state'])}</td><td>{_text(', '.join(f['feature'] for f in r['features']))}</td></tr>"
        for r in rows
    )
    return f"<table>{head}{body}</table>"


def _caption(feature: Row) -> str:
    parts = [f"{feature['feature']}: {feature['reference']:.3f} → {feature['current']:.3f} (z {feature['z']:+.1f})"]
    parts += [f"{name} {feature[name]:.3f}" for name in ("psi", "ks", "js", "wasserstein", "chi2_p") if name in feature]
    return " · ".join(parts)


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{_text(caption)}</figcaption></figure>"


def _histograms(feature: Row, width: int = 320, height: int = 90) -> str:
    """Reference as grey bars, current as an orange line, each scaled to its own total."""
    reference, current = feature["reference_hist"], feature["current_hist"]
    a, b = _shares(reference), _shares(current)
    top = max([*a, *b, 1e-9])
    step = width / max(len(a), 1)
    bars = "".join(
        f"<rect x='{i * step:.1f}' y='{height * (1 - v / top):.1f}' width='{step:.1f}' height='{height * v / top:.1f}'"
        " fill='#b8c4cf'/>"
        for i, v in enumerate(a)
    )
    line = " ".join(f"{(i + 0.5) * step:.1f},{height * (1 - v / top):.1f}" for i, v in enumerate(b))
    return (
        f"<svg width='{width}' height='{height}' role='img' aria-label='histogram'>{bars}"
        f"<polyline points='{line}' fill='none' stroke='#d9541e' stroke-width='2'/></svg>"
    )


def _p_plot(points: Sequence[Row], width: int = 660, height: int = 90) -> str:
    values = [max(p["p"], 1e-12) for p in points if p["p"] is not None]
    step = width / max(len(values), 1)
    places = [((i + 0.5) * step, -math.log10(v) / 12 * (height - 10) + 5) for i, v in enumerate(values)]
    dots = "".join(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='2.5' fill='#d9541e'/>" for x, y in places)
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    limit = 2 / 12 * (height - 10) + 5
    return (
        f"<svg width='{width}' height='{height}' role='img' aria-label='p-values'>"
        f"<line x1='0' x2='{width}' y1='{limit:.1f}' y2='{limit:.1f}' stroke='#8aa' stroke-dasharray='4'/>"
        f"<polyline points='{line}' fill='none' stroke='#d9541e' stroke-opacity='.4'/>{dots}</svg>"
    )


def _shares(counts: Sequence[float]) -> list[float]:
    total = sum(counts)
    return [c / total for c in counts] if total else [0.0 for _ in counts]


def _state(state: str) -> str:
    return f"<span class='state {_text(state)}'>{_text(state.replace('_', ' '))}</span>"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _when(t: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(t))


def _text(value: object) -> str:
    return html.escape(str(value))
