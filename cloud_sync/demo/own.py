"""`edge demo --model M.onnx --source VIDEO`: convert and run the user's own model on the user's own video."""

from __future__ import annotations

from pathlib import Path

from cloud_sync.demo.display import Display
from cloud_sync.demo.processes import Command, edge

STEPS = (("convert", "Convert the model for this machine"), ("run", "Run it on the source"))


def run(display: Display, root: Path, *, model: Path, source: str, extra: list[str]) -> list[str]:
    """Convert `model` for the probed machine, run it on `source`, and return lines that say where to look.

    `extra` are more options for `edge convert`, such as `--calibration DIR`.

    Raises:
        EdgeError: what the command that failed said.
    """
    logs = root / "logs"
    display.begin("convert")
    profile = root / "this-machine.toml"
    Command(edge("profile", "probe", "--out", profile), logs / "profile.log").result()
    words = ["convert", str(model), "--profile", str(profile), "--out", str(root / "artifacts"), *extra]
    artifact = Command(edge(*words), logs / "convert.log").result()["artifacts"][0]
    chosen = artifact["chosen"]
    display.end(f"{chosen['runtime']} {chosen['precision']}, {chosen['latency_ms']['p50']:.2f} ms", ok=True)

    display.begin("run")
    results, video = root / "results.jsonl", root / "annotated.mp4"
    words = ["run", "--model", artifact["path"], "--source", source, "--out", str(results), "--save", str(video)]
    report = Command(edge(*words), logs / "run.log").result()
    display.end(f"{report['frames']['processed']} frames, {report['fps']:.1f} frames/s", ok=True)
    return [
        f"artifact  {artifact['path']}  (edge inspect shows it)",
        f"results   {results}",
        f"video     {video}",
    ]
