"""`edge bench`: CPU per frame of the engine, of decoding and of the whole pipeline, in alternating rounds."""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import cv2

from edge_sdk import sources as source_table
from edge_sdk.artifact import Artifact
from edge_sdk.config import parse
from edge_sdk.errors import SourceError, UsageError
from edge_sdk.pipeline.build import Pipeline
from edge_sdk.pipeline.models import frame_threads, load_models
from edge_sdk.pipeline.report import memory_mb
from edge_sdk.pipeline_config import SLOT, PipelineConfig, StageConfig
from edge_sdk.sources.base import BrokenFrame, Image
from edge_sdk.sources.uri import redact
from edge_sdk.stage_params import TilesParams


def measure(spec: Mapping[str, Any], progress: Callable[[str], None]) -> dict[str, Any]:
    """Measure `spec["pipeline"]` over `spec["frames"]` frames in `spec["rounds"]` rounds.

    Every round decodes the frames alone, runs the engine alone on as many threads as the pipeline has, then runs the
    pipeline without its sinks. CPU is that of the process, the median over the rounds is reported;
    `ratio` = (engine + decode) / pipeline, 1.0 is the bound. The engine counts for the frames that are inferred, and
    with the time of second models' engines.

    Raises:
        UsageError: the source never ends, or the stage has no model.
    """
    config = PipelineConfig.from_mapping(spec["pipeline"])
    stage = config.model_stage
    if stage.model == SLOT:
        raise UsageError("the stage has no model to measure", hint="name an artifact in `model`")
    frames, rounds = int(spec["frames"]), int(spec["rounds"])
    artifact = Artifact.open(stage.model)
    workers = config.workers or frame_threads(artifact, live=False)
    cv2.setNumThreads(1)
    image = _first_frame(config)
    engine, decode, pipeline, fps = [], [], [], []
    report: dict[str, Any] = {}
    counted = frames
    for i in range(rounds):
        progress(f"round {i + 1} of {rounds}")
        cpu, counted = _decode(config, frames)
        decode.append(cpu)
        first_ms = _engine(artifact, image, counted, workers)
        report = _pipeline(config, stage, artifact, counted, workers).to_json()
        engine.append(_engines(first_ms * _views(stage), report))
        pipeline.append(report["cpu_ms_per_frame"])
        fps.append(report["fps"])
    medians = [statistics.median(v) for v in (engine, decode, pipeline)]
    return {
        "engine_cpu_ms": round(medians[0], 3),
        "decode_cpu_ms": round(medians[1], 3),
        "pipeline_cpu_ms": round(medians[2], 3),
        "ratio": round((medians[0] + medians[1]) / medians[2], 3),
        "latency_ms": report["latency_ms"],
        "rss_mb": memory_mb()[1],
        "fps": round(statistics.median(fps), 1),
        "stage_ms": report["stages"][0]["ms"],
        "frames": counted,
        "rounds": rounds,
        "workers": workers,
        "model": artifact.sha256,
        "source": redact(config.source.uri),
    }


def _first_frame(config: PipelineConfig) -> Image:
    source = source_table.create(config.source.uri, config.source.options)
    if source.live:
        raise UsageError(
            f"`{redact(config.source.uri)}` never ends: CPU per frame is measured on files",
            hint="name a video, a folder of images or synthetic:640x480?n=300 with `--source`",
        )
    source.open()
    try:
        while source.grab():
            try:
                return source.retrieve().image
            except BrokenFrame:
                continue
    finally:
        source.close()
    raise SourceError(f"`{redact(config.source.uri)}` has no frame that can be decoded")


def _decode(config: PipelineConfig, frames: int) -> tuple[float, int]:
    """Return CPU ms per frame of reading alone, and how many frames there were."""
    source = source_table.create(config.source.uri, config.source.options)
    source.open()
    n = 0
    begin = time.process_time()
    try:
        while n < frames and source.grab():
            n += 1
            try:
                source.retrieve()
            except BrokenFrame:
                continue
    finally:
        source.close()
    return (time.process_time() - begin) * 1000 / max(1, n), n


def _engine(artifact: Artifact, image: Image, runs: int, workers: int) -> float:
    """Return CPU ms per inference of the engine alone, `workers` models side by side, as many at once as each runs."""
    models: Any = load_models(artifact, count=workers, kind=None, params={}, test=False).models
    feeds = [model.prepare(image)[0] for model in models]
    share = max(1, runs // workers)

    def work(i: int) -> None:
        if models[i].requests == 1:
            for _ in range(share):
                models[i].infer(feeds[i])
            return
        under_way: deque[Any] = deque()
        for _ in range(share):
            under_way.append(models[i].start(feeds[i]))
            if len(under_way) > 2 * models[i].requests:
                under_way.popleft().result()
        for started in under_way:
            started.result()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(workers)]
    begin = time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cpu = time.process_time() - begin
    for model in models:
        model.close()
    return cpu * 1000 / (share * workers)


def _views(stage: StageConfig) -> int:
    """Return how often the engine runs for one frame."""
    if "tiles" not in stage.params:
        return 1
    tiles = parse(stage.params["tiles"], TilesParams, where="params.tiles")
    return tiles.columns * tiles.rows + tiles.full


def _engines(first_ms: float, report: Mapping[str, Any]) -> float:
    """Return ms a frame in all engines: the first model's where it inferred, and the second models' own times."""
    first, frames = report["stages"][0], report["frames"]["processed"]
    seconds = [row for row in report["stages"][1:] if "crops" in row]
    crops_ms = sum(row["crops"] * row["ms"].get("infer", 0.0) for row in seconds)
    return float((first_ms * first.get("inferred", frames) + crops_ms) / max(1, frames))


def _pipeline(config: PipelineConfig, stage: StageConfig, artifact: Artifact, frames: int, workers: int) -> Any:
    pipe = Pipeline(config.source.uri, policy="all", workers=workers, params=config.source.params)
    pipe.stage(artifact, name=stage.label, every=stage.every, roi=stage.roi, **stage.params)
    return pipe.steps([replace(c, shadow=None) for c in config.steps]).run(frames=frames)
