"""The pipeline as a user writes it in Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import cv2

from edge_sdk import sinks as sink_table
from edge_sdk.artifact import Artifact
from edge_sdk.errors import UsageError
from edge_sdk.parsing import write_dataclass
from edge_sdk.pipeline.cascade import Cascade
from edge_sdk.pipeline.control import Rules
from edge_sdk.pipeline.intake import Intake, recorder
from edge_sdk.pipeline.live import Live
from edge_sdk.pipeline.models import ModelSet, ModelSlot, frame_threads, self_test
from edge_sdk.pipeline.observe import Observer
from edge_sdk.pipeline.report import Report
from edge_sdk.pipeline.run import Run
from edge_sdk.pipeline.second import ArtifactLike, load, open_second, open_shadow
from edge_sdk.pipeline.shadow import Shadow
from edge_sdk.pipeline.steps import Around, Steps, build
from edge_sdk.pipeline_config import KIND_OF_TASK, SLOT, PipelineConfig, StageConfig
from edge_sdk.rules import Decision, Trace
from edge_sdk.sinks.base import FrameResult, Sink
from edge_sdk.sources.base import Source
from edge_sdk.sources.record import Recorder
from edge_sdk.sources.recording import RecordingConfig
from edge_sdk.sources.uri import redact


class Pipeline(Live):
    """Frames of one source through a model into sinks, observers and whoever iterates.

    Args:
        source: an address (`0`, `rtsp://…`, a video, a folder of images) or a Source.
        policy: `all` gives every frame, `latest` drops what there is no time for and plays files at their own rate;
            `auto` is `latest` for live sources.
        workers: frame threads, each with a model of its own; default one a core, one for live sources.
        retry_source: keep trying a live source that cannot be opened at the start.
        resume: sinks go on with the files of an earlier run.
        stall_s: a live source that gives nothing for so long is opened again.

    While it runs OpenCV is held to one thread in this process: the frame threads are the parallelism.
    """

    def __init__(
        self,
        source: str | int | Source,
        *,
        policy: Literal["auto", "all", "latest"] = "auto",
        workers: int | None = None,
        params: dict[str, Any] | None = None,
        retry_source: bool = False,
        resume: bool = False,
        stall_s: float = 5.0,
    ) -> None:
        super().__init__()
        self._intake = Intake(source, params or {}, policy=policy, stall_s=stall_s, retry_first=retry_source)
        self._recorder: Recorder | None = None
        self._workers, self._pipelines = workers, 1
        self._resume = resume
        self._focus_s: float | None = None
        self._observers: list[Observer] = []
        self._run: Run | None = None
        self._stop_early = False

    @classmethod
    def from_config(cls, config: PipelineConfig, *, retry_source: bool = False, resume: bool = False) -> Pipeline:
        """Build the pipeline that a pipeline.toml describes.

        Raises:
            UsageError: a stage has no model yet (`model = "slot"`), or an option is wrong.
        """
        source = config.source
        pipe = cls(
            source.uri,
            policy=source.policy,
            workers=config.workers,
            params=source.options,
            stall_s=source.stall_s,
            retry_source=retry_source,
            resume=resume,
        )
        stage = config.model_stage
        if stage.model == SLOT:
            raise UsageError(
                f"stage `{stage.label}` takes its model from a slot",
                hint="run it with `edge agent`, or name an artifact in `model`",
            )
        pipe._set_stage(stage, stage.model, stage.shadow)
        pipe.steps(config.steps)
        if source.record is not None:
            pipe._recorder = recorder(source.record, write_dataclass(source.recording or RecordingConfig()))
        for sink in config.sinks:
            pipe._sinks.append((sink.uri, None, sink.params))
        pipe._described = config
        rules = Rules(overrides=config.overrides, time_zone=config.time_zone, degrade=config.degrade)
        return pipe.go_by(rules)

    # -- building ------------------------------------------------------------------------------------------------

    def sink(self, sink: str | Sink, **options: Any) -> Pipeline:
        """Send results to a sink, such as `jsonl:out.jsonl`, `video:out.mp4` or `mqtt://host/topic`."""
        self._not_running("add a sink")
        if isinstance(sink, str):
            self._sinks.append((sink, None, options))
        else:
            self._sinks.append((redact(getattr(sink, "uri", type(sink).__name__)), sink, options))
        return self

    def record(self, uri: str, **options: Any) -> Pipeline:
        """Record the stream at `uri`, not decoded, while the pipeline runs; options as in `RecordingConfig`."""
        self._not_running("record")
        self._recorder = recorder(uri, options)
        return self

    def observe(self, observer: Observer) -> Pipeline:
        """Let `observer` see results, errors and drops, off the frame path."""
        self._not_running("add an observer")
        self._observers.append(observer)
        return self

    def among(self, pipelines: int) -> Pipeline:
        """Be one of so many pipelines in this process: a file takes its share of the cores, not all of them."""
        self._not_running("join others")
        self._pipelines = max(1, pipelines)
        return self

    # -- running -------------------------------------------------------------------------------------------------

    def start(self, *, frames: int | None = None, hand_out: bool = True) -> Pipeline:
        """Load the model, open sinks and source and start; `hand_out` keeps results for iteration.

        Raises:
            EdgeError: something cannot be opened.
        """
        self._not_running("start")
        self._at_start = None
        if self._artifact is None or self._stage is None:
            raise UsageError("the pipeline has no model", hint="add one, for example .detect('model.edge')")
        cv2.setNumThreads(1)
        source = self._intake.make()
        policy = self._intake.policy_of(source)
        source = self._intake.paced(source)
        sinks = self._make_sinks(source, live=policy == "latest")
        workers, models = self._load(live=source.live)
        steps, shadow, around = self._around(models, source)
        kind = self._kind(models)
        run = Run(
            lambda run: self._intake.feed(source, run),
            ModelSlot(models),
            steps=steps,
            stage=self._stage.name or kind,
            kind=kind,
            workers=workers,
            sinks=sinks,
            observers=self._observers,
            lossless=policy == "all",
            policy=policy,
            hand_out=hand_out,
            frames=frames,
            single=not getattr(source, "prompt", False),
            warnings=getattr(source, "warnings", tuple),
            shadow=shadow,
        )
        self._run = run
        self._take_control(run, around)
        try:
            if self._recorder is not None:
                self._recorder.start()
            run.start()
        except BaseException:
            self._run = None
            self._end_recording()
            raise
        if self._stop_early:
            run.stop()
        return self

    def run(self, on_result: Callable[[FrameResult], None] | None = None, frames: int | None = None) -> Report:
        """Run to the end of the source, to `stop()` or for `frames` frames, and return what it cost and found.

        Raises:
            EdgeError: the source failed, a sink of a file job failed, or not one frame could be answered.
        """
        self.start(frames=frames, hand_out=on_result is not None)
        try:
            if on_result is not None:
                for item in self:
                    on_result(item)
            return self.wait()
        finally:
            self.close()

    def wait(self) -> Report:
        """Wait for the end and return the report; raises as `run` does."""
        run = self._running()
        run.finished.wait()
        self._end_recording()
        run.raise_if_failed()
        return self.report()

    def __iter__(self) -> Iterator[FrameResult]:
        if self._run is None:
            self.start()
        run = self._running()
        bag = run.results()
        while (item := bag.get()) is not None:
            yield item
        run.finished.wait()
        run.raise_if_failed()

    def stop(self) -> None:
        """Take no more frames; what was taken is finished and delivered. Does not wait."""
        self._stop_early = True
        if self._run is not None:
            self._run.stop()

    def close(self) -> None:
        """Stop and wait until sinks are closed and models are unloaded."""
        if self._run is not None:
            self._run.stop()
            self._run.discard_results()
            self._run.finished.wait()
        self._end_recording()

    def __enter__(self) -> Pipeline:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- while it runs -------------------------------------------------------------------------------------------

    def swap(self, stage: str, artifact: ArtifactLike) -> dict[str, Any]:
        """Load `artifact` beside the running model, warm it, run its self-test, and switch between two frames.

        Returns what now runs. No frame is lost; on any error the old model goes on.

        Raises:
            ArtifactError: it cannot be read, or fails its self-test on this machine.
            BackendError: its runtime is missing or cannot run it.
            ConfigError: it does another task.
            UsageError: the pipeline has no such stage.
        """
        run = self._running()
        second = next((s for s in run.steps.seconds if s.name == stage), None)
        if second is None and (self._stage is None or stage not in (run.stage, self._stage.name)):
            known = ", ".join(f"`{name}`" for name in (run.stage, *(s.name for s in run.steps.seconds)))
            raise UsageError(f"the pipeline has no stage `{stage}`", hint=f"stages with a model: {known}")
        kind, slot = (run.kind, run.slot) if second is None else (second.kind, second.slot)
        config = self._live_stage(run.stage if second is None else second.name)
        count = len(slot.current.models)
        if count != 1 and not isinstance(artifact, (str, Path, Artifact)):
            raise UsageError(f"{count} frame threads need {count} models", hint="swap to a path or an Artifact")
        models = load(artifact, count=count, kind=kind, params=config.params, test=True, roi=config.roi)
        try:
            labels = models.models[0].labels
            if second is None:
                run.steps.check(labels)
            else:
                run.steps.check(run.slot.current.models[0].labels, {second.name: labels})
        except UsageError:
            models.close()
            raise
        slot.replace(models)
        if second is not None:
            self._swapped(second.name, artifact)
            run.swaps += 1
            return models.describe()
        run.swaps += 1
        self._swapped(run.stage, artifact)
        self._artifact = artifact
        return models.describe()

    def self_test(self) -> list[Any]:
        """Run the golden inputs of the running artifact beside the pipeline and return the checks.

        Raises:
            ArtifactError: an answer is outside its tolerance.
        """
        if not isinstance(self._artifact, (str, Path, Artifact)):
            raise UsageError("a loaded model has no golden inputs", hint="build the pipeline from an artifact")
        artifact = self._artifact if isinstance(self._artifact, Artifact) else Artifact.open(self._artifact)
        return self_test(artifact)

    def focus(self, t_s: float) -> Pipeline:
        """Keep the decisions around media time `t_s` for `explain`, instead of the latest 2048."""
        self._not_running("set the focus")
        self._focus_s = t_s
        return self

    def explain(self, t_s: float, *, window_s: float = 2.0) -> tuple[Decision, ...]:
        """Return why there were events, or none, around media time `t_s`: the latest decisions of all stages."""
        return self._running().steps.trace.around(t_s, window_s=window_s)

    @property
    def running(self) -> bool:
        """Whether it has been started."""
        return self._run is not None

    @property
    def live(self) -> bool:
        """Whether results are dropped rather than delayed."""
        return self._running().policy == "latest"

    @property
    def addresses(self) -> tuple[tuple[str, str], ...]:
        """What its sinks serve over HTTP, and the URLs."""
        sinks = self._run.sinks if self._run is not None else ()
        return tuple(sink.address for sink in sinks if hasattr(sink, "address"))

    def report(self) -> Report:
        """Return what the run cost so far."""
        report = self._running().report()
        return report if self._recorder is None else replace(report, recording=self._recorder.describe())

    def busy(self, now: float) -> tuple[str, float]:
        """Return what the slowest frame thread is in and for how many seconds; `now` is the monotonic clock."""
        return self._run.busy(now) if self._run is not None else ("load", 0.0)

    # -- inside --------------------------------------------------------------------------------------------------

    def _kind(self, models: ModelSet) -> str:
        assert self._stage is not None
        task = models.models[0].manifest.task
        return self._stage.kind or KIND_OF_TASK.get(task, task)

    def _load(self, *, live: bool) -> tuple[int, ModelSet]:
        assert self._artifact is not None
        assert self._stage is not None
        stage, artifact = self._stages_at_start()[0], self._artifact
        if not isinstance(artifact, (str, Path, Artifact)):
            return 1, load(artifact, count=1, kind=stage.kind, params=stage.params, roi=stage.roi)
        artifact = artifact if isinstance(artifact, Artifact) else Artifact.open(artifact)
        workers = self._workers or max(1, frame_threads(artifact, live=live) // self._pipelines)
        return workers, load(artifact, count=workers, kind=stage.kind, params=stage.params, roi=stage.roi)

    def _around(self, models: ModelSet, source: Source) -> tuple[Steps, Shadow | None, Around]:
        """Build the stages around the model; what cannot be built closes it."""
        assert self._stage is not None
        stage, first = self._stages_at_start()[0], models.models[0]
        kind = self._kind(models)
        places = iter(i for i, config in enumerate(self._steps) if config.after is not None)

        def second(config: StageConfig, trace: Trace) -> Cascade:
            return open_second(config, *self._artifacts[next(places)], trace)

        around = Around(
            stage=stage.name or kind,
            task=first.manifest.task,
            labels=first.labels,
            fps=source.fps,
            every=stage.every,
            second=second,
        )
        rest = self._stages_at_start()[1:]
        configs = [replace(c, after=around.stage) if c.after == stage.label else c for c in rest]
        try:
            steps = build(configs, around, Trace(focus_s=self._focus_s))
        except BaseException:
            models.close()
            raise
        return steps, open_shadow(around.stage, kind, stage, self._shadow), around

    def _end_recording(self) -> None:
        if self._recorder is not None:
            self._recorder.close()

    def _make_sinks(self, source: Source, *, live: bool) -> list[tuple[str, Sink]]:
        made = []
        for uri, sink, options in self._sinks:
            if sink is None:
                context: dict[str, Any] = {"live": live, "append": self._resume}
                context |= {"fps": source.fps} if source.fps else {}
                self._sink_context = context
                sink = sink_table.create(uri, {**context, **options})
                if self._recorder is not None and hasattr(sink, "cut_from"):
                    sink.cut_from(self._recorder.folder)
            made.append((redact(uri), sink))
        return made

    def _running(self) -> Run:
        if self._run is None:
            raise UsageError("the pipeline does not run", hint="use `with pipe:`, iterate it, or call run()")
        return self._run

    def _not_running(self, what: str) -> None:
        if self._run is not None:
            raise UsageError(f"cannot {what}: the pipeline has been started", hint="build a new Pipeline")
