"""What `edge run` tells people of its report."""

from __future__ import annotations

from typing import Any

from edge_sdk.output import table
from edge_sdk.sources.uri import redact


def warnings_of(report: dict[str, Any]) -> list[str]:
    """Return a line for each thing that went wrong on the way."""
    lines = [f"warning: {w}" for w in report["warnings"]]
    broken, errors = report["broken"], {k: n for k, n in report["errors"].items() if k != "source"}
    if broken:
        n = report["frames"]["dropped"].get("broken", len(broken))
        shown = ", ".join(broken[:8]) + (" …" if n > 8 else "")
        lines.append(f"warning: {n} image{'s' if n > 1 else ''} could not be decoded: {shown}")
    if errors:
        lines.append("warning: failed: " + ", ".join(f"{n} {kind}" for kind, n in errors.items()))
    return lines


def report_text(report: dict[str, Any]) -> str:
    """Return what was found, what it cost and where it was written."""
    frames, latency = report["frames"], report["latency_ms"]
    lines = [
        f"{frames['processed']} of {frames['in']} frames in {report['seconds']:.1f} s: {report['fps']:.1f} frames/s, "
        f"{report['cpu_ms_per_frame'] or 0:.1f} ms CPU a frame, latency p95 {latency['p95'] or 0:.1f} ms, "
        f"{report['rss_mb'] or 0:.0f} MB"
    ]
    if frames["dropped"]:
        lines.append("dropped: " + ", ".join(f"{n} {cause}" for cause, n in frames["dropped"].items()))
    if report["results"]:
        rows = [[label, r["frames"], r["count"], r["best"]] for label, r in list(report["results"].items())[:15]]
        lines += ["", table(rows, ["found", "frames", "count", "best score"])]
    else:
        lines.append("nothing found")
    lines += _control_text(report.get("control") or {})
    lines += [shadow_text(s["name"], s["shadow"]) for s in report["stages"] if "shadow" in s]
    if "explain" in report:
        lines += ["", *_explained(report["explain"])]
    written = [f"{redact(s['uri'])} ({s['written']})" for s in report["sinks"]]
    if written:
        lines += ["", "written: " + ", ".join(written)]
    return "\n".join(lines)


def _control_text(control: dict[str, Any]) -> list[str]:
    """Return a line for each override that held, and one about a device that was hot."""
    override, degrade = control.get("override") or {}, control.get("degrade") or {}
    active = override.get("active", ())
    lines = [
        f"override {name}: held for {seconds:.0f} s" + (", holds" if name in active else "")
        for name, seconds in override.get("seconds", {}).items()
        if seconds or name in active
    ]
    if degrade.get("worst"):
        why = f": {degrade['why']}" if degrade["why"] else ""
        lines.append(f"degraded to level {degrade['worst']}, now {degrade['level']}{why}")
    return lines + ([f"problem: {control['problem']}"] if "problem" in control else [])


def shadow_text(stage: str, shadow: dict[str, Any]) -> str:
    """Return one line about how a shadow's answers differ."""
    parts = []
    for compared in shadow["compared"]:
        agreement = compared["agreement"]
        same = f"agreement {agreement['mean']:.3f} in " if agreement["n"] else ""
        parts.append(f"{same}{compared['pairs']} pairs")
    parts += [f"{n} failed ({kind})" for kind, n in shadow["failed"].items()]
    parts += [f"{shadow['dropped']} dropped"] if shadow["dropped"] else []
    parts += [shadow["error"]] if shadow["error"] is not None else []
    return f"shadow of {stage}: " + (", ".join(parts) or "no pairs")


def _explained(decisions: list[dict[str, Any]]) -> list[str]:
    """Return the table of what the stages decided, or a line that says that there was nothing to decide."""
    if not decisions:
        return ["no stage decided anything then: zones, lines, alerts, second models and the motion gate do"]
    rows = [
        [f"{d['t_s']:.2f}", d["stage"], d["step"], d.get("track", ""), "yes" if d["accepted"] else "no", d["why"]]
        for d in decisions
    ]
    return [table(rows, ["t", "stage", "step", "track", "passed", "why"])]


def check_text(report: dict[str, Any]) -> str:
    """Return what `--check` opened."""
    source = report["source"]
    size = "x".join(str(v) for v in source["size"]) if source["size"] else "no frame"
    lines = [f"source  {source['uri']}: {size}{', live' if source['live'] else ''}"]
    for s in report["stages"]:
        what = f"{s['model'][:12]}, {s['selftests']} self-tests passed" if "model" in s else s["kind"]
        lines.append(f"stage   {s['name']}: {what}")
    lines += [f"sink    {uri}" for uri in report["sinks"]]
    lines += [f"record  {report['record']}"] if "record" in report else []
    states = {True: "active now", False: "not now", None: "now, when it is dark"}
    lines += [f"override {o['name']}: {o['when']}: {states[o['active']]}" for o in report.get("overrides", ())]
    return "\n".join([*lines, "ok"])
