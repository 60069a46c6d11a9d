"""Bridges that live in environments of their own: made if they are absent, then one conversion through each.

onnx2tf turns a real ONNX detector into LiteRT builds, litert-torch the PyTorch network of `examples/make_models.py`.
The environments (2.7 and 2.2 GB) are kept; making them is not part of a conversion's seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.convert_cases import words
from bench.run import RESULTS, machine, table

ROOT = Path(__file__).resolve().parents[1]
KEPT = Path.home() / ".cache" / "edge-sdk" / "bench" / "environments"
DETECTOR = "fastestdet_352.onnx"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.run environments")
    parser.add_argument("--environments", type=Path, default=KEPT, help=f"default: {KEPT}")
    args = parser.parse_args(arguments)
    os.environ["EDGE_ENVIRONMENTS"] = str(args.environments)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="edge-bench-") as name:
        folder = Path(name)
        rows += _through("onnx2tf", DETECTOR, words(DETECTOR), folder)
        subprocess.run([sys.executable, str(ROOT / "examples" / "make_models.py"), str(folder / "colors")], check=True)
        colors = ["nets:build", "--weights", "colors.pth", "--size", "64x64", "--color", "rgb", "--resize", "stretch"]
        colors += ["--mean", "0", "--std", "255", "--calibration", "photos/calibration", "--golden", "photos/golden"]
        rows += _through("litert-torch", "PyTorch, 3 classes", colors, folder / "colors")
    about = "Conversions to LiteRT for x86-64-avx512-vnni through isolated environments"
    result = {"about": about, "command": "python -m bench.run environments", "machine": machine(), "rows": rows}
    (RESULTS / "environments.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"environments\n{table(result)}")


def _through(environment: str, source: str, arguments: list[str], folder: Path) -> list[dict[str, Any]]:
    """Return a row for each LiteRT candidate of one conversion."""
    start = time.monotonic()
    subprocess.run([sys.executable, "-m", "converters.environments", environment], check=True, cwd=ROOT)
    made = time.monotonic() - start
    command = [sys.executable, "-m", "edge_sdk", "convert", *arguments, "--profile", "x86-64-avx512-vnni"]
    command += ["--runtime", "litert", "--make-environments", "--no-cache", "--json", "--out", str(folder / "out")]
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    seconds = time.monotonic() - start
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise SystemExit(f"{environment}: {answer['error']['message']}")
    return [
        {
            "environment": environment,
            "made in s": round(made),
            "source": source,
            "build": " ".join(filter(None, (row["precision"], row.get("variant")))),
            "status": row["status"],
            "drop": round(row["metric"]["drop"], 4) if row.get("metric") else None,
            "CPU ms": row["latency_ms"]["p50"] if row.get("latency_ms") else None,
            "MiB": round(row["size_bytes"] / 2**20, 2) if row.get("size_bytes") else None,
            "conversion s": round(seconds),
        }
        for row in answer["artifacts"][0]["candidates"]
        if row["runtime"] == "litert"
    ]
