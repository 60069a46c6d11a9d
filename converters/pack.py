"""Put one build into an artifact: golden self-test, card and bill of materials beside it. Runs in a worker process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from converters.evaluate import open_model
from converters.images import read
from edge_sdk.artifact import Artifact, check_golden, golden_entries, write_artifact
from edge_sdk.errors import ConversionError, GuardrailError
from edge_sdk.tasks.base import Detections

GOLDEN_FRAMES = 2


def pack(
    *,
    out: str,
    manifest: dict[str, Any],
    files: list[str],
    labels: list[str],
    images: list[str],
    evidence: dict[str, Any],
    card: str,
    bom: dict[str, Any],
) -> dict[str, Any]:
    """Write the artifact `out`, open it again and run its self-test; return path, digest, payload digest and size.

    Raises:
        GuardrailError: the packed artifact does not answer as the build did.
        ConversionError: the disk is full or cannot be written.
    """
    path = Path(out)
    with open_model(manifest, files[0], labels) as model:
        frames = _frames(model, images)
        golden = golden_entries(model, frames)
    entries: dict[str, bytes | Path] = {f"model/{Path(f).name}": Path(f) for f in files}
    entries |= golden
    entries["labels.txt"] = ("\n".join(labels) + "\n").encode()
    entries["card.md"] = card.encode()
    entries["bom.cdx.json"] = (json.dumps(bom, indent=2, sort_keys=True) + "\n").encode()
    try:
        write_artifact(path, manifest=manifest, entries=entries, evidence=evidence)
    except OSError as error:
        raise ConversionError(f"cannot write {path}: {error.strerror}", hint="check the folder and its space") from None
    artifact = Artifact.open(path)
    with artifact.load() as packed:
        failed = [c for c in check_golden(packed, artifact.golden()) if not c.ok]
    if failed:
        path.unlink(missing_ok=True)
        raise GuardrailError(f"the packed artifact fails its self-test: {failed[0].detail}", hint="report this")
    return {
        "path": str(path),
        "digest": artifact.sha256,
        "payload_digest": artifact.manifest.payload_digest,
        "size_bytes": path.stat().st_size,
    }


def _frames(model: Any, images: Sequence[str]) -> list[Any]:
    """Return frames for the self-test: the first of the golden set on which the model finds something."""
    found: list[Any] = []
    spare: list[Any] = []
    for name in images[:24]:
        image = read(name)
        if image is None:
            continue
        result = model(image)
        if isinstance(result, Detections) and len(result) == 0:
            spare.append(image)
            continue
        found.append(image)
        if len(found) == GOLDEN_FRAMES:
            break
    return (found + spare)[:GOLDEN_FRAMES]


def delta(old: str, new: str) -> dict[str, Any]:
    """Return the bytes of the bsdiff4 delta from one artifact to the next; `bytes` is None without bsdiff4."""
    try:
        import bsdiff4
    except ModuleNotFoundError:
        return {"bytes": None, "why": "bsdiff4 is not installed: pip install 'edge-sdk[agent]'"}
    return {"bytes": len(bsdiff4.diff(Path(old).read_bytes(), Path(new).read_bytes()))}
