"""`edge run --check`: everything a pipeline needs, opened once, nothing run or written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge_sdk import sinks as sink_table
from edge_sdk import sources as source_table
from edge_sdk.artifact import Artifact
from edge_sdk.pipeline.models import load_models, self_test
from edge_sdk.pipeline.steps import build
from edge_sdk.pipeline_config import SLOT, PipelineConfig
from edge_sdk.sources.base import read
from edge_sdk.sources.uri import redact


def check(pipeline: Mapping[str, Any]) -> dict[str, Any]:
    """Read one frame, load the model, run its self-test and build the sinks without opening them.

    Raises:
        EdgeError: the first thing that does not work.
    """
    config = PipelineConfig.from_mapping(pipeline)
    source = source_table.create(config.source.uri, config.source.params)
    for sink in config.sinks:
        sink_table.create(sink.uri, sink.params)
    stages = []
    for stage in config.stages:
        if stage.is_step:
            continue
        if stage.model == SLOT:
            stages.append({"name": stage.label, "model": SLOT, "selftests": 0})
            continue
        artifact = Artifact.open(stage.model)
        models = load_models(artifact, count=1, kind=stage.kind, params=stage.params, test=False)
        try:
            steps = build(config.steps, task=artifact.manifest.task, labels=models.models[0].labels, fps=source.fps)
        finally:
            models.close()
        tests = self_test(artifact)
        stages.append({"name": stage.label, "model": artifact.sha256, "selftests": len(tests)})
        stages += [{"name": s["name"], "kind": s["kind"]} for s in steps.describe()]
    source.open()
    try:
        frame = read(source)
    finally:
        source.close()
    size = None if frame is None else [frame.image.shape[1], frame.image.shape[0]]
    return {
        "ok": True,
        "source": {"uri": redact(config.source.uri), "live": source.live, "size": size, "fps": source.fps},
        "stages": stages,
        "sinks": [redact(s.uri) for s in config.sinks],
    }
