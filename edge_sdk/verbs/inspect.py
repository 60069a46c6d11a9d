"""`edge inspect ARTIFACT`: what an artifact is, after every check of its form."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_sdk.output import Output, table
from edge_sdk.verbs.verify import form_step, open_artifact

if TYPE_CHECKING:
    from edge_sdk.artifact import Artifact


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", type=Path, help="an .edge file")


def run(args: argparse.Namespace, output: Output) -> int:
    """Print the manifest, the evidence and the entries."""
    artifact, code = open_artifact(args.artifact, output)
    if artifact is None:
        return code
    from edge_sdk.schemas import document

    manifest: dict[str, Any] = document.write(artifact.manifest)
    data = {
        "path": str(args.artifact),
        "digest": artifact.sha256,
        "size": args.artifact.stat().st_size,
        "ok": True,
        "checks": [form_step()],
        "manifest": manifest,
        "evidence": artifact.evidence,
    }
    output.result(data, _text(artifact))
    return 0


def _text(artifact: Artifact) -> str:
    manifest = artifact.manifest
    spec, runtime, metric = manifest.input, manifest.runtime, manifest.metric
    versions = " ".join(
        p for p in (f">={runtime.min}" if runtime.min else "", f"<{runtime.max}" if runtime.max else "") if p
    )
    rows = [
        ("name", f"{manifest.name} {manifest.version}"),
        ("digest", artifact.sha256),
        ("payload", manifest.payload_digest),
        ("profile", manifest.profile),
        ("task", f"{manifest.task}, decoder {manifest.decoder.name}, {len(artifact.labels)} labels"),
        ("runtime", " ".join(p for p in (runtime.name, versions, _pairs(runtime.options)) if p)),
        ("input", f"{spec.name} {spec.dtype} {list(spec.shape)} {spec.layout} {spec.color}, {spec.resize.mode}"),
        *(("output", f"{o.name} {o.dtype} {list(o.shape)}") for o in manifest.outputs),
    ]
    if metric is not None:
        rows.append(("metric", f"{metric.name} {metric.value:.4f}, source {metric.source:.4f}, n {metric.n}"))
    rows += [("licence", f"{what}: {licence}") for what, licence in manifest.licences.items()]
    width = max(len(key) for key, _ in rows)
    head = "\n".join(f"{key:<{width}}  {value}" for key, value in rows)
    entries = [[name, entry.size, entry.sha256[:12]] for name, entry in manifest.files.items()]
    return _printable(f"{head}\n\n{table(entries, ['entry', 'bytes', 'sha256'])}")


def _pairs(options: Any) -> str:
    return " ".join(f"{key}={value}" for key, value in options.items())


def _printable(text: str) -> str:
    """Return `text` without the control characters that a hostile manifest could send to a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
