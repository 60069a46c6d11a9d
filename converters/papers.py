"""The documents of an artifact: model card (Markdown) and bill of materials (CycloneDX 1.6, ML-BOM)."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

_TASKS = {
    "classification": "image-classification",
    "detection": "object-detection",
    "segmentation": "image-segmentation",
    "keypoints": "keypoint-detection",
    "embedding": "image-feature-extraction",
    "regression": "image-regression",
}
_NAMESPACE = uuid.UUID("8f3f3c1e-5b0a-5d53-9d0c-3a9f0f6a7c11")


def card(manifest: Mapping[str, Any], evidence: Mapping[str, Any]) -> str:
    """Return a model card: what it is, how it was made, how good it is, on what data."""
    metric, spec = manifest["metric"], manifest["input"]
    low, high = metric["drop_interval"]
    agree = metric["name"].startswith("agreement")
    lines = [
        *_front_matter(manifest, evidence),
        f"# {manifest['name']} {manifest['version']} for {manifest['profile']}",
        "",
        f"- Task: {manifest['task']}, decoder `{manifest['decoder']['name']}`",
        f"- Runtime: {manifest['runtime']['name']}, precision {evidence['chosen']['precision']}",
        f"- Input: {spec['color']} {spec['layout']} {spec['shape']} {spec['dtype']}, resize {spec['resize']['mode']}",
        f"- Source model: SHA-256 `{manifest['source_sha256']}`",
        "",
        "## How good it is",
        "",
        f"{metric['name']} on {metric['n']} golden images: {metric['value']:.4f}, source {metric['source']:.4f}, "
        f"drop {metric['drop']:.4f} (95 % interval {low:.4f} to {high:.4f}).",
    ]
    if agree:
        lines += ["", "The golden images have no labels: the figures say how far the build agrees with the source."]
    looks = evidence.get("golden_looks")
    if looks:
        lines += ["", f"Builds were judged on the golden set {looks} time(s) before this one was chosen."]
    lines += [
        *_deltas(manifest),
        "",
        "## How it was made",
        "",
        *(f"1. {step}" for step in evidence["chosen"]["steps"]),
        "",
        "## Data",
        "",
    ]
    for name in ("calibration", "golden"):
        data = evidence[name]
        if data is None:
            lines.append(f"- {name}: none")
        else:
            lines.append(f"- {name}: {data['n']} images, layout {data['kind']}, SHA-256 `{data['sha256']}`")
    licences = manifest.get("licences") or {}
    lines += ["", "## Licences", ""]
    lines += [f"- {k}: {v}" for k, v in licences.items()] or ["- not stated when the model was converted"]
    return "\n".join(lines) + "\n"


def _front_matter(manifest: Mapping[str, Any], evidence: Mapping[str, Any]) -> list[str]:
    """Return the metadata that tools read, as Hugging Face's model cards have it; values are JSON, which YAML reads.

    Source: https://github.com/huggingface/hub-docs/blob/main/modelcard.md, docs/reference/model-card.schema.json.
    """
    metric = manifest["metric"]
    kind = _TASKS.get(manifest["task"], manifest["task"])
    licences = sorted(set((manifest.get("licences") or {}).values()))
    golden = evidence["golden"] or {}
    data = {
        "license": licences[0].lower() if len(licences) == 1 else "other" if licences else "unknown",
        "library_name": "edge-sdk",
        "pipeline_tag": kind,
        "tags": list(
            dict.fromkeys(
                ["edge-sdk", manifest["runtime"]["name"], evidence["chosen"]["precision"], manifest["profile"]]
            )
        ),
        "model-index": [
            {
                "name": manifest["name"],
                "results": [
                    {
                        "task": {"type": kind},
                        "dataset": {"name": "golden set", "type": str(golden.get("kind", "images"))},
                        "metrics": [{"type": metric["name"], "name": metric["name"], "value": metric["value"]}],
                    }
                ],
            }
        ],
    }
    return ["---", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in data.items()), "---", ""]


def _deltas(manifest: Mapping[str, Any]) -> list[str]:
    """Return what the card says of the distance of the outputs to the source's."""
    rows = ((manifest.get("conversion") or {}).get("deltas") or {}).get("outputs") or []
    if not rows:
        return []
    lines = ["", "| output | signal to noise, dB | correlation | largest error |", "|---|---|---|---|"]
    for row in rows:
        follows = "" if row.get("correlation") is None else f"{row['correlation']:.4f}"
        lines.append(f"| {row['name']} | {row['sqnr_db']:.1f} | {follows} | {row['max_error']:.4g} |")
    return lines


def bom(manifest: Mapping[str, Any], evidence: Mapping[str, Any], sha256: str) -> dict[str, Any]:
    """Return a CycloneDX 1.6 document with the model and its card, the data sets and the tools.

    Args:
        sha256: of the model's main file.
    """
    metric = manifest["metric"]
    model = {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": manifest["name"],
        "version": manifest["version"],
        "hashes": [{"alg": "SHA-256", "content": sha256}],
        "modelCard": {
            "modelParameters": {
                "task": _TASKS.get(manifest["task"], manifest["task"]),
                "datasets": [{"ref": f"data-{name}"} for name in ("calibration", "golden") if evidence[name]],
                "inputs": [{"format": f"image {manifest['input']['shape']} {manifest['input']['dtype']}"}],
                "outputs": [{"format": f"{manifest['decoder']['name']} {o['shape']}"} for o in manifest["outputs"]],
            },
            "quantitativeAnalysis": {
                "performanceMetrics": [
                    {
                        "type": metric["name"],
                        "value": f"{metric['value']:.6f}",
                        "slice": f"golden set, {metric['n']} images",
                    }
                ]
            },
        },
        "properties": [
            {"name": "edge-sdk:profile", "value": manifest["profile"]},
            {"name": "edge-sdk:runtime", "value": manifest["runtime"]["name"]},
            {"name": "edge-sdk:precision", "value": evidence["chosen"]["precision"]},
            {"name": "edge-sdk:source_sha256", "value": manifest["source_sha256"]},
        ],
    }
    licences = manifest.get("licences") or {}
    if licences:
        model["licenses"] = [{"license": {"name": value}} for value in licences.values()]
    tools = [
        {"type": "library", "name": k, "version": v}
        for k, v in sorted((manifest.get("conversion") or evidence)["tools"].items())
    ]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, sha256 + manifest['profile'])}",
        "version": 1,
        "metadata": {"component": model, "tools": {"components": tools}},
        "components": list(_data(evidence)),
    }


def _data(evidence: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
    return [
        {
            "type": "data",
            "bom-ref": f"data-{name}",
            "name": f"{name} set",
            "data": [{"type": "dataset", "name": f"{name}: {evidence[name]['n']} images"}],
            "hashes": [{"alg": "SHA-256", "content": evidence[name]["sha256"]}],
        }
        for name in ("calibration", "golden")
        if evidence[name]
    ]
