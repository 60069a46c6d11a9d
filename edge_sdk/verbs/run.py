"""`edge run`: a pipeline in a supervised worker process; this process imports neither numpy nor an engine."""

from __future__ import annotations

import argparse
import math
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge_sdk.agent.process import Event, WorkerExit, error_from_json
from edge_sdk.agent.supervisor import Supervisor
from edge_sdk.errors import EXIT_INTERRUPTED, EXIT_OK, EdgeError, SourceError, UsageError, WorkerError
from edge_sdk.output import Output, table
from edge_sdk.pipeline_config import PipelineConfig, SinkConfig, SourceConfig, StageConfig
from edge_sdk.sources.uri import kind_of, redact
from edge_sdk.verbs.run_reload import File, Reloader
from edge_sdk.verbs.run_serve import add_serve, serve_of

_STOP_S = 45.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "pipelines", nargs="*", type=Path, metavar="PIPELINE", help="a pipeline.toml; several run at once"
    )
    parser.set_defaults(pipeline=None)
    parser.add_argument("--model", type=Path, help="an artifact (.edge), instead of a pipeline.toml")
    parser.add_argument(
        "--source", help="a video, image or folder of images, 0, rtsp://…, - (stdin), synthetic:64x48?n=9"
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
        output.result(report, _report_text(report))
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


def with_stdin(config: PipelineConfig) -> tuple[PipelineConfig, list[int]]:
    """Return a pipeline whose worker reads this process's standard input, and the descriptors that it inherits."""
    if kind_of(config.source.uri) != "stdin" or "fd" in config.source.params:
        return config, []
    try:
        # The worker's own standard input carries commands.
        fd = os.dup(0)
    except OSError:
        raise SourceError("standard input is closed", hint="pipe frames into the command") from None
    return replace(config, source=replace(config.source, params={**config.source.params, "fd": fd})), [fd]


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


class Session:
    """One worker from start to report: signals, progress, restarts of live sources, what its death means."""

    def __init__(self, spec: dict[str, Any], output: Output, *, verbose: bool = False) -> None:
        self._output, self._spec = output, spec
        self._frames = spec.get("frames")
        # What was read from a pipe is gone: another worker would begin in the middle of a frame.
        self._may_restart = not spec.get("inherit")
        self._report: dict[str, Any] | None = None
        self._error: dict[str, Any] | None = None
        self._exit: Event | None = None
        self._live = self._was_ready = self._stopping = False
        self.interrupted = False
        self._ended = threading.Event()
        log = (lambda line: output.note(f"worker: {line}", "dim")) if verbose else None
        self._supervisor = Supervisor(spec, on_event=self._event, on_log=log, restart=self._restart)

    def run(self, reloader: Reloader | None = None) -> dict[str, Any]:
        """Run to the end and return the worker's report; empty when it was stopped before there was one.

        Raises:
            EdgeError: what the worker reported, or that it died.
        """
        handlers = {s: signal.signal(s, self._signal) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            self._supervisor.start()
            while not self._ended.wait(0.5):
                if not self._supervisor.alive or (self._stopping and self._supervisor.worker is None):
                    break
                if reloader is not None and self._was_ready and not self._stopping:
                    reloader.look(self._supervisor, self._spec)
        finally:
            self._supervisor.stop(_STOP_S)
            for number, handler in handlers.items():
                signal.signal(number, handler)
        if self._report is not None:
            return self._report
        if self._error is not None:
            raise error_from_json(self._error)
        if self._stopping:
            return {}
        raise self._death()

    def _signal(self, number: int, _frame: Any) -> None:
        if number == signal.SIGINT:
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True
        if not self._stopping:
            self._stopping = True
            threading.Thread(target=self._stop, daemon=True).start()

    def _stop(self) -> None:
        self._supervisor.stop(_STOP_S)
        self._ended.set()

    def _restart(self, ended: WorkerExit) -> bool:
        """Restart a live source's worker that died or whose source is gone, never one that did not come up once."""
        again = self._will_restart()
        if again:
            self._output.note(f"worker: {ended}: starting it again", "yellow")
            self._error = None
        return again

    def _event(self, event: Event) -> None:
        name = event["event"]
        if name == "ready":
            self._was_ready, self._live = True, bool(event.get("live")) and self._may_restart
            for what, url in event.get("addresses", ()):
                self._output.note(f"{what}: {url}", "bold")
        elif name == "stats":
            self._output.progress(_progress(event, self._frames))
        elif name == "progress":
            self._output.progress(event["text"])
        elif name == "note":
            self._output.note(event["text"], "yellow")
        elif name == "done":
            self._report = event["report"]
        elif name == "error":
            self._error = event["error"]
        elif name == "exit":
            self._exit = event
            if event["clean"] or not self._will_restart():
                self._ended.set()

    def _will_restart(self) -> bool:
        if self._report is not None:
            return False
        return self._was_ready and self._live and (self._error is None or self._error.get("kind") == "source")

    def _death(self) -> EdgeError:
        how = self._exit["exit"] if self._exit else "it could not be started"
        tail = list((self._exit or {}).get("log", ()))[-8:]
        text = f"the worker process died: {how}"
        if tail:
            text += "\nits last words:\n" + "\n".join(f"  {line}" for line in tail)
        hint = "the input or the model makes native code crash; this process is not affected"
        return WorkerError(text, hint=hint)


def _progress(stats: Event, frames: int | None) -> str:
    done = f"{stats['processed']}" + (f" of {frames}" if frames else "")
    latency = stats["latency_ms"]["p50"]
    dropped = sum(stats["dropped"].values())
    text = f"{done} frames" + (f", {latency:.1f} ms" if latency else "")
    return text + (f", {dropped} dropped" if dropped else "")


def warnings_of(report: dict[str, Any]) -> list[str]:
    lines = [f"warning: {w}" for w in report["warnings"]]
    broken, errors = report["broken"], {k: n for k, n in report["errors"].items() if k != "source"}
    if broken:
        n = report["frames"]["dropped"].get("broken", len(broken))
        shown = ", ".join(broken[:8]) + (" …" if n > 8 else "")
        lines.append(f"warning: {n} image{'s' if n > 1 else ''} could not be decoded: {shown}")
    if errors:
        lines.append("warning: failed: " + ", ".join(f"{n} {kind}" for kind, n in errors.items()))
    return lines


def _report_text(report: dict[str, Any]) -> str:
    frames, latency = report["frames"], report["latency_ms"]
    lines = [
        f"{frames['processed']} of {frames['in']} frames in {report['seconds']:.1f} s: {report['fps']:.1f} frames/s, "
        f"{report['cpu_ms_per_frame'] or 0:.1f} ms CPU a frame, latency p95 {latency['p95'] or 0:.1f} ms, "
        f"{report['rss_mb'] or 0:.0f} MB"
    ]
    if frames["dropped"]:
        lines.append("dropped: " + ", ".join(f"{n} {cause}" for cause, n in frames["dropped"].items()))
    if report["results"]:
        rows = [[label, r["frames"], r["count"], r["best"]] for label, r in list(report["results"].items())[:15]]
        lines += ["", table(rows, ["found", "frames", "count", "best score"])]
    else:
        lines.append("nothing found")
    lines += _control_text(report.get("control") or {})
    lines += [shadow_text(s["name"], s["shadow"]) for s in report["stages"] if "shadow" in s]
    if "explain" in report:
        lines += ["", *_explained(report["explain"])]
    written = [f"{redact(s['uri'])} ({s['written']})" for s in report["sinks"]]
    if written:
        lines += ["", "written: " + ", ".join(written)]
    return "\n".join(lines)


def _control_text(control: dict[str, Any]) -> list[str]:
    """Return a line for each override that held, and one about a device that was hot."""
    override, degrade = control.get("override") or {}, control.get("degrade") or {}
    active = override.get("active", ())
    lines = [
        f"override {name}: held for {seconds:.0f} s" + (", holds" if name in active else "")
        for name, seconds in override.get("seconds", {}).items()
        if seconds or name in active
    ]
    if degrade.get("worst"):
        why = f": {degrade['why']}" if degrade["why"] else ""
        lines.append(f"degraded to level {degrade['worst']}, now {degrade['level']}{why}")
    return lines + ([f"problem: {control['problem']}"] if "problem" in control else [])


def shadow_text(stage: str, shadow: dict[str, Any]) -> str:
    """Return one line about how a shadow's answers differ."""
    parts = []
    for compared in shadow["compared"]:
        agreement = compared["agreement"]
        same = f"agreement {agreement['mean']:.3f} in " if agreement["n"] else ""
        parts.append(f"{same}{compared['pairs']} pairs")
    parts += [f"{n} failed ({kind})" for kind, n in shadow["failed"].items()]
    parts += [f"{shadow['dropped']} dropped"] if shadow["dropped"] else []
    parts += [shadow["error"]] if shadow["error"] is not None else []
    return f"shadow of {stage}: " + (", ".join(parts) or "no pairs")


def _explained(decisions: list[dict[str, Any]]) -> list[str]:
    """Return the table of what the stages decided, or a line that says that there was nothing to decide."""
    if not decisions:
        return ["no stage decided anything then: zones, lines, alerts, second models and the motion gate do"]
    rows = [
        [f"{d['t_s']:.2f}", d["stage"], d["step"], d.get("track", ""), "yes" if d["accepted"] else "no", d["why"]]
        for d in decisions
    ]
    return [table(rows, ["t", "stage", "step", "track", "passed", "why"])]


def check_text(report: dict[str, Any]) -> str:
    source = report["source"]
    size = "x".join(str(v) for v in source["size"]) if source["size"] else "no frame"
    lines = [f"source  {source['uri']}: {size}{', live' if source['live'] else ''}"]
    for s in report["stages"]:
        what = f"{s['model'][:12]}, {s['selftests']} self-tests passed" if "model" in s else s["kind"]
        lines.append(f"stage   {s['name']}: {what}")
    lines += [f"sink    {uri}" for uri in report["sinks"]]
    lines += [f"record  {report['record']}"] if "record" in report else []
    states = {True: "active now", False: "not now", None: "now, when it is dark"}
    lines += [f"override {o['name']}: {o['when']}: {states[o['active']]}" for o in report.get("overrides", ())]
    return "\n".join([*lines, "ok"])
