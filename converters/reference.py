"""`--reference`: the user's own predict beside the model; a disagreement is named, and refused when it is grave."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converters.workers import Workshop
from edge_sdk.errors import GuardrailError

IMAGES = 32
"""On how many golden images, evenly spread."""
RESULTS = "reference.npz"
"""File of the reference's results in the work folder."""
FINE, POOR = 0.95, 0.8
"""An agreement from FINE on passes; below POOR it is refused even when nothing explains it."""
_HARMLESS = ("form", "filter")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`status` is agrees, warns or refuses; `message` for people, `hint` the flags that would mend it."""

    status: str
    message: str
    hint: str = ""


def check(
    function: str,
    *,
    worker: Workshop,
    runner: Workshop,
    manifest: Mapping[str, Any],
    model: Path,
    labels: Sequence[str],
    images: Sequence[str],
    task: str,
    classes: int,
    work: Path,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Run `function` on golden images beside the model, and return what evidence says of it.

    Args:
        worker: of the model's runtime.
        runner: of the user's code alone: what it imports and does stays in there.

    Raises:
        GuardrailError: both disagree; the message names the skew where one explains it.
        UsageError, ConversionError: the function cannot be imported or called, or returns another form.
    """
    chosen = spread(images)
    out = work / RESULTS
    skip = int(manifest["decoder"]["params"].get("skip", 0))
    runner.call(
        "reference", function=function, task=task, images=chosen, labels=list(labels), classes=classes, out=str(out)
    )
    found: dict[str, Any] = worker.call(
        "skew",
        manifest=dict(manifest),
        model=str(model),
        labels=list(labels),
        images=chosen,
        reference=str(out),
        skip=skip,
    )
    verdict = judge(found, function)
    if verdict.status == "refuses":
        raise GuardrailError(verdict.message, hint=verdict.hint)
    say(f"  {verdict.message}" + (f" ({verdict.hint})" if verdict.hint else ""))
    return {"function": function, "status": verdict.status} | found


def spread(images: Sequence[str]) -> list[str]:
    """Return the golden images that the reference runs on."""
    step = max(1.0, len(images) / IMAGES)
    return [images[int(i * step)] for i in range(min(IMAGES, len(images)))]


def judge(found: Mapping[str, Any], function: str) -> Verdict:
    """Return what the figures of `converters.skew.compare` mean."""
    value, explained = float(found["agreement"]), float(found["explained"])
    causes = [c for c in found["causes"] if c["kind"] != "form"]
    grave = [c for c in causes if c["kind"] not in _HARMLESS]
    said = " and ".join(str(c["name"]) for c in causes)
    said = f", {explained:.2f} when {said}" if said else ""
    hints = list(dict.fromkeys(str(c["hint"]) for c in causes if c["hint"]))
    flags = " ".join(h for h in hints if h.startswith("--"))
    hint = "; ".join(filter(None, [flags, *(h for h in hints if not h.startswith("--"))]))
    head = f"`{function}` and the model agree {value:.2f} on {found['n']} images{said}"
    if grave and explained >= min(FINE, value + 0.05):
        return Verdict(status="refuses", message=head, hint=hint)
    if value >= FINE and float(found["close"]) < POOR and not causes:
        return Verdict(
            status="warns",
            message=f"{head}, but on scores or places only {float(found['close']):.2f}",
            hint="is a softmax or sigmoid missing on one side, or applied twice?",
        )
    if value >= FINE or (causes and not grave and explained >= FINE):
        return Verdict(status="warns" if causes else "agrees", message=head, hint=hint)
    if value < POOR:
        return Verdict(
            status="refuses",
            message=f"{head}; neither colour, resize, scale, offset, classes nor boxes explain the rest",
            hint="the model computes something else: it was spoilt (by quantizing?), or is another one",
        )
    return Verdict(status="warns", message=f"{head}; no known skew explains the rest", hint=hint)
