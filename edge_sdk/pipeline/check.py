"""`edge run --check`: everything a pipeline needs, opened once, nothing run or written."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from edge_sdk import schedule
from edge_sdk import sinks as sink_table
from edge_sdk import sources as source_table
from edge_sdk.artifact import Artifact
from edge_sdk.errors import EdgeError
from edge_sdk.parsing import write_dataclass
from edge_sdk.pipeline.cascade import Cascade
from edge_sdk.pipeline.change import tuned
from edge_sdk.pipeline.effective import overridden
from edge_sdk.pipeline.intake import recorder
from edge_sdk.pipeline.models import ModelSet, load_models, self_test
from edge_sdk.pipeline.second import open_second
from edge_sdk.pipeline.steps import Around, Steps, build
from edge_sdk.pipeline_config import KIND_OF_TASK, SLOT, PipelineConfig, StageConfig
from edge_sdk.roi import check_roi
from edge_sdk.rules import Trace
from edge_sdk.schedule import OverrideConfig
from edge_sdk.sources.base import Frame, Source, read
from edge_sdk.sources.recording import RecordingConfig
from edge_sdk.sources.uri import redact


def check(pipeline: Mapping[str, Any]) -> dict[str, Any]:
    """Read one frame, load the models, run their self-tests and build the sinks without opening them.

    Raises:
        EdgeError: the first thing that does not work.
    """
    config = PipelineConfig.from_mapping(pipeline)
    source = source_table.create(config.source.uri, config.source.options)
    for sink in config.sinks:
        sink_table.create(sink.uri, sink.params)
    if config.serve is not None:
        config.serve.with_file_tokens()
    first = config.model_stage
    stages: list[dict[str, Any]] = []
    if first.model == SLOT:
        stages.append({"name": first.label, "model": SLOT, "selftests": 0})
        stages += [_tested(s.label, s.model) for s in config.steps if s.after is not None]
    else:
        stages += _around(first, config, source.fps)
    stages += [_tested(f"{s.label}, shadow", s.shadow) for s in config.stages if s.shadow is not None]
    frame = _first_frame(source)
    if first.roi and frame is not None:
        check_roi(first.roi, frame.image.shape[1], frame.image.shape[0])
    size = None if frame is None else [frame.image.shape[1], frame.image.shape[0]]
    recorded = {}
    if config.source.record is not None:
        recorder(config.source.record, write_dataclass(config.source.recording or RecordingConfig()))
        _first_frame(source_table.create(config.source.record))
        recorded = {"record": redact(config.source.record)}
    return {
        "ok": True,
        "source": {"uri": redact(config.source.uri), "live": source.live, "size": size, "fps": source.fps},
        "stages": stages,
        "sinks": [redact(s.uri) for s in config.sinks],
        "overrides": _overrides(config),
        **recorded,
    }


def _first_frame(source: Source) -> Frame | None:
    source.open()
    try:
        return read(source)
    finally:
        source.close()


def _overrides(config: PipelineConfig) -> list[dict[str, Any]]:
    """Return what each override is told, and whether it holds now; None where that depends on the picture."""
    local = schedule.local_time(time.time(), config.time_zone)
    rows = []
    for override in config.overrides:
        by_clock = override.when.holds_at(local)
        active = None if by_clock and override.when.dark is not None else by_clock
        rows.append({"name": override.name, "when": str(override.when), "active": active})
    return rows


def _tested(name: str, path: str) -> dict[str, Any]:
    """Run an artifact's self-test."""
    artifact = Artifact.open(path)
    return {"name": name, "model": artifact.sha256, "selftests": len(self_test(artifact))}


def _around(first: StageConfig, config: PipelineConfig, fps: float | None) -> list[dict[str, Any]]:
    """Load the model and build what is around it; return what there is to say about each stage."""
    artifact = Artifact.open(first.model)
    models = load_models(artifact, count=1, kind=first.kind, params=first.params, test=False, roi=first.roi)
    name = first.name or KIND_OF_TASK.get(artifact.manifest.task, artifact.manifest.task)
    tested: dict[str, dict[str, Any]] = {}

    def second(stage: StageConfig, trace: Trace) -> Cascade:
        cascade = open_second(stage, stage.model, None, trace)
        tested[cascade.name] = _tested(cascade.name, stage.model)
        return cascade

    around = Around(stage=name, task=artifact.manifest.task, labels=models.models[0].labels, fps=fps, second=second)
    configs = [replace(c, after=name) if c.after == first.label else c for c in config.steps]
    try:
        steps = build(configs, around)
        try:
            for override in config.overrides:
                _check_override(override, (first, *configs), models, around, steps)
        finally:
            steps.close()
    finally:
        models.close()
    rows = [tested.get(s["name"], {"name": s["name"], "kind": s["kind"]}) for s in steps.describe()]
    return [_tested(first.label, first.model), *rows]


def _check_override(
    override: OverrideConfig, stages: tuple[StageConfig, ...], models: ModelSet, around: Around, steps: Steps
) -> None:
    """Build the stages as they are while an override holds; raises as `build`, the override named."""
    keep = {second.name: second for second in steps.seconds}
    first, *rest = overridden(stages, (override,))
    try:
        tuned(models, first)
        made = build(rest, around, keep=keep)
    except EdgeError as error:
        raise type(error)(f"override `{override.name}`: {error.message}", hint=error.hint) from None
    for second in made.seconds:
        if second.name not in keep:
            second.close()


def check_all(cameras: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Check several pipelines, each `{"name", "pipeline"}`, as `check` does; a message begins with the camera's name.

    Raises:
        EdgeError: the first thing that does not work.
    """
    reports = {}
    for camera in cameras:
        try:
            reports[camera["name"]] = check(camera["pipeline"])
        except EdgeError as error:
            raise type(error)(f"{camera['name']}: {error.message}", hint=error.hint) from None
    return {"ok": True, "cameras": reports}
