"""`edge run A.toml B.toml`: several pipelines in one worker process, one report."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from edge_sdk.errors import EXIT_INTERRUPTED, EXIT_OK, ConfigError, UsageError
from edge_sdk.output import Output, table
from edge_sdk.parsing import write_dataclass
from edge_sdk.pipeline_config import PipelineConfig
from edge_sdk.sinks.uri import place
from edge_sdk.sources.uri import kind_of, redact
from edge_sdk.verbs.run_reload import File, Reloader
from edge_sdk.verbs.run_session import Session, with_stdin
from edge_sdk.verbs.run_text import check_text, warnings_of

_ALONE = (
    *("model", "source", "policy", "out", "save", "view", "serve", "host", "rate", "token_file"),
    *("batches", "score", "workers", "explain"),
)


def run(args: argparse.Namespace, output: Output) -> int:
    """Run the pipelines of `args.pipelines` side by side; the exit code is that of the first one that failed."""
    given = [name for name in _ALONE if getattr(args, name) is not None]
    given += ["sink"] if args.sink else []
    if given:
        flag = given[0].replace("_", "-")
        raise UsageError(f"--{flag} goes with one pipeline", hint="write it into the pipeline.toml of the camera")
    cameras: list[dict[str, Any]] = []
    inherit: list[int] = []
    files: list[File] = []
    for path, (name, config) in zip(args.pipelines, read(args.pipelines).items(), strict=True):
        with_input, fds = with_stdin(config)
        files.append(File(path, partial(PipelineConfig.from_toml, path), with_input.source, name))
        camera: dict[str, Any] = {"name": name, "pipeline": with_input.to_json()}
        if config.serve is not None:
            camera["serve"] = write_dataclass(config.serve)
        cameras.append(camera)
        inherit += fds
    mode = "check" if args.check else "group"
    spec = {"mode": mode, "cameras": cameras, "frames": args.frames, "inherit": inherit}
    session = Session(spec, output, verbose=getattr(args, "verbose", 0) > 0)
    if args.check:
        report = session.run()
    else:
        with Reloader(files, output, watch=args.watch) as reloader:
            report = session.run(reloader)
    if not report:
        return EXIT_INTERRUPTED if session.interrupted else EXIT_OK
    if args.check:
        output.result(report, "\n".join(f"{name}\n{check_text(row)}" for name, row in report["cameras"].items()))
        return EXIT_OK
    for name, row in report["cameras"].items():
        for line in warnings_of(row) if "frames" in row else []:
            output.note(f"{name}: {line}", "yellow")
        if "error" in row:
            output.note(f"{name}: {row['error']['message']}", "red")
    output.result(report, text(report))
    if session.interrupted:
        return EXIT_INTERRUPTED
    return int(report["error"]["exit"]) if "error" in report else EXIT_OK


def read(paths: list[Path]) -> dict[str, PipelineConfig]:
    """Read pipelines by the name of their file without its ending, with its folder where two have the same name.

    Raises:
        ConfigError: a file is wrong, or two of them want the same sink or standard input.
        UsageError: a file is no pipeline.toml, or is given twice.
    """
    for path in paths:
        if path.suffix != ".toml":
            raise UsageError(f"`{path}` is no pipeline.toml", hint="several pipelines are given as files")
    if len({path.resolve() for path in paths}) < len(paths):
        raise UsageError("a pipeline.toml is given twice", hint="each camera has a file of its own")
    stems = [path.stem for path in paths]
    names = [
        stem if stems.count(stem) == 1 else str(path.with_suffix("")) for stem, path in zip(stems, paths, strict=True)
    ]
    configs = {name: PipelineConfig.from_toml(path) for name, path in zip(names, paths, strict=True)}
    taken: dict[str, str] = {}
    for name, config in configs.items():
        places = [(place(sink.uri), f"writes to `{redact(sink.uri)}`") for sink in config.sinks]
        if kind_of(config.source.uri) == "stdin":
            places.append(("stdin", "reads standard input"))
        for where, what in places:
            if where in taken and where != "0":
                raise ConfigError(f"{name}: {what}, as {taken[where]} does", hint="give each camera one of its own")
            taken[where] = name
    return configs


def text(report: dict[str, Any]) -> str:
    """Return the report for people."""
    rows: list[list[Any]] = []
    for name, row in report["cameras"].items():
        if "frames" not in row:
            rows.append([name, 0, 0, 0.0, None, "failed"])
            continue
        dropped, age = sum(row["frames"]["dropped"].values()), row["frame_age_ms"]["p95"]
        found = "failed" if "error" in row else ", ".join(list(row["results"])[:3]) or "nothing"
        age = None if age is None else round(age, 1)
        rows.append([name, row["frames"]["processed"], dropped, round(row["fps"], 1), age, found])
    totals = report["totals"]
    lines = [
        table(rows, ["camera", "frames", "dropped", "frames/s", "age p95 ms", "found"]),
        "",
        f"together {totals['frames']['processed']} frames in {totals['seconds']:.1f} s: {totals['fps']:.1f} frames/s, "
        f"{totals['cpu_ms_per_frame'] or 0:.1f} ms CPU a frame, {totals['rss_mb'] or 0:.0f} MB",
    ]
    for model in report["models"]:
        if model["pipelines"] > 1:
            how = "one engine for" if model["shared"] else "an engine for each of"
            why = f": {model['why']}" if model["why"] else ""
            lines.append(f"model {model['model'][:12]} ({model['runtime']}): {how} {model['pipelines']} cameras{why}")
    return "\n".join(lines)
