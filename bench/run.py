"""Measure and write `bench/results/NAME.json`; the tables in the docs are made from those files.

A benchmark is a module of this folder with `cases() -> dict[str, Callable[[], float]]`: each call does the work once
and returns its CPU time in ms. The cases take turns, so that a slow minute of the machine meets all of them. A module
with `main(words)` measures and writes its results itself, as `rows` of dictionaries.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
_NO_BENCHMARK = {"__init__", "run", "convert_cases", "convert_tools", "demo_loops", "pipeline_loops"}


def measure(cases: Mapping[str, Callable[[], float]], *, rounds: int) -> dict[str, dict[str, float]]:
    """Run every case once a round in turn and return median, quartiles (ms of CPU) and the ratio to the first case.

    Cases named `GROUP: …` have the first of their group as reference.
    """
    for case in cases.values():
        case()
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            times[name].append(case())
    first: dict[str, str] = {}
    for name in cases:
        first.setdefault(_group(name), name)
    out = {}
    for name, values in times.items():
        base = times[first[_group(name)]]
        low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
        ratios = [value / reference for value, reference in zip(values, base, strict=True)]
        out[name] = {
            "cpu_ms": round(middle, 3),
            "low_ms": round(low, 3),
            "high_ms": round(high, 3),
            "ratio": round(statistics.median(ratios), 3),
        }
    return out


def _group(case: str) -> str:
    return case.partition(": ")[0] if ": " in case else ""


def cpu_ms(work: Callable[[], Any]) -> float:
    """Return the CPU time of this process and its finished children while `work` ran, in ms."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.process_time()
    work()
    own, after = time.process_time() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    children = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return (own + children) * 1000


def table(result: Mapping[str, Any]) -> str:
    """Return a result as a Markdown table that ends with a newline.

    Results with `rows` (dictionaries with equal keys) have a column for each key, those with `cases` the usual ones.
    """
    facts = result["machine"]
    where = f"{facts['cpu']}, Python {facts['python']}"
    if "rows" in result:
        head = list(result["rows"][0])
        lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
        lines += [f"| {' | '.join(_cell(row[key]) for key in head)} |" for row in result["rows"]]
        return "\n".join([*lines, "", f"{result['about']} ({where}).", ""])
    lines = ["| case | CPU ms (quartiles) | ratio |", "|---|---|---|"]
    for name, row in result["cases"].items():
        lines.append(f"| {name} | {row['cpu_ms']:g} ({row['low_ms']:g} to {row['high_ms']:g}) | {row['ratio']:.2f} |")
    return "\n".join([*lines, "", f"{result['about']} ({where}, median of {result['rounds']} alternating rounds).", ""])


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def machine() -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = lines[0].split(":", 1)[1].strip() if lines else cpu
    return {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "python": platform.python_version()}


def main() -> int:
    known = sorted(path.stem for path in HERE.glob("*.py") if path.stem not in _NO_BENCHMARK)
    parser = argparse.ArgumentParser(
        prog="python -m bench.run", description="measure and write bench/results/NAME.json"
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)} (default: all)")
    parser.add_argument("--rounds", type=int, help="rounds of each case (default: the benchmark's)")
    args, words = parser.parse_known_args()
    if words and len(args.names) != 1:
        parser.error(f"unknown arguments: {' '.join(words)} (a single benchmark may take its own)")
    RESULTS.mkdir(exist_ok=True)
    for name in args.names or known:
        if name not in known:
            parser.error(f"unknown benchmark `{name}`, known: {', '.join(known)}")
        module = importlib.import_module(f"bench.{name}")
        if hasattr(module, "main"):
            module.main(words)
            continue
        rounds = args.rounds or module.ROUNDS
        cases = measure(module.cases(), rounds=rounds)
        result = {"about": module.ABOUT, "rounds": rounds, "machine": machine(), "cases": cases}
        (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
        print(f"{name}\n{table(result)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
