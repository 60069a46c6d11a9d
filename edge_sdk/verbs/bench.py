"""`edge bench`: what a pipeline costs beside its engine and its decoder, measured in a worker process."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from edge_sdk.errors import UsageError
from edge_sdk.output import Output
from edge_sdk.pipeline_config import PipelineConfig
from edge_sdk.verbs.run import Session, pipeline_of

_SYNTHETIC = "synthetic:640x480?n={n}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subject", type=Path, metavar="ARTIFACT|PIPELINE", help="an .edge file or a pipeline.toml")
    parser.add_argument("--source", help="a video or a folder of images (default: a test pattern)")
    parser.add_argument("--frames", type=int, default=200, metavar="N", help="frames a round (default: 200)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds (default: 5)")
    parser.add_argument("--workers", type=int, metavar="N", help="frame threads (default: one a core)")


def run(args: argparse.Namespace, output: Output) -> int | None:
    for name in ("frames", "rounds"):
        if getattr(args, name) < 1:
            raise UsageError(f"--{name} must be at least 1, found {getattr(args, name)}")
    spec = {
        "mode": "bench",
        "pipeline": _pipeline(args).to_json(),
        "frames": args.frames,
        "rounds": args.rounds,
    }
    report = Session(spec, output, verbose=getattr(args, "verbose", 0) > 0).run()
    if report:
        output.result(report, _text(report))
    return None


def _pipeline(args: argparse.Namespace) -> PipelineConfig:
    is_file = args.subject.suffix == ".toml"
    source = args.source or (None if is_file else _SYNTHETIC.format(n=args.frames))
    words = argparse.Namespace(
        pipeline=args.subject if is_file else None,
        model=None if is_file else args.subject,
        source=source,
        workers=args.workers,
    )
    return pipeline_of(words)


def _text(report: dict[str, Any]) -> str:
    latency = report["latency_ms"]
    lines = [
        f"engine    {report['engine_cpu_ms']:8.2f} ms CPU a frame, alone on {report['workers']} threads",
        f"decode    {report['decode_cpu_ms']:8.2f} ms CPU a frame, alone",
        f"pipeline  {report['pipeline_cpu_ms']:8.2f} ms CPU a frame, {report['fps']:.0f} frames/s",
        f"ratio     {report['ratio']:8.3f} (engine + decode) / pipeline; 1.0 is the bound",
        f"latency   p50 {latency['p50']:.1f}, p95 {latency['p95']:.1f}, p99 {latency['p99']:.1f} ms",
        f"memory    {report['rss_mb'] or 0:8.0f} MB at its peak",
        f"{report['frames']} frames of {report['source']}, median of {report['rounds']} alternating rounds",
    ]
    return "\n".join(lines)
