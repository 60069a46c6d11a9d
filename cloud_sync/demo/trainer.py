"""The trainer as a command: `first` trains the demo's model, `retrain` is what the service's retraining calls.

`retrain` reads the request `{"run", "dir", …}` on stdin and leaves in `dir` one artifact per profile and
`metrics.json`, as every trainer of the service does.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cloud_sync.demo import bad, scenes, train
from cloud_sync.demo.scenes import DAYLIGHT, Light
from edge_sdk.artifact import Artifact

CALIBRATION_N, GOLDEN_N, METRIC_N = 80, 160, 600
JUDGED = "generic-cpu"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cloud_sync.demo.trainer")
    verbs = parser.add_subparsers(dest="verb", required=True)
    first = verbs.add_parser("first", help="train in daylight; leaves model.onnx, weights.pt and the data sets")
    first.add_argument("--out", type=Path, required=True)
    again = verbs.add_parser("retrain", help="go on from --base with frames in the camera's present light")
    again.add_argument("--base", type=Path, required=True)
    again.add_argument("--camera", required=True)
    again.add_argument("--profile", action="append", required=True, help="each with its --runtime")
    again.add_argument("--runtime", action="append", required=True)
    broken = verbs.add_parser("bad", help="make a model that fails in dim light out of --base")
    broken.add_argument("--base", type=Path, required=True)
    broken.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    report = {"first": _first, "retrain": _retrain, "bad": _bad}[args.verb](args)
    sys.stdout.write(json.dumps(report) + "\n")
    return 0


def convert_command(model: Path, data: Path, out: Path, profile: str, version: str, *more: str) -> list[str]:
    """Return the `edge convert` that makes an artifact of a model of ours."""
    command = [sys.executable, "-m", "edge_sdk", "convert", str(model), "--json", "--profile", profile, *more]
    command += ["--calibration", str(data / "calibration"), "--golden", str(data / "golden")]
    command += ["--labels", str(data / "labels.txt"), "--name", "digits", "--version", version, "--out", str(out)]
    command += ["--task", "classification", "--decoder", "softmax", "--resize", "stretch"]
    return [*command, "--color", "rgb", "--mean", "0", "--std", "255"]


def _first(args: argparse.Namespace) -> dict[str, Any]:
    args.out.mkdir(parents=True, exist_ok=True)
    trained = train.train(*scenes.DAY, on_epoch=_say)
    _save(trained.network, args.out)
    _data(args.out / "data", DAYLIGHT)
    dusk = train.judge(trained.network, scenes.DUSK)
    return {"accuracy": trained.accuracy, "n": len(trained.correct), "accuracy_after_change": sum(dusk) / len(dusk)}


def _retrain(args: argparse.Namespace) -> dict[str, Any]:
    request = json.load(sys.stdin)
    out = Path(request["dir"])
    light = _present_light(args.camera)
    trained = train.train(*scenes.DAY, light, light, start=_load(args.base), n=2400, epochs=4, seed=1, on_epoch=_say)
    work = out / "work"
    work.mkdir(parents=True, exist_ok=True)
    _save(trained.network, work)
    _data(work / "data", DAYLIGHT, light)
    version = f"{int(request['version'].split('.')[0]) + 1}.0.0"
    running = [
        subprocess.Popen(
            convert_command(work / "model.onnx", work / "data", out, profile, version, "--runtime", runtime),
            stdout=subprocess.DEVNULL,
        )
        for profile, runtime in zip(args.profile, args.runtime, strict=True)
    ]
    codes = [process.wait() for process in running]
    if any(codes):
        raise SystemExit("a conversion failed")
    before = _judge(Path(request["artifacts"][JUDGED]), light)
    after = _judge(next(out.glob(f"*-{JUDGED}.edge")), light)
    metrics = {
        "metric": "accuracy",
        "candidate": sum(after) / len(after),
        "production": sum(before) / len(before),
        "n": METRIC_N,
        "pairs": [[float(a), float(b)] for a, b in zip(after, before, strict=True)],
    }
    (out / "metrics.json").write_text(json.dumps(metrics))
    return {key: metrics[key] for key in ("metric", "candidate", "production", "n")}


def _judge(artifact: Path, light: Light) -> list[bool]:
    """Return for each of the labelled frames taken in `light` whether the artifact names the digit."""
    with Artifact.open(artifact).load() as model:
        labelled = scenes.samples("test", METRIC_N, 2, light)
        return [getattr(model(frame), "class_id", None) == digit for frame, digit in labelled]


def _bad(args: argparse.Namespace) -> dict[str, Any]:
    args.out.mkdir(parents=True, exist_ok=True)
    model = bad.exposure_corrected(_load(args.base))
    train.export(model, args.out / "model.onnx")
    _data(args.out / "data", DAYLIGHT)
    correct = train.judge(model, DAYLIGHT)
    return {"accuracy": sum(correct) / len(correct), "n": len(correct)}


def _present_light(camera: str) -> Light:
    """Ask the camera what light the labelled frames are to be taken in."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{camera}/light.json", timeout=10) as answer:
        return Light.from_json(json.load(answer))


def _data(folder: Path, *lights: Light) -> None:
    scenes.write_class_folders(folder / "calibration", "calibration", CALIBRATION_N, 7, *lights)
    scenes.write_class_folders(folder / "golden", "golden", GOLDEN_N, 8, *lights)
    (folder / "labels.txt").write_text("\n".join(scenes.LABELS) + "\n")


def _save(network: Any, folder: Path) -> None:
    import torch

    torch.save(network.state_dict(), folder / "weights.pt")
    train.export(network, folder / "model.onnx")


def _load(folder: Path) -> Any:
    import torch

    model = train.network()
    model.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
    return model.eval()


def _say(epoch: int, epochs: int) -> None:
    sys.stderr.write(f"epoch {epoch} of {epochs}\n")


if __name__ == "__main__":
    sys.exit(main())
