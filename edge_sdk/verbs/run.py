"""`edge run`: a pipeline in a supervised worker process; this process imports neither numpy nor an engine."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge_sdk.errors import EXIT_INTERRUPTED, EXIT_OK, UsageError
from edge_sdk.output import Output
from edge_sdk.pipeline_config import PipelineConfig, SinkConfig, SourceConfig, StageConfig
from edge_sdk.verbs.run_reload import File, Reloader
from edge_sdk.verbs.run_serve import add_serve, serve_of
from edge_sdk.verbs.run_session import Session, with_stdin
from edge_sdk.verbs.run_text import check_text, report_text, warnings_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "pipelines", nargs="*", type=Path, metavar="PIPELINE", help="a pipeline.toml; several run at once"
    )
    parser.set_defaults(pipeline=None)
    parser.add_argument("--model", type=Path, metavar="A.edge", help="an artifact (.edge), instead of a pipeline.toml")
    parser.add_argument(
        "--source",
        metavar="URI",
        help="a video, image or folder of images, 0, rtsp://…, - (stdin), synthetic:64x48?n=9",
    )
    parser.add_argument("--policy", choices=("auto", "all", "latest"), help="every frame, or the latest one")
    parser.add_argument("--frames", type=int, metavar="N", help="stop after N frames")
    parser.add_argument("--out", type=Path, metavar="F.jsonl", help="write results as lines of JSON (or .csv)")
    parser.add_argument("--save", type=Path, metavar="F.mp4", help="write the video with results drawn on it")
    parser.add_argument("--sink", action="append", default=[], metavar="URI", help="one more sink, may be repeated")
    parser.add_argument("--view", type=int, metavar="PORT", help="show frames with results in a browser (0: any port)")
    add_serve(parser)
    parser.add_argument("--score", type=float, metavar="P", help="least score of a detection, 0 to 1")
    parser.add_argument("--workers", type=int, metavar="N", help="frame threads (default: one a core; live: one)")
    parser.add_argument("--explain", type=float, metavar="T", help="say why there was an event at T seconds, or none")
    parser.add_argument("--watch", action="store_true", help="apply a changed pipeline.toml at once (else: SIGHUP)")
    parser.add_argument("--check", action="store_true", help="open everything once and say what is wrong; run nothing")


def run(args: argparse.Namespace, output: Output) -> int:
    if args.frames is not None and args.frames < 1:
        raise UsageError(f"--frames must be at least 1, found {args.frames}")
    if len(args.pipelines) > 1:
        from edge_sdk.verbs import run_cameras

        return run_cameras.run(args, output)
    args.pipeline = args.pipelines[0] if args.pipelines else None
    if args.watch and args.pipeline is None:
        raise UsageError("--watch goes with a pipeline.toml")
    if args.serve is not None and args.pipeline is None and args.source is None:
        return _serve_only(args, serve_of(args), output)
    config, inherit = with_stdin(pipeline_of(args))
    serve = serve_of(args, config.serve)
    spec: dict[str, Any] = {
        "mode": "check" if args.check else "run",
        "pipeline": config.to_json(),
        "frames": args.frames,
        "inherit": inherit,
    }
    if serve is not None:
        spec["serve"] = serve
    if args.explain is not None:
        if not math.isfinite(args.explain):
            raise UsageError(f"--explain takes seconds of the source, found {args.explain}")
        spec["explain"] = args.explain
    session = Session(spec, output, verbose=getattr(args, "verbose", 0) > 0)
    if args.pipeline is not None and not args.check:
        file = File(args.pipeline, lambda: pipeline_of(args), config.source)
        with Reloader([file], output, watch=args.watch) as reloader:
            report = session.run(reloader)
    else:
        report = session.run()
    if args.check:
        output.result(report, check_text(report))
    elif report:
        for line in warnings_of(report):
            output.note(line, "yellow")
        output.result(report, report_text(report))
    return EXIT_INTERRUPTED if session.interrupted else EXIT_OK


def pipeline_of(args: argparse.Namespace) -> PipelineConfig:
    """Return the pipeline that the arguments ask for.

    Raises:
        UsageError: they contradict each other, or something is missing.
        ConfigError: the pipeline.toml is wrong.
    """
    if args.pipeline is not None and args.pipeline.suffix != ".toml" and args.model is None:
        raise UsageError(
            f"`{args.pipeline}` is no pipeline.toml",
            hint="give an artifact with `--model` and its input with `--source`",
        )
    if args.pipeline is not None:
        if args.model is not None:
            raise UsageError("give a pipeline.toml or --model, not both")
        config = PipelineConfig.from_toml(args.pipeline)
    else:
        missing = [f"--{name}" for name in ("model", "source") if getattr(args, name) is None]
        if missing:
            raise UsageError(
                f"{' and '.join(missing)} missing",
                hint="edge run --model A.edge --source VIDEO, or edge run PIPELINE.toml",
            )
        config = PipelineConfig(source=SourceConfig(uri=args.source), stages=(StageConfig(model=str(args.model)),))
    params = {"score": args.score} if getattr(args, "score", None) is not None else {}
    source = config.source if args.source is None else SourceConfig(uri=args.source, policy=config.source.policy)
    data: dict[str, Any] = replace(
        config,
        source=replace(source, policy=getattr(args, "policy", None) or source.policy),
        stages=tuple(replace(s, params={**s.params, **params}) if s.is_first else s for s in config.stages),
        sinks=(*config.sinks, *_sinks_of(args)),
        workers=getattr(args, "workers", None) or config.workers,
    ).to_json()
    return PipelineConfig.from_mapping(data, where="arguments")


def _serve_only(args: argparse.Namespace, serve: dict[str, Any] | None, output: Output) -> int:
    """Serve a model without a source until SIGTERM or Ctrl-C."""
    if args.model is None:
        raise UsageError("--model missing", hint="edge run --model A.edge --serve 8080")
    given = [
        n for n in ("frames", "out", "save", "view", "explain", "policy", "workers") if getattr(args, n) is not None
    ]
    given += ["sink"] if args.sink else []
    given += ["check"] if args.check else []
    if given:
        raise UsageError(f"--{given[0]} needs a source", hint="add --source, or leave it out to serve alone")
    params = {"score": args.score} if args.score is not None else {}
    spec = {"mode": "serve", "serve": serve, "stage": {"model": str(args.model), "params": params}}
    session = Session(spec, output, verbose=getattr(args, "verbose", 0) > 0)
    report = session.run()
    if report:
        requests = ", ".join(f"{n} answered {code}" for code, n in report["requests"].items()) or "no requests"
        output.result(report, f"{requests}; {report['inferences']} inferences in {report['seconds']:.0f} s")
    return EXIT_INTERRUPTED if session.interrupted else EXIT_OK


def _sinks_of(args: argparse.Namespace) -> list[SinkConfig]:
    found = [SinkConfig(uri=uri) for uri in getattr(args, "sink", [])]
    out, save = getattr(args, "out", None), getattr(args, "save", None)
    if out is not None:
        found.append(SinkConfig(uri=f"{'csv' if out.suffix == '.csv' else 'jsonl'}:{out}"))
    if save is not None:
        found.append(SinkConfig(uri=f"video:{save}"))
    view, host = getattr(args, "view", None), getattr(args, "host", None)
    if view is not None:
        found.append(SinkConfig(uri=f"live:{view}", params={"host": host} if host else {}))
    return found
