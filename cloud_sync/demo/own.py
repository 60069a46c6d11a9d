"""`edge demo --model M.onnx --source VIDEO`: convert and run the user's own model on the user's own video."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import cv2

from cloud_sync.demo.display import Display
from cloud_sync.demo.processes import answer, edge
from edge_sdk.errors import EdgeError, SourceError
from edge_sdk.sources import create
from edge_sdk.sources.base import BrokenFrame

STEPS = (
    ("frames", "Take frames to verify builds on"),
    ("convert", "Convert the model for this machine"),
    ("run", "Run it on the source"),
)
FRAMES, STRIDE = 24, 15


def run(display: Display, root: Path, *, model: Path, source: str, extra: list[str]) -> list[str]:
    """Convert `model` for the probed machine, run it on `source`, and return lines that say where to look.

    `extra` are more options for `edge convert`, such as `--calibration DIR`; without `--golden` the builds are judged
    by their agreement with the model on frames of the source.

    Raises:
        EdgeError: what the command that failed said.
    """
    logs = root / "logs"
    display.begin("frames")
    if "--golden" in extra:
        display.end("the labelled images that were given", ok=True)
    else:
        command = [sys.executable, "-m", "cloud_sync.demo.own", source, str(root / "frames")]
        taken = answer(command, logs / "frames.log")["frames"]
        extra = [*extra, "--golden", str(root / "frames")]
        display.end(f"{taken} frames of the source, without labels", ok=True)

    display.begin("convert")
    profile = root / "this-machine.toml"
    answer(edge("profile", "probe", "--out", profile), logs / "profile.log")
    words = ["convert", str(model), "--profile", str(profile), "--out", str(root / "artifacts"), *extra]
    artifact = answer(edge(*words), logs / "convert.log")["artifacts"][0]
    chosen = artifact["chosen"]
    display.end(f"{chosen['runtime']} {chosen['precision']}, {chosen['latency_ms']['p50']:.2f} ms", ok=True)

    display.begin("run")
    results, video = root / "results.jsonl", root / "annotated.mp4"
    words = ["run", "--model", artifact["path"], "--source", source, "--out", str(results), "--save", str(video)]
    report = answer(edge(*words), logs / "run.log")
    display.end(f"{report['frames']['processed']} frames, {report['fps']:.1f} frames/s", ok=True)
    return [
        f"artifact  {artifact['path']}  (edge inspect shows it)",
        f"results   {results}",
        f"video     {video}",
    ]


def take_frames(source: str, folder: Path) -> int:
    """Write every 15th frame of `source`, 24 at most, into `folder` and return how many.

    Raises:
        SourceError: the source cannot be opened, or has no frame.
    """
    folder.mkdir(parents=True, exist_ok=True)
    frames = create(source)
    frames.open()
    count = 0
    try:
        index = 0
        while count < FRAMES and frames.grab():
            index += 1
            if index % STRIDE == 1:
                with contextlib.suppress(BrokenFrame):
                    cv2.imwrite(str(folder / f"{count:03d}.png"), frames.retrieve().image)
                    count += 1
    finally:
        frames.close()
    if count == 0:
        raise SourceError(f"`{source}` has no frames", hint="check that it plays")
    return count


def main() -> int:
    """Take frames in a process of its own: a hostile video may end it, not the demo."""
    try:
        sys.stdout.write(json.dumps({"frames": take_frames(sys.argv[1], Path(sys.argv[2]))}))
        return 0
    except EdgeError as error:
        sys.stdout.write(json.dumps({"error": error.to_json()}))
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
