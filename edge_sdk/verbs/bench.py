"""`edge bench`: what a pipeline costs beside its engine and its decoder, measured in a worker process."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from edge_sdk.errors import UsageError
from edge_sdk.output import Output
from edge_sdk.pipeline_config import SLOT, PipelineConfig
from edge_sdk.verbs.run import pipeline_of
from edge_sdk.verbs.run_session import Session

_THERE_S = 1800.0
_SYNTHETIC = "synthetic:640x480?n={n}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subject", type=Path, metavar="ARTIFACT|PIPELINE", help="an .edge file or a pipeline.toml")
    parser.add_argument("--source", help="a video or a folder of images (default: a test pattern)")
    parser.add_argument("--frames", type=int, default=200, metavar="N", help="frames a round (default: 200)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds (default: 5)")
    parser.add_argument("--workers", type=int, metavar="N", help="frame threads (default: one a core)")
    parser.add_argument(
        "--on", metavar="ssh://HOST", help="measure there instead: ssh://[user@]host[:port][?python=P&config=F]"
    )


def run(args: argparse.Namespace, output: Output) -> int | None:
    for name in ("frames", "rounds"):
        if getattr(args, name) < 1:
            raise UsageError(f"--{name} must be at least 1, found {getattr(args, name)}")
    if args.on is not None:
        report = _there(args, output)
        output.result(report, _text(report) + f"\nmeasured on {report['on']}: {report['machine']['cpu']}")
        return None
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


def _there(args: argparse.Namespace, output: Output) -> dict[str, Any]:
    """Measure on another machine and return its report, with `on` and `machine`."""
    from edge_sdk.remote import Remote, parse_host

    files, subject, source = _travels(args)
    words = ["bench", subject, "--frames", str(args.frames), "--rounds", str(args.rounds)]
    words += ["--source", source] if source is not None else []
    words += ["--workers", str(args.workers)] if args.workers is not None else []
    with Remote(parse_host(args.on)) as remote:
        output.note(f"copying {len(files)} file(s) to {remote.host.label()}")
        remote.put(files)
        output.note(f"measuring on {remote.host.label()}")
        report = remote.edge(words, timeout_s=_THERE_S)
        machine = remote.edge(["doctor"], timeout_s=_THERE_S).get("machine", {})
        return report | {"on": remote.host.label(), "machine": machine}


def _travels(args: argparse.Namespace) -> tuple[dict[str, Path | bytes], str, str | None]:
    """Return the files to copy by their name there, the subject there, and the source there.

    Raises:
        UsageError: a pipeline names a file outside its folder.
        ConfigError: the pipeline.toml is wrong.
    """
    config = _pipeline(args)
    files: dict[str, Path | bytes] = {args.subject.name: args.subject}
    source: str | None = args.source
    if args.source is not None and (local := Path(args.source)).exists():
        source = f"source-{local.name}"
        found = [local] if local.is_file() else sorted(f for f in local.rglob("*") if f.is_file())
        files |= {source if local.is_file() else f"{source}/{f.relative_to(local)}": f for f in found}
    if args.subject.suffix != ".toml":
        return files, args.subject.name, source
    root = args.subject.resolve().parent
    named = [Path(stage.model) for stage in config.stages if stage.model and stage.model != SLOT]
    if args.source is None and Path(config.source.uri).is_file():
        named.append(Path(config.source.uri))
    for path in named:
        if not path.resolve().is_relative_to(root):
            raise UsageError(
                f"{args.subject.name} names {path}, which is outside its folder and cannot be found there",
                hint="put the files beside the pipeline and name them relatively",
            )
        files[str(path.resolve().relative_to(root))] = path
    return files, args.subject.name, source


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
    latency, workers = report["latency_ms"], report["workers"]
    around = report["pipeline_cpu_ms"] - report["engine_cpu_ms"] - report["decode_cpu_ms"]
    lines = [
        f"engine    {report['engine_cpu_ms']:8.2f} ms CPU a frame, alone on {workers} thread{'s' * (workers > 1)}",
        f"decode    {report['decode_cpu_ms']:8.2f} ms CPU a frame, alone",
        f"pipeline  {report['pipeline_cpu_ms']:8.2f} ms CPU a frame, {report['fps']:.0f} frames/s",
        f"around    {around:8.2f} ms of it: preprocessing, postprocessing, hand-over, shared caches",
        f"ratio     {report['ratio']:8.3f} (engine + decode) / pipeline; 1.0 is the bound",
        f"latency   p50 {latency['p50']:.1f}, p95 {latency['p95']:.1f}, p99 {latency['p99']:.1f} ms",
        f"memory    {report['rss_mb'] or 0:8.0f} MB at its peak",
        f"{report['frames']} frames of {report['source']}, median of {report['rounds']} alternating rounds",
    ]
    return "\n".join(lines)
