"""What `edge convert` makes of the real models, against the same tools used directly: speed, accuracy, size, coverage.

`python -m bench.convert` writes bench/results/convert.json; it takes some minutes and needs `EDGE_TESTDATA`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.run import RESULTS, machine

PROFILES = ("x86-64-avx2", "raspberry-pi-5", "intel-nuc-vnni")
_TESTDATA = Path(os.environ.get("EDGE_TESTDATA", Path(__file__).resolve().parents[2] / "shared" / "testdata"))
_CLASSES = ["--color", "rgb", "--resize", "stretch", "--mean", "127.5", "--std", "127.5"]
CASES: Mapping[str, Sequence[str]] = {
    "yolox_nano_416.onnx": (),
    "nanodet_m_320.onnx": (),
    "fastestdet_352.onnx": (),
    "ultraface_rfb_320.onnx": ("images",),
    "yunet_n_320.onnx": ("images",),
    "deeplabv3_float_257.onnx": ("images", *_CLASSES),
    "headpose_fsanet_1x1.onnx": ("images",),
}
"""Model -> further flags; `images` first: judge by agreement on unlabelled images."""


def convert(model: str, extra: Sequence[str], out: Path) -> dict[str, Any]:
    """Convert one model for every profile in one run and return its figures, or the error it was refused with."""
    data = _TESTDATA / "datasets"
    flags = list(extra)
    golden = data / "coco128_train2017"
    if flags[:1] == ["images"]:
        golden = data / "coco128_train2017" / "images"
        flags = flags[1:]
    words = [
        sys.executable,
        "-m",
        "edge_sdk",
        "convert",
        str(_TESTDATA / "models" / model),
        "--json",
        "--out",
        str(out),
    ]
    words += ["--calibration", str(data / "imagenet_calib160"), "--golden", str(golden), *flags]
    words += [word for profile in PROFILES for word in ("--profile", profile)]
    start = time.monotonic()
    done = subprocess.run(words, capture_output=True, text=True, timeout=1800, check=False)
    row: dict[str, Any] = {"exit": done.returncode, "seconds": round(time.monotonic() - start, 1)}
    if not done.stdout:
        return row | {"crashed": done.stderr[-500:]}
    answer = json.loads(done.stdout)
    if "error" in answer:
        return row | {"refused": answer["error"]["kind"], "message": answer["error"]["message"]}
    return row | {"profiles": {a["profile"]: _figures(a) for a in answer["artifacts"]}}


def _figures(artifact: Mapping[str, Any]) -> dict[str, Any]:
    chosen = artifact["chosen"]
    metric = chosen["metric"]
    rows = {}
    for c in artifact["candidates"]:
        name = " ".join(filter(None, (c["runtime"], c["precision"], c.get("variant"))))
        latency = c.get("latency_ms")
        rows[name] = {
            "status": c["status"],
            "drop": c["metric"]["drop"] if c.get("metric") else None,
            "p50_ms": latency["p50"] if latency else None,
            "ratio": round(latency["p50"] / chosen["latency_ms"]["p50"], 3) if latency else None,
            "size_bytes": c.get("size_bytes"),
        }
    return {
        "chosen": f"{chosen['runtime']} {chosen['precision']}",
        "figures": chosen["latency_ms"]["kind"],
        "metric": {k: metric[k] for k in ("name", "source", "value", "drop", "n")},
        "candidates": rows,
    }


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.convert", description=__doc__)
    parser.add_argument("--model", action="append", choices=sorted(CASES), help="only this one; may be repeated")
    chosen = parser.parse_args(words).model or list(CASES)
    if not (_TESTDATA / "manifest.json").is_file():
        raise SystemExit(f"no test material at {_TESTDATA}: set EDGE_TESTDATA")
    models = {}
    with tempfile.TemporaryDirectory() as folder:
        for model in chosen:
            models[model] = convert(model, CASES[model], Path(folder))
            sys.stderr.write(f"{model}: {json.dumps(models[model])[:200]}\n")
            _write(models)
    return 0


def _write(models: Mapping[str, Any]) -> None:
    result = {
        "about": "edge convert of the ONNX models of the test material, CPU ms of one inference, interleaved",
        "command": "python -m bench.convert",
        "machine": machine(),
        "models": models,
    }
    (RESULTS / "convert.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
