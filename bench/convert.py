"""`edge convert` of every model of the test material for three profiles: converted, or refused with a stated reason.

Each conversion is a process of its own; what ends neither with an artifact nor with one of the errors of
docs/reference/errors.md counts as a crash.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.convert_cases import CASES, PROFILES, check_complete, words
from bench.run import RESULTS, machine, table

LIMIT_S = 1800
TARGET = RESULTS / "convert.json"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.run convert")
    parser.add_argument("--model", action="append", choices=sorted(CASES), help="this one again; may be repeated")
    parser.add_argument("--budget-s", type=float, default=120.0, help="of each conversion (default: 120)")
    args = parser.parse_args(arguments)
    check_complete()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="edge-bench-") as folder:
        for model in args.model or CASES:
            rows += _rows(model, Path(folder), args.budget_s)
            sys.stderr.write(f"{model}: {rows[-1]}\n")
    if args.model is not None and TARGET.is_file():
        kept = json.loads(TARGET.read_text())["rows"]
        rows = [new for old in kept for new in ([r for r in rows if _same(r, old)] or [old])]
    ended = [row["ended"] for row in rows]
    counts = {word: ended.count(word) for word in sorted(set(ended))}
    summary = ", ".join(f"{n} {word}" for word, n in counts.items())
    result = {
        "about": f"{len(CASES)} models for {len(PROFILES)} profiles: {summary}",
        "command": "python -m bench.run convert",
        "machine": machine(),
        "counts": counts,
        "rows": rows,
    }
    TARGET.write_text(json.dumps(result, indent=1) + "\n")
    print(f"convert\n{table(result)}")


def _same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return (a["model"], a["profile"]) == (b["model"], b["profile"])


def _rows(model: str, folder: Path, budget_s: float) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "edge_sdk", "convert", *words(model), "--json", "--budget-s", str(budget_s)]
    command += ["--out", str(folder), *(w for p in PROFILES for w in ("--profile", p))]
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    seconds = round(time.monotonic() - start)
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        return [_row(model, p, "crashed", done.stderr[-300:], seconds) for p in PROFILES]
    if "error" in answer:
        error = answer["error"]
        ended = "crashed" if error["exit"] == 1 else f"refused: {error['kind']}"
        return [_row(model, p, ended, error["message"].splitlines()[0], seconds) for p in PROFILES]
    made = {a["profile"]: a for a in answer["artifacts"]}
    return [_converted(model, p, made[p], seconds) for p in PROFILES]


def _row(model: str, profile: str, ended: str, chosen: str, seconds: int) -> dict[str, Any]:
    return {
        "model": model, "profile": profile, "ended": ended, "chosen or why not": chosen, "metric": None,
        "source": None, "drop": None, "int8 / fp32 bytes": None, "seconds": seconds,
    }  # fmt: skip


def _converted(model: str, profile: str, artifact: Mapping[str, Any], seconds: int) -> dict[str, Any]:
    chosen = artifact["chosen"]
    metric = chosen["metric"]
    sizes: dict[str, int] = {}
    for candidate in artifact["candidates"]:
        if candidate.get("size_bytes"):
            sizes.setdefault(f"{candidate['runtime']} {candidate['precision']}", candidate["size_bytes"])
    shares = [
        sizes[f"{runtime} int8"] / sizes[f"{runtime} fp32"]
        for runtime in ("onnxruntime", "openvino", "litert")
        if {f"{runtime} int8", f"{runtime} fp32"} <= set(sizes)
    ]
    name = " ".join(filter(None, (chosen["runtime"], chosen["precision"], chosen.get("variant"))))
    return _row(model, profile, "converted", name, seconds) | {
        "metric": metric["name"],
        "source": round(metric["source"], 4),
        "drop": round(metric["drop"], 4),
        "int8 / fp32 bytes": round(min(shares), 3) if shares else None,
    }
