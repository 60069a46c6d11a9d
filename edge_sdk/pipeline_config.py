"""pipeline.toml: source, model, the stages around it, sinks; standard library only: a supervisor can read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from edge_sdk import schedule
from edge_sdk.config import read_toml
from edge_sdk.degrade import DegradeConfig
from edge_sdk.errors import ConfigError, UsageError
from edge_sdk.parsing import read_dataclass, write_dataclass
from edge_sdk.registry import near_miss
from edge_sdk.schedule import OverrideConfig
from edge_sdk.serve_config import ServeConfig
from edge_sdk.sinks import sinks
from edge_sdk.sinks.uri import place, sink_name
from edge_sdk.sources import sources
from edge_sdk.sources.recording import RecordingConfig
from edge_sdk.sources.uri import file_path, kind_of, redact, split_options
from edge_sdk.stage_params import STEP_PARAMS, CropParams

TASK_OF_KIND: Mapping[str, str] = {
    "detect": "detection",
    "classify": "classification",
    "segment": "segmentation",
    "keypoints": "keypoints",
    "embed": "embedding",
    "regress": "regression",
}
KIND_OF_TASK: Mapping[str, str] = {task: kind for kind, task in TASK_OF_KIND.items()}
SLOT = "slot"

Kind = Literal[
    "detect",
    "classify",
    "segment",
    "keypoints",
    "embed",
    "regress",
    "track",
    "zone",
    "line",
    "alert",
    "blur",
    "camera",
    "motion_gate",
]
Policy = Literal["auto", "all", "latest"]
Decode = Literal["auto", "software", "vaapi", "v4l2m2m", "nvdec"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceConfig:
    """Where frames come from; policy `auto` is `latest` for live sources and `all` for files.

    Args:
        decode: read a video or a stream with an ffmpeg process and this decoder, software where it does not work here.
        stall_s: a live source that gives nothing for so long is opened again.
        record: the main stream of the camera, recorded without being decoded while the pipeline sees `uri`.
        recording: how it is kept.
    """

    uri: str
    policy: Policy = "auto"
    params: dict[str, Any] = field(default_factory=dict)
    decode: Decode | None = None
    stall_s: float = field(default=5.0, metadata={"min": 0.1, "max": 3600})
    record: str | None = None
    recording: RecordingConfig | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The source's params with `decode` among them."""
        return self.params if self.decode is None else {**self.params, "decode": self.decode}

    def problems(self) -> list[str]:
        """Return one line for each value that cannot work, without opening anything."""
        found = _try("source.uri", lambda: sources().plugin(kind_of(self.uri)))
        if self.decode is not None and kind_of(self.uri) not in ("video", "stream"):
            found.append("source.decode: goes with a video or a stream")
        if self.record is None and self.recording is not None:
            found.append("source.recording: `record` is missing, the address of the main stream")
        if self.record is not None and kind_of(self.record) != "stream":
            found.append("source.record: expected the address of a stream, rtsp://… or http://…")
        return found

    def relative_to(self, folder: Path) -> SourceConfig:
        """Return it with relative paths taken from `folder`."""
        uri, recording = self.uri, self.recording
        if kind_of(uri) in ("video", "images"):
            path = split_options(uri)[0]
            uri = str(folder / file_path(uri)) + uri[len(path) :]
        if self.record is not None:
            recording = recording or RecordingConfig()
            recording = replace(recording, folder=str(folder / recording.folder))
        return replace(self, uri=uri, recording=recording)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageConfig:
    """A model, or a step that works on its results (`track`, `zone`, `line`, `alert`, `blur`), on the frames (`camera`)
    or before inference (`motion_gate`).

    `kind` of a model may be left out (the artifact knows its task), `model = "slot"` is filled in by the agent. A
    model's `params` override the decoder's, such as `score = 0.4`; those of a step are in `edge_sdk.stage_params`.

    Args:
        every: infer each so many frames; in between the tracker moves the boxes on, without one the answer stands.
        roi: the part of the frame that the model sees, pixels of the upright frame: two corners of a rectangle, or a
            polygon, outside of which it sees black; none means the whole frame.
        after: the name of the detector whose boxes are cut out for this, a second model.
        crop: how they are cut out.
        shadow: an artifact that answers some of the frames too, off the frame path, to be compared.
        shadow_every: one frame (or crop) in so many.
        enabled: False leaves out a stage, a second model too, until an override, or somebody, switches it on.
    """

    name: str | None = None
    kind: Kind | None = None
    model: str = SLOT
    params: dict[str, Any] = field(default_factory=dict)
    every: int = field(default=1, metadata={"min": 1, "max": 100000})
    roi: tuple[tuple[float, ...], ...] = ()
    after: str | None = None
    crop: CropParams | None = None
    shadow: str | None = None
    shadow_every: int = field(default=20, metadata={"min": 1, "max": 1000000})
    enabled: bool = True

    @property
    def is_step(self) -> bool:
        """Whether it is a stage without a model."""
        return self.kind in STEP_PARAMS

    @property
    def is_first(self) -> bool:
        """Whether it is the model that sees the frames."""
        return not self.is_step and self.after is None

    @property
    def label(self) -> str:
        return self.name or self.kind or "model"


_PLAIN = {f.name: f.default for f in fields(StageConfig)}


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkConfig:
    uri: str
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineConfig:
    """A pipeline as people write it; `workers` None means one a core for files, one for live sources.

    `time_zone` is that of the overrides, such as Europe/Vienna; none means that of the machine.
    """

    source: SourceConfig
    stages: tuple[StageConfig, ...] = field(metadata={"key": "stage"})
    sinks: tuple[SinkConfig, ...] = field(default=(), metadata={"key": "sink"})
    workers: int | None = field(default=None, metadata={"min": 1, "max": 64})
    time_zone: str | None = None
    overrides: tuple[OverrideConfig, ...] = field(default=(), metadata={"key": "override"})
    degrade: DegradeConfig | None = None
    serve: ServeConfig | None = None

    @classmethod
    def from_toml(cls, path: str | Path) -> PipelineConfig:
        """Read a pipeline file; relative paths in it are relative to the file.

        Raises:
            ConfigError: the file is missing, no TOML, or has wrong keys (all of them are listed).
        """
        path = Path(path)
        return cls.from_mapping(read_toml(path), where=str(path)).relative_to(path.parent)

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any], *, where: str = "pipeline") -> PipelineConfig:
        """Read a pipeline from plain types.

        Raises:
            ConfigError: keys are wrong; all of them are listed.
        """
        config, problems = read_dataclass(data, cls)
        problems = [*problems, *_raw_problems(data)] if config is None else config.problems()
        if config is None or problems:
            count = f"{len(problems)} problem" + ("s" if len(problems) > 1 else "")
            raise ConfigError(f"{where}: {count}", problems=problems, hint="correct the keys named above")
        return config

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = write_dataclass(self)
        return out

    def problems(self) -> list[str]:
        """Return one line for each value that cannot work, without opening anything."""
        found: list[str] = []
        models = [s for s in self.stages if s.is_first]
        if not models:
            found.append("stage: missing, a pipeline has one `[[stage]]` with a model")
        elif len(models) > 1:
            found.append(
                f"stage: expected one `[[stage]]` with a model, found {len(models)}; one that works on the boxes of "
                "another names it in `after`"
            )
        seconds: list[str] = []
        for i, stage in enumerate(self.stages):
            if stage.is_step:
                found += _step_problems(stage, f"stage[{i}]", seconds)
            elif stage.is_first:
                found += first_problems(stage, f"stage[{i}]")
            else:
                found += _second_problems(stage, f"stage[{i}]", models[0].label if models else "detect")
                seconds.append(stage.label)
        found += self.source.problems()
        for i, sink in enumerate(self.sinks):
            found += _try(f"sink[{i}].uri", lambda uri=sink.uri: sinks().plugin(sink_name(uri)))
        found += self._control_problems()
        places = [place(s.uri) for s in self.sinks]
        found += [f"sink[{i}].uri: `{redact(p)}` is written twice" for i, p in enumerate(places) if p in places[:i]]
        return found

    def _control_problems(self) -> list[str]:
        """Return what is wrong with overrides, time zone and what is switched off."""
        steps = tuple(s.label for s in self.stages if not s.is_first)
        found = schedule.problems(self.overrides, tuple(s.label for s in self.stages), steps)
        found += [
            f"stage[{i}].enabled: the model that sees the frames cannot be switched off"
            for i, stage in enumerate(self.stages)
            if stage.is_first and not stage.enabled
        ]
        for i, override in enumerate(self.overrides):
            for stage in self.stages:
                if stage.is_step and stage.label in override.stage:
                    params = {**stage.params, **override.stage[stage.label]}
                    _, wrong = read_dataclass(params, STEP_PARAMS[str(stage.kind)])
                    found += [f"override[{i}].stage.{stage.label}.{line}" for line in wrong]
        if self.time_zone is not None:
            try:
                schedule.zone_of(self.time_zone)
            except ValueError as error:
                found.append(f"time_zone: {error}")
        return found

    def relative_to(self, folder: Path) -> PipelineConfig:
        """Return it with relative paths of source, models and sinks taken from `folder`."""
        stages = tuple(_stage_from(folder, s) for s in self.stages)
        sinks_ = tuple(replace(s, uri=_sink_from(folder, s.uri)) for s in self.sinks)
        serve = self.serve
        if serve is not None and serve.token_file is not None:
            serve = replace(serve, token_file=folder / serve.token_file)
        if serve is not None and serve.batches.folder is not None:
            serve = replace(serve, batches=replace(serve.batches, folder=folder / serve.batches.folder))
        return replace(self, source=self.source.relative_to(folder), stages=stages, sinks=sinks_, serve=serve)

    def with_model(self, artifact: str | Path) -> PipelineConfig:
        """Return it with `model = "slot"` stages running `artifact`."""
        stages = tuple(replace(s, model=str(artifact)) if not s.is_step and s.model == SLOT else s for s in self.stages)
        return replace(self, stages=stages)

    def with_params(self, changes: Mapping[str, Any], *, where: str) -> PipelineConfig:
        """Return it with params put over those of stages, by name; None takes a default back.

        Raises:
            ConfigError: there is no such stage, or params are wrong.
        """
        names = [s.label for s in self.stages]
        problems = [f"{name}: no such stage, it has {', '.join(names)}" for name in changes if name not in names]
        problems += [f"{name}: expected a table" for name, v in changes.items() if not isinstance(v, Mapping)]
        if problems:
            raise ConfigError(f"{where}: {len(problems)} problems", problems=problems, hint="correct the names")
        stages = tuple(
            replace(s, params={k: v for k, v in {**s.params, **changes.get(s.label, {})}.items() if v is not None})
            for s in self.stages
        )
        return PipelineConfig.from_mapping(replace(self, stages=stages).to_json(), where=where)

    @property
    def model_stage(self) -> StageConfig:
        """The stage with the model that sees the frames."""
        return next(s for s in self.stages if s.is_first)

    @property
    def steps(self) -> tuple[StageConfig, ...]:
        """The stages around it, in order: those without a model and second models."""
        return tuple(s for s in self.stages if not s.is_first)


def _raw_problems(data: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the params of stages in a document that is no pipeline for other reasons too."""
    found = []
    stages = data.get("stage")
    for i, stage in enumerate(stages if isinstance(stages, (list, tuple)) else ()):
        kind = stage.get("kind") if isinstance(stage, Mapping) else None
        params = stage.get("params", {}) if isinstance(stage, Mapping) else None
        if isinstance(kind, str) and kind in STEP_PARAMS and isinstance(params, Mapping):
            _, wrong = read_dataclass(params, STEP_PARAMS[kind])
            found += [f"stage[{i}].params.{line}" for line in wrong]
    return found


def _stage_from(folder: Path, stage: StageConfig) -> StageConfig:
    if stage.is_step:
        return stage
    shadow = None if stage.shadow is None else str(folder / stage.shadow)
    return replace(stage, model=stage.model if stage.model == SLOT else str(folder / stage.model), shadow=shadow)


def _sink_from(folder: Path, uri: str) -> str:
    name, rest = sink_name(uri), place(uri)
    return f"{name}:{folder / rest}" if sinks().plugin(name).capabilities.get("file") else uri


def _step_problems(stage: StageConfig, path: str, seconds: Sequence[str]) -> list[str]:
    """Return what is wrong with a stage without a model; `seconds` are the second models before it."""
    _, wrong = read_dataclass(stage.params, STEP_PARAMS[str(stage.kind)])
    found = [f"{path}.params.{line}" for line in wrong]
    if stage.model != SLOT:
        found.append(f"{path}.model: a `{stage.kind}` stage has no model")
    for key in ("every", "roi", "after", "crop", "shadow", "shadow_every"):
        if getattr(stage, key) != _PLAIN[key]:
            found.append(f"{path}.{key}: belongs to a stage with a model, this one is `{stage.kind}`")
    for key in ("where", "where_not"):
        named = stage.params.get(key)
        for name in named if isinstance(named, Mapping) else ():
            if name not in seconds and "model" not in seconds:
                hint = near_miss(str(name), seconds) or "put a stage with `after` and that name before it"
                found.append(f"{path}.params.{key}.{name}: no second model `{name}` before it, {hint}")
    return found


def first_problems(stage: StageConfig, path: str) -> list[str]:
    """Return what is wrong with the stage whose model sees the frames."""
    found = [] if stage.crop is None else [f"{path}.crop: belongs to a second model, one with `after`"]
    if len(stage.roi) == 1 or any(len(point) != 2 for point in stage.roi):
        found.append(f"{path}.roi: expected [x, y] points, two corners of a rectangle or at least three of a polygon")
    return found


def _second_problems(stage: StageConfig, path: str, first: str) -> list[str]:
    found = []
    if stage.after != first:
        found.append(f"{path}.after: no model `{stage.after}` before it, the one that sees the frames is `{first}`")
    if stage.model == SLOT:
        found.append(f"{path}.model: missing, a second model is named; only the first comes from a slot")
    if stage.every != 1:
        found.append(f"{path}.every: a second model answers when the first does, `crop.refresh_frames` spares it more")
    if stage.roi:
        found.append(f"{path}.roi: a second model sees boxes, give the region to `{first}`")
    return found


def _try(path: str, check: Any) -> list[str]:
    try:
        check()
    except UsageError as error:
        return [f"{path}: {redact(error.message)}" + (f", {error.hint}" if error.hint else "")]
    return []
