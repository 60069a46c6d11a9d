"""`edge run --check`: everything a pipeline needs, opened once, nothing run or written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge_sdk import sinks as sink_table
from edge_sdk import sources as source_table
from edge_sdk.artifact import Artifact
from edge_sdk.pipeline.models import check_kind, self_test
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
        if stage.model == SLOT:
            stages.append({"name": stage.label, "model": SLOT, "selftests": 0})
            continue
        artifact = Artifact.open(stage.model)
        check_kind(artifact.manifest, stage.kind)
        with artifact.load(decoder_params=stage.params or None) as model:
            model.warm()
        tests = self_test(artifact)
        stages.append({"name": stage.label, "model": artifact.sha256, "selftests": len(tests)})
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
