"""The page: what was chosen for each profile, the plots, and every candidate with the reason for its rejection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from converters.report import plots
from converters.report.style import STYLE
from converters.results import Converted, by_use
from converters.search import Job, Outcome
from device_profiles.machine import Machine

_LONG = 60
"""Letters from which on a reason is not told twice in a row."""


def page(
    finished: Mapping[str, Sequence[Outcome]],
    *,
    job: Job,
    source: Mapping[str, Any],
    done: Sequence[Converted],
    machine: Machine,
) -> str:
    """Return the HTML of the report.

    Args:
        finished: profile -> its candidates.
        source: metric and latency of the model as it came.
        done: the artifacts; none when a guardrail refused.
    """
    title = f"{job.plan.name} {job.recipe.version}"
    artifacts = {d.profile: d for d in done}
    sections = [_profile(name, by_use(rows), source, artifacts.get(name)) for name, rows in finished.items()]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}: conversion</title><style>{STYLE}</style></head><body><main>"
        f"<h1>{escape(title)}</h1>{_head(job, source, machine)}{''.join(sections)}{_legend()}"
        "</main></body></html>\n"
    )


def _head(job: Job, source: Mapping[str, Any], machine: Machine) -> str:
    metric = source["metric"]
    latency = source.get("latency_ms")
    judged = "labels" if job.judge is not None and job.judge.labelled else "agreement with the source (no labels)"
    facts = [
        ("task", f"{job.plan.task}, decoder {job.plan.decoder}"),
        ("source", f"{job.source.format}, SHA-256 {job.source.sha256[:16]}…"),
        ("source's metric", f"{metric['name']} {metric['value']:.4f} on {metric['n']} images, judged by {judged}"),
        ("source's latency", f"{latency['p50']:.2f} ms of CPU, one thread" if latency else "not measured"),
        ("calibration", f"{len(job.calibration)} images" if job.calibration else "none"),
        ("limits", _limits(job)),
        ("measured on", machine.label()),
    ]
    rows = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts)
    return f"<dl>{rows}</dl>"


def _limits(job: Job) -> str:
    recipe = job.recipe
    floor = "" if recipe.min_metric is None else f", metric at least {recipe.min_metric:g}"
    return f"drop at most {recipe.max_drop:g}{floor}"


def _profile(name: str, rows: Sequence[Outcome], source: Mapping[str, Any], done: Converted | None) -> str:
    about = plots.estimated(rows)
    note = "<p class=note>Figures marked ~ are estimates for a CPU that is not this one.</p>" if about else ""
    return (
        f"<section><h2>{escape(name)}</h2>{_chosen(rows, done)}"
        f"<div class=plots>{plots.pareto(rows, source)}{plots.drops(rows)}</div>{_table(rows)}{note}</section>"
    )


def _chosen(rows: Sequence[Outcome], done: Converted | None) -> str:
    chosen = next((o for o in rows if o.status == "chosen"), None)
    if chosen is None or done is None:
        return "<p class=verdict>No build may be used: see the reasons below.</p>"
    speed = f", {done.speedup:.2f} times the speed of the source as it came" if done.speedup else ""
    return (
        f"<p class=verdict>Chosen: <b>{escape(plots.name_of(chosen))}</b>{escape(speed)}. "
        f"<code>{escape(done.path.name)}</code>, {done.size_bytes / 2**20:.2f} MiB</p>"
    )


def _table(rows: Sequence[Outcome]) -> str:
    head = ("", "candidate", "status", "metric", "drop (95 % interval)", "CPU ms", "MiB", "RAM MiB", "reason")
    cells = "".join(f"<th>{h}</th>" for h in head)
    before = [None, *(o.reason for o in rows)]
    body = "".join(_row(i, o, before[i - 1]) for i, o in enumerate(rows, 1))
    return f"<div class=scroll><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>"


def _row(index: int, o: Outcome, above: str | None) -> str:
    """Return a row; a long reason that the row above has, too, is not told again."""
    metric, latency, ram = o.metric or {}, o.latency_ms or {}, o.ram_mb or {}
    about = "~" if latency.get("kind") == "estimate" else ""
    low, high = metric.get("drop_interval", (0, 0))
    front = " ◆" if o.pareto else ""
    reason = "as above" if o.reason and o.reason == above and len(o.reason) > _LONG else o.reason or ""
    kind = f"<span class=kind>{o.reason_kind.value}</span> " if o.reason_kind else ""
    cells = [
        f"<td class=n>{index}</td><td>{escape(plots.name_of(o))}{front}</td>",
        f'<td><span class="tag {o.status}">{o.status}</span></td>',
        f"<td class=n>{metric['value']:.4f}</td>" if metric else "<td></td>",
        f"<td class=n>{metric['drop']:+.4f} <small>{low:+.4f} to {high:+.4f}</small></td>" if metric else "<td></td>",
        f"<td class=n>{about}{latency['p50']:.2f}</td>" if latency else "<td></td>",
        f"<td class=n>{o.size_bytes / 2**20:.2f}</td>" if o.size_bytes else "<td></td>",
        f"<td class=n>{ram['peak']:.0f}</td>" if ram else "<td></td>",
        f"<td class=why>{kind}{escape(reason)}</td>",
    ]
    return f"<tr class={o.status}>{''.join(cells)}</tr>"


def _legend() -> str:
    return (
        "<footer><p>◆ on the Pareto front: no other build that may be used is at least as good in latency, size and "
        "metric and better in one. Latency is CPU time of one inference in one thread, p50, all builds measured in "
        "alternation. Intervals are paired bootstraps over the golden images.</p></footer>"
    )
